"""Conversations as templates get them: plain data, sized, and in the shapes templates know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edge_rt.errors import UsageError

_MAX_DEPTH: Final = 100
# Names under which reasoning is passed; templates read the first, gpt-oss's the second.
_REASONING: Final = ("reasoning_content", "thinking", "reasoning")


class PlainData:
    """Copies values into new dicts, lists and tuples, and counts what a template may work with.

    ``n_values`` counts dicts, lists, keys, strings and numbers, ``n_bytes`` their text. Objects
    with methods of their own never reach a template: its sandbox knows only these types.
    """

    def __init__(self) -> None:
        self.n_values = self.n_bytes = 0

    def copy(self, value: Any, what: str, depth: int = 0) -> Any:
        """``value`` as plain data; raises `UsageError`, naming ``what``, for anything else."""
        self.n_values += 1
        if depth > _MAX_DEPTH:
            raise UsageError(f"{what} is nested more than {_MAX_DEPTH} deep")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            self.n_bytes += len(value) if value.isascii() else 4 * len(value)
            return str.__str__(value)
        if isinstance(value, int):
            return int.__int__(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, Mapping):
            return {
                self.copy(key, what, depth + 1): self.copy(item, what, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return (
                type(value)(self.copy(item, what, depth + 1) for item in value)
                if (type(value) in (list, tuple))
                else [self.copy(item, what, depth + 1) for item in value]
            )
        raise UsageError(
            f"{what} holds a {type(value).__name__}: templates take dicts, lists, strings, "
            "numbers, true, false and none"
        )


def checked(messages: object, data: PlainData) -> list[dict[str, Any]]:
    """A plain copy of ``messages``; raises `UsageError` unless each is a dict with a role."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise UsageError("messages must be a list of dicts with a role and a content")
    found = []
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UsageError(f"message {place} must be a dict with a role that is a string")
        copy = data.copy(message, f"message {place}")
        _check_parts(copy.get("content"), place)
        reasoning = next((copy[k] for k in _REASONING if copy.get(k) is not None), None)
        if reasoning is not None:
            copy = {"thinking": reasoning, **copy, "reasoning_content": reasoning}
        found.append(copy)
    return found


def _check_parts(content: Any, place: int) -> None:
    if not isinstance(content, list):
        return
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise UsageError(
                f"message {place} has a part of type {str(kind)[:40]!r}: this runtime takes text "
                'only, as {"type": "text", "text": "..."}'
            )


def has_parts(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the content of any message is a list of parts."""
    return any(isinstance(message.get("content"), list) for message in messages)


def text_of(content: Any) -> Any:
    """The parts of a content joined by newlines; anything but a list as it is."""
    if not isinstance(content, list):
        return content
    return "\n".join(part["text"] for part in content)


def flattened(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with texts where they have parts."""
    return [
        {**message, "content": text_of(message["content"])} if "content" in message else
        {**message}
        for message in messages
    ]  # fmt: skip


def without_system_role(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The first message, if it is the system's, put before the text of the user who follows.

    None where there is nothing to move.
    """
    if not messages or messages[0]["role"] not in ("system", "developer"):
        return None
    system, rest = text_of(messages[0].get("content")), [dict(m) for m in messages[1:]]
    if not isinstance(system, str):
        return None
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": system}, *rest]
    content = rest[0].get("content")
    if isinstance(content, list):
        rest[0]["content"] = [{"type": "text", "text": system}, *content]
    elif isinstance(content, str):
        rest[0]["content"] = f"{system}\n\n{content}"
    else:
        return None
    return rest
