"""quant.reference against gguf-py (formats) and against exact rational arithmetic (fma)."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from edge_rt.quant import reference as ref
from edge_rt.quant.blocks import BF16, F16, F32, FORMATS, Q4_0, Q4_1, Q8_0, BlockFormat

gguf = pytest.importorskip("gguf")
from gguf import quants  # noqa: E402

ALL = list(FORMATS.values())
QUANTIZED = [Q8_0, Q4_0, Q4_1]


def qtype(fmt: BlockFormat):
    return gguf.GGMLQuantizationType(fmt.ggml_id)


def bits(x) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


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


@pytest.mark.parametrize("fmt", ALL, ids=lambda f: f.name)
@pytest.mark.parametrize("shape", [(1, 32), (3, 64), (17, 96), (2, 3, 128)])
def test_quantize_is_bit_equal_to_gguf(fmt: BlockFormat, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    for scale in (1.0, 1e-3, 300.0):
        x = (rng.standard_normal(shape) * scale).astype(np.float32)
        x[..., :5] = np.round(x[..., :5])  # ties and exact values
        x.reshape(-1, 32)[0] = 0  # a block without a scale
        want = quants.quantize(x, qtype(fmt))
        assert ref.quantize(x, fmt) == want.tobytes()
        got = ref.dequantize(want.tobytes(), fmt, shape)
        assert got.dtype == np.float32 and got.shape == shape
        np.testing.assert_array_equal(bits(got), bits(quants.dequantize(want, qtype(fmt))))


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
def test_dequantize_random_blocks(fmt: BlockFormat) -> None:
    raw = np.random.default_rng(5).integers(0, 256, (64, 4 * fmt.block_bytes), np.uint8)
    halves = raw.reshape(-1, fmt.block_bytes)
    halves[:, 1] &= 0x7B  # an exponent below the top one: finite
    halves[:, 3] &= 0x7B
    want = quants.dequantize(raw, qtype(fmt))
    got = ref.dequantize(raw.tobytes(), fmt, (64, 128))
    np.testing.assert_array_equal(bits(got), bits(want))


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
def test_every_fp16_scale(fmt: BlockFormat) -> None:
    """All 65536 patterns as d (and, reversed, as m), except the NaNs whose payload is free."""
    patterns = np.arange(65536, dtype=np.uint16)
    patterns = patterns[~np.isnan(patterns.view(np.float16))]
    rng = np.random.default_rng(6)
    raw = rng.integers(0, 256, (patterns.size, fmt.block_bytes), np.uint8)
    raw[:, :2] = patterns.view(np.uint8).reshape(-1, 2)
    if fmt == Q4_1:
        raw[:, 2:4] = patterns[::-1].copy().view(np.uint8).reshape(-1, 2)
    with np.errstate(all="ignore"):
        want = quants.dequantize(raw, qtype(fmt))
    got = ref.dequantize(raw.tobytes(), fmt, want.shape)
    nan = np.isnan(want)  # inf * 0
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(bits(got)[~nan], bits(want)[~nan])


@pytest.mark.parametrize("fmt", [F16, BF16], ids=lambda f: f.name)
def test_every_16_bit_float(fmt: BlockFormat) -> None:
    raw = np.arange(65536, dtype=np.uint16)
    got = ref.dequantize(raw.tobytes(), fmt, (65536,))
    finite = np.isfinite(got)
    assert ref.quantize(got[finite], fmt) == raw[finite].tobytes()
    want = quants.dequantize(raw.view(np.uint8).reshape(256, -1), qtype(fmt)).ravel()
    np.testing.assert_array_equal(bits(got)[finite], bits(want)[finite])


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        ref.dequantize(b"\0" * 18, Q4_0, (33,))
    with pytest.raises(ValueError, match="bytes are not"):
        ref.dequantize(b"\0" * 17, Q4_0, (32,))
    with pytest.raises(ValueError, match="whole blocks"):
        ref.quantize(np.zeros((2, 33)), Q8_0)
    with pytest.raises(ValueError, match="columns"):
        ref.matvec(b"\0" * 18, Q4_0, 1, 32, np.zeros((1, 64)))


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
    y = np.float32(0)
    for b in range(n // 32):
        block = raw[b * fmt.block_bytes : (b + 1) * fmt.block_bytes]
        xs = x[b * 32 : b * 32 + 32]
        d_x = np.float32(np.abs(xs).max()) / np.float32(127)
        inverse = np.float32(1) / d_x if d_x else np.float32(0)
        cx = [int(np.rint(np.float32(v * inverse))) for v in xs]
        d_w = np.float32(np.frombuffer(block[:2], np.float16)[0])
        if fmt == Q8_0:
            cw = list(np.frombuffer(block[2:], np.int8).astype(int))
        else:
            packed = block[2:] if fmt == Q4_0 else block[4:]
            cw = [v & 15 for v in packed] + [v >> 4 for v in packed]
            cw = [v - 8 for v in cw] if fmt == Q4_0 else cw
        y = fma(np.float32(d_w * d_x), sum(p * q for p, q in zip(cw, cx, strict=True)), y)
        if fmt == Q4_1:
            m_w = np.float32(np.frombuffer(block[2:4], np.float16)[0])
            y = fma(np.float32(m_w * d_x), sum(cx), y)
    return y


@pytest.mark.parametrize("fmt", ALL, ids=lambda f: f.name)
def test_matvec_is_the_contract(fmt: BlockFormat) -> None:
    rng = np.random.default_rng(7)
    n_cols = 160 if fmt.quantized else 91
    w = rng.standard_normal((5, n_cols)).astype(np.float32)
    x = rng.standard_normal((3, n_cols)).astype(np.float32)
    x[1, :32] = 0
    raw = ref.quantize(w, fmt)
    got = ref.matvec(raw, fmt, 5, n_cols, x)
    row = fmt.row_bytes(n_cols)
    for t in range(3):
        for r in range(5):
            want = scalar_product(raw[r * row : (r + 1) * row], fmt, x[t])
            assert bits(got[t, r]) == bits(want), (t, r)


@pytest.mark.parametrize("fmt", ALL, ids=lambda f: f.name)
def test_matvec_approximates_the_float_product(fmt: BlockFormat) -> None:
    rng = np.random.default_rng(8)
    w = rng.standard_normal((16, 512)).astype(np.float32)
    x = rng.standard_normal((4, 512)).astype(np.float32)
    raw = ref.quantize(w, fmt)
    exact = x.astype(np.float64) @ ref.dequantize(raw, fmt, (16, 512)).astype(np.float64).T
    error = np.abs(ref.matvec(raw, fmt, 16, 512, x) - exact).max()
    bound = 0.4 if fmt.quantized else 1e-4  # int8 activations: about 0.008 * sqrt(512) rms
    assert error < bound


def test_ggml_type_ids() -> None:
    for fmt in ALL:
        assert qtype(fmt).name == fmt.name
        block, size = gguf.GGML_QUANT_SIZES[qtype(fmt)]
        assert (block, size) == (fmt.block_elements, fmt.block_bytes)
    assert F32.row_bytes(3) == 12
