"""Making blocks: ggml's reference quantizers where they are short, and random blocks of any format.

The K-quants' and IQ formats' quantizers are searches; tests and random models need none of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_rt.quant.blocks import (
    BF16,
    F16,
    F32,
    IQ1_M,
    IQ1_S,
    IQ2_S,
    IQ2_XS,
    IQ2_XXS,
    IQ3_S,
    IQ3_XXS,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    TQ1_0,
    TQ2_0,
    BlockFormat,
)
from edge_rt.quant.reference_blocks import MXFP4_CODEBOOK, Bytes, Float32s

QUANTIZABLE = (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4, TQ1_0, TQ2_0)

# Offsets of the fp16 scales d and m of a block. MXFP4 (an exponent) and IQ1_M (an fp16 in four
# pieces) have none.
SCALE_OFFSETS: dict[BlockFormat, tuple[int, ...]] = {
    Q4_0: (0,), Q4_1: (0, 2), Q5_0: (0,), Q5_1: (0, 2), Q8_0: (0,),
    Q2_K: (80, 82), Q3_K: (108,), Q4_K: (0, 2), Q5_K: (0, 2), Q6_K: (208,),
    IQ2_XXS: (0,), IQ2_XS: (0,), IQ2_S: (0,), IQ3_XXS: (0,), IQ3_S: (0,), IQ1_S: (0,),
    IQ4_NL: (0,), IQ4_XS: (0,), TQ1_0: (52,), TQ2_0: (64,), MXFP4: (), IQ1_M: (),
}  # fmt: skip

# The standard deviation of random blocks with d around 1, ±25 %, and m = _OFFSET * d.
_UNIT_STD: dict[BlockFormat, float] = {
    Q4_0: 4.64, Q4_1: 4.64, Q5_0: 9.34, Q5_1: 9.32, Q8_0: 73.9, Q2_K: 14.07, Q3_K: 44.0,
    Q4_K: 261.4, Q5_K: 534.1, Q6_K: 1381, IQ2_XXS: 53.9, IQ2_XS: 56.4, IQ2_S: 56.8, IQ3_XXS: 144.5,
    IQ3_S: 142.8, IQ1_S: 7.27, IQ1_M: 7.25, IQ4_NL: 68.1, IQ4_XS: 1256, MXFP4: 5.91, TQ1_0: 0.825,
    TQ2_0: 0.825,
}  # fmt: skip
_OFFSET = {Q4_1: -7.5, Q5_1: -15.5, Q2_K: 1.5, Q4_K: 7.5, Q5_K: 15.5}
_ONE_SIGN = (Q4_1, Q5_1, Q8_0, MXFP4, TQ1_0, TQ2_0)


# --- quantizers -------------------------------------------------------------------------------


def _inverse(d: Float32s) -> Float32s:
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(d == 0, np.float32(0), np.float32(1) / d)


def _halves(values: Float32s) -> Bytes:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.astype(np.float16)).view(np.uint8)


def _round_half_away(x: Float32s) -> Float32s:
    magnitude = np.abs(x)
    floored = np.floor(magnitude)
    return np.asarray(np.sign(x) * (floored + np.floor(2 * (magnitude - floored))))


def _pack_nibbles(codes: Bytes) -> Bytes:
    """(n_blocks, 32) -> (n_blocks, 16): columns 0..15 low, 16..31 high."""
    return np.asarray(codes[:, :16] & np.uint8(15) | codes[:, 16:] << np.uint8(4))


def _symmetric(blocks: Float32s, levels: int) -> tuple[Bytes, Bytes]:
    """d and codes 0..2 * levels - 1; the value of largest magnitude becomes code 0."""
    peak = np.abs(blocks).argmax(axis=1, keepdims=True)
    d = np.take_along_axis(blocks, peak, axis=1) / np.float32(-levels)
    q = np.trunc(blocks * _inverse(d) + np.float32(levels + 0.5))
    return _halves(d), q.astype(np.uint8).clip(0, 2 * levels - 1)


def _affine(blocks: Float32s, top: int) -> tuple[Bytes, Bytes]:
    """d and m one after the other, and codes 0..top."""
    low = blocks.min(axis=1, keepdims=True)
    d = (blocks.max(axis=1, keepdims=True) - low) / np.float32(top)
    q = np.trunc((blocks - low) * _inverse(d) + np.float32(0.5)).astype(np.uint8).clip(0, top)
    return np.concatenate([_halves(d), _halves(low)], axis=1), q


def _fifth_bits(codes: Bytes) -> Bytes:
    return np.packbits(codes >> 4, axis=1, bitorder="little")


def _mxfp4(blocks: Float32s) -> Bytes:
    peak = np.abs(blocks).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        e = np.where(peak > 0, np.floor(np.log2(peak)) + 125, 0).clip(0, 255).astype(np.uint8)
    d = np.ldexp(np.float32(1), e.astype(np.int32) - 128)
    errors = np.abs(d[..., None] * MXFP4_CODEBOOK.astype(np.float32) - blocks[..., None])
    return np.concatenate([e, _pack_nibbles(errors.argmin(axis=2).astype(np.uint8))], axis=1)


def _pack_trits(trits: Bytes, fmt: BlockFormat) -> Bytes:
    """(n_blocks, 256) of 0, 1, 2 -> the packed codes of a ternary block."""
    n_blocks = len(trits)
    if fmt == TQ2_0:
        fields = trits.reshape(n_blocks, 2, 4, 32) << np.array([[0], [2], [4], [6]], np.uint8)
        return np.asarray(np.bitwise_or.reduce(fields, axis=2)).reshape(n_blocks, 64)
    runs = []
    for start, bytes_, count in ((0, 32, 5), (160, 16, 5), (240, 4, 4)):
        run = trits[:, start : start + bytes_ * count].reshape(n_blocks, count, bytes_)
        weight = 3 ** np.arange(4, 4 - count, -1)
        number = (run * weight[:, None]).sum(axis=1)
        runs.append(-(-number * 256 // 243))  # as a fraction of 3**5, rounded up
    return np.concatenate(runs, axis=1).astype(np.uint8)


def _ternary(blocks: Float32s, fmt: BlockFormat) -> Bytes:
    d = np.abs(blocks).max(axis=1, keepdims=True)
    trits = (_round_half_away(blocks * _inverse(d)) + 1).astype(np.uint8)
    return np.concatenate([_pack_trits(trits, fmt), _halves(d)], axis=1)


def quantize(array: npt.ArrayLike, fmt: BlockFormat) -> bytes:
    """Bytes of ``array`` in ``fmt``, as ggml's ``quantize_row_*_ref`` writes them; finite input.

    Raises ValueError for a format that is not in `QUANTIZABLE` and for rows of broken blocks.
    """
    x = np.ascontiguousarray(array, np.float32)
    if fmt == F32:
        return x.tobytes()
    if fmt == F16:
        return _halves(x).tobytes()
    if fmt == BF16:
        n = x.view(np.uint32)
        nan = (n & 0x7FFFFFFF) > 0x7F800000
        n = np.where(nan, (n & np.uint32(0xFFFF0000)) | np.uint32(64 << 16), n)
        wide = n.astype(np.uint64)
        return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16).tobytes()

    if fmt not in QUANTIZABLE:
        raise ValueError(f"there is no quantizer for {fmt.name}")
    if x.ndim == 0 or x.shape[-1] % fmt.block_elements:
        raise ValueError(f"rows of {x.shape} are not whole blocks of {fmt.name}")
    blocks = x.reshape(-1, fmt.block_elements)
    if fmt == Q8_0:
        d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        codes = _round_half_away(blocks * _inverse(d)).astype(np.int8)
        return np.concatenate([_halves(d), codes.view(np.uint8)], axis=1).tobytes()
    if fmt == MXFP4:
        return _mxfp4(blocks).tobytes()
    if fmt in (TQ1_0, TQ2_0):
        return _ternary(blocks, fmt).tobytes()
    five = fmt in (Q5_0, Q5_1)
    if fmt in (Q4_0, Q5_0):
        scales, q = _symmetric(blocks, 16 if five else 8)
    else:
        scales, q = _affine(blocks, 31 if five else 15)
    high = [_fifth_bits(q)] if five else []
    return np.concatenate([scales, *high, _pack_nibbles(q)], axis=1).tobytes()


# --- random blocks ----------------------------------------------------------------------------


def set_scales(blocks: Bytes, fmt: BlockFormat, d: Float32s, m: Float32s | None = None) -> None:
    """Write d and, where the format has one, m (n_blocks,) into (n_blocks, block_bytes).

    They are rounded to what the format can hold; MXFP4's d to the next power of two below.
    """
    if fmt == MXFP4:
        blocks[:, 0] = (np.frexp(d)[1] - 1 + 128).clip(0, 255)
    elif fmt == IQ1_M:
        bits = d.astype(np.float16).view(np.uint16)
        for i in range(4):
            high = blocks[:, 49 + 2 * i]
            high[...] = high & 0x0F | (bits >> 4 * i & 15) << 4
    for offset, values in zip(SCALE_OFFSETS[fmt], (d, m), strict=False):
        if values is not None:
            blocks[:, offset : offset + 2] = _halves(values).reshape(-1, 2)


def random_blocks(
    fmt: BlockFormat, n_rows: int, n_cols: int, rng: np.random.Generator, std: float
) -> bytes:
    """A matrix of noise in ``fmt`` whose weights have a standard deviation near ``std``.

    Codes and integer scales take all values that the format has, and d spreads by ±25 %.
    """
    n = n_rows * n_cols
    if n_cols % fmt.block_elements:
        raise ValueError(f"rows of {n_cols} are not whole blocks of {fmt.name}")
    if not fmt.quantized:
        # A sum of four uniforms is close enough to normal, and several times faster.
        raw = np.frombuffer(rng.bytes(4 * n), np.uint8).reshape(n, 4).sum(1, dtype=np.uint16)
        x = (raw.astype(np.float32) - 510) * np.float32(std / 147.8)
        if fmt == BF16:
            return bytes((x.view(np.uint32) >> 16).astype(np.uint16))
        return bytes(x.astype(np.float16 if fmt == F16 else np.float32))

    n_blocks = n // fmt.block_elements
    out = np.frombuffer(bytearray(rng.bytes(n_blocks * fmt.block_bytes)), np.uint8)
    out = out.reshape(n_blocks, fmt.block_bytes)
    spread = 0.75 + 0.5 * rng.random(n_blocks, dtype=np.float32)
    d = (std / _UNIT_STD[fmt] * spread).astype(np.float32)
    if fmt not in _ONE_SIGN:
        # Codes like -8..7 have a mean of -0.5, which would add up to one loud direction in all
        # rows. Scales of either sign, which ggml's quantizers write too, cancel it.
        d = np.where(rng.random(n_blocks, dtype=np.float32) < 0.5, -d, d)
    if fmt == MXFP4:
        # Up or down to a power of two, by the chance that keeps the mean square.
        fraction, exponent = np.frexp(d)
        up = rng.random(n_blocks, dtype=np.float32) < ((2 * fraction) ** 2 - 1) / 3
        d = np.ldexp(np.float32(1), exponent - 1 + up)
    if fmt == Q8_0:
        codes = out[:, 2:]
        codes[codes == 0x80] = 0x81  # quantizers never write -128
    elif fmt in (TQ1_0, TQ2_0):
        trits = rng.integers(0, 3, (n_blocks, 256), np.uint8)
        packed = _pack_trits(trits, fmt)
        out[:, : packed.shape[1]] = packed
    # m follows the d that is stored, not the one before rounding.
    stored = d.astype(np.float16).astype(np.float32)
    set_scales(out, fmt, d, stored * np.float32(_OFFSET[fmt]) if fmt in _OFFSET else None)
    return out.tobytes()
