"""What the bytes of a block mean: every format as sub-blocks of 32 columns.

This file has the common shape, `Parts`, and the formats with one scale per block; the K-quants
are in ``quant.reference_k``, the IQ formats in ``quant.reference_iq``. Layouts are those of ggml.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_rt.quant.blocks import BlockFormat

Float32s = npt.NDArray[np.float32]
Int8s = npt.NDArray[np.int8]
Int32s = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Buffer = bytes | bytearray | memoryview | Bytes

QK = 32  # columns of a sub-block, which share one activation scale
GROUP = 16  # columns that share integer multipliers

IQ4_CODEBOOK = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
# e2m1 values doubled, so that they are integers; the scale is halved for it.
MXFP4_CODEBOOK = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


@dataclass(frozen=True)
class Parts:
    """Sub-blocks in the order of the columns; of row r first to last, then of row r + 1.

    Weight of column j: ``d * k[j // 16] * codes[j] + m * n[j // 16]``.
    """

    codes: Int8s  # (sub-blocks, 32)
    k: Int32s  # (sub-blocks, 2): integer multipliers of the two 16s
    d: Float32s  # (sub-blocks,)
    m: Float32s | None = None  # (sub-blocks,): scale of the offset, where there is one
    n: Int32s | None = None  # (sub-blocks, 2): its integer multipliers


def make_parts(
    codes: npt.NDArray[np.generic],
    d: Float32s,
    k: npt.NDArray[np.generic] | int = 1,
    m: Float32s | None = None,
    n: npt.NDArray[np.generic] | int = 1,
) -> Parts:
    """`Parts` of blocks: ``d`` and ``m`` (blocks,) are repeated for their sub-blocks; ``k`` and
    ``n`` have one integer per 16 columns, one per 32, or are the same everywhere."""
    rows = codes.reshape(-1, QK).astype(np.int8)
    per_block = len(rows) // len(d) if len(d) else 1

    def multipliers(values: npt.NDArray[np.generic] | int) -> Int32s:
        array = np.asarray(values).astype(np.int32)
        if array.ndim:
            array = array.reshape(len(rows), -1)
        return np.broadcast_to(array, (len(rows), 2))

    if m is None:
        return Parts(rows, multipliers(k), np.repeat(d, per_block))
    return Parts(
        rows, multipliers(k), np.repeat(d, per_block), np.repeat(m, per_block), multipliers(n)
    )


# --- fields of blocks (n_blocks, block_bytes) -------------------------------------------------


def half(blocks: Bytes, offset: int) -> Float32s:
    """(n_blocks,): the fp16 at byte ``offset`` of each block, widened."""
    pairs = np.ascontiguousarray(blocks[:, offset : offset + 2]).view(np.float16)
    return np.asarray(pairs[:, 0].astype(np.float32))


def words(
    blocks: Bytes, offset: int, count: int, dtype: type[np.unsignedinteger]
) -> npt.NDArray[np.int64]:
    """(n_blocks, count): little-endian unsigned integers from byte ``offset`` on."""
    size = count * np.dtype(dtype).itemsize
    raw = np.ascontiguousarray(blocks[:, offset : offset + size])
    return raw.view(np.dtype(dtype).newbyteorder("<")).astype(np.int64)


def planes(packed: Bytes, width: int, group: int) -> Bytes:
    """(n_blocks, bytes) -> (n_blocks, bytes * 8 / width): fields of ``width`` bits.

    Every run of ``group`` bytes holds first the lowest field of all its bytes, then the next.
    """
    n_blocks = len(packed)
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    fields = packed.reshape(n_blocks, -1, 1, group) >> shifts & np.uint8((1 << width) - 1)
    return fields.reshape(n_blocks, -1)


def bits_of_bytes(packed: Bytes) -> Bytes:
    """(n_blocks, bytes) -> (n_blocks, bytes * 8): the lowest bit of each byte first."""
    return np.unpackbits(packed, axis=1, bitorder="little")


# --- one scale per block ----------------------------------------------------------------------


def q4_0(blocks: Bytes) -> Parts:
    return make_parts(planes(blocks[:, 2:], 4, 16).astype(np.int8) - 8, half(blocks, 0))


def q4_1(blocks: Bytes) -> Parts:
    return make_parts(planes(blocks[:, 4:], 4, 16), half(blocks, 0), m=half(blocks, 2))


def q5_0(blocks: Bytes) -> Parts:
    codes = planes(blocks[:, 6:], 4, 16) | bits_of_bytes(blocks[:, 2:6]) << 4
    return make_parts(codes.astype(np.int8) - 16, half(blocks, 0))


def q5_1(blocks: Bytes) -> Parts:
    codes = planes(blocks[:, 8:], 4, 16) | bits_of_bytes(blocks[:, 4:8]) << 4
    return make_parts(codes, half(blocks, 0), m=half(blocks, 2))


def q8_0(blocks: Bytes) -> Parts:
    return make_parts(np.ascontiguousarray(blocks[:, 2:]).view(np.int8), half(blocks, 0))


def iq4_nl(blocks: Bytes) -> Parts:
    return make_parts(IQ4_CODEBOOK[planes(blocks[:, 2:], 4, 16)], half(blocks, 0))


def mxfp4(blocks: Bytes) -> Parts:
    # 2**(e - 128): the format's 2**(e - 127) halved. e = 0 and 1 are subnormal and exact.
    d = np.ldexp(np.float32(1), blocks[:, 0].astype(np.int32) - 128).astype(np.float32)
    return make_parts(MXFP4_CODEBOOK[planes(blocks[:, 1:], 4, 16)], d)


def tq1_0(blocks: Bytes) -> Parts:
    """Five trits a byte: the byte is the fraction 0.t0t1t2t3t4 in base 3, times 256, rounded up."""
    runs = []
    for start, stop, trits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        fraction = blocks[:, start:stop].astype(np.int64)
        for _ in range(trits):
            runs.append(fraction * 3 >> 8)
            fraction = fraction * 3 & 0xFF
    return make_parts(np.concatenate(runs, axis=1) - 1, half(blocks, 52))


def tq2_0(blocks: Bytes) -> Parts:
    return make_parts(planes(blocks[:, :64], 2, 32).astype(np.int8) - 1, half(blocks, 64))


# --- buffers ----------------------------------------------------------------------------------


def as_blocks(data: Buffer, fmt: BlockFormat, n_elements: int) -> Bytes:
    """``data`` as (n_blocks, block_bytes); its length must be exactly that of ``n_elements``."""
    if isinstance(data, np.ndarray):
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    else:
        raw = np.frombuffer(data, np.uint8)
    if n_elements % fmt.block_elements:
        raise ValueError(f"{n_elements} elements are not whole blocks of {fmt.name}")
    if raw.size != fmt.row_bytes(n_elements):
        raise ValueError(f"{raw.size} bytes are not {n_elements} elements of {fmt.name}")
    return raw.reshape(-1, fmt.block_bytes)
