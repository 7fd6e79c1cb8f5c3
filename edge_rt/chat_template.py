"""Chat templates as models carry them, rendered in Jinja's sandbox.

A template comes with the model file and is hostile until proven otherwise: it can reach nothing
but its arguments, change nothing, and its size, its ranges and its output are bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edge_rt.errors import EdgeRTError, ModelError, UsageError
from edge_rt.sizes import MIB

MAX_SOURCE_BYTES: Final = 1 * MIB  # the longest known template has about 20 KiB
MAX_OUTPUT_CHARACTERS: Final = 16 * MIB


class ChatTemplate:
    """A compiled template; `render` turns a conversation into the prompt's text.

    Raises `ModelError` when ``source`` is too long or not a template.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        if len(source) > MAX_SOURCE_BYTES or len(source.encode(errors="replace")) > (
            MAX_SOURCE_BYTES
        ):
            raise ModelError(f"the chat template has more than {MAX_SOURCE_BYTES} bytes")
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        # Imported here: a process that never chats does not pay for Jinja.
        from edge_rt.chat_sandbox import RaisedByTemplate, Sandbox

        self._refusal = RaisedByTemplate
        self._environment = Sandbox()
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # Jinja's own, and Python's for a body that does not compile
            raise ModelError(f"the chat template is broken: {_reason(error)}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for ``messages``, ready to be encoded with ``special=True``.

        Raises `UsageError` when the messages are malformed or the template refuses them, and
        `ModelError` when the template itself fails or wants too much.
        """
        _check(messages)
        parts: list[str] = []
        length = 0
        self._environment.start()
        try:
            for part in self._template.generate(
                {
                    **self._tokens,
                    **kwargs,
                    "messages": messages,
                    "tools": tools,
                    "add_generation_prompt": add_generation_prompt,
                }
            ):
                length += len(part)
                if length > MAX_OUTPUT_CHARACTERS:
                    raise ModelError(
                        f"the chat template writes more than {MAX_OUTPUT_CHARACTERS} characters"
                    )
                parts.append(part)
        except self._refusal as error:
            raise UsageError(f"the chat template refuses these messages: {error}") from None
        except EdgeRTError:
            raise
        except Exception as error:  # whatever a template can make Python raise
            raise ModelError(f"the chat template failed: {_reason(error)}") from None
        return "".join(parts)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def _check(messages: object) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise UsageError("messages must be a list of dicts with a role and a content")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UsageError(f"message {place} must be a dict with a role that is a string")
