"""Mutations that keep an input's outer shape: of bytes, text, JSON and GGUF headers."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from typing import Any

EDGES = [
    0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 127, 128, 255, 256, 1000, 4095, 4096, 65535, 65536,
    (1 << 22) - 1, 1 << 22, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 53,
    (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 10**30,
    -1, -2, -128, -(1 << 31), -(1 << 63),
]  # fmt: skip
FLOATS = [
    0.0, -0.0, 0.5, 1.0, -1.0, 1e-5, 1e-30, 1e-45, 5e-324, 1e30, 3.4e38, 1e300, 1e308,
    float("inf"), float("-inf"), float("nan"), 10000.0, 1e6,
]  # fmt: skip
LETTERS = [
    "", " ", "  ", "\n", "\t", "\r\n", "\0", "a", "A", "e", "0", "9", "<", ">", "|", "_", "▁",
    "Ġ", "Ċ", "é", "e\u0301", "ß", "ſ", "İ", "ı", "中", "ก", "ไ", "한", "ㄱ", "😀", "👨‍👩‍👧",
    "\u200b", "\u200d", "\ufeff", "\ufffd", "\u2028", "\u00a0", "\u0085",
    "\u3000", "\x1b[31m", "\x7f",
    "\ud800", "\udfff", "\U0010ffff", "\U000e0001", "\x80", "ÿ", "<0x41>",
    "<0x-1>", "<s>", "</s>",
    "'", '"', "\\", "\\u0000", "{", "}", "[", "]", "{{", "}}", "{%", "%}",
    "'s", "'LL", "123", "…",
]  # fmt: skip


def some_text(rng: random.Random, words: Sequence[str] = ()) -> str:
    """A short text of odd characters and of ``words``."""
    pool = LETTERS if not words or rng.random() < 0.5 else words
    return "".join(rng.choice(pool) for _ in range(rng.choice((0, 1, 1, 2, 3, 5, 12))))


def some_integer(rng: random.Random) -> int:
    value = rng.choice(EDGES)
    return value + rng.choice((0, 0, 0, -1, 1)) if rng.random() < 0.7 else rng.randrange(-300, 300)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change, insert, drop, copy or repeat some bytes."""
    raw = bytearray(data)
    at = rng.randrange(len(raw) + 1)
    match rng.randrange(7):
        case 0 if raw:
            raw[at % len(raw)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        case 1 if raw:
            raw[at % len(raw)] ^= 1 << rng.randrange(8)
        case 2:
            raw[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8)))
        case 3:
            del raw[at : at + rng.choice((1, 2, 4, 8, 64))]
        case 4:
            start = rng.randrange(len(raw) + 1)
            raw[at:at] = raw[start : start + rng.choice((1, 4, 16, 64))]
        case 5:
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice(EDGES) & ((1 << 8 * size) - 1)
            raw[at : at + size] = value.to_bytes(size, "little")
        case _:
            del raw[at:]
    return bytes(raw)


def mutate_text(text: str, rng: random.Random, words: Sequence[str] = ()) -> str:
    """Insert, replace, drop, copy or repeat parts of a text; ``words``: what to insert."""
    at = rng.randrange(len(text) + 1)
    end = min(len(text), at + rng.choice((0, 0, 1, 1, 2, 4, 16, 60)))
    match rng.randrange(6):
        case 0 | 1:
            return text[:at] + some_text(rng, words) + text[end:]
        case 2:
            return text[:at] + text[end:]
        case 3:
            return text[:at] + text[at:end] * rng.choice((2, 3, 10, 100)) + text[end:]
        case 4:
            start = rng.randrange(len(text) + 1)
            return text[:at] + text[start : start + rng.choice((4, 16, 60))] + text[at:]
        case _:
            return text[:at] + rng.choice(words or LETTERS) + text[at:]


def mutate_json(value: Any, rng: random.Random, words: Sequence[str] = (), depth: int = 0) -> Any:
    """Change one place of a JSON value. ``words``: keys and strings that mean something."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        if isinstance(value, dict):
            key = rng.choice(list(value))
            return value | {key: mutate_json(value[key], rng, words, depth + 1)}
        place = rng.randrange(len(value))
        changed = mutate_json(value[place], rng, words, depth + 1)
        return [*value[:place], changed, *value[place + 1 :]]
    if isinstance(value, dict) and rng.random() < 0.8:
        items = list(value.items())
        match rng.randrange(4):
            case 0 if items:
                items.pop(rng.randrange(len(items)))
            case 1:
                items.append((_some_key(rng, words), some_json(rng, words)))
            case 2 if items:
                place = rng.randrange(len(items))
                items[place] = (_some_key(rng, words), items[place][1])
            case _:
                rng.shuffle(items)
        return dict(items)
    if isinstance(value, list) and rng.random() < 0.8:
        place = rng.randrange(len(value) + 1)
        match rng.randrange(4):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return [*value[:place], some_json(rng, words), *value[place:]]
            case 2 if value:
                return value[:place] + value[:1] * rng.choice((1, 2, 30)) + value[place:]
            case _:
                return value[::-1]
    if isinstance(value, str) and rng.random() < 0.7:
        return mutate_text(value, rng, words)
    if isinstance(value, bool) and rng.random() < 0.7:
        return not value
    if isinstance(value, int) and rng.random() < 0.7:
        return some_integer(rng)
    if isinstance(value, float) and rng.random() < 0.7:
        return rng.choice(FLOATS)
    return [value] if rng.random() < 0.1 else some_json(rng, words)


def _some_key(rng: random.Random, words: Sequence[str]) -> str:
    return rng.choice(words) if words and rng.random() < 0.8 else some_text(rng, words)


def some_json(rng: random.Random, words: Sequence[str] = (), depth: int = 0) -> Any:
    """A small JSON value."""
    match rng.randrange(9 if depth < 3 else 7):
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2:
            return some_integer(rng)
        case 3:
            return rng.choice(FLOATS)
        case 4 | 5 | 6:
            return _some_key(rng, words)
        case 7:
            return [some_json(rng, words, depth + 1) for _ in range(rng.choice((0, 1, 2, 4)))]
    n = rng.choice((0, 1, 2, 4))
    return {_some_key(rng, words): some_json(rng, words, depth + 1) for _ in range(n)}


def mutate_json_text(data: bytes, rng: random.Random, words: Sequence[str] = ()) -> bytes:
    """The same for the text of a JSON document; what is none is mutated as text or bytes."""
    if rng.random() < 0.75:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if value is not None:
            changed = mutate_json(value, rng, words)
            return json.dumps(changed, ensure_ascii=rng.random() < 0.3).encode(
                errors="surrogatepass"
            )
    if rng.random() < 0.7:
        text = data.decode(errors="replace")
        return mutate_text(text, rng, [*words, *_JSON_BITS]).encode(errors="surrogatepass")
    return mutate_bytes(data, rng)


_JSON_BITS = [
    "{", "}", "[", "]", ",", ":", '"', "\\", "\\u", "\\ud83d\\ude00",
    "\\ud800", "\\u0000", "\\n",
    "null", "true", "false", "NaN", "-Infinity", "1e400", "-0", "1.5", "01", "[[[[", "]]]]",
    '{"a":', " ", "\ufeff", "\0", "/*x*/", "'",
]  # fmt: skip


# -- GGUF -----------------------------------------------------------------------------------------

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_CODES = {6: "<f", 12: "<d"}


class Gguf:
    """A GGUF header in pieces that can be changed one by one and written again as they are.

    ``keys``: [name, type, value]; a value is bytes, or [element type, length, elements] of an
    array. ``tensors``: [name, dims, format, offset]. ``rest``: the padding and the data.
    """

    def __init__(self, data: bytes) -> None:
        self.magic, self.version, n_tensors, n_keys = struct.unpack_from("<4sIQQ", data)
        self.extra_keys = self.extra_tensors = 0  # what the counts say too much
        self.keys: list[list[Any]] = []
        self.tensors: list[list[Any]] = []
        self._data, self._at = data, 24
        for _ in range(min(n_keys, 4096)):
            name, kind = self._string(), self._number("<I")
            if kind == _ARRAY:
                element, length = self._number("<I"), self._number("<Q")
                if length > 1 << 16:
                    raise ValueError("a long array")
                value: Any = [element, length, [self._value(element) for _ in range(length)]]
            else:
                value = self._value(kind)
            self.keys.append([name, kind, value])
        for _ in range(min(n_tensors, 4096)):
            name, n_dims = self._string(), self._number("<I")
            if n_dims > 8:
                raise ValueError("many dimensions")
            dims = [self._number("<Q") for _ in range(n_dims)]
            self.tensors.append([name, dims, self._number("<I"), self._number("<Q")])
        self.header_bytes = self._at
        self.rest = data[self._at :]

    def _take(self, n: int) -> bytes:
        part = self._data[self._at : self._at + n]
        if len(part) != n:
            raise ValueError("truncated")
        self._at += n
        return part

    def _number(self, code: str) -> int:
        return int(struct.unpack(code, self._take(struct.calcsize(code)))[0])

    def _string(self) -> bytes:
        return self._take(self._number("<Q"))

    def _value(self, kind: int) -> bytes:
        if kind == _STRING:
            return self._string()
        if kind not in _SIZES:
            raise ValueError("an unknown type")
        return self._take(_SIZES[kind])

    def pack(self) -> bytes:
        """The file again; the data keep their place relative to the end of the header if they
        can."""

        def string(raw: bytes) -> bytes:
            return struct.pack("<Q", len(raw)) + raw

        out = [
            struct.pack(
                "<4sIQQ", self.magic, self.version & 0xFFFFFFFF,
                (len(self.tensors) + self.extra_tensors) % (1 << 64),
                (len(self.keys) + self.extra_keys) % (1 << 64),
            )
        ]  # fmt: skip
        for name, kind, value in self.keys:
            out += [string(name), struct.pack("<I", kind & 0xFFFFFFFF)]
            if isinstance(value, list):
                element, length, items = value
                out.append(struct.pack("<IQ", element & 0xFFFFFFFF, length % (1 << 64)))
                out += [string(item) if element == _STRING else item for item in items]
            else:
                out.append(string(value) if kind == _STRING else value)
        for name, dims, format_, offset in self.tensors:
            out += [string(name), struct.pack("<I", len(dims))]
            out += [struct.pack("<Q", dim % (1 << 64)) for dim in dims]
            out.append(struct.pack("<IQ", format_ & 0xFFFFFFFF, offset % (1 << 64)))
        header = b"".join(out)
        # The padding in front of the data changes with the header's length.
        padding, wanted = -self.header_bytes % 32, -len(header) % 32
        return header + bytes(wanted) + self.rest[padding:]


def mutate_gguf(data: bytes, rng: random.Random, words: Sequence[str] = ()) -> bytes:
    """Change one place of a GGUF file, mostly of its header; ``words``: keys and strings."""
    if rng.random() < 0.12:
        return mutate_bytes(data, rng)
    try:
        file = Gguf(data)
    except (ValueError, struct.error, OverflowError, MemoryError):
        return mutate_bytes(data, rng)
    choice = rng.random()
    if choice < 0.55 and file.keys:
        _mutate_key(file, rng, words)
    elif choice < 0.9 and file.tensors:
        _mutate_tensor(file, rng, words)
    elif choice < 0.94:
        file.rest = mutate_bytes(file.rest, rng)
    else:
        match rng.randrange(4):
            case 0:
                file.version = rng.choice((0, 1, 2, 3, 4, 0x02000000, 0xFFFFFFFF))
            case 1:
                file.extra_keys = some_integer(rng)
            case 2:
                file.extra_tensors = some_integer(rng)
            case _:
                file.magic = rng.choice((b"GGUF", b"FUGG", b"GGML", bytes(4)))
    return file.pack()


def _scalar(kind: int, rng: random.Random) -> bytes:
    if kind in _CODES:
        value = rng.choice(FLOATS)
        if kind == 6 and abs(value) > 3.4e38:
            value = float("inf")
        return struct.pack(_CODES[kind], value)
    size = _SIZES.get(kind, 4)
    return (some_integer(rng) % (1 << 8 * size)).to_bytes(size, "little")


def _word(rng: random.Random, words: Sequence[str]) -> bytes:
    text = rng.choice(words) if words and rng.random() < 0.7 else some_text(rng, words)
    return text.encode(errors="surrogatepass")


def _mutate_key(file: Gguf, rng: random.Random, words: Sequence[str]) -> None:
    place = rng.randrange(len(file.keys))
    name, kind, value = file.keys[place]
    match rng.randrange(10):
        case 0:
            file.keys.pop(place)
        case 1:
            file.keys.append([_word(rng, words) if rng.random() < 0.7 else name, kind, value])
        case 2:
            kind = rng.choice((*_SIZES, _STRING, 13, 255))
            new = _word(rng, words) if kind == _STRING else _scalar(kind, rng)
            file.keys[place] = [name, kind, new]
        case 3:
            element = rng.choice((*_SIZES, _STRING))
            n = rng.choice((0, 1, 2, 4, 64))
            items = [
                _word(rng, words) if element == _STRING else _scalar(element, rng) for _ in range(n)
            ]
            file.keys[place] = [name, _ARRAY, [element, n, items]]
        case 4:
            file.keys[place][0] = mutate_text(name.decode(errors="replace"), rng, words).encode(
                errors="surrogatepass"
            )
        case _:
            file.keys[place][2] = _mutate_value(kind, value, rng, words)


def _mutate_value(kind: int, value: Any, rng: random.Random, words: Sequence[str]) -> Any:
    if isinstance(value, list):
        element, length, items = value
        items = list(items)
        at = rng.randrange(len(items) + 1)
        new = _word(rng, words) if element == _STRING else _scalar(element, rng)
        match rng.randrange(7):
            case 0:
                return [element, some_integer(rng), items]
            case 1:
                return [rng.choice((*_SIZES, _STRING, _ARRAY, 99)), length, items]
            case 2:
                items[at:at] = [new]
            case 3 if items:
                items.pop(at % len(items))
            case 4 if items:
                items[at % len(items)] = rng.choice(items)
            case 5 if items and element == _STRING:
                items[at % len(items)] = mutate_bytes(items[at % len(items)], rng)
            case _ if items:
                items[at % len(items)] = new
        return [element, len(items), items]
    if kind == _STRING:
        if rng.random() < 0.2:
            return mutate_bytes(value, rng)
        if rng.random() < 0.4:
            return _word(rng, words)
        text = mutate_text(value.decode(errors="replace"), rng, words)
        return text.encode(errors="surrogatepass")
    return _scalar(kind, rng)


def _mutate_tensor(file: Gguf, rng: random.Random, words: Sequence[str]) -> None:
    place = rng.randrange(len(file.tensors))
    tensor = file.tensors[place]
    other = rng.choice(file.tensors)
    match rng.randrange(9):
        case 0:
            file.tensors.pop(place)
        case 1:
            file.tensors.append([_word(rng, words), *other[1:]])
        case 2:
            tensor[0] = _word(rng, words) if rng.random() < 0.5 else other[0]
        case 3:
            tensor[2] = rng.choice((*range(42), 255, 1 << 31))
        case 4:
            tensor[3] = some_integer(rng)
        case 5:
            tensor[3] = other[3] + rng.choice((-32, -8, 0, 8, 32))
        case 6 if tensor[1]:
            tensor[1] = tensor[1][::-1]
        case 7 if tensor[1]:
            tensor[1] = [*tensor[1][:-1], rng.choice((0, 1, 31, 32, 64, *EDGES))]
        case _:
            dims = list(tensor[1])
            at = rng.randrange(len(dims) + 1)
            if rng.random() < 0.5 and dims:
                dims[at % len(dims)] = some_integer(rng)
            elif rng.random() < 0.5:
                dims[at:at] = [rng.choice((1, 2, 32))]
            elif dims:
                dims.pop(at % len(dims))
            tensor[1] = dims
