// AVX2 softmax attention.
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/attention_simd.h"
#include "kernels/canonical.h"
#include "kernels/kernels.h"
#include "kernels/kv_cache.h"
#include "kernels/ops_avx2.h"

namespace edge_rt {

void quantize_avx2(const float* x, int n, int8_t* codes, float* scales, int16_t* sums);

namespace {

// f(0), .., f(N - 1) with constants, so that arrays of accumulators are registers from the start:
// GCC unrolls loops over them too late, and stores every accumulator in every round.
template <int I>
struct Index {
  constexpr operator int() const { return I; }
};
#define INLINE __attribute__((always_inline))
// For loops that need all sixteen registers: within another loop GCC keeps some of them for that
// one's variables.
#define NOINLINE __attribute__((noinline))
template <int N, typename F>
INLINE inline void each(const F& f) {
  if constexpr (N > 0) {
    each<N - 1>(f);
    f(Index<N - 1>());
  }
}

__m256 widen8(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
__m256 widen8(const float* p) { return _mm256_loadu_ps(p); }
__m256 widen8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
float widen(uint16_t x) { return half_to_float(x); }
float widen(float x) { return x; }
float widen(int8_t x) { return x; }

// reduce8 of four accumulators.
__m128 reduce4x8(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 ac =
      _mm256_add_ps(_mm256_permute2f128_ps(a, c, 0x20), _mm256_permute2f128_ps(a, c, 0x31));
  const __m256 bd =
      _mm256_add_ps(_mm256_permute2f128_ps(b, d, 0x20), _mm256_permute2f128_ps(b, d, 0x31));
  const __m256 pairs =
      _mm256_add_ps(_mm256_shuffle_ps(ac, bd, 0x44), _mm256_shuffle_ps(ac, bd, 0xee));
  const __m256 sums = _mm256_hadd_ps(pairs, pairs);
  return _mm_movelh_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

// s (n_queries, kAttentionTile) = the products of q (n_queries, q_stride) with P rows of k.
template <int R, int P, typename Kv>
INLINE inline void score_rows(const float* q, size_t q_stride, const Kv* k, size_t k_stride,
                              int n_cols, __m128 scale, float* s) {
  __m256 sum[R * P];
  each<R * P>([&](auto j) INLINE { sum[j] = _mm256_setzero_ps(); });
  for (int d = 0; d < n_cols; d += 8) {
    __m256 x[R];
    each<R>([&](auto r) INLINE { x[r] = _mm256_load_ps(q + (size_t)r * q_stride + d); });
    each<P>([&](auto p) INLINE {
      const __m256 y = widen8(k + (size_t)p * k_stride + d);
      each<R>([&](auto r) INLINE { sum[r * P + p] = _mm256_fmadd_ps(x[r], y, sum[r * P + p]); });
    });
  }
  each<R>([&](auto r) INLINE {
    float* to = s + r * kAttentionTile;
    if constexpr (P == 4) {
      const __m128 y = reduce4x8(sum[r * P], sum[r * P + 1], sum[r * P + 2], sum[r * P + 3]);
      _mm_storeu_ps(to, _mm_mul_ps(y, scale));
    } else if constexpr (P == 2) {
      const __m128 y = reduce4x8(sum[r * P], sum[r * P + 1], sum[r * P], sum[r * P + 1]);
      _mm_storel_pi((__m64*)to, _mm_mul_ps(y, scale));
    } else {
      const __m128 y = reduce4x8(sum[r], sum[r], sum[r], sum[r]);
      _mm_store_ss(to, _mm_mul_ss(y, scale));
    }
  });
}

float peak_of(__m256 x) {
  __m128 top = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
}

// C vectors of sums (R, stride) of R queries, over the rows of v, weighed with w (R,
// kAttentionTile).
template <int R, int C, typename Kv>
NOINLINE void add_columns(const float* w, const float* keep, const Kv* v, size_t v_stride,
                          Range rows, float* sums, size_t stride) {
  __m256 sum[R * C];
  each<R * C>([&](auto j) INLINE {
    const float* old = sums + (size_t)(j / C) * stride + 8 * (j % C);
    sum[j] = _mm256_mul_ps(_mm256_load_ps(old), _mm256_set1_ps(keep[j / C]));
  });
  for (int i = rows.begin; i < rows.end; ++i) {
    __m256 e[R];
    each<R>([&](auto r) INLINE { e[r] = _mm256_broadcast_ss(w + r * kAttentionTile + i); });
    each<C>([&](auto c) INLINE {
      const __m256 y = widen8(v + (size_t)i * v_stride + 8 * c);
      each<R>([&](auto r) INLINE { sum[r * C + c] = _mm256_fmadd_ps(e[r], y, sum[r * C + c]); });
    });
  }
  each<R * C>([&](auto j) INLINE {
    _mm256_store_ps(sums + (size_t)(j / C) * stride + 8 * (j % C), sum[j]);
  });
}

struct Avx2 {
  // With four rows or vectors of columns each that is twelve accumulators; the other four of the
  // sixteen registers are for the queries or their weights, and for the tile.
  static constexpr int kManyTogether = 3;

  template <typename Kv>
  static void widen_rows(const Kv* from, size_t from_stride, int n, Range rows, float* to,
                         size_t stride) {
    for (int i = rows.begin; i < rows.end; ++i) {
      const Kv* x = from + (size_t)i * from_stride;
      float* y = to + (size_t)i * stride;
      int d = 0;
      for (; d + 8 <= n; d += 8) _mm256_store_ps(y + d, widen8(x + d));
      if (d == n) continue;
      _mm256_store_ps(y + d, _mm256_setzero_ps());
      for (; d < n; ++d) y[d] = widen(x[d]);
    }
  }

  static void quantize(const float* x, int n, int8_t* codes, float* scales, void* scratch) {
    quantize_avx2(x, n, codes, scales, (int16_t*)scratch);
  }

  template <int R, typename Kv>
  NOINLINE static void score(const float* q, size_t q_stride, const Kv* k, size_t k_stride,
                             int n_cols, Range rows, float scale, float* s) {
    const __m128 scales = _mm_set1_ps(scale);
    constexpr int kRows = R == 4 ? 2 : 4;
    int i = rows.begin;
    for (; i + kRows <= rows.end; i += kRows)
      score_rows<R, kRows>(q, q_stride, k + (size_t)i * k_stride, k_stride, n_cols, scales, s + i);
    for (; i < rows.end; ++i)
      score_rows<R, 1>(q, q_stride, k + (size_t)i * k_stride, k_stride, n_cols, scales, s + i);
  }

  template <int R>
  NOINLINE static void score_codes(const int8_t* codes, const float* q_scales, const uint8_t* tile,
                                   int head_dim, Range rows, float scale, float* s) {
    const size_t padded = padded_columns(head_dim), n_blocks = padded / 32;
    const __m256i ones = _mm256_set1_epi16(1);
    for (int i = rows.begin & ~7; i < rows.end; i += 8) {
      const uint8_t* k = tile + key_code(head_dim, i, 0);
      __m256 y[R];
      each<R>([&](auto r) INLINE { y[r] = _mm256_setzero_ps(); });
      for (size_t b = 0; b < n_blocks; ++b) {
        __m256i sum[R];
        each<R>([&](auto r) INLINE { sum[r] = _mm256_setzero_si256(); });
        for (size_t w = 8 * b; w < 8 * b + 8; ++w) {
          const __m256i key = _mm256_loadu_si256((const __m256i*)(k + 32 * w));
          const __m256i size = _mm256_abs_epi8(key);
          each<R>([&](auto r) INLINE {
            int32_t word;
            memcpy(&word, codes + (size_t)r * padded + 4 * w, sizeof word);
            const __m256i product =
                _mm256_maddubs_epi16(size, _mm256_sign_epi8(_mm256_set1_epi32(word), key));
            sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(product, ones));
          });
        }
        const __m256 d = widen8((const uint16_t*)(tile + kv_scale(head_dim, i, b)));
        each<R>([&](auto r) INLINE {
          const __m256 both = _mm256_mul_ps(_mm256_set1_ps(q_scales[(size_t)r * n_blocks + b]), d);
          y[r] = _mm256_fmadd_ps(both, _mm256_cvtepi32_ps(sum[r]), y[r]);
        });
      }
      each<R>([&](auto r) INLINE {
        _mm256_storeu_ps(s + r * kAttentionTile + i, _mm256_mul_ps(y[r], _mm256_set1_ps(scale)));
      });
    }
  }

  static float weigh(float* s, Range rows, float cap, float* peak, float* total) {
    if (cap != 0.0f) softcap_avx2(s + rows.begin, rows.end - rows.begin, cap);
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i last_before = _mm256_set1_epi32(rows.begin - 1),
                  end = _mm256_set1_epi32(rows.end);
    const __m256 lowest = _mm256_set1_ps(-INFINITY);
    __m256 x[4], seen[4], top = _mm256_set1_ps(*peak);
    for (int j = 0; j < 4; ++j) {
      const __m256i i = _mm256_add_epi32(index, _mm256_set1_epi32(8 * j));
      seen[j] = _mm256_castsi256_ps(
          _mm256_and_si256(_mm256_cmpgt_epi32(i, last_before), _mm256_cmpgt_epi32(end, i)));
      x[j] = _mm256_blendv_ps(lowest, _mm256_load_ps(s + 8 * j), seen[j]);
      top = _mm256_max_ps(x[j], top);  // a NaN leaves top as it is
    }
    const float tile_peak = peak_of(top);
    __m256 sum = _mm256_setzero_ps();
    for (int j = 0; j < 4; ++j) {
      const __m256 e = _mm256_and_ps(seen[j], exp8(_mm256_sub_ps(x[j], _mm256_set1_ps(tile_peak))));
      _mm256_store_ps(s + 8 * j, e);
      sum = _mm256_add_ps(sum, e);
    }
    // exp(0) is 1: mostly the peak is an earlier tile's.
    const bool same = tile_peak == *peak && tile_peak > -INFINITY;
    const float keep = same ? 1.0f : canonical_exp(*peak - tile_peak);
    float lane[8];
    _mm256_storeu_ps(lane, sum);
    *total = __builtin_fmaf(*total, keep, reduce8(lane));
    *peak = tile_peak;
    return keep;
  }

  template <int R, typename Kv>
  static void add_values(const float* w, const float* keep, const Kv* v, size_t v_stride,
                         int n_cols, Range rows, float* sums, size_t stride) {
    constexpr int kVectors = R == 1 ? 8 : R == 4 ? 2 : 4;
    int d = 0;
    for (; d + 8 * kVectors <= n_cols; d += 8 * kVectors)
      add_columns<R, kVectors>(w, keep, v + d, v_stride, rows, sums + d, stride);
    for (; d < n_cols; d += 8) add_columns<R, 1>(w, keep, v + d, v_stride, rows, sums + d, stride);
  }

  template <int R, typename Kv>
  static void add_codes(const float* w, const float* keep, const Kv* v, const uint8_t* tile,
                        int head_dim, Range rows, float* sums) {
    const size_t padded = padded_columns(head_dim);
    for (size_t b = 0; b < padded / 32; ++b) {
      alignas(32) float scaled[R * kAttentionTile];
      for (int i = 0; i < kAttentionTile; i += 8) {
        const __m256 d = widen8((const uint16_t*)(tile + kv_scale(head_dim, i, b)));
        for (int r = 0; r < R; ++r)
          _mm256_store_ps(scaled + r * kAttentionTile + i,
                          _mm256_mul_ps(_mm256_load_ps(w + r * kAttentionTile + i), d));
      }
      constexpr int kVectors = R == 4 ? 2 : 4;
      for (size_t d = 32 * b; d < 32 * b + 32; d += 8 * kVectors)
        add_columns<R, kVectors>(scaled, keep, v + d, padded, rows, sums + d, padded);
    }
  }

  static void merge_sums(const float* part, float* whole, int n, float keep, float add) {
    const __m256 keeps = _mm256_set1_ps(keep), adds = _mm256_set1_ps(add);
    int d = 0;
    for (; d + 8 <= n; d += 8) {
      const __m256 kept = _mm256_mul_ps(_mm256_loadu_ps(whole + d), keeps);
      _mm256_storeu_ps(whole + d, _mm256_fmadd_ps(_mm256_loadu_ps(part + d), adds, kept));
    }
    for (; d < n; ++d) whole[d] = __builtin_fmaf(part[d], add, whole[d] * keep);
  }

  static void divide(const float* sums, float total, int n, float* out) {
    const __m256 totals = _mm256_set1_ps(total);
    int d = 0;
    for (; d + 8 <= n; d += 8)
      _mm256_storeu_ps(out + d, _mm256_div_ps(_mm256_loadu_ps(sums + d), totals));
    for (; d < n; ++d) out[d] = sums[d] / total;
  }
};

}  // namespace

void attention_avx2(const AttentionArgs* a) { attention<Avx2>(a); }

void merge_spans_avx2(const float* spans, int n_spans, int n_heads, int head_dim, float* out) {
  merge_spans<Avx2>(spans, n_spans, n_heads, head_dim, out);
}

}  // namespace edge_rt
