"""quant.reference against gguf-py (formats) and against exact rational arithmetic (fma)."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from edge_rt.quant import reference as ref
from edge_rt.quant import reference_write as write
from edge_rt.quant.blocks import (
    BF16,
    F16,
    F32,
    FORMATS,
    IQ1_M,
    MXFP4,
    Q4_0,
    Q4_K,
    Q8_0,
    UNSUPPORTED,
    BlockFormat,
)

gguf = pytest.importorskip("gguf")
from gguf import quants  # noqa: E402

ALL = list(FORMATS.values())
QUANTIZED = [f for f in ALL if f.quantized]


def qtype(fmt: BlockFormat):
    return gguf.GGMLQuantizationType(fmt.ggml_id)


def bits(x) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def assert_same_floats(got: np.ndarray, want: np.ndarray) -> None:
    """Equal bits, and NaN in the same places; a NaN's payload is free."""
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(bits(got)[~nan], bits(want)[~nan])


# --- fma32 --------------------------------------------------------------------------------------


def round_to_float32(exact: Fraction) -> np.float32:
    """Round half to even to binary32, subnormals and overflow included."""
    if exact == 0:
        return np.float32(0)
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    ulp = Fraction(2) ** (max(exponent, -126) - 23)
    n = round(magnitude / ulp)  # Fraction rounds half to even
    value = math.inf if n * ulp >= Fraction(2) ** 128 else float(n * ulp)
    return np.float32(-value if exact < 0 else value)


def nasty_floats() -> np.ndarray:
    tiny, small = np.float32(2.0**-149), np.float32(2.0**-126)
    eps, top = np.float32(2.0**-23), np.finfo(np.float32).max
    base = [1, 1 + eps, 1 - eps / 2, 3, 1 / 3, 2.0**12 + 1, 2.0**24 - 1, 2.0**24, 2.0**-12]
    base += [2.0**64, 2.0**-64, 2.0**-75, 2.0**-100, tiny, small, small - tiny, 2.0**127, top, 0]
    return np.array([s * v for v in base for s in (1, -1)], np.float32)


def check_fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    got = ref.fma32(a, b, c)
    want = [
        round_to_float32(Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r)))
        for p, q, r in zip(a, b, c, strict=True)
    ]
    # The sign of an exact zero is not the rational's to say: == compares both zeros equal.
    wrong = np.flatnonzero(got != np.array(want))
    assert wrong.size == 0, [(a[i], b[i], c[i], got[i], want[i]) for i in wrong[:5]]


def test_fma_nasty_values() -> None:
    v = nasty_floats()
    a, b, c = (g.ravel() for g in np.meshgrid(v, v, v))
    pick = np.random.default_rng(1).permutation(a.size)[:12000]
    check_fma(a[pick], b[pick], c[pick])


def test_fma_random_bits() -> None:
    rng = np.random.default_rng(2)
    a, b, c = rng.integers(0, 2**32, (3, 6000), np.uint32).view(np.float32)
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    check_fma(a[finite], b[finite], c[finite])


def test_fma_where_double_rounding_would_err() -> None:
    """c is half an ulp off a product that lies just beside it: a naive float64 sum ties wrongly."""
    rng = np.random.default_rng(3)
    c = (rng.integers(2**23, 2**24, 4000).astype(np.float64) * 2.0).astype(np.float32)
    # a*b = 1 ± 2**-46: half an ulp of c (2**24..2**25, ulp 2) plus dust below float64's reach.
    a = np.float32(1) + rng.integers(-1, 2, 4000).astype(np.float32) * np.float32(2.0**-23)
    b = np.float32(1) - (a - np.float32(1))
    naive = (a.astype(np.float64) * b + c).astype(np.float32)
    assert (naive != ref.fma32(a, b, c)).any()
    check_fma(a, b, c)


def test_fma_specials() -> None:
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    assert ref.fma32(inf, 1, 1) == inf
    assert np.isnan(ref.fma32(inf, 0, 1)) and np.isnan(ref.fma32(1, inf, -inf))
    assert np.isnan(ref.fma32(nan, 1, 1))
    assert np.signbit(ref.fma32(-1.0, 0.0, -0.0)) and not np.signbit(ref.fma32(-1.0, 0.0, 0.0))


# --- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", write.QUANTIZABLE, ids=lambda f: f.name)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (17, 3), (2, 3, 4)])
def test_quantize_is_bit_equal_to_gguf(fmt: BlockFormat, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    shape = (*shape[:-1], shape[-1] * max(32, fmt.block_elements))
    for scale in (1.0, 1e-3, 300.0):
        x = (rng.standard_normal(shape) * scale).astype(np.float32)
        x[..., :5] = np.round(x[..., :5])  # ties and exact values
        x.reshape(-1, max(32, fmt.block_elements))[0] = 0  # a block without a scale
        want = quants.quantize(x, qtype(fmt))
        assert write.quantize(x, fmt) == want.tobytes()
        got = ref.dequantize(want.tobytes(), fmt, shape)
        assert got.dtype == np.float32 and got.shape == shape
        np.testing.assert_array_equal(bits(got), bits(quants.dequantize(want, qtype(fmt))))


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
def test_dequantize_random_blocks(fmt: BlockFormat) -> None:
    """Every bit of the blocks random: all codes, all integer scales, scales up to infinity."""
    raw = np.random.default_rng(5).integers(0, 256, (256, 4 * fmt.block_bytes), np.uint8)
    with np.errstate(all="ignore"):
        want = quants.dequantize(raw, qtype(fmt))
    got = ref.dequantize(raw.tobytes(), fmt, want.shape)
    assert_same_floats(got, want)
    assert np.isfinite(want).mean() > 0.8


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x80, 0x7F, 0x55, 0xAA])
def test_dequantize_extreme_blocks(fmt: BlockFormat, byte: int) -> None:
    raw = np.full((6, 2 * fmt.block_bytes), byte, np.uint8)
    blocks = raw.reshape(-1, fmt.block_bytes)
    d = np.array([1, -1, 65504, -65504, 2.0**-24, 2.0**-14], np.float32).repeat(2)
    write.set_scales(blocks, fmt, np.abs(d) if fmt == MXFP4 else d, -d)
    want = quants.dequantize(raw, qtype(fmt))
    assert_same_floats(ref.dequantize(raw.tobytes(), fmt, want.shape), want)


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
def test_every_scale(fmt: BlockFormat) -> None:
    """All 65536 patterns as d (and, reversed, as m), or all exponents of MXFP4."""
    rng = np.random.default_rng(6)
    offsets = write.SCALE_OFFSETS[fmt]
    patterns = np.arange(256 if fmt == MXFP4 else 65536, dtype=np.uint16)
    raw = rng.integers(0, 256, (patterns.size, fmt.block_bytes), np.uint8)
    for offset, values in zip(offsets, (patterns, patterns[::-1]), strict=False):
        raw[:, offset : offset + 2] = values.copy().view(np.uint8).reshape(-1, 2)
    if fmt == MXFP4:
        raw[:, 0] = patterns
    if fmt == IQ1_M:  # bits 4i..4i+3 lie on top of the ith word of scales
        for i in range(4):
            raw[:, 49 + 2 * i] = raw[:, 49 + 2 * i] & 15 | (patterns >> 4 * i & 15) << 4
    with np.errstate(all="ignore"):
        want = quants.dequantize(raw, qtype(fmt))
    assert_same_floats(ref.dequantize(raw.tobytes(), fmt, want.shape), want)
    d = ref.parts(raw.tobytes(), fmt, want.size).d
    assert np.unique(bits(d)).size >= (256 if fmt == MXFP4 else 63000)


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
def test_sub_blocks(fmt: BlockFormat) -> None:
    """The shapes and bounds that the kernels' integers rely on."""
    raw = np.random.default_rng(9).integers(0, 256, (512, fmt.block_bytes), np.uint8)
    n = 512 * fmt.block_elements
    p = ref.parts(raw.tobytes(), fmt, n)
    assert p.codes.shape == (n // 32, 32) and p.codes.dtype == np.int8
    assert p.k.shape == (n // 32, 2) and p.d.shape == (n // 32,)
    worst = (np.abs(p.k) * np.abs(p.codes.astype(int)).max(initial=0)).sum(axis=1).max()
    assert worst * 16 * 127 < 2**24  # |S|: exact in float32, and in int32 on the way
    if p.m is not None:
        assert p.n is not None and (np.abs(p.n) * 16 * 127).sum(axis=1).max() < 2**24


@pytest.mark.parametrize("fmt", ALL, ids=lambda f: f.name)
def test_random_blocks(fmt: BlockFormat) -> None:
    rng = np.random.default_rng(10)
    for std in (0.7, 0.01):
        raw = write.random_blocks(fmt, 300, 1024, rng, std)
        w = ref.dequantize(raw, fmt, (300, 1024)).astype(np.float64)
        assert abs(w.std() / std - 1) < 0.03, w.std()
        assert abs(w.mean()) < 0.04 * std, w.mean()
    with pytest.raises(ValueError, match="whole blocks"):
        write.random_blocks(Q4_K, 1, 255, rng, 1)


@pytest.mark.parametrize("fmt", [F16, BF16], ids=lambda f: f.name)
def test_every_16_bit_float(fmt: BlockFormat) -> None:
    raw = np.arange(65536, dtype=np.uint16)
    got = ref.dequantize(raw.tobytes(), fmt, (65536,))
    finite = np.isfinite(got)
    assert write.quantize(got[finite], fmt) == raw[finite].tobytes()
    want = quants.dequantize(raw.view(np.uint8).reshape(256, -1), qtype(fmt)).ravel()
    np.testing.assert_array_equal(bits(got)[finite], bits(want)[finite])


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        ref.dequantize(b"\0" * 18, Q4_0, (33,))
    with pytest.raises(ValueError, match="bytes are not"):
        ref.dequantize(b"\0" * 17, Q4_0, (32,))
    with pytest.raises(ValueError, match="whole blocks"):
        write.quantize(np.zeros((2, 33)), Q8_0)
    with pytest.raises(ValueError, match="columns"):
        ref.matvec(b"\0" * 18, Q4_0, 1, 32, np.zeros((1, 64)))
    with pytest.raises(ValueError, match="no quantizer for Q4_K"):
        write.quantize(np.zeros((1, 256)), Q4_K)


# --- activations and products -------------------------------------------------------------------


def test_activation_codes() -> None:
    x = np.zeros((2, 64), np.float32)
    x[0, :4] = [127, -127, 0.5, 1.5]  # d = 1: half to even
    x[1, 32:] = 1e-30
    codes, d = ref.quantize_activations(x)
    assert codes.dtype == np.int8 and d.dtype == np.float32 and d.shape == (2, 2)
    assert codes[0, :4].tolist() == [127, -127, 0, 2] and d[0].tolist() == [1, 0]
    assert not codes[1, :32].any() and (codes[1, 32:] == 127).all()
    assert np.float32(1e-30) / np.float32(127) == d[1, 1]


def scalar_product(raw: bytes, fmt: BlockFormat, x: np.ndarray) -> np.float32:
    """One row, one token, as a loop over Python numbers: the text of the contract again."""

    def fma(a, b, c) -> np.float32:
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        return round_to_float32(exact)

    n = x.size
    if not fmt.quantized:
        w = ref.dequantize(raw, fmt, (n,))
        a = [np.float32(0)] * 8
        for j in range(n):
            a[j % 8] = fma(w[j], x[j], a[j % 8])
        return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    p = ref.parts(raw, fmt, n)
    y = np.float32(0)
    for b in range(n // 32):
        xs = x[b * 32 : b * 32 + 32]
        d_x = np.float32(np.abs(xs).max()) / np.float32(127)
        inverse = np.float32(1) / d_x if d_x else np.float32(0)
        cx = [int(np.rint(np.float32(v * inverse))) for v in xs]
        cw, k = p.codes[b].tolist(), p.k[b].tolist()
        s = sum(k[j // 16] * cw[j] * cx[j] for j in range(32))
        y = fma(np.float32(p.d[b] * d_x), s, y)
        if p.m is not None and p.n is not None:
            n0, n1 = p.n[b].tolist()
            y = fma(np.float32(p.m[b] * d_x), n0 * sum(cx[:16]) + n1 * sum(cx[16:]), y)
    return y


@pytest.mark.parametrize("fmt", ALL, ids=lambda f: f.name)
def test_matvec_is_the_contract(fmt: BlockFormat) -> None:
    rng = np.random.default_rng(7)
    n_cols = {1: 91, 32: 160, 256: 512}[fmt.block_elements]
    x = rng.standard_normal((3, n_cols)).astype(np.float32)
    x[1, :32] = 0
    raw = write.random_blocks(fmt, 5, n_cols, rng, 1)
    got = ref.matvec(raw, fmt, 5, n_cols, x)
    row = fmt.row_bytes(n_cols)
    for t in range(3):
        for r in range(5):
            want = scalar_product(raw[r * row : (r + 1) * row], fmt, x[t])
            assert bits(got[t, r]) == bits(want), (t, r)


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
def test_error_bound(fmt: BlockFormat) -> None:
    """`matvec` is within its bound of gguf-py's weights times the float activations.

    The bound is of the right size too: activations and weights that agree in sign come near it,
    and a product of other weights is beyond it.
    """
    rng = np.random.default_rng(8)
    raw = write.random_blocks(fmt, 16, 768, rng, 1)
    rows = np.frombuffer(raw, np.uint8).reshape(16, -1)
    w = quants.dequantize(rows, qtype(fmt)).astype(np.float64)
    x = rng.standard_normal((4, 768)).astype(np.float32)
    x[3] *= 10 ** rng.uniform(-3, 3, 768)
    got, bound = (f(raw, fmt, 16, 768, x) for f in (ref.matvec, ref.product_error_bound))
    exact = x.astype(np.float64) @ w.T
    assert (np.abs(got - exact) <= bound).all()
    assert (np.abs(got - np.roll(exact, 1, axis=1)) > bound).mean() > 0.5
    # One row's worst case: every activation half a step above its code, in the weight's direction.
    worst = np.where(w[:1] < 0, -40.499, 40.499)
    worst[0, ::32] = 127 * np.where(w[0, ::32] < 0, -1, 1)
    worst = worst.astype(np.float32)
    error = np.abs(ref.matvec(raw, fmt, 16, 768, worst) - worst.astype(np.float64) @ w.T)[0, 0]
    limit = ref.product_error_bound(raw, fmt, 16, 768, worst)[0, 0]
    assert 0.9 * limit < error <= limit


@pytest.mark.parametrize("fmt", [F32, F16, BF16], ids=lambda f: f.name)
def test_float_matvec_approximates_the_product(fmt: BlockFormat) -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((4, 512)).astype(np.float32)
    raw = write.random_blocks(fmt, 16, 512, rng, 1)
    exact = x.astype(np.float64) @ ref.dequantize(raw, fmt, (16, 512)).astype(np.float64).T
    assert np.abs(ref.matvec(raw, fmt, 16, 512, x) - exact).max() < 1e-4


def test_ggml_type_ids() -> None:
    for fmt in ALL:
        assert qtype(fmt).name == fmt.name
        block, size = gguf.GGML_QUANT_SIZES[qtype(fmt)]
        assert (block, size) == (fmt.block_elements, fmt.block_bytes)
    assert F32.row_bytes(3) == 12
    for known in gguf.GGMLQuantizationType:
        if known > max(UNSUPPORTED):
            continue  # newer than this list
        name = FORMATS[known].name if known in FORMATS else UNSUPPORTED.get(known)
        assert name == known.name
    assert not FORMATS.keys() & UNSUPPORTED.keys()
