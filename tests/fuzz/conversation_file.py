"""A file of a conversation: loaded, saved and loaded again it is the same.

The input is the file.
"""

from __future__ import annotations

import json
import random

from edge_rt import conversation
from tests.chat_templates import CONVERSATIONS
from tests.fuzz.harness import bounded, require, scratch_folder
from tests.fuzz.mutate import mutate_json_text

_FOLDER = scratch_folder()
_PATH, _SAVED = _FOLDER / "conversation.json", _FOLDER / "saved.json"
_WORDS = ["messages", "role", "content", "user", "system", "assistant", "tool", "name", ""]


def seeds() -> list[bytes]:
    found = [
        {"messages": [{"role": m["role"], "content": m["content"]} for m in messages]}
        for messages in CONVERSATIONS.values()
    ]
    return [json.dumps(one, ensure_ascii=i % 2 == 0).encode() for i, one in enumerate(found)]


def mutate(data: bytes, rng: random.Random) -> bytes:
    return mutate_json_text(data, rng, _WORDS)


def run(data: bytes) -> None:
    _PATH.write_bytes(data)
    with bounded():
        messages = conversation.load(_PATH)
        for message in messages:
            require(set(message) == {"role", "content"}, f"{message}")
            message["content"].encode()
        _SAVED.unlink(missing_ok=True)
        conversation.save(_SAVED, messages)
        require(conversation.load(_SAVED) == messages, "saved and loaded again it differs")
