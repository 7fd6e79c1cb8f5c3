"""What a user's program says: messages, tools and template arguments as any JSON, and ``KEY=JSON``
arguments of the command line.

The input is the text of all of them.
"""

from __future__ import annotations

import json
import random
from typing import Any

from edge_rt.apps.options import parse_template_args
from edge_rt.chat.messages import PlainData, checked, flattened, has_parts, without_system_role
from edge_rt.chat.template import RESERVED, ChatTemplate
from tests.chat_templates import CONVERSATIONS, TEMPLATES, TOOLS
from tests.fuzz.harness import bounded, require, text_of
from tests.fuzz.mutate import mutate_json_text

_WORDS = [
    "messages", "role", "content", "user", "system", "assistant", "tool", "developer", "type",
    "text", "image", "tool_calls", "function", "name", "arguments", "thinking", "reasoning",
    "reasoning_content", "tool_call_id", "self", "tools", "add_generation_prompt", "documents",
    "bos_token", "enable_thinking", "__class__", "",
]  # fmt: skip
_TEMPLATES = [ChatTemplate(source, "<s>", "</s>") for source in TEMPLATES.values()]


def seeds() -> list[bytes]:
    found: list[Any] = [*CONVERSATIONS.values()]
    found += [{"messages": messages} for messages in CONVERSATIONS.values()]
    found += [{"messages": [{"role": "user", "content": "hi"}]}, {"tools": TOOLS, "documents": []}]
    found.append([{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}])
    return [json.dumps(one, ensure_ascii=i % 2 == 0).encode() for i, one in enumerate(found)]


def mutate(data: bytes, rng: random.Random) -> bytes:
    return mutate_json_text(data, rng, _WORDS)


def run(data: bytes) -> None:
    with bounded():
        parse_template_args([f"name={text_of(data)}", text_of(data)])
    try:
        value = json.loads(text_of(data))
    except (ValueError, RecursionError):
        return
    given = value.get("messages", value) if isinstance(value, dict) else value
    with bounded():
        plain = checked(given, PlainData())
        if has_parts(plain):
            require(not has_parts(flattened(plain)), "parts in flattened messages")
        for one in (plain, flattened(plain)):
            folded = without_system_role(one)
            require(folded is None or len(folded) <= len(one), "more messages than before")
    arguments = value if isinstance(value, dict) else {"documents": value}
    for template in _TEMPLATES:
        with bounded():
            template.render(given, True)
        with bounded():
            template.render([{"role": "user", "content": "hi"}], **_allowed(arguments))


def _allowed(arguments: dict[str, Any]) -> dict[str, Any]:
    """As `Engine.chat` takes them."""
    return {name: value for name, value in arguments.items() if name not in RESERVED}
