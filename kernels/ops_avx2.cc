// AVX2 element-wise operations and the kernel table of this ISA.
#include "kernels/ops_avx2.h"

#include <immintrin.h>
#include <math.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"

namespace edge_rt {

MatmulKernel matmul_float_avx2(int format);  // matmul_*_avx2.cc; null: not among theirs
MatmulKernel matmul_words_avx2(int format);
MatmulKernel matmul_grid_avx2(int format);
InterleaveKernel interleave_avx2(int format);
void attention_avx2(const AttentionArgs* a);  // attention_avx2.cc
void merge_spans_avx2(const float* spans, int n_spans, int n_heads, int head_dim, float* out);

void quantize_avx2(const float* x, int n, int8_t* codes, float* scales, int16_t* sums) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256 high = _mm256_set1_ps(127.0f), low = _mm256_set1_ps(-127.0f);
  // packs works within 128-bit halves; this puts the 32 codes back into column order.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int b = 0; b < n / kBlockColumns; ++b, x += kBlockColumns, codes += kBlockColumns) {
    __m256 v[4], peak = _mm256_setzero_ps();
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + 8 * i);
      peak = _mm256_max_ps(_mm256_and_ps(v[i], magnitude), peak);  // a NaN leaves peak as it is
    }
    __m128 top = _mm_max_ps(_mm256_castps256_ps128(peak), _mm256_extractf128_ps(peak, 1));
    top = _mm_max_ps(top, _mm_movehl_ps(top, top));
    top = _mm_max_ss(top, _mm_movehdup_ps(top));
    const float d = _mm_cvtss_f32(top) / 127.0f;
    const __m256 inverse = _mm256_set1_ps(d != 0.0f ? 1.0f / d : 0.0f);
    __m256i q[4];
    for (int i = 0; i < 4; ++i) {
      __m256 code = _mm256_round_ps(_mm256_mul_ps(v[i], inverse), _MM_FROUND_TO_NEAREST_INT);
      const __m256 ordered = _mm256_cmp_ps(code, code, _CMP_ORD_Q);
      code = _mm256_min_ps(_mm256_max_ps(_mm256_and_ps(code, ordered), low), high);
      q[i] = _mm256_cvtps_epi32(code);
    }
    const __m256i packed =
        _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    _mm256_storeu_si256((__m256i*)codes, _mm256_permutevar8x32_epi32(packed, order));
    __m256i sum = _mm256_hadd_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
    sum = _mm256_hadd_epi32(sum, sum);  // each half: part of sum 0, part of sum 1, twice
    const __m128i both =
        _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    const int32_t pair = _mm_cvtsi128_si32(_mm_packs_epi32(both, both));
    memcpy(sums + 2 * b, &pair, sizeof pair);
    scales[b] = d;
  }
}

namespace {

void rms_norm_avx2(const float* x, const float* weight, int n, float eps, float* y) {
  __m256 acc = _mm256_setzero_ps();
  const int whole = n & ~7;
  for (int j = 0; j < whole; j += 8) {
    const __m256 v = _mm256_loadu_ps(x + j);
    acc = _mm256_fmadd_ps(v, v, acc);
  }
  float lane[8];
  _mm256_storeu_ps(lane, acc);
  for (int j = whole; j < n; ++j) lane[j % 8] = __builtin_fmaf(x[j], x[j], lane[j % 8]);
  const float r = 1.0f / sqrtf(reduce8(lane) / (float)n + eps);
  const __m256 scale = _mm256_set1_ps(r);
  for (int j = 0; j < whole; j += 8)
    _mm256_storeu_ps(y + j, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + j), scale),
                                          _mm256_loadu_ps(weight + j)));
  for (int j = whole; j < n; ++j) y[j] = x[j] * r * weight[j];
}

void silu_gate_avx2(float* gate, const float* up, int n) {
  const __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
  const int whole = n & ~7;
  for (int j = 0; j < whole; j += 8) {
    const __m256 g = _mm256_loadu_ps(gate + j);
    const __m256 below = _mm256_add_ps(one, exp8(_mm256_xor_ps(g, sign)));
    _mm256_storeu_ps(gate + j, _mm256_mul_ps(_mm256_div_ps(g, below), _mm256_loadu_ps(up + j)));
  }
  for (int j = whole; j < n; ++j) gate[j] = canonical_silu_gate(gate[j], up[j]);
}

void gelu_gate_avx2(float* gate, const float* up, int n) {
  const __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
  const int whole = n & ~7;
  for (int j = 0; j < whole; j += 8) {
    const __m256 g = _mm256_loadu_ps(gate + j);
    const __m256 inner = _mm256_fmadd_ps(_mm256_set1_ps(kGeluCubic), _mm256_mul_ps(g, g), one);
    const __m256 twice_u = _mm256_mul_ps(_mm256_mul_ps(g, inner), _mm256_set1_ps(kGeluTwice));
    const __m256 below = _mm256_add_ps(one, exp8(_mm256_xor_ps(twice_u, sign)));
    _mm256_storeu_ps(gate + j, _mm256_mul_ps(_mm256_div_ps(g, below), _mm256_loadu_ps(up + j)));
  }
  for (int j = whole; j < n; ++j) gate[j] = canonical_gelu_gate(gate[j], up[j]);
}

void to_half_avx2(const float* x, uint16_t* y, int n) {
  const int whole = n & ~7;
  for (int j = 0; j < whole; j += 8)
    _mm_storeu_si128((__m128i*)(y + j),
                     _mm256_cvtps_ph(_mm256_loadu_ps(x + j), _MM_FROUND_TO_NEAREST_INT));
  for (int j = whole; j < n; ++j) y[j] = float_to_half(x[j]);
}

void quantize_kv_avx2(const float* x, int head_dim, int8_t* codes, uint16_t* scales) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256 high = _mm256_set1_ps(127.0f), low = _mm256_set1_ps(-127.0f);
  const __m256 infinity = _mm256_set1_ps(INFINITY);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int first = 0; first < head_dim; first += 32, x += 32, codes += 32, ++scales) {
    float padded[32] = {};
    const int n = head_dim - first < 32 ? head_dim - first : 32;
    if (n < 32) memcpy(padded, x, (size_t)n * sizeof *x);
    const float* block = n < 32 ? padded : x;
    __m256 v[4], peak = _mm256_setzero_ps(), finite = magnitude;
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(block + 8 * i);
      const __m256 size = _mm256_and_ps(v[i], magnitude);
      peak = _mm256_max_ps(size, peak);
      finite = _mm256_and_ps(finite, _mm256_cmp_ps(size, infinity, _CMP_LT_OQ));
    }
    __m128 top = _mm_max_ps(_mm256_castps256_ps128(peak), _mm256_extractf128_ps(peak, 1));
    top = _mm_max_ps(top, _mm_movehl_ps(top, top));
    top = _mm_max_ss(top, _mm_movehdup_ps(top));
    const bool all_finite =
        _mm256_testc_si256(_mm256_castps_si256(finite), _mm256_castps_si256(magnitude)) != 0;
    *scales = all_finite ? float_to_half(_mm_cvtss_f32(top) / 127.0f) : 0x7e00;
    const float d = half_to_float(*scales);
    const __m256 inverse = _mm256_set1_ps(d > 0.0f ? 1.0f / d : 0.0f);
    const __m256 kept =
        all_finite ? _mm256_castsi256_ps(_mm256_set1_epi32(-1)) : _mm256_setzero_ps();
    __m256i q[4];
    for (int i = 0; i < 4; ++i) {
      const __m256 code = _mm256_round_ps(_mm256_mul_ps(_mm256_and_ps(v[i], kept), inverse),
                                          _MM_FROUND_TO_NEAREST_INT);
      q[i] = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(code, low), high));
    }
    const __m256i packed =
        _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    _mm256_storeu_si256((__m256i*)codes, _mm256_permutevar8x32_epi32(packed, order));
  }
}

void rope_avx2(float* heads, int n_heads, int head_dim, const float* table, int n_pairs,
               bool halves) {
  const int whole = n_pairs & ~7;
  for (int h = 0; h < n_heads; ++h, heads += head_dim) {
    for (int i = 0; i < whole; i += 8) {
      const __m256 c = _mm256_loadu_ps(table + i), s = _mm256_loadu_ps(table + n_pairs + i);
      if (halves) {
        const __m256 x = _mm256_loadu_ps(heads + i), y = _mm256_loadu_ps(heads + i + n_pairs);
        _mm256_storeu_ps(heads + i, _mm256_fmsub_ps(x, c, _mm256_mul_ps(y, s)));
        _mm256_storeu_ps(heads + i + n_pairs, _mm256_fmadd_ps(x, s, _mm256_mul_ps(y, c)));
        continue;
      }
      const __m256 low = _mm256_unpacklo_ps(c, s), high = _mm256_unpackhi_ps(c, s);
      const __m256 turn[2] = {_mm256_permute2f128_ps(low, high, 0x20),  // c0 s0 c1 s1 ...
                              _mm256_permute2f128_ps(low, high, 0x31)};
      for (int part = 0; part < 2; ++part) {
        float* pairs = heads + 2 * i + 8 * part;
        const __m256 v = _mm256_loadu_ps(pairs);
        const __m256 swapped = _mm256_permute_ps(turn[part], 0xb1);  // s0 c0 s1 c1 ...
        _mm256_storeu_ps(pairs, _mm256_fmaddsub_ps(_mm256_moveldup_ps(v), turn[part],
                                                   _mm256_mul_ps(_mm256_movehdup_ps(v), swapped)));
      }
    }
    for (int i = whole; i < n_pairs; ++i) {
      float* a = heads + (halves ? i : 2 * i);
      float* b = heads + (halves ? i + n_pairs : 2 * i + 1);
      const float c = table[i], s = table[n_pairs + i], x = *a, y = *b;
      *a = __builtin_fmaf(x, c, -(y * s));
      *b = __builtin_fmaf(x, s, y * c);
    }
  }
}

void add_avx2(float* y, const float* x, float factor, int n) {
  const __m256 factors = _mm256_set1_ps(factor);
  const int whole = n & ~7;
  for (int j = 0; j < whole; j += 8)
    _mm256_storeu_ps(y + j, _mm256_add_ps(_mm256_loadu_ps(y + j),
                                          _mm256_mul_ps(factors, _mm256_loadu_ps(x + j))));
  for (int j = whole; j < n; ++j) y[j] = y[j] + factor * x[j];
}

MatmulKernel matmul_avx2(int format) {
  MatmulKernel found = matmul_float_avx2(format);
  if (found == nullptr) found = matmul_words_avx2(format);
  return found != nullptr ? found : matmul_grid_avx2(format);
}

}  // namespace

const Kernels* kernel_table_avx2() {
  static const Kernels table = {"avx2",           matmul_avx2,      quantize_avx2, rms_norm_avx2,
                                silu_gate_avx2,   gelu_gate_avx2,   softcap_avx2,  attention_avx2,
                                merge_spans_avx2, quantize_kv_avx2, to_half_avx2,  rope_avx2,
                                add_avx2,         interleave_avx2};
  return &table;
}

}  // namespace edge_rt
