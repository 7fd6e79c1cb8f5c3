"""Chat templates as models carry them, rendered in a bounded sandbox of Jinja.

A template comes with the model file and is hostile until proven otherwise: it can reach nothing
but its arguments, change nothing, and its size, its steps and what it makes are bounded. For
templates that mean well the text is that of transformers' ``apply_chat_template``.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from edge_rt.chat.messages import (
    PlainData,
    checked,
    flattened,
    has_parts,
    without_system_role,
)
from edge_rt.errors import EdgeRTError, ModelError, UsageError
from edge_rt.sizes import KIB

MAX_SOURCE_BYTES: Final = 256 * KIB  # the longest known template has about 20 KiB


RESERVED: Final = ("messages", "tools", "add_generation_prompt")  # no names for template_args


class ChatTemplate:
    """A compiled template; `render` turns a conversation into the prompt's text.

    ``special_tokens``: further texts of tokens by their names, such as ``unk_token``. Raises
    `ModelError` when ``source`` is too long or not a template.
    """

    def __init__(
        self, source: str, bos_token: str = "", eos_token: str = "", **special_tokens: str
    ) -> None:
        if len(source) > MAX_SOURCE_BYTES or len(source.encode(errors="replace")) > (
            MAX_SOURCE_BYTES
        ):
            raise ModelError(f"the chat template has more than {MAX_SOURCE_BYTES} bytes")
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token, **special_tokens}
        # Imported here: a process that never chats does not pay for Jinja.
        from edge_rt.chat.sandbox import RaisedByTemplate, Sandbox

        self._refusal = RaisedByTemplate
        self._environment = Sandbox()
        self._takes_parts: bool | None = None
        self._lock = threading.Lock()
        failure: str | None = None
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # Jinja's own, and Python's for a body that does not compile
            failure = _reason(error)
        if failure is not None:  # raised out here: the error's frames hold what it made
            raise ModelError(f"the chat template is broken: {failure}")

    def render(
        self,
        /,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **template_args: Any,
    ) -> str:
        """The prompt for ``messages``, ready to be encoded with ``special=True``.

        ``tools``: JSON schemas of functions. ``template_args``: the template's own variables, such
        as ``enable_thinking`` or ``documents``. Everything must be JSON-like data. Contents made of
        text parts become one text where the template knows only texts, and where it refuses a
        system message, that is put before the first user's text.

        Raises `UsageError` when the messages are malformed or the template refuses them, and
        `ModelError` when the template itself fails or wants too much.
        """
        data = PlainData()
        plain = checked(messages, data)
        arguments = {
            "documents": None,
            **self._tokens,
            **{name: data.copy(v, f"the argument {name}") for name, v in template_args.items()},
            "tools": data.copy(tools, "tools"),
            "add_generation_prompt": add_generation_prompt,
        }
        if has_parts(plain) and not self._knows_parts():
            plain = flattened(plain)
        size = data.n_values, data.n_bytes
        text, refusal = self._run(plain, arguments, size)
        if refusal is not None and (folded := without_system_role(plain)) is not None:
            text, second = self._run(folded, arguments, size)
            if second is None:
                refusal = None
        if refusal is not None:
            raise UsageError(f"the chat template refuses these messages: {refusal}")
        return text

    def _run(
        self, messages: Sequence[Any], arguments: Mapping[str, Any], size: tuple[int, int]
    ) -> tuple[str, str | None]:
        """(text, None), or ("", what the template says with ``raise_exception``)."""
        with self._lock:  # its meter counts for one rendering at a time
            return self._run_alone(messages, arguments, size)

    def _run_alone(
        self, messages: Sequence[Any], arguments: Mapping[str, Any], size: tuple[int, int]
    ) -> tuple[str, str | None]:
        meter = self._environment.meter
        meter.start(*size)
        parts: list[str] = []
        failure: str | None = None
        try:
            for part in self._template.generate({**arguments, "messages": messages}):
                meter.make(len(part) if part.isascii() else 4 * len(part))
                parts.append(part)
            return self._environment.concat(parts), None
        except self._refusal as error:
            return "", str(error)[:400]
        except Exception as error:  # whatever a template can make Python raise
            failure = _reason(error)
        raise ModelError(f"the chat template failed: {failure}")

    def _knows_parts(self) -> bool:
        """Whether a text and a list with that text as its only part give the same prompt."""
        if self._takes_parts is None:
            text = "a text of 1 part"
            arguments = {**self._tokens, "tools": None, "add_generation_prompt": False}
            prompts = []
            for content in (text, [{"type": "text", "text": text}]):
                try:
                    messages = [{"role": "user", "content": content}]
                    prompts.append(self._run(messages, arguments, (20, 100)))
                except EdgeRTError:
                    prompts.append(("", "failed"))
            self._takes_parts = prompts[1] == prompts[0] and prompts[1][1] is None
        return self._takes_parts


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error)[:200].split())}"
