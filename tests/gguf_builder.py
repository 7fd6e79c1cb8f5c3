"""A minimal GGUF writer for tests, able to write wrong values on purpose.

`GGUFBuilder` puts whatever it is told into the file: counts, types, offsets and raw bytes can
all be overridden, so hostile files are a line each.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {
    U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B",
    U64: "Q", I64: "q", F64: "d",
}  # fmt: skip


def string(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: Any) -> bytes:
    """The bytes of one value, without its type."""
    return string(value) if kind == STRING else struct.pack("<" + CODES[kind], value)


@dataclass
class Array:
    """An array value; ``length`` and ``raw`` override what ``values`` would give."""

    kind: int
    values: list[Any] = field(default_factory=list)
    length: int | None = None
    raw: bytes | None = None

    def pack(self) -> bytes:
        length = len(self.values) if self.length is None else self.length
        body = self.raw
        if body is None:
            body = b"".join(scalar(self.kind, value) for value in self.values)
        return struct.pack("<IQ", self.kind, length) + body


@dataclass
class Tensor:
    """A tensor entry; ``dims`` in ggml's order (columns first), ``offset`` None = the next."""

    name: str | bytes
    dims: tuple[int, ...]
    ggml_id: int = 0
    data: bytes = b""
    offset: int | None = None
    n_dims: int | None = None


@dataclass
class GGUFBuilder:
    """Keys are (name, type, value); ``data`` is what follows the header when it is not None."""

    version: int = 3
    magic: bytes = b"GGUF"
    keys: list[tuple[str | bytes, int, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    alignment: int = 32
    n_keys: int | None = None
    n_tensors: int | None = None

    def add(self, key: str | bytes, kind: int, value: Any) -> GGUFBuilder:
        """Add a key; ``value`` may be raw bytes for a type that is no string."""
        self.keys.append((key, kind, value))
        return self

    def tensor(self, *args: Any, **kwargs: Any) -> GGUFBuilder:
        self.tensors.append(Tensor(*args, **kwargs))
        return self

    def header(self) -> bytes:
        """Everything before the padding and the data."""
        parts = [
            self.magic,
            struct.pack(
                "<IQQ",
                self.version,
                len(self.tensors) if self.n_tensors is None else self.n_tensors,
                len(self.keys) if self.n_keys is None else self.n_keys,
            ),
        ]
        for key, kind, value in self.keys:
            parts += [string(key), struct.pack("<I", kind)]
            if isinstance(value, Array):
                parts.append(value.pack())
            elif isinstance(value, bytes) and kind != STRING:
                parts.append(value)
            else:
                parts.append(scalar(kind, value))
        offset = 0
        for t in self.tensors:
            parts += [
                string(t.name),
                struct.pack("<I", len(t.dims) if t.n_dims is None else t.n_dims),
                struct.pack(f"<{len(t.dims)}Q", *t.dims),
                struct.pack("<IQ", t.ggml_id, offset if t.offset is None else t.offset),
            ]
            offset += -(-len(t.data) // self.alignment) * self.alignment
        return b"".join(parts)

    def pack(self) -> bytes:
        """The whole file."""
        out = bytearray(self.header())
        for t in self.tensors:
            out += bytes(-len(out) % self.alignment)
            out += t.data
        return bytes(out)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.pack())
        return path


def spm_vocabulary(pieces: list[tuple[str | bytes, float, int]], **keys: Any) -> GGUFBuilder:
    """A vocabulary-only SentencePiece file; ``pieces`` are (text, score, type)."""
    builder = GGUFBuilder().add("tokenizer.ggml.model", STRING, "llama")
    builder.add("tokenizer.ggml.tokens", ARRAY, Array(STRING, [p[0] for p in pieces]))
    builder.add("tokenizer.ggml.scores", ARRAY, Array(F32, [p[1] for p in pieces]))
    builder.add("tokenizer.ggml.token_type", ARRAY, Array(I32, [p[2] for p in pieces]))
    for key, value in keys.items():
        kind = BOOL if isinstance(value, bool) else U32
        builder.add(f"tokenizer.ggml.{key}", kind, value)
    return builder


def bpe_vocabulary(
    pieces: list[str], merges: list[str], types: list[int] | None = None, pre: str = "smollm"
) -> GGUFBuilder:
    """A vocabulary-only byte-level BPE file."""
    builder = GGUFBuilder().add("tokenizer.ggml.model", STRING, "gpt2")
    builder.add("tokenizer.ggml.pre", STRING, pre)
    builder.add("tokenizer.ggml.tokens", ARRAY, Array(STRING, list(pieces)))
    builder.add("tokenizer.ggml.token_type", ARRAY, Array(I32, types or [1] * len(pieces)))
    builder.add("tokenizer.ggml.merges", ARRAY, Array(STRING, list(merges)))
    return builder
