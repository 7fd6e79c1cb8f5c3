"""Weights that are no numbers, infinite, huge or tiny: their logits are finite, or it is said."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Iterator
from pathlib import Path

from edge_rt.quant.blocks import FORMATS, BlockFormat

from .. import gguf_builder as g
from ..safetensors_builder import Safetensors
from .case import BROKEN, EITHER, RUNS, Case, Make
from .small import PIECES, shard, small, write_small_folder

WIDE, ROWS = 256, len(PIECES)  # whole blocks of every format
VALUES = {
    "NaN": math.nan,
    "infinite": math.inf,
    "minus infinite": -math.inf,
    "3e38": 3e38,
    "-3e38": -3e38,
    "1e20": 1e20,
    "zero": 0.0,
    "minus zero": -0.0,
    "denormal": 1e-42,
    "1e-30": 1e-30,
}
HARMLESS = ("zero", "minus zero", "denormal", "1e-30")


def filled(name: str, value: float) -> Make:
    """The small model with ``value`` for every number of one tensor."""

    def make(folder: Path) -> Path:
        builder = small()
        for tensor in builder.tensors:
            if tensor.name == name:
                n = len(tensor.data) // 4
                tensor.data = struct.pack("<f", value) * n
        return builder.write(folder / "m.gguf")

    return make


def _tensors() -> Iterator[Case]:
    for tensor in small().tensors:
        name = str(tensor.name)
        for what, value in VALUES.items():
            if what in HARMLESS:
                expect = RUNS
            elif not math.isfinite(value):
                expect = BROKEN
            else:
                expect = EITHER  # whether a product overflows, and whether a norm divides by it
            yield Case("weights", f"{name} is {what}", expect, filled(name, value))
    for at, expect in ((0, RUNS), (5, BROKEN)):  # "x" becomes token 5; token 0 is never met

        def one_row(folder: Path, at: int = at) -> Path:
            builder = small()
            # A head of its own, or the row would be a logit too.
            embedding = builder.tensors[0]
            builder.tensor("output.weight", embedding.dims, 0, embedding.data)
            nan = struct.pack("<f", math.nan) * 8
            embedding.data = embedding.data[: 32 * at] + nan + embedding.data[32 * at + 32 :]
            return builder.write(folder / "m.gguf")

        yield Case("weights", f"NaN in the row of token {at}", expect, one_row)


def wide(fmt: BlockFormat, data: bytes) -> Make:
    """A model with all matrices of a layer in one format, made of repetitions of ``data``."""

    def make(folder: Path) -> Path:
        keys = {
            "llama.embedding_length": (g.U32, WIDE), "llama.feed_forward_length": (g.U32, WIDE),
            "llama.attention.head_count": (g.U32, 4), "llama.attention.head_count_kv": (g.U32, 4),
            "llama.attention.key_length": (g.U32, WIDE // 4), "llama.rope.dimension_count": None,
        }  # fmt: skip
        builder = small(**keys)
        rng = random.Random(5)
        floats = [rng.uniform(-1, 1) for _ in range(ROWS * WIDE)]
        ones = struct.pack("<f", 1.0) * WIDE
        for tensor in builder.tensors:
            name = str(tensor.name)
            if "norm" in name:
                tensor.dims, tensor.data = (WIDE,), ones
            elif name == "token_embd.weight":
                tensor.dims, tensor.data = (WIDE, ROWS), struct.pack(f"<{len(floats)}f", *floats)
            else:
                n_bytes = fmt.row_bytes(WIDE) * WIDE
                tensor.dims, tensor.ggml_id = (WIDE, WIDE), fmt.ggml_id
                tensor.data = (data * (n_bytes // len(data) + 1))[:n_bytes]
        return builder.write(folder / "m.gguf")

    return make


def _blocks() -> Iterator[Case]:
    """Every format with bytes that no quantizer writes."""
    rng = random.Random(6)
    for fmt in FORMATS.values():
        for what, data, expect in (
            ("zeros", b"\0", RUNS),
            ("ones", b"\xff", EITHER),
            ("0x7c", b"\x7c", EITHER),  # infinite halves
            ("0x7f", b"\x7f", EITHER),
            ("0x80", b"\x80", EITHER),
            ("random bytes", rng.randbytes(9973), EITHER),
            ("other random bytes", rng.randbytes(9973), EITHER),
        ):
            yield Case("blocks", f"{fmt.name} of {what}", expect, wide(fmt, data))


def _folders() -> Iterator[Case]:
    for what in ("NaN", "infinite", "zero"):

        def make(folder: Path, value: float = VALUES[what]) -> Path:
            file: Safetensors = shard()
            file.data = struct.pack("<f", value) * (len(file.data) // 4)
            return write_small_folder(folder / "m", shards=[file])

        yield Case("weights", f"a folder of {what}", RUNS if what in HARMLESS else BROKEN, make)


def cases() -> Iterator[Case]:
    """All files of these families."""
    yield from _tensors()
    yield from _blocks()
    yield from _folders()
