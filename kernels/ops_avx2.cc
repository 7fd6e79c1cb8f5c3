// AVX2 element-wise operations, softmax attention and the kernel table of this ISA.
#include <immintrin.h>
#include <math.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"

namespace edge_rt {

MatmulKernel matmul_float_avx2(int format);  // matmul_*_avx2.cc; null: not among theirs
MatmulKernel matmul_words_avx2(int format);
MatmulKernel matmul_grid_avx2(int format);
InterleaveKernel interleave_avx2(int format);

namespace {

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

__m256 exp8(__m256 x) {  // canonical_exp, eight at a time
  const __m256 vanish = _mm256_cmp_ps(x, _mm256_set1_ps(kExpLowest), _CMP_LT_OQ);
  x = _mm256_min_ps(_mm256_set1_ps(kExpHighest), x);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(kLog2E)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-kLn2High), x);
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(-kLn2Low), r);
  __m256 p = _mm256_set1_ps(kExpPolynomial[0]);
  for (int i = 1; i < kExpTerms; ++i) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpPolynomial[i]));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  const __m256i shifted = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  const __m256 y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), shifted));
  return _mm256_andnot_ps(vanish, y);
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

__m256 tanh8(__m256 x) {  // canonical_tanh, eight at a time
  const __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
  const __m256 size = _mm256_andnot_ps(sign, x), square = _mm256_mul_ps(x, x);
  __m256 p = _mm256_set1_ps(kTanhSeries[0]);
  for (int i = 1; i < kTanhTerms; ++i)
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(kTanhSeries[i]));
  const __m256 e = exp8(_mm256_mul_ps(_mm256_set1_ps(-2.0f), size));
  const __m256 far = _mm256_div_ps(_mm256_sub_ps(one, e), _mm256_add_ps(one, e));
  const __m256 signed_far = _mm256_or_ps(_mm256_andnot_ps(sign, far), _mm256_and_ps(sign, x));
  const __m256 near = _mm256_cmp_ps(size, _mm256_set1_ps(kTanhSeriesEnd), _CMP_LT_OQ);
  return _mm256_blendv_ps(signed_far, _mm256_mul_ps(p, x), near);
}

void softcap_avx2(float* x, int n, float cap) {
  const __m256 caps = _mm256_set1_ps(cap);
  const int whole = n & ~7;
  for (int j = 0; j < whole; j += 8) {
    const __m256 y = tanh8(_mm256_div_ps(_mm256_loadu_ps(x + j), caps));
    _mm256_storeu_ps(x + j, _mm256_mul_ps(y, caps));
  }
  for (int j = whole; j < n; ++j) x[j] = canonical_softcap(x[j], cap);
}

__m256 load_kv8(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
__m256 load_kv8(const float* p) { return _mm256_loadu_ps(p); }
float load_kv(const uint16_t* p) { return half_to_float(*p); }
float load_kv(const float* p) { return *p; }

template <typename Kv>
float dot(const float* q, const Kv* k, int n) {
  __m256 acc = _mm256_setzero_ps();
  const int whole = n & ~7;
  for (int d = 0; d < whole; d += 8)
    acc = _mm256_fmadd_ps(_mm256_loadu_ps(q + d), load_kv8(k + d), acc);
  if (whole != n) {
    float lane[8];
    _mm256_storeu_ps(lane, acc);
    for (int d = whole; d < n; ++d) lane[d % 8] = __builtin_fmaf(q[d], load_kv(k + d), lane[d % 8]);
    return reduce8(lane);
  }
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps(acc, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

template <typename Kv>
void attention_avx2(const AttentionArgs* a) {
  const int n = a->head_dim, whole = n & ~7;
  float peak = -INFINITY, total = 0.0f;
  for (int d = 0; d < n; ++d) a->out[d] = 0.0f;
  const int start = a->first - a->first % kAttentionTile;
  for (int first = start; first < a->n_positions; first += kAttentionTile) {
    const int left = a->n_positions - first;
    const int count = left < kAttentionTile ? left : kAttentionTile;
    const int skipped = a->first > first ? a->first - first : 0;  // before the window
    const Kv* k = (const Kv*)a->k + (size_t)(first % a->ring) * n;
    const Kv* v = (const Kv*)a->v + (size_t)(first % a->ring) * n;
    float s[kAttentionTile], tile_peak = peak;
    for (int i = 0; i < skipped; ++i) s[i] = -INFINITY;
    for (int i = skipped; i < count; ++i) s[i] = dot(a->q, k + (size_t)i * n, n) * a->scale;
    if (a->cap != 0.0f) softcap_avx2(s + skipped, count - skipped, a->cap);
    for (int i = skipped; i < count; ++i) tile_peak = s[i] > tile_peak ? s[i] : tile_peak;
    const float keep = canonical_exp(peak - tile_peak);
    float lane[8] = {};
    const int whole_scores = count & ~7;
    __m256 sums = _mm256_setzero_ps();
    for (int i = 0; i < whole_scores; i += 8) {
      const __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(s + i), _mm256_set1_ps(tile_peak)));
      _mm256_storeu_ps(s + i, e);
      sums = _mm256_add_ps(sums, e);
    }
    _mm256_storeu_ps(lane, sums);
    for (int i = whole_scores; i < count; ++i) {
      s[i] = canonical_exp(s[i] - tile_peak);
      lane[i % 8] = lane[i % 8] + s[i];
    }
    total = __builtin_fmaf(total, keep, reduce8(lane));
    for (int d = 0; d < whole; d += 8) {
      __m256 sum = _mm256_mul_ps(_mm256_loadu_ps(a->out + d), _mm256_set1_ps(keep));
      for (int i = skipped; i < count; ++i)
        sum = _mm256_fmadd_ps(_mm256_set1_ps(s[i]), load_kv8(v + (size_t)i * n + d), sum);
      _mm256_storeu_ps(a->out + d, sum);
    }
    for (int d = whole; d < n; ++d) {
      float sum = a->out[d] * keep;
      for (int i = skipped; i < count; ++i)
        sum = __builtin_fmaf(s[i], load_kv(v + (size_t)i * n + d), sum);
      a->out[d] = sum;
    }
    peak = tile_peak;
  }
  for (int d = 0; d < n; ++d) a->out[d] = a->out[d] / total;
}

void to_half_avx2(const float* x, uint16_t* y, int n) {
  const int whole = n & ~7;
  for (int j = 0; j < whole; j += 8)
    _mm_storeu_si128((__m128i*)(y + j),
                     _mm256_cvtps_ph(_mm256_loadu_ps(x + j), _MM_FROUND_TO_NEAREST_INT));
  for (int j = whole; j < n; ++j) y[j] = float_to_half(x[j]);
}

MatmulKernel matmul_avx2(int format) {
  MatmulKernel found = matmul_float_avx2(format);
  if (found == nullptr) found = matmul_words_avx2(format);
  return found != nullptr ? found : matmul_grid_avx2(format);
}

}  // namespace

const Kernels* kernel_table_avx2() {
  static const Kernels table = {"avx2",
                                matmul_avx2,
                                quantize_avx2,
                                rms_norm_avx2,
                                silu_gate_avx2,
                                gelu_gate_avx2,
                                softcap_avx2,
                                attention_avx2<uint16_t>,
                                attention_avx2<float>,
                                to_half_avx2,
                                interleave_avx2};
  return &table;
}

}  // namespace edge_rt
