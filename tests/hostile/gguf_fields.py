"""Every field of a small GGUF's header at the edges of its type, and the file cut off anywhere."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .. import gguf_builder as g
from ..gguf_builder import CODES
from .case import EITHER, REFUSED, RUNS, USAGE, Case, patched
from .small import PIECES, small, small_bytes


@dataclass(frozen=True)
class Field:
    """Bytes ``start .. end`` of the header: ``name`` says which, ``kind`` is the struct code of a
    number, "s" for the bytes of a string."""

    name: str
    kind: str
    start: int
    end: int


def fields(data: bytes) -> list[Field]:
    """All fields of a GGUF's header, by an own walk through it."""
    found: list[Field] = []
    at = 4

    def number(name: str, kind: str) -> Any:
        nonlocal at
        size = struct.calcsize("<" + kind)
        found.append(Field(name, kind, at, at + size))
        value = struct.unpack_from("<" + kind, data, at)[0]
        at += size
        return value

    def text(name: str) -> str:
        nonlocal at
        size = number(f"{name} length", "Q")
        found.append(Field(f"{name} text", "s", at, at + size))
        at += size
        return data[at - size : at].decode()

    def value(name: str, kind: int) -> None:
        if kind == g.STRING:
            text(name)
        elif kind == g.ARRAY:
            inner, length = number(f"{name} element type", "I"), number(f"{name} count", "Q")
            for i in range(length):
                value(f"{name}[{i}]", inner)
        else:
            number(name, CODES[kind])

    number("version", "I")
    n_tensors, n_keys = number("tensor count", "Q"), number("key count", "Q")
    for _ in range(n_keys):
        start = len(found)
        key = text("key")
        found[start:] = [Field(f"{key} key{f.name[3:]}", f.kind, f.start, f.end)
                         for f in found[start:]]  # fmt: skip
        value(key, number(f"{key} type", "I"))
    for _ in range(n_tensors):
        start = len(found)
        name = text("tensor")
        found[start:] = [Field(f"{name} name{f.name[6:]}", f.kind, f.start, f.end)
                         for f in found[start:]]  # fmt: skip
        for i in range(number(f"{name} n_dims", "I")):
            number(f"{name} dim {i}", "Q")
        number(f"{name} format", "I")
        number(f"{name} offset", "Q")
    return found


def edges(kind: str, value: Any) -> list[Any]:
    """Values at the edges of a type, without ``value`` itself."""
    if kind in "fd":
        return [math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e-45, 3.4e38, -3.4e38]
    bits = 8 * struct.calcsize("<" + kind)
    if kind.islower():
        found = {0, 1, -1, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), value + 1, value - 1}
    else:
        found = {0, 1, 2**bits - 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), value + 1, value - 1, 255}
        found |= {2**63 + value, 2**32 + value} if bits == 64 else {2**31 + value}
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if kind.islower() else (0, 2**bits)
    return sorted(x for x in found if low <= x < high and x != value)


def _mutations() -> Iterator[Case]:
    base = small_bytes()
    for field in fields(base):
        if field.kind == "s":
            continue
        value = struct.unpack_from("<" + field.kind, base, field.start)[0]
        for edge in edges(field.kind, value):
            new = struct.pack("<" + field.kind, edge)
            expect, inspect = _expected(field, value, edge)
            make = patched(base, field.start, field.end, new)
            yield Case("fields", f"{field.name} = {edge}", expect, make, inspect)


def _texts() -> Iterator[Case]:
    """The bytes of each string replaced by others of the same length."""
    base = small_bytes()
    for field in fields(base):
        if field.kind != "s":
            continue
        n = field.end - field.start
        for what, raw in (
            ("NUL", bytes(n)),
            ("no UTF-8", b"\xff" * n),
            ("escapes", (b"\x1b[2J" * n)[:n]),
            ("half a character", b"z" * (n - 1) + b"\xc3"),
            ("other letters", b"q" * n),
            ("spaces", b" " * n),
        ):
            expect, inspect = _expected_text(field, what)
            make = patched(base, field.start, field.end, raw)
            yield Case("texts", f"{field.name}: {what}", expect, make, inspect)


# Keys whose default is what the small model has, or nothing.
_DISPENSABLE = (
    "general.name", "token_id", "add_bos_token", "key_length", "dimension_count", "freq_base",
    "scores", "token_type",
)  # fmt: skip
_STRUCTURE = re.compile(r".*( count|length|n_dims| offset|element type| dim \d)")


def _expected(field: Field, value: Any, edge: Any) -> tuple[str, str]:
    """(generate, inspect) for a number of the header."""
    name = field.name
    if name == "version":
        return (RUNS, RUNS) if edge == 2 else (REFUSED, REFUSED)
    key, _, part = name.partition(" ")
    if part == "type" and edge == 5 and value == 4:
        return RUNS, RUNS  # another integer of 32 bits
    if part in ("element type", "type") and key.endswith(("scores", "token_type")):
        # Of as many bytes: the header stays whole, and whole numbers are scores too.
        same = part == "element type" and edge in (4, 5, 6)
        runs = same and key.endswith("scores") and edge == 5
        return RUNS if runs else REFUSED, RUNS if same else ""
    if not part:
        return _expected_value(key, edge)
    if part == "format" and edge == 1:
        # F16 needs less room than F32: other numbers, finite ones or not, and a gap behind them.
        return (RUNS if "norm" in name else EITHER), RUNS
    fewer = edge < value and edge > 0 and (part.startswith("dim ") or name == "tensor count")
    if fewer or (name == "tensor count" and edge == 0):
        return REFUSED, RUNS
    return REFUSED, REFUSED if _STRUCTURE.fullmatch(name) else ""


def _expected_value(key: str, edge: Any) -> tuple[str, str]:
    """The same for the value of a key, or an element of its array."""
    runs = False
    if key == "llama.context_length":
        if edge == 1:
            return USAGE, RUNS  # shorter than the prompt
        runs = 2 <= edge <= 1 << 28
    elif ".scores[" in key:
        runs = not math.isnan(edge)
    elif ".token_type[" in key:
        runs = 1 <= edge <= 5
    elif key.endswith("token_id"):
        runs = edge < len(PIECES) or edge == 2**32 - 1
    elif key.endswith("add_bos_token"):
        return (RUNS, RUNS) if edge in (0, 1) else (REFUSED, REFUSED)
    return RUNS if runs else REFUSED, RUNS


def _expected_text(field: Field, what: str) -> tuple[str, str]:
    """(generate, inspect) for the bytes of a string."""
    broken = what in ("no UTF-8", "half a character")
    key, _, part = field.name.partition(" ")
    if key.startswith("tokenizer.ggml.tokens["):
        return RUNS, RUNS  # any bytes are a token
    if broken:
        return REFUSED, REFUSED
    if part == "text":
        return RUNS if key == "general.name" else REFUSED, RUNS
    return RUNS if key.endswith(_DISPENSABLE) else REFUSED, RUNS


def _truncations() -> Iterator[Case]:
    """The file cut off at each byte of its header, and around each tensor's beginning."""
    base = small_bytes()
    header = len(small().header())
    cuts = set(range(header + 33))
    data = header + -header % 32
    for field in fields(base):
        if field.name.endswith(" offset"):
            start = data + struct.unpack_from("<Q", base, field.start)[0]
            cuts |= {start - 1, start, start + 1}
    for cut in sorted(cuts | {len(base) - 1}):
        make = patched(base, cut, len(base), b"")
        yield Case("truncated", f"at byte {cut} of {len(base)}", REFUSED, make, REFUSED)


def cases() -> Iterator[Case]:
    """All files of these families."""
    yield from _truncations()
    yield from _mutations()
    yield from _texts()
