"""The NumPy truth for block formats: what the bytes mean, and the canonical product.

Every kernel (scalar, AVX2, NEON, interleaved, GEMM) must give the bits of `matvec`; the
quantizers and dequantizers give the bits of ggml's reference ones. Clarity over speed: one
product of a real layer takes seconds. Only tests and developer tools import this module.

Canonical product of one output row, sub-blocks of 32 columns ascending (16 columns share integer
multipliers k and n; see `Parts`), every rounding to float32::

    quantized   y = fma(d_w * d_x, k0 * sum(code_w * code_x, 0..15) + k1 * sum(.., 16..31), y)
    + offset    y = fma(m_w * d_x, n0 * sum(code_x, 0..15) + n1 * sum(code_x, 16..31), y)
    float       acc[j % 8] = fma(w[j], x[j], acc[j % 8]);  y = ((a0+a4)+(a2+a6)) + ((a1+a5)+(a3+a7))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from edge_rt.quant import blocks as formats
from edge_rt.quant import reference_blocks as plain
from edge_rt.quant import reference_iq as iq
from edge_rt.quant import reference_k as k_quants
from edge_rt.quant.blocks import BF16, F16, F32, BlockFormat
from edge_rt.quant.reference_blocks import (
    GROUP,
    QK,
    Buffer,
    Bytes,
    Float32s,
    Int8s,
    Parts,
    as_blocks,
)

Float64s = npt.NDArray[np.float64]

LANES = 8  # accumulators of a float product
UNIT_ROUNDOFF = 2.0**-24  # of float32

_DECODERS: dict[BlockFormat, Callable[[Bytes], Parts]] = {
    formats.Q4_0: plain.q4_0,
    formats.Q4_1: plain.q4_1,
    formats.Q5_0: plain.q5_0,
    formats.Q5_1: plain.q5_1,
    formats.Q8_0: plain.q8_0,
    formats.Q2_K: k_quants.q2_k,
    formats.Q3_K: k_quants.q3_k,
    formats.Q4_K: k_quants.q4_k,
    formats.Q5_K: k_quants.q5_k,
    formats.Q6_K: k_quants.q6_k,
    formats.IQ2_XXS: iq.iq2_xxs,
    formats.IQ2_XS: iq.iq2_xs,
    formats.IQ2_S: iq.iq2_s,
    formats.IQ3_XXS: iq.iq3_xxs,
    formats.IQ3_S: iq.iq3_s,
    formats.IQ1_S: iq.iq1_s,
    formats.IQ1_M: iq.iq1_m,
    formats.IQ4_NL: plain.iq4_nl,
    formats.IQ4_XS: iq.iq4_xs,
    formats.MXFP4: plain.mxfp4,
    formats.TQ1_0: plain.tq1_0,
    formats.TQ2_0: plain.tq2_0,
}


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


# --- weights ----------------------------------------------------------------------------------


def parts(data: Buffer, fmt: BlockFormat, n_elements: int) -> Parts:
    """The sub-blocks of ``n_elements`` weights in a quantized ``fmt``."""
    with np.errstate(invalid="ignore"):  # signalling NaNs as scales
        return _DECODERS[fmt](as_blocks(data, fmt, n_elements))


def dequantize(data: Buffer, fmt: BlockFormat, shape: tuple[int, ...]) -> Float32s:
    """The float32 weights of ``shape`` (last dimension contiguous) that ``data`` stores.

    A product of scale, multiplier and code is exact; only adding an offset rounds.
    """
    n_elements = math.prod(shape)
    if fmt.quantized:
        p = parts(data, fmt, n_elements)
        with np.errstate(all="ignore"):
            step = p.d[:, None, None] * p.k.astype(np.float32)[..., None]
            values = step * p.codes.reshape(-1, 2, GROUP).astype(np.float32)
            if p.m is not None and p.n is not None:
                values = values + p.m[:, None, None] * p.n.astype(np.float32)[..., None]
        return np.asarray(values, np.float32).reshape(shape)
    raw = as_blocks(data, fmt, n_elements).reshape(-1)
    if fmt == F32:
        return raw.view(np.float32).reshape(shape).copy()
    if fmt == F16:
        return raw.view(np.float16).astype(np.float32).reshape(shape)
    if fmt == BF16:
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
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
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
        # Below 2**-128 the inverse of a scale is infinite: those codes saturate, zeros stay zero.
        codes = np.nan_to_num(np.rint(blocks * inverse), nan=0.0).clip(-127, 127)
    return codes.astype(np.int8).reshape(n_tokens, n_cols), d[..., 0]


def matvec(data: Buffer, fmt: BlockFormat, n_rows: int, n_cols: int, x: npt.ArrayLike) -> Float32s:
    """The canonical product: weights (n_rows, n_cols) in ``fmt`` times x (T, n_cols).

    Returns (T, n_rows) float32, bit for bit what every kernel must compute.
    """
    x = _columns(x, n_cols)
    if not fmt.quantized:
        return _matvec_lanes(dequantize(data, fmt, (n_rows, n_cols)), x)
    y = np.zeros((len(x), n_rows), np.float32)
    for scale, integer in _terms(data, fmt, n_rows, n_cols, x):
        y = fma32(scale, integer, y)
    return y


def _columns(x: npt.ArrayLike, n_cols: int) -> Float32s:
    x = np.ascontiguousarray(x, np.float32)
    if x.ndim != 2 or x.shape[1] != n_cols:
        raise ValueError(f"activations of shape {x.shape} do not have {n_cols} columns")
    return x


def _terms(
    data: Buffer, fmt: BlockFormat, n_rows: int, n_cols: int, x: Float32s
) -> Iterator[tuple[Float32s, Float32s]]:
    """The float32 scale and the integer (as float32) of every fma, both (T, n_rows), in order."""
    n_tokens, n_blocks = x.shape[0], n_cols // QK
    p = parts(data, fmt, n_rows * n_cols)
    # |S| <= 2 * 16 * 32 * 128 * 127 < 2**24 (Q6_K): float32 products of the integers are exact.
    w = (p.k[..., None] * p.codes.reshape(-1, 2, GROUP)).astype(np.float32)
    w = w.reshape(n_rows, n_blocks, QK)
    d_w = p.d.reshape(n_rows, n_blocks)
    x_codes, d_x = quantize_activations(x)
    xs = x_codes.astype(np.float32).reshape(n_tokens, n_blocks, QK)
    sums = xs.reshape(n_tokens, n_blocks, 2, GROUP).sum(axis=-1)
    for b in range(n_blocks):
        with np.errstate(all="ignore"):
            yield d_w[None, :, b] * d_x[:, b, None], xs[:, b] @ w[:, b].T
        if p.m is not None and p.n is not None:
            n = p.n.reshape(n_rows, n_blocks, 2)[:, b].astype(np.float32)
            with np.errstate(all="ignore"):
                yield p.m.reshape(n_rows, n_blocks)[None, :, b] * d_x[:, b, None], sums[:, b] @ n.T


def product_error_bound(
    data: Buffer, fmt: BlockFormat, n_rows: int, n_cols: int, x: npt.ArrayLike
) -> Float64s:
    """(T, n_rows): how far `matvec` of a quantized ``fmt`` can be from the exact product of
    the dequantized weights and the float activations. docs/numerics.md derives it.

    The sum of three: activations rounded to int8, ``(1/2 + 2**-15) * d_x * sum(|w|)`` over each
    sub-block; N fmas in float32, ``gamma(N + 1) * sum(|term|)``; dequantized weights rounded to
    float32 after adding an offset, ``u * sum(|w * x|)``. REQUIRES: finite values, none subnormal.
    """
    x = _columns(x, n_cols)
    _, d_x = quantize_activations(x)
    w = np.abs(dequantize(data, fmt, (n_rows, n_cols)).astype(np.float64))
    sums = w.reshape(n_rows, -1, QK).sum(axis=-1)
    activations = (0.5 + 2.0**-15) * d_x.astype(np.float64) @ sums.T
    terms, count = np.zeros((len(x), n_rows)), 0
    for scale, integer in _terms(data, fmt, n_rows, n_cols, x):
        terms += np.abs(scale.astype(np.float64) * integer)
        count += 1
    n_u = (count + 1) * UNIT_ROUNDOFF
    weights = UNIT_ROUNDOFF * (np.abs(x).astype(np.float64) @ w.T)
    return np.asarray(activations + n_u / (1 - n_u) * terms + weights)


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
