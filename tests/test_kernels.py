"""Scalar C++ against the NumPy reference, SIMD against scalar: equal bits on ragged shapes.

The data are new on every run. The seed is printed with a failure; EDGE_RT_TEST_SEED repeats it.
"""

from __future__ import annotations

import os
import secrets

import numpy as np
import pytest

from edge_rt.kernels import _kernels
from edge_rt.quant import reference
from edge_rt.quant.blocks import BF16, F16, F32, FORMATS, MXFP4, Q8_0
from edge_rt.quant.reference_write import (
    QUANTIZABLE,
    quantize,
    random_blocks,
    set_scales,
)

SIMD = _kernels.ISAS[1:]
QUANTIZED = [fmt for fmt in FORMATS.values() if fmt.quantized]
SHAPES = [  # tokens, rows, blocks of 32 columns, blocks of 256 columns
    (1, 1, 1, 1), (1, 7, 2, 2), (1, 8, 3, 3), (2, 9, 1, 1), (3, 17, 5, 2), (4, 8, 18, 3),
    (5, 33, 4, 1), (7, 3, 10, 5), (16, 24, 2, 2), (65, 10, 3, 1),
]  # fmt: skip
RAGGED_COLUMNS = [1, 2, 3, 5, 7, 8, 15, 33, 172, 1023]


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(os.environ.get("EDGE_RT_TEST_SEED") or secrets.randbits(32))
    print(f"EDGE_RT_TEST_SEED={seed}")
    return np.random.default_rng(seed)


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint32)


def weights(rng: np.random.Generator, fmt, n_rows: int, n_cols: int) -> bytes:
    """Quantized normals with outliers where there is a quantizer, else random blocks."""
    if fmt not in QUANTIZABLE:
        return random_blocks(fmt, n_rows, n_cols, rng, 1)
    values = rng.standard_normal((n_rows, n_cols), dtype=np.float32)
    values[rng.random(values.shape) < 0.02] *= 50
    return quantize(values, fmt)


def matmul(
    isa: str, fmt, data: bytes, x: np.ndarray, n_rows: int, interleaved: bool = False
) -> np.ndarray:
    y = np.full((x.shape[0], n_rows), np.nan, np.float32)
    _kernels.matmul(isa, fmt.ggml_id, data, x, y, interleaved=interleaved)
    return y


def assert_matmul_bits(fmt, data: bytes, x: np.ndarray, n_rows: int) -> np.ndarray:
    """Every ISA gives the bits of the reference in either layout; they are returned."""
    expected = reference.matvec(data, fmt, n_rows, x.shape[1], x)
    assert np.isfinite(expected).all()
    for isa in ["ref", *SIMD]:
        for interleaved in (False, True)[: 1 + _kernels.can_interleave(isa, fmt.ggml_id)]:
            y = matmul(isa, fmt, data, x, n_rows, interleaved)
            np.testing.assert_array_equal(bits(y), bits(expected), f"{isa} {interleaved}")
    return expected


# The fields that are not words: where they begin in a block, their bytes, their number.
SMALL_FIELDS = {
    "Q4_0": (0, 2, 1), "Q4_1": (0, 2, 2), "Q5_0": (0, 2, 1), "Q5_1": (0, 2, 2), "Q8_0": (0, 2, 1),
    "IQ4_NL": (0, 2, 1), "MXFP4": (0, 1, 1), "Q2_K": (80, 2, 2), "Q3_K": (108, 2, 1),
    "Q4_K": (0, 2, 2), "Q5_K": (0, 2, 2), "Q6_K": (208, 2, 1), "IQ4_XS": (0, 2, 2),
    "TQ1_0": (52, 2, 1), "TQ2_0": (64, 2, 1),
}  # fmt: skip


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_interleaved_layout(fmt, rng):
    """formats.h: eight rows, block by block, small fields first, then words, row by row."""
    if fmt.name not in SMALL_FIELDS:
        assert not any(_kernels.can_interleave(isa, fmt.ggml_id) for isa in ["ref", *SIMD])
        return
    n_rows, n_blocks = int(rng.integers(1, 30)), int(rng.integers(1, 5))
    rows = rng.integers(0, 256, (n_rows, n_blocks, fmt.block_bytes), np.uint8)
    whole = n_rows // 8 * 8
    at, n_bytes, n = SMALL_FIELDS[fmt.name]
    groups = rows[:whole].reshape(whole // 8, 8, n_blocks, fmt.block_bytes)
    small = groups[..., at : at + n * n_bytes].reshape(whole // 8, 8, n_blocks, n, n_bytes)
    words = np.delete(groups, slice(at, at + n * n_bytes), axis=-1)
    words = words.reshape(*words.shape[:3], words.shape[3] // 4, 4)
    parts = [
        fields.transpose(0, 2, 3, 1, 4).reshape(
            whole // 8, n_blocks, fields.size // max(whole // 8 * n_blocks, 1)
        )
        for fields in (small, words)
    ]
    expected = np.concatenate(parts, axis=-1).tobytes() + rows[whole:].tobytes()
    for isa in ["ref", *SIMD]:
        if isa.startswith("neon"):  # rows stay as in the file
            continue
        n_cols = n_blocks * fmt.block_elements
        assert _kernels.interleave(isa, fmt.ggml_id, rows.tobytes(), n_cols) == expected, isa


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
@pytest.mark.parametrize(("n_tokens", "n_rows", "n_short", "n_long"), SHAPES)
def test_quantized_matmul_bits(fmt, n_tokens, n_rows, n_short, n_long, rng):
    n_cols = fmt.block_elements * (n_short if fmt.block_elements == 32 else n_long)
    data = weights(rng, fmt, n_rows, n_cols)
    x = rng.standard_normal((n_tokens, n_cols), dtype=np.float32)
    assert_matmul_bits(fmt, data, x, n_rows)


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
def test_quantized_matmul_of_any_bytes(fmt, rng):
    """Codes and integer scales that no quantizer writes still have one meaning."""
    n_rows, n_cols = 19, 1024
    raw = rng.integers(0, 256, (n_rows * n_cols // fmt.block_elements, fmt.block_bytes), np.uint8)
    d = 10 ** rng.uniform(-6, 3, len(raw)) * rng.choice([-1, 1], len(raw))
    set_scales(raw, fmt, np.abs(d) if fmt == MXFP4 else d, rng.permutation(d))
    x = rng.standard_normal((5, n_cols), dtype=np.float32) * 10 ** rng.uniform(-3, 3, (5, n_cols))
    x = x.astype(np.float32)
    x[1, 32:64] = 0
    for tokens in (1, 5):
        assert_matmul_bits(fmt, raw.tobytes(), x[:tokens], n_rows)


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
def test_quantized_matmul_error_bound(fmt, rng):
    """Within `reference.product_error_bound` of gguf-py's weights times the float activations.

    Its parts: activations are rounded to int8, |x - x^| <= (1/2 + 2**-15) d_x, which meets every
    weight of a sub-block, and N fmas in float32. docs/numerics.md has the derivation.
    """
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    n_rows, n_cols = 21, 1280
    data = random_blocks(fmt, n_rows, n_cols, rng, n_cols**-0.5)
    rows = np.frombuffer(data, np.uint8).reshape(n_rows, -1)
    w = quants.dequantize(rows, GGMLQuantizationType(fmt.ggml_id)).astype(np.float64)
    x = rng.standard_normal((6, n_cols), dtype=np.float32)
    x[rng.random(x.shape) < 0.01] *= 30  # outliers: few codes are left for the others
    exact = x.astype(np.float64) @ w.T
    bound = reference.product_error_bound(data, fmt, n_rows, n_cols, x)
    for isa in ["ref", *SIMD]:
        for tokens in (1, 6):
            error = np.abs(matmul(isa, fmt, data, x[:tokens], n_rows) - exact[:tokens])
            assert (error <= bound[:tokens]).all(), (isa, (error / bound[:tokens]).max())


@pytest.mark.parametrize("fmt", [F32, F16, BF16], ids=lambda f: f.name)
@pytest.mark.parametrize("n_cols", RAGGED_COLUMNS)
@pytest.mark.parametrize("n_tokens", [1, 2, 5])
def test_float_matmul_bits(fmt, n_cols, n_tokens, rng):
    n_rows = int(rng.integers(1, 12))
    data = weights(rng, fmt, n_rows, n_cols)
    x = rng.standard_normal((n_tokens, n_cols), dtype=np.float32)
    expected = reference.matvec(data, fmt, n_rows, n_cols, x)
    for isa in ["ref", *SIMD]:
        np.testing.assert_array_equal(bits(matmul(isa, fmt, data, x, n_rows)), bits(expected), isa)


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
@pytest.mark.parametrize("pattern", [0x00, 0xFF, 0x80, 0x7F, None])
def test_extreme_codes(fmt, pattern, rng):
    """All codes, integer scales and activations at the ends of their ranges: integer sums must
    not saturate."""
    n_rows, n_cols = 16, 512
    shape = (n_rows * n_cols // fmt.block_elements, fmt.block_bytes)
    ends = np.array([0x00, 0xFF, 0x80, 0x7F], np.uint8)
    raw = rng.choice(ends, shape) if pattern is None else np.full(shape, pattern, np.uint8)
    d = np.full(len(raw), 0.01, np.float32)
    set_scales(raw, fmt, d, -d)
    x = rng.choice(np.array([-1, 1], np.float32), (6, n_cols))
    x[1], x[2] = 1, -1
    x[3] = np.where(np.arange(n_cols) % 32 < 16, 1, -1)
    # The sign of every weight: the largest sums of all.
    x[4] = np.copysign(1, reference.dequantize(raw.tobytes(), fmt, (n_rows, n_cols))[0])
    for tokens in (x, x[:1], x[4:5]):
        assert_matmul_bits(fmt, raw.tobytes(), tokens, n_rows)


@pytest.mark.parametrize("isa", ["ref", *SIMD])
def test_matmul_accumulates(isa, rng):
    data = weights(rng, Q8_0, 10, 64)
    x = rng.standard_normal((3, 64), dtype=np.float32)
    start = rng.standard_normal((3, 10), dtype=np.float32)
    y = start.copy()
    _kernels.matmul(isa, Q8_0.ggml_id, data, x, y, accumulate=True)
    np.testing.assert_array_equal(bits(y), bits(start + matmul(isa, Q8_0, data, x, 10)))


@pytest.mark.parametrize("isa", ["ref", *SIMD])
def test_quantize_activations(isa, rng):
    x = rng.standard_normal((5, 192), dtype=np.float32) * 10 ** rng.uniform(-6, 6, (5, 192))
    x = x.astype(np.float32)
    x[0] = 0
    x[1, :32] = np.float32(1e-41)  # a subnormal scale: its inverse overflows
    x[2, 3] = -127.5
    codes, scales = np.empty(x.shape, np.int8), np.empty((5, 6), np.float32)
    sums = np.empty((5, 12), np.int16)
    _kernels.quantize(isa, x, codes, scales, sums)
    normal = [0, 2, 3, 4]
    expected_codes, expected_scales = reference.quantize_activations(x[normal])
    np.testing.assert_array_equal(codes[normal], expected_codes)
    np.testing.assert_array_equal(bits(scales[normal]), bits(expected_scales))
    np.testing.assert_array_equal(sums, codes.reshape(5, 12, 16).sum(-1, dtype=np.int16))
    assert np.abs(codes[1, :32].astype(int)).max() <= 127


@pytest.mark.parametrize("n", [1, 7, 8, 31, 64, 577])
def test_elementwise(n, rng):
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


def stored(x: np.ndarray, kv_format: str) -> np.ndarray:
    """The rows of ``x`` as the KV cache keeps them."""
    if kv_format != "q8_0":
        return x.astype(np.float16 if kv_format == "f16" else np.float32)
    n = x.shape[1]
    blocks = np.pad(x, ((0, 0), (0, -n % 32))).reshape(len(x), -1, 32)
    d = (np.abs(blocks).max(-1, keepdims=True) / np.float32(127)).astype(np.float16)
    inverse = np.float32(1) / d.astype(np.float32)
    codes = np.clip(np.rint(blocks * inverse), -127, 127)
    return (codes * d.astype(np.float32)).reshape(len(x), -1)[:, :n]


@pytest.mark.parametrize("kv_format", ["f16", "f32", "q8_0"])
@pytest.mark.parametrize("head_dim", [4, 8, 12, 64, 80, 100, 128])
@pytest.mark.parametrize("n_positions", [1, 5, 31, 32, 33, 64, 100, 257, 600])
def test_attention(head_dim, n_positions, kv_format, rng):
    n_heads, window = int(rng.integers(1, 6)), int(rng.integers(0, n_positions + 1))
    n_tokens = int(rng.integers(1, min(n_positions, 24 // n_heads) + 1))
    q = rng.standard_normal((n_tokens, n_heads, head_dim), dtype=np.float32)
    k, v = (rng.standard_normal((n_positions, head_dim), dtype=np.float32) for _ in range(2))
    scale = head_dim**-0.5
    wide_k, wide_v = (stored(a, kv_format).astype(np.float64) for a in (k, v))
    wide_q = reference_q(q, kv_format)
    expected = np.empty(q.shape)
    for t in range(n_tokens):
        end = n_positions - n_tokens + t + 1
        first = max(0, end - window) if window else 0
        scores = wide_q[t] @ wide_k[first:end].T * scale
        p = np.exp(scores - scores.max(-1, keepdims=True))
        expected[t] = p / p.sum(-1, keepdims=True) @ wide_v[first:end]
    outs = []
    for isa in ["ref", *SIMD]:
        out = np.empty_like(q)
        _kernels.attention(isa, kv_format, q, k, v, scale, out, window=window)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=2e-6)
        outs.append(bits(out))
        one = np.empty_like(q[-1:])  # the last token, its spans apart
        args = (isa, kv_format, q[-1:].copy(), k, v, scale, one)
        _kernels.attention(*args, window=window, by_spans=True)
        np.testing.assert_array_equal(bits(one), outs[0][-1:])
    for out in outs[1:]:
        np.testing.assert_array_equal(out, outs[0])


def reference_q(q: np.ndarray, kv_format: str) -> np.ndarray:
    """Queries as the products with the keys see them: int8 per 32 columns for keys in q8_0."""
    if kv_format != "q8_0":
        return q.astype(np.float64)
    rows = q.reshape(-1, q.shape[-1])
    n = rows.shape[1]
    padded = np.pad(rows, ((0, 0), (0, -n % 32)))
    codes, scales = reference.quantize_activations(padded)
    wide = codes.reshape(len(rows), -1, 32) * scales.reshape(len(rows), -1, 1).astype(np.float64)
    return wide.reshape(len(rows), -1)[:, :n].reshape(q.shape)


@pytest.mark.parametrize("head_dim", [8, 64, 80, 128])
def test_attention_of_quantized_keys_and_values_is_near(head_dim, rng):
    """q8_0 against the float cache: half a step of codes in q, k and v."""
    q = rng.standard_normal((1, 4, head_dim), dtype=np.float32)
    k, v = (rng.standard_normal((300, head_dim), dtype=np.float32) for _ in range(2))
    found = {}
    for kv_format in ("f32", "q8_0"):
        found[kv_format] = np.empty_like(q)
        _kernels.attention("auto", kv_format, q, k, v, head_dim**-0.5, found[kv_format])
    assert 0 < np.abs(found["q8_0"] - found["f32"]).max() < 0.02


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
def test_to_half_rounds_like_numpy(isa, rng):
    x = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    x = np.concatenate(
        [x[np.isfinite(x)], np.float32([65519.9, 65520, 2**-24, 2**-25, 3 * 2**-26])]
    )
    out = np.empty(x.size, np.uint16)
    _kernels.to_half(isa, x, out)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, x.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_dequantize_row(fmt, rng):
    data = weights(rng, fmt, 1, 768)
    out = np.empty(768, np.float32)
    _kernels.dequantize_row(fmt.ggml_id, data, out)
    np.testing.assert_array_equal(bits(out), bits(reference.dequantize(data, fmt, (768,))))


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
def test_dequantize_row_of_any_bytes(fmt, rng):
    """Every bit random: NaN and infinite scales too."""
    raw = rng.integers(0, 256, 2048 * fmt.block_bytes, np.uint8).tobytes()
    out = np.empty(2048 * fmt.block_elements, np.float32)
    _kernels.dequantize_row(fmt.ggml_id, raw, out)
    expected = reference.dequantize(raw, fmt, out.shape)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(out), nan)
    np.testing.assert_array_equal(bits(out)[~nan], bits(expected)[~nan])
