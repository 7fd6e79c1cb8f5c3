"""The K-quants: 256 columns a block, one or two fp16 scales, packed integer scales of 16 or 32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_rt.quant.reference_blocks import (
    Bytes,
    Int32s,
    Parts,
    bits_of_bytes,
    half,
    make_parts,
    planes,
)


def _high_bits(packed: Bytes) -> Bytes:
    """(n_blocks, 32) -> (n_blocks, 256): bit s of byte j belongs to column j of sub-block s."""
    bits = bits_of_bytes(packed).reshape(-1, 32, 8)
    return bits.transpose(0, 2, 1).reshape(len(packed), 256)


def _scales_and_mins(packed: Bytes) -> tuple[Int32s, Int32s]:
    """(n_blocks, 12) -> two (n_blocks, 8) of 6 bits: Q4_K's and Q5_K's scales and mins.

    Bytes 0..3: scales 0..3, and in their top bits bits 4, 5 of scales 4..7; bytes 4..7 the same
    of the mins; bytes 8..11: the low four bits of scales 4..7 and, above them, of mins 4..7.
    """
    scale, least, low = (packed[:, i : i + 4].astype(np.int32) for i in (0, 4, 8))
    return (
        np.concatenate([scale & 63, low & 15 | scale >> 6 << 4], axis=1),
        np.concatenate([least & 63, low >> 4 | least >> 6 << 4], axis=1),
    )


def q2_k(blocks: Bytes) -> Parts:
    scales = blocks[:, :16]
    codes = planes(blocks[:, 16:80], 2, 32)
    return make_parts(codes, half(blocks, 80), scales & 15, -half(blocks, 82), scales >> 4)


def q3_k(blocks: Bytes) -> Parts:
    high = _high_bits(blocks[:, :32]).astype(np.int8)
    codes = planes(blocks[:, 32:96], 2, 32).astype(np.int8) + 4 * (high - 1)
    low, top = planes(blocks[:, 96:104], 4, 8), planes(blocks[:, 104:108], 2, 4)
    scales: npt.NDArray[np.int32] = (low | top << 4).astype(np.int32) - 32
    return make_parts(codes, half(blocks, 108), scales)


def q4_k(blocks: Bytes) -> Parts:
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    codes = planes(blocks[:, 16:], 4, 32)
    return make_parts(codes, half(blocks, 0), scales, -half(blocks, 2), mins)


def q5_k(blocks: Bytes) -> Parts:
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    codes = planes(blocks[:, 48:], 4, 32) | _high_bits(blocks[:, 16:48]) << 4
    return make_parts(codes, half(blocks, 0), scales, -half(blocks, 2), mins)


def q6_k(blocks: Bytes) -> Parts:
    codes = planes(blocks[:, :128], 4, 64) | planes(blocks[:, 128:192], 2, 32) << 4
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return make_parts(codes.astype(np.int8) - 32, half(blocks, 208), scales)
