"""Chat templates in the style of what models carry, in our own words, and conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "data/chat_templates"
TEMPLATES = {path.stem: path.read_text() for path in sorted(_FOLDER.glob("*.jinja"))}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather "now" <at> a place: 20 °C\nor less',
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "A town, such as Zürich 🏔"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                    "unit": {"type": ["string", "null"], "enum": ["C", "F"]},
                    "exact": {"type": "object", "properties": {"x": {"type": "number"}}},
                },
                "required": ["place"],
            },
        },
    }
]
_FUNCTION = {"name": "weather", "arguments": {"place": "Bärn", "days": [1, 2]}}
_CALL = {"type": "function", "id": "abcdefghi", "function": _FUNCTION}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "  Hi there, 'you' & \"me\" <x> 😀 "}],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>\neasy\n</think>\n\n2"},
        {"role": "user", "content": "2+2?"},
    ],
    "long": [
        {"role": ("user", "assistant")[i % 2], "content": f"message {i} " * i} for i in range(11)
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL], "thinking": "I ask."},
        {"role": "tool", "content": '{"celsius": 20.5}', "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "Warm.", "reasoning": "20 is warm."},
        {"role": "user", "content": "Thanks"},
    ],
}
