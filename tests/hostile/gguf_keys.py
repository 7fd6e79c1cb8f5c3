"""Keys of a GGUF with whole values of other types, at the edges, missing, repeated or too many."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

from .. import gguf_builder as g
from ..gguf_builder import CODES, Array, GGUFBuilder
from .case import REFUSED, RUNS, Case, Make, file_of
from .small import HEAD_DIM, HIDDEN, KEYS, byte_pairs, replace_key, small

INTEGERS = (g.U8, g.I8, g.U16, g.I16, g.U32, g.I32, g.U64, g.I64)
NAMES = {
    g.U8: "u8", g.I8: "i8", g.U16: "u16", g.I16: "i16", g.U32: "u32", g.I32: "i32", g.F32: "f32",
    g.BOOL: "bool", g.STRING: "string", g.ARRAY: "array", g.U64: "u64", g.I64: "i64", g.F64: "f64",
}  # fmt: skip
# What generate never asks the small model's metadata for.
UNUSED = ("general.file_type", "general.quantization_version", "llama.vocab_size", "some.other.key")
_COMMON = (g.U32, g.I32, g.U64, g.F32, g.STRING, g.ARRAY, g.BOOL)  # others: a third of the values
_SIZES = {
    "block_count": 1, "embedding_length": HIDDEN, "feed_forward_length": 16,
    "attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": HEAD_DIM,
    "attention.value_length": HEAD_DIM, "rope.dimension_count": HEAD_DIM,
}  # fmt: skip
_POSITIVE = (
    "llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon", "llama.rope.scale_linear",
    "llama.rope.scaling.attn_factor",
)  # fmt: skip


def limits(kind: int) -> list[Any]:
    """The edges of a type and some values between."""
    if kind in (g.F32, g.F64):
        found = [math.nan, math.inf, 0.0, -1.0, 1e-45, 1e-29, 1e4, 3.4e38]
        return found + ([1e308, 5e-324] if kind == g.F64 else [])
    if kind == g.BOOL:
        return [0, 1]
    if kind == g.STRING:
        return ["", "8", "\x00", "x" * 70000, b"\xff", "\x1b[2J\u202e"]
    if kind == g.ARRAY:
        return [Array(g.U32, []), Array(g.U32, [8]), Array(g.STRING, ["8"]), Array(g.F32, [8.0])]
    bits = 8 * struct.calcsize(CODES[kind])
    if CODES[kind].islower():
        return [-(2 ** (bits - 1)), -1, 0, 8, 2 ** (bits - 1) - 1]
    return [0, 1, 2, 4, 8, 16, 2**bits - 1]


def with_key(key: str, kind: int, value: Any) -> Make:
    """The small model with one key of another value; packed when it is written."""
    return lambda folder: small(**{key: (kind, value)}).write(folder / "m.gguf")


def short(value: Any) -> str:
    if isinstance(value, Array):
        return f"{value.values} of {NAMES[value.kind]}"
    return repr(value) if len(repr(value)) < 40 else f"{repr(value)[:30]}… of {len(value)}"


def _all_types() -> Iterator[Case]:
    keys = {
        **{f"llama.{key}": same for key, same in _SIZES.items()},
        **dict.fromkeys(_POSITIVE),
        "general.architecture": None, "general.name": None, "general.alignment": None,
        "tokenizer.ggml.model": None, "tokenizer.ggml.add_bos_token": None,
        "tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.padding_token_id": None,
        "tokenizer.chat_template": None, UNUSED[0]: None,
    }  # fmt: skip
    for key, same in keys.items():
        for kind in NAMES:
            for value in limits(kind)[:: 1 if kind in _COMMON else 3]:
                runs = _runs(key, same, kind, value)
                shown = RUNS if value != b"\xff" else REFUSED
                if key == "general.alignment" and not runs:
                    shown = ""
                if shown == REFUSED:
                    runs = False
                name = f"{key} = {NAMES[kind]} {short(value)}"
                make = with_key(key, kind, value)
                yield Case("keys", name, RUNS if runs else REFUSED, make, shown)


def _runs(key: str, same: int | None, kind: int, value: Any) -> bool:
    """Whether the small model runs with this value."""
    whole = kind in INTEGERS
    if same is not None:
        if key.endswith("dimension_count"):
            return whole and value in (2, 4)
        return whole and value == same
    if key in _POSITIVE:
        if kind not in (g.F32, g.F64):
            return False
        return 1e-30 < as_stored(kind, value) < 1e30
    if key == "general.name":
        return kind == g.STRING
    if key == "general.alignment":
        return whole and value in (8, 16)
    if key == "tokenizer.ggml.add_bos_token":
        return kind == g.BOOL
    if key == "tokenizer.ggml.bos_token_id":
        return whole and (-1 <= value < 8 or value == 2**32 - 1)
    # The padding token and the template are for a chat.
    return key in (UNUSED[0], "tokenizer.ggml.padding_token_id", "tokenizer.chat_template")


def as_stored(kind: int, value: float) -> float:
    stored: float = struct.unpack(f"<{CODES[kind]}", struct.pack(f"<{CODES[kind]}", value))[0]
    return stored


def _alignments() -> Iterator[Case]:
    """The file is laid out for 32; ``general.alignment`` says something else."""
    for alignment in (0, 1, 3, 7, 8, 16, 31, 32, 33, 48, 64, 4096, 2**20, 2**20 + 1, 2**21, 2**31,
                      2**31 + 32, 2**32 - 1):  # fmt: skip
        builder = small(**{"general.alignment": (g.U32, alignment)})
        data = builder.pack()
        good = 8 <= alignment <= 2**20 and not alignment & (alignment - 1)
        offset = 0
        for tensor in builder.tensors:
            good = good and offset % alignment == 0
            offset += -(-len(tensor.data) // 32) * 32
        if good:
            header = len(builder.header())
            start = -(-header // alignment) * alignment
            good = start + offset - 32 + len(builder.tensors[-1].data) <= len(data)
        name = f"laid out for 32, said to be {alignment}"
        yield Case("alignment", name, RUNS if good else REFUSED, file_of(data))
    for alignment in (8, 64, 4096, 2**20):

        def make(folder: Any, a: int = alignment) -> Any:
            builder = small(**{"general.alignment": (g.U32, a)})
            builder.alignment = a
            return builder.write(folder / "m.gguf")

        yield Case("alignment", f"laid out for {alignment}", RUNS, make)


def _missing_and_repeated() -> Iterator[Case]:
    for key, (kind, value) in KEYS.items():
        dispensable = key.endswith((
            "general.name", "token_id", "add_bos_token", "key_length", "dimension_count",
            "freq_base", "scores", "token_type",
        ))  # fmt: skip
        data = small(**{key: None}).pack()
        expect = RUNS if dispensable else REFUSED
        yield Case("keys", f"without {key}", expect, file_of(data), RUNS)
        data = small().add(key, kind, value).pack()
        yield Case("keys", f"{key} twice", REFUSED, file_of(data), REFUSED)
    for n, expect in ((1000, RUNS), (30000, RUNS), (65000, RUNS), (65537, REFUSED)):

        def make(folder: Any, n: int = n) -> Any:
            builder = small()
            for i in range(n):
                builder.add(f"k{i}", g.U8, 0)
            return builder.write(folder / "m.gguf")

        yield Case("keys", f"{n} keys more", expect, make, expect)
    for n_bytes, expect in ((1000, RUNS), (65535, RUNS), (65536, REFUSED), (1 << 20, REFUSED)):
        data = small().add("k" * n_bytes, g.U8, 0).pack()
        yield Case("keys", f"a key of {n_bytes} bytes", expect, file_of(data), expect)
    for n_bytes, expect in ((1 << 20, RUNS), ((1 << 20) + 1, REFUSED), (1 << 24, REFUSED)):
        data = small().add("long", g.STRING, b"v" * n_bytes).pack()
        yield Case("keys", f"a string of {n_bytes} bytes", expect, file_of(data), expect)
    for n, expect in ((7, RUNS), (40, REFUSED)):  # four bytes for each character in memory

        def long(folder: Any, n: int = n) -> Any:
            builder = small()
            for i in range(n):
                builder.add(f"s{i}", g.STRING, "\U0001f600" + "x" * ((1 << 20) - 4))
            return builder.write(folder / "m.gguf")

        yield Case("keys", f"{n} strings of 1 MiB that need 4", expect, long, expect)


def _kinds_of_file() -> Iterator[Case]:
    for key, value in (
        ("general.type", "adapter"), ("general.type", "mmproj"), ("general.type", "imatrix"),
        ("general.type", "controlvector"), ("general.architecture", "clip"),
        ("general.architecture", "bert"), ("general.architecture", "x" * 100000),
        ("general.architecture", "llama\x00"), ("general.architecture", "LLAMA"),
        ("general.architecture", "../../etc/passwd"), ("general.architecture", ""),
    ):  # fmt: skip
        name = f"{key} = {short(value)}"
        yield Case("kinds", name, REFUSED, with_key(key, g.STRING, value), RUNS)
    yield Case("kinds", "general.type = model", RUNS, with_key("general.type", g.STRING, "model"))
    for key in ("expert_count", "attention.clamp_kqv", "attention.max_alibi_bias",
                "attention.shared_kv_layers", "attention.key_length_swa", "embedding_scale",
                "residual_scale", "logit_scale", "rope.freq_base_swa"):  # fmt: skip
        make = with_key(f"llama.{key}", g.F32, 2.0)
        yield Case("kinds", f"llama.{key} that is not supported", REFUSED, make, RUNS)


def _arrays() -> Iterator[Case]:
    """Arrays whose counts, element types and nesting are not what their bytes are."""
    counts = (1, 2**31, 2**32 - 1, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 1)
    for kind in (*NAMES, 13, 255, 2**31, 2**32 - 1):
        for count in counts:
            raw = struct.pack("<IQ", kind, count)
            builder = small().add("array", g.ARRAY, raw)
            builder.tensors.clear()  # so that few bytes are left: one element may be there
            yield Case("arrays", f"{count} elements of type {kind} and no bytes", REFUSED,
                       file_of(builder.pack()), REFUSED)  # fmt: skip
    nested = struct.pack("<IQ", g.ARRAY, 1)
    for depth in (1, 2, 64, 1000, 100000):
        raw = nested * depth + struct.pack("<IQB", g.U8, 1, 0)
        data = small().add("nested", g.ARRAY, raw).pack()
        yield Case("arrays", f"nested {depth} deep", REFUSED, file_of(data), REFUSED)
    for n_bytes, expect in ((1 << 20, RUNS), (1 << 22, REFUSED), (1 << 24, REFUSED)):
        array = Array(g.STRING, ["a", b"v" * n_bytes, "b"])
        data = small().add("strings", g.ARRAY, array).pack()
        yield Case("arrays", f"an element of {n_bytes} bytes", expect, file_of(data), expect)
    for value in (2, 128, 255):
        data = small().add("bools", g.ARRAY, Array(g.BOOL, [0, 1, value])).pack()
        yield Case("arrays", f"a bool of value {value}", REFUSED, file_of(data), REFUSED)
    for n, expect in ((1 << 20, RUNS), ((1 << 22) + 1, REFUSED)):

        def make(folder: Any, n: int = n) -> Any:
            array = Array(g.STRING, length=n, raw=bytes(8) * n)
            return small().add("empty", g.ARRAY, array).write(folder / "m.gguf")

        yield Case("arrays", f"{n} empty strings", expect, make, expect)
    for kind, name in NAMES.items():  # every array of the vocabulary with every element type
        if kind == g.ARRAY:
            continue
        for key in ("tokens", "scores", "token_type", "merges"):
            yield _vocabulary_array(key, kind, name)


def _vocabulary_array(key: str, kind: int, name: str) -> Case:
    builder: GGUFBuilder = byte_pairs() if key == "merges" else small()
    n = 2 if key == "merges" else 8
    value: Any = {g.STRING: "1", g.BOOL: 1}.get(kind, 1)
    replace_key(builder, f"tokenizer.ggml.{key}", g.ARRAY, Array(kind, [value] * n))
    good = {"tokens": (), "scores": (g.F32, g.I32), "token_type": (g.I32,), "merges": ()}[key]
    expect = RUNS if kind in good else REFUSED
    return Case("arrays", f"{key} of {name}", expect, file_of(builder.pack()), RUNS)


def cases() -> Iterator[Case]:
    """All files of these families."""
    yield from _all_types()
    yield from _alignments()
    yield from _missing_and_repeated()
    yield from _kinds_of_file()
    yield from _arrays()
