"""The IQ formats of 256 columns: 4-bit codebook values, or rows of a grid and their signs.

The grids are tables of the format. They come from gguf-py, imported when they are needed: this
module is for tests and developer tools. What is done with them is written here again.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from edge_rt.quant.reference_blocks import (
    IQ4_CODEBOOK,
    Bytes,
    Int8s,
    Parts,
    bits_of_bytes,
    half,
    make_parts,
    planes,
    words,
)

Ints = npt.NDArray[np.int64]


@functools.cache
def grid(name: str) -> Int8s:
    """(entries, 8 or 4): the grid of a format; entries are magnitudes, or -1, 0, 1 for IQ1."""
    from gguf import quants

    table = getattr(quants, name)
    table.init_grid()
    return np.asarray(table.grid[0, 0]).astype(np.int8)


def _seven_signs(indices: Ints) -> Int8s:
    """(n_blocks, groups) of 7 bits -> (n_blocks, groups * 8) of ±1; an even number are -1."""
    bits = indices[..., None] >> np.arange(7) & 1
    last = bits.sum(axis=-1, keepdims=True) & 1
    return _signs(np.concatenate([bits, last], axis=-1).reshape(len(indices), -1))


def _signs(bits: npt.NDArray[np.integer]) -> Int8s:
    return (1 - 2 * bits.astype(np.int8)).astype(np.int8)


def _nibbles_in_order(packed: Bytes) -> Bytes:
    """(n_blocks, bytes) -> (n_blocks, bytes * 2): of each byte the low nibble, then the high."""
    return planes(packed, 4, 1)


def _odd(scales: npt.NDArray[np.integer]) -> Ints:
    return 2 * scales.astype(np.int64) + 1


def _pick(name: str, indices: Ints) -> Int8s:
    return np.asarray(grid(name)[indices].reshape(len(indices), -1))


def _in_fields(values: Ints, width: int, count: int) -> Ints:
    """(n_blocks, n) -> (n_blocks, n * count): ``count`` fields of ``width`` bits, lowest first."""
    fields = values[..., None] >> np.arange(count) * width & (1 << width) - 1
    return np.asarray(fields.reshape(len(values), -1))


def iq4_xs(blocks: Bytes) -> Parts:
    high = _in_fields(words(blocks, 2, 1, np.uint16), 2, 8)
    scales = (_nibbles_in_order(blocks[:, 4:8]) | high << 4) - 32
    return make_parts(IQ4_CODEBOOK[planes(blocks[:, 8:], 4, 16)], half(blocks, 0), scales)


def iq2_xxs(blocks: Bytes) -> Parts:
    pairs = words(blocks, 2, 16, np.uint32)
    rows, rest = _in_fields(pairs[:, ::2], 8, 4), pairs[:, 1::2]
    codes = _pick("IQ2_XXS", rows) * _seven_signs(_in_fields(rest, 7, 4))
    return make_parts(codes, half(blocks, 0) * np.float32(0.125), _odd(rest >> 28))


def iq2_xs(blocks: Bytes) -> Parts:
    entries = words(blocks, 2, 32, np.uint16)
    codes = _pick("IQ2_XS", entries & 511) * _seven_signs(entries >> 9)
    scales = _odd(_nibbles_in_order(blocks[:, 66:]))
    return make_parts(codes, half(blocks, 0) * np.float32(0.125), scales)


def iq2_s(blocks: Bytes) -> Parts:
    rows = blocks[:, 2:34] | planes(blocks[:, 66:74], 2, 1).astype(np.int64) << 8
    codes = _pick("IQ2_S", rows) * _signs(bits_of_bytes(blocks[:, 34:66]))
    scales = _odd(_nibbles_in_order(blocks[:, 74:]))
    return make_parts(codes, half(blocks, 0) * np.float32(0.125), scales)


def iq3_xxs(blocks: Bytes) -> Parts:
    rest = words(blocks, 66, 8, np.uint32)
    codes = _pick("IQ3_XXS", blocks[:, 2:66].astype(np.int64))
    codes = codes * _seven_signs(_in_fields(rest, 7, 4))
    return make_parts(codes, half(blocks, 0) * np.float32(0.25), _odd(rest >> 28))


def iq3_s(blocks: Bytes) -> Parts:
    rows = blocks[:, 2:66] | bits_of_bytes(blocks[:, 66:74]).astype(np.int64) << 8
    codes = _pick("IQ3_S", rows) * _signs(bits_of_bytes(blocks[:, 74:106]))
    return make_parts(codes, half(blocks, 0), _odd(_nibbles_in_order(blocks[:, 106:])))


def _eighths(rows: Ints, delta_bits: Ints) -> Ints:
    """Eight times (grid + delta): (n_blocks, 32) grid rows, a bit of delta's sign per row."""
    values = 8 * grid("IQ1_S")[rows].astype(np.int64) + 1 - 2 * delta_bits[..., None]
    return np.asarray(values.reshape(len(rows), -1))


def iq1_s(blocks: Bytes) -> Parts:
    high = words(blocks, 34, 8, np.uint16)
    rows = blocks[:, 2:34] | _in_fields(high, 3, 4) << 8
    codes = _eighths(rows, np.repeat(high >> 15, 4, axis=1))
    return make_parts(codes, half(blocks, 0) * np.float32(0.125), _odd(high >> 12 & 7))


def iq1_m(blocks: Bytes) -> Parts:
    high = _in_fields(blocks[:, 32:48].astype(np.int64), 4, 2)
    codes = _eighths(blocks[:, :32] | (high & 7) << 8, high >> 3)
    packed = words(blocks, 48, 4, np.uint16)
    # The fp16 scale is spread over the top four bits of the scale words, lowest nibble first.
    bits = (packed >> 12 << np.arange(0, 16, 4)).sum(axis=1).astype(np.uint16)
    d = bits.view(np.float16).astype(np.float32)
    return make_parts(codes, d * np.float32(0.125), _odd(_in_fields(packed, 3, 4)))
