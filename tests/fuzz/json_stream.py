"""The JSON reader against Python's ``json``: what one takes the other takes, with equal values.

The input is the document; its length says how it is cut into chunks.
"""

from __future__ import annotations

import json
import math
import random
import re
from typing import Any

from edge_rt.errors import EdgeRTError, ModelError
from edge_rt.flash_io.files import open_file
from edge_rt.loaders import gguf_cursor
from edge_rt.loaders.gguf_cursor import Cursor
from edge_rt.loaders.json_stream import JsonStream
from tests.fuzz.harness import bounded, require, scratch_folder
from tests.fuzz.mutate import mutate_json_text

_PATH = scratch_folder() / "document.json"
_WORDS = [
    "a",
    "b",
    "\\",
    "\\u00e9",
    "é",
    "😀",
    "\\ud83d",
    "\\ude00",
    "1e5",
    "-0.0",
    "1E+2",
    '{"a":1}',
]
_MAX_DEPTH = 64
_DEEP, _OTHER = "deep", "other"


def seeds() -> list[bytes]:
    return [
        b'{"a": 1, "b": [true, false, null], "c": {"d": "e\\u00e9\\n", "f": -1.5e-3}}',
        b'[{"x": {"y": {"z": []}}}, {}, [], "", 0, -0, 1e10, "\\ud83d\\ude00"]',
        b' \t\r\n"text" ', b"123456789012345678901234567890.5", b"NaN", b"-Infinity",
        b'{"a": "b", "a": "c"}', b'{"vocab": {"a": 0, "b\\"": 1}, "merges": ["a b", ["a", "b"]]}',
        b"[" * 70 + b"]" * 70, b'{"a":' * 20 + b"1" + b"}" * 20, b'["a" , "b"]', b"{}", b"",
    ]  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    return mutate_json_text(data, rng, _WORDS)


def _expected(text: bytes) -> Any:
    """(value,) of Python's ``json`` within our rules, or why there is none."""
    try:
        value = json.loads(text.decode())
    except RecursionError:
        return _DEEP
    except ValueError:
        return _OTHER
    pending, deepest = [(value, 0)], 0
    while pending:
        one, depth = pending.pop()
        deepest = max(deepest, depth)
        inner: list[Any] = []
        if isinstance(one, dict):
            inner = [*one, *one.values()]
        elif isinstance(one, list):
            inner = one
        elif isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError:
                return _OTHER
        pending += [(part, depth + 1) for part in inner]
    return _DEEP if deepest > _MAX_DEPTH else (value,)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, float) and isinstance(two, float):
        return (one == two and math.copysign(1, one) == math.copysign(1, two)) or (
            one != one and two != two
        )
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return list(one) == list(two) and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(_same, one, two))
    return bool(one == two)


def _walked(stream: JsonStream, depth: int = 0) -> Any:
    """The value, taken apart with members() and items() as far as they go."""
    byte = stream.peek()
    if depth <= _MAX_DEPTH and byte == b"{":
        return {key: _walked(stream, depth + 1) for key in stream.members()}
    if depth <= _MAX_DEPTH and byte == b"[":
        return [_walked(stream, depth + 1) for _ in stream.items()]
    return stream.string() if byte == b'"' else stream.value()


def _read(n_bytes: int, how: str) -> Any:
    file = open_file(_PATH)
    stream = JsonStream(Cursor(file, 0, n_bytes))
    try:
        if how == "skip":
            stream.skip()
            result: Any = None
        else:
            result = stream.value() if how == "value" else _walked(stream)
        stream.end()
    except ModelError as error:
        return str(error)
    return (result,)


def run(data: bytes) -> None:
    _PATH.write_bytes(data)
    expected = _expected(data)
    long = re.search(rb"[-+.0-9eE]{60}", data) is not None  # no numeral is that long for us
    gguf_cursor.CHUNK_BYTES = (1 << 18, 1, 7, 64)[len(data) % 4]  # type: ignore[misc]
    page, gguf_cursor.PAGE = gguf_cursor.PAGE, 1
    try:
        with bounded():
            for how in ("value", "walk", "skip"):
                found = _read(len(data), how)
                if isinstance(found, str):
                    require(expected in (_DEEP, _OTHER) or long, f"{how} refuses it: {found}")
                    continue
                require(expected != _OTHER, f"{how} takes what json refuses")
                if how != "skip" and isinstance(expected, tuple):
                    require(
                        _same(found[0], expected[0]), f"{how}: {found[0]!r}, not {expected[0]!r}"
                    )
    finally:
        gguf_cursor.CHUNK_BYTES, gguf_cursor.PAGE = 1 << 18, page  # type: ignore[misc]
    for use in (_numbers, _pairs):
        with bounded():
            try:
                use(len(data))
            except EdgeRTError:
                continue


def _numbers(n_bytes: int) -> None:
    stream = JsonStream(Cursor(open_file(_PATH), 0, n_bytes))
    for raw, number in stream.numbers():
        stream.text(raw).encode()
        require(0 <= number < 10**10, f"{number}")
    stream.end()


def _pairs(n_bytes: int) -> None:
    stream = JsonStream(Cursor(open_file(_PATH), 0, n_bytes))
    for one, two in stream.pairs():
        stream.text(one).encode()
        if two is not None:
            stream.text(two).encode()
    stream.end()
