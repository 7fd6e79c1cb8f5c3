"""The NumPy truth for block formats: what the bytes mean, and the canonical product.

Every kernel (scalar, AVX2, NEON, interleaved, GEMM) must give the bits of `matvec`; the
quantizers and dequantizers give the bits of ggml's reference ones. Clarity over speed: one
product of a real layer takes seconds. Only tests and developer tools import this module.

Canonical product of one output row, blocks ascending, every rounding to float32::

    quantized   y = fma(d_w * d_x, sum(code_w * code_x), y)
       + Q4_1   y = fma(m_w * d_x, sum(code_x), y)
    float       acc[j % 8] = fma(w[j], x[j], acc[j % 8]);  y = ((a0+a4)+(a2+a6)) + ((a1+a5)+(a3+a7))
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_rt.quant.blocks import BF16, F16, F32, Q4_0, Q4_1, Q8_0, BlockFormat

Float32s = npt.NDArray[np.float32]
Int8s = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]
Buffer = bytes | bytearray | memoryview | Bytes

QK = 32  # weights in a block of Q8_0, Q4_0 and Q4_1; columns that share an activation scale
LANES = 8  # accumulators of a float product


# --- exact float32 fma ------------------------------------------------------------------------


def fma32(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> Float32s:
    """``a * b + c`` of float32 arrays with the single rounding of a hardware fma.

    The float64 product of two float32 is exact; the float64 sum is not, and rounding it again to
    float32 could round twice. So the sum is first rounded *to odd*: its last bit records that
    something was cut off, and 53 bits ≥ 24 + 2 make the second rounding the only one that counts.
    """
    with np.errstate(all="ignore"):
        p = np.asarray(a, np.float32).astype(np.float64) * np.asarray(b, np.float32)
        c64 = np.asarray(c, np.float32).astype(np.float64)
        total = np.asarray(p + c64)
        # TwoSum: p + c64 == total + error exactly.
        c_part = total - p
        error = (p - (total - c_part)) + (c64 - c_part)
        even = (total.view(np.uint64) & np.uint64(1)) == 0
        inexact = np.isfinite(total) & (error != 0)
        neighbour = np.nextafter(total, np.copysign(np.inf, error))
        odd = np.where(inexact & even, neighbour, total)
        return np.asarray(odd.astype(np.float32))


# --- formats ----------------------------------------------------------------------------------


def _as_bytes(data: Buffer) -> Bytes:
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    return np.frombuffer(data, np.uint8)


def _blocks(data: Buffer, fmt: BlockFormat, n_elements: int) -> Bytes:
    """``data`` as (n_blocks, block_bytes); its length must be exactly that of ``n_elements``."""
    raw = _as_bytes(data)
    if n_elements % fmt.block_elements:
        raise ValueError(f"{n_elements} elements are not whole blocks of {fmt.name}")
    if raw.size != fmt.row_bytes(n_elements):
        raise ValueError(f"{raw.size} bytes are not {n_elements} elements of {fmt.name}")
    return raw.reshape(-1, fmt.block_bytes)


def _half(blocks: Bytes, offset: int) -> Float32s:
    """(n_blocks, 1): the fp16 at byte ``offset`` of each block, widened."""
    half = np.ascontiguousarray(blocks[:, offset : offset + 2]).view(np.float16)
    return np.asarray(half.astype(np.float32))


def _nibbles(packed: Bytes) -> Int8s:
    """(n_blocks, 16) -> (n_blocks, 32): low nibbles are elements 0..15, high ones 16..31."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1).astype(np.int8)


def block_parts(data: Buffer, fmt: BlockFormat, n_elements: int) -> tuple[Int8s, Float32s, Any]:
    """Codes (n_blocks, 32), scales d (n_blocks, 1), offsets m (n_blocks, 1) or None."""
    blocks = _blocks(data, fmt, n_elements)
    if fmt == Q8_0:
        return blocks[:, 2:].view(np.int8), _half(blocks, 0), None
    if fmt == Q4_0:
        return _nibbles(blocks[:, 2:]) - np.int8(8), _half(blocks, 0), None
    if fmt == Q4_1:
        return _nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)
    raise ValueError(f"{fmt.name} has no blocks")


def dequantize(data: Buffer, fmt: BlockFormat, shape: tuple[int, ...]) -> Float32s:
    """The float32 weights of ``shape`` (last dimension contiguous) that ``data`` stores."""
    n_elements = math.prod(shape)
    if fmt.quantized:
        codes, d, m = block_parts(data, fmt, n_elements)
        with np.errstate(all="ignore"):
            values = d * codes.astype(np.float32)
            return np.asarray(values if m is None else values + m).reshape(shape)
    raw = _blocks(data, fmt, n_elements).reshape(-1)
    if fmt == F32:
        return raw.view(np.float32).reshape(shape).copy()
    if fmt == F16:
        return raw.view(np.float16).astype(np.float32).reshape(shape)
    if fmt == BF16:
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    raise ValueError(f"unknown format {fmt.name}")


def _inverse(d: Float32s) -> Float32s:
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(d == 0, np.float32(0), np.float32(1) / d)


def _pack_nibbles(codes: Float32s) -> Bytes:
    q = codes.astype(np.uint8).clip(0, 15)
    return np.asarray(q[:, :16] | (q[:, 16:] << np.uint8(4)))


def _halves(values: Float32s) -> Bytes:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.uint8)


def _round_half_away(x: Float32s) -> Float32s:
    magnitude = np.abs(x)
    floored = np.floor(magnitude)
    return np.asarray(np.sign(x) * (floored + np.floor(2 * (magnitude - floored))))


def quantize(array: npt.ArrayLike, fmt: BlockFormat) -> bytes:
    """Bytes of ``array`` in ``fmt``, as ggml's ``quantize_row_*_ref`` writes them; finite input."""
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

    if x.ndim == 0 or x.shape[-1] % QK:
        raise ValueError(f"rows of {x.shape} are not whole blocks of {fmt.name}")
    blocks = x.reshape(-1, QK)
    if fmt == Q8_0:
        d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        codes = _round_half_away(blocks * _inverse(d)).astype(np.int8)
        return np.concatenate([_halves(d), codes.view(np.uint8)], axis=1).tobytes()
    if fmt == Q4_0:
        peak = np.abs(blocks).argmax(axis=1, keepdims=True)
        d = np.take_along_axis(blocks, peak, axis=1) / np.float32(-8)
        q = np.trunc(blocks * _inverse(d) + np.float32(8.5))
        return np.concatenate([_halves(d), _pack_nibbles(q)], axis=1).tobytes()
    if fmt == Q4_1:
        low = blocks.min(axis=1, keepdims=True)
        d = (blocks.max(axis=1, keepdims=True) - low) / np.float32(15)
        q = np.trunc((blocks - low) * _inverse(d) + np.float32(0.5))
        return np.concatenate([_halves(d), _halves(low), _pack_nibbles(q)], axis=1).tobytes()
    raise ValueError(f"unknown format {fmt.name}")


# --- products ---------------------------------------------------------------------------------


def quantize_activations(x: npt.ArrayLike) -> tuple[Int8s, Float32s]:
    """(T, K) float32 -> codes (T, K) int8 in -127..127 and scales (T, K/32) float32.

    REQUIRES: finite ``x``. ``d = amax / 127``; codes round half to even.
    """
    x = np.ascontiguousarray(x, np.float32)
    n_tokens, n_cols = x.shape
    blocks = x.reshape(n_tokens, n_cols // QK, QK)
    d = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    with np.errstate(invalid="ignore", over="ignore"):
        # Below 2**-128 the inverse of a scale is infinite: those codes saturate, zeros stay zero.
        codes = np.nan_to_num(np.rint(blocks * _inverse(d)), nan=0.0).clip(-127, 127)
    return codes.astype(np.int8).reshape(n_tokens, n_cols), d[..., 0]


def matvec(data: Buffer, fmt: BlockFormat, n_rows: int, n_cols: int, x: npt.ArrayLike) -> Float32s:
    """The canonical product: weights (n_rows, n_cols) in ``fmt`` times x (T, n_cols).

    Returns (T, n_rows) float32, bit for bit what every kernel must compute.
    """
    x = np.ascontiguousarray(x, np.float32)
    if x.ndim != 2 or x.shape[1] != n_cols:
        raise ValueError(f"activations of shape {x.shape} do not have {n_cols} columns")
    if fmt.quantized:
        return _matvec_blocks(data, fmt, n_rows, n_cols, x)
    return _matvec_lanes(dequantize(data, fmt, (n_rows, n_cols)), x)


def _matvec_blocks(
    data: Buffer, fmt: BlockFormat, n_rows: int, n_cols: int, x: Float32s
) -> Float32s:
    n_tokens, n_blocks = x.shape[0], n_cols // QK
    codes, d_w, m_w = block_parts(data, fmt, n_rows * n_cols)
    # Sums stay below 32 * 127 * 128 < 2**24: a float32 matrix product of the codes is exact.
    w = codes.astype(np.float32).reshape(n_rows, n_blocks, QK)
    d_w = d_w.reshape(n_rows, n_blocks)
    x_codes, d_x = quantize_activations(x)
    xs = x_codes.astype(np.float32).reshape(n_tokens, n_blocks, QK)
    y = np.zeros((n_tokens, n_rows), np.float32)
    for b in range(n_blocks):
        with np.errstate(all="ignore"):
            scale = d_w[None, :, b] * d_x[:, b, None]
        y = fma32(scale, xs[:, b] @ w[:, b].T, y)
        if m_w is not None:
            with np.errstate(all="ignore"):
                offset = m_w.reshape(n_rows, n_blocks)[None, :, b] * d_x[:, b, None]
            y = fma32(offset, xs[:, b].sum(axis=1, keepdims=True), y)
    return y


def _matvec_lanes(w: Float32s, x: Float32s) -> Float32s:
    n_rows, n_cols = w.shape
    acc = np.zeros((x.shape[0], n_rows, LANES), np.float32)
    for j in range(0, n_cols, LANES):
        n = min(LANES, n_cols - j)
        acc[..., :n] = fma32(w[None, :, j : j + n], x[:, None, j : j + n], acc[..., :n])
    a = [acc[..., lane] for lane in range(LANES)]
    with np.errstate(all="ignore"):
        total = ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    return np.asarray(total, np.float32)
