"""Scalar C++ against the NumPy reference, SIMD against scalar: equal bits on ragged shapes."""

from __future__ import annotations

import numpy as np
import pytest

from edge_rt.kernels import _kernels
from edge_rt.quant import reference
from edge_rt.quant.blocks import BF16, F16, F32, FORMATS, Q4_0, Q4_1, Q8_0

SIMD = [isa for isa in ("avx2",) if _kernels.available(isa)]
SHAPES = [  # tokens, rows, columns
    (1, 1, 32), (1, 7, 64), (1, 8, 96), (2, 9, 32), (3, 17, 160), (4, 8, 576), (5, 33, 128),
    (7, 3, 320), (16, 24, 64),
]  # fmt: skip
RAGGED_COLUMNS = [1, 2, 3, 5, 7, 8, 15, 33, 172, 1023]


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint32)


def weights(rng: np.random.Generator, fmt, n_rows: int, n_cols: int) -> bytes:
    values = rng.standard_normal((n_rows, n_cols), dtype=np.float32)
    values[rng.random(values.shape) < 0.02] *= 50
    return reference.quantize(values, fmt)


def matmul(isa: str, fmt, data: bytes, x: np.ndarray, n_rows: int) -> np.ndarray:
    y = np.full((x.shape[0], n_rows), np.nan, np.float32)
    _kernels.matmul(isa, fmt.ggml_id, data, x, y)
    return y


@pytest.mark.parametrize("fmt", [Q4_0, Q4_1, Q8_0], ids=lambda f: f.name)
@pytest.mark.parametrize(("n_tokens", "n_rows", "n_cols"), SHAPES)
def test_quantized_matmul_bits(fmt, n_tokens, n_rows, n_cols):
    rng = np.random.default_rng()
    data = weights(rng, fmt, n_rows, n_cols)
    x = rng.standard_normal((n_tokens, n_cols), dtype=np.float32)
    expected = reference.matvec(data, fmt, n_rows, n_cols, x)
    for isa in ["ref", *SIMD]:
        np.testing.assert_array_equal(bits(matmul(isa, fmt, data, x, n_rows)), bits(expected), isa)


@pytest.mark.parametrize("fmt", [F32, F16, BF16], ids=lambda f: f.name)
@pytest.mark.parametrize("n_cols", RAGGED_COLUMNS)
@pytest.mark.parametrize("n_tokens", [1, 2, 5])
def test_float_matmul_bits(fmt, n_cols, n_tokens):
    rng = np.random.default_rng()
    n_rows = int(rng.integers(1, 12))
    data = weights(rng, fmt, n_rows, n_cols)
    x = rng.standard_normal((n_tokens, n_cols), dtype=np.float32)
    expected = reference.matvec(data, fmt, n_rows, n_cols, x)
    for isa in ["ref", *SIMD]:
        np.testing.assert_array_equal(bits(matmul(isa, fmt, data, x, n_rows)), bits(expected), isa)


@pytest.mark.parametrize("fmt", [Q4_0, Q4_1, Q8_0], ids=lambda f: f.name)
def test_extreme_codes(fmt):
    """All codes and all activations at the ends of their ranges: integer sums must not saturate."""
    rng = np.random.default_rng()
    n_rows, n_cols = 16, 256
    raw = rng.choice(np.array([0x00, 0xFF, 0x80, 0x7F], np.uint8), (n_rows, fmt.row_bytes(n_cols)))
    blocks = raw.reshape(n_rows, -1, fmt.block_bytes)
    scales = 2 if fmt is Q4_1 else 1
    blocks[:, :, : 2 * scales].view(np.float16)[...] = np.float16(0.01)
    x = rng.choice(np.array([-1, 1], np.float32), (6, n_cols))
    expected = reference.matvec(raw.tobytes(), fmt, n_rows, n_cols, x)
    for isa in ["ref", *SIMD]:
        for tokens in (1, 6):
            got = matmul(isa, fmt, raw.tobytes(), x[:tokens], n_rows)
            np.testing.assert_array_equal(bits(got), bits(expected[:tokens]), isa)


@pytest.mark.parametrize("isa", ["ref", *SIMD])
def test_matmul_accumulates(isa):
    rng = np.random.default_rng()
    data = weights(rng, Q8_0, 10, 64)
    x = rng.standard_normal((3, 64), dtype=np.float32)
    start = rng.standard_normal((3, 10), dtype=np.float32)
    y = start.copy()
    _kernels.matmul(isa, Q8_0.ggml_id, data, x, y, accumulate=True)
    np.testing.assert_array_equal(bits(y), bits(start + matmul(isa, Q8_0, data, x, 10)))


@pytest.mark.parametrize("isa", ["ref", *SIMD])
def test_quantize_activations(isa):
    rng = np.random.default_rng()
    x = rng.standard_normal((5, 192), dtype=np.float32) * 10 ** rng.uniform(-6, 6, (5, 192))
    x = x.astype(np.float32)
    x[0] = 0
    x[1, :32] = np.float32(1e-41)  # a subnormal scale: its inverse overflows
    x[2, 3] = -127.5
    codes, scales = np.empty(x.shape, np.int8), np.empty((5, 6), np.float32)
    sums = np.empty((5, 6), np.int32)
    _kernels.quantize(isa, x, codes, scales, sums)
    normal = [0, 2, 3, 4]
    expected_codes, expected_scales = reference.quantize_activations(x[normal])
    np.testing.assert_array_equal(codes[normal], expected_codes)
    np.testing.assert_array_equal(bits(scales[normal]), bits(expected_scales))
    np.testing.assert_array_equal(sums, codes.reshape(5, 6, 32).sum(-1, dtype=np.int32))
    assert np.abs(codes[1, :32].astype(int)).max() <= 127


@pytest.mark.parametrize("n", [1, 7, 8, 31, 64, 577])
def test_elementwise(n):
    rng = np.random.default_rng()
    x, w = (rng.standard_normal(n, dtype=np.float32) * 3 for _ in range(2))
    x[: n // 3] *= 40
    outputs = {}
    for isa in ["ref", *SIMD]:
        y, gate = np.empty(n, np.float32), x.copy()
        _kernels.rms_norm(isa, x, w, 1e-5, y)
        _kernels.silu_gate(isa, gate, w)
        half = np.empty(n, np.uint16)
        _kernels.to_half(isa, x, half)
        outputs[isa] = (bits(y), bits(gate), half)
        exact = x.astype(np.float64)
        norm = exact / np.sqrt((exact**2).mean() + 1e-5) * w
        np.testing.assert_allclose(y, norm, rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(gate, exact / (1 + np.exp(-exact)) * w, rtol=2e-6, atol=1e-30)
        np.testing.assert_array_equal(half, x.astype(np.float16).view(np.uint16))
    for isa in SIMD:
        for ours, scalar in zip(outputs[isa], outputs["ref"], strict=True):
            np.testing.assert_array_equal(ours, scalar)


@pytest.mark.parametrize("head_dim", [4, 8, 12, 64, 100, 128])
@pytest.mark.parametrize("n_positions", [1, 5, 31, 32, 33, 64, 100, 257])
def test_attention(head_dim, n_positions):
    rng = np.random.default_rng()
    q = rng.standard_normal(head_dim, dtype=np.float32)
    k, v = (rng.standard_normal((n_positions, head_dim), dtype=np.float32) for _ in range(2))
    scale = head_dim**-0.5
    for half in (True, False):
        kk, vv = (a.astype(np.float16) if half else a for a in (k, v))
        scores = kk.astype(np.float64) @ q * scale
        p = np.exp(scores - scores.max())
        expected = p / p.sum() @ vv.astype(np.float64)
        outs = []
        for isa in ["ref", *SIMD]:
            out = np.empty(head_dim, np.float32)
            if half:
                _kernels.attention_f16(isa, q, kk.view(np.uint16), vv.view(np.uint16), scale, out)
            else:
                _kernels.attention_f32(isa, q, kk, vv, scale, out)
            np.testing.assert_allclose(out, expected, rtol=1e-4, atol=2e-6)
            outs.append(bits(out))
        for out in outs[1:]:
            np.testing.assert_array_equal(out, outs[0])


def test_half_floats_round_trip():
    patterns = np.arange(65536, dtype=np.uint16)
    widened = np.empty(65536, np.float32)
    _kernels.dequantize_row(F16.ggml_id, patterns.tobytes(), widened)
    finite = ~np.isnan(patterns.view(np.float16))
    expected = patterns.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(bits(widened)[finite], bits(expected)[finite])
    for isa in ["ref", *SIMD]:
        back = np.empty(65536, np.uint16)
        _kernels.to_half(isa, widened, back)
        np.testing.assert_array_equal(back[finite], patterns[finite])


@pytest.mark.parametrize("isa", ["ref", *SIMD])
def test_to_half_rounds_like_numpy(isa):
    rng = np.random.default_rng()
    x = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    x = np.concatenate(
        [x[np.isfinite(x)], np.float32([65519.9, 65520, 2**-24, 2**-25, 3 * 2**-26])]
    )
    out = np.empty(x.size, np.uint16)
    _kernels.to_half(isa, x, out)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, x.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_dequantize_row(fmt):
    rng = np.random.default_rng()
    data = weights(rng, fmt, 1, 192)
    out = np.empty(192, np.float32)
    _kernels.dequantize_row(fmt.ggml_id, data, out)
    np.testing.assert_array_equal(bits(out), bits(reference.dequantize(data, fmt, (192,))))
