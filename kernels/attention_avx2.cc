// AVX2 softmax attention: the queries that share a KV head go through its cache together, tile by
// tile, so that a tile is loaded and widened once for several of them, or once for all.
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"
#include "kernels/kv_cache.h"
#include "kernels/ops_avx2.h"

namespace edge_rt {

void quantize_avx2(const float* x, int n, int8_t* codes, float* scales, int16_t* sums);

namespace {

// Queries that have few beside them convert the cache themselves, up to four at a time; more share
// a tile that was widened before, three at a time (with four positions or vectors of columns each,
// twelve accumulators).
enum { kFewQueries = 8 };

// f(0), .., f(N - 1) with constants, so that arrays of accumulators are registers from the start:
// GCC unrolls loops over them too late, and stores every accumulator in every round.
template <int I>
struct Index {
  constexpr operator int() const { return I; }
};
#define INLINE __attribute__((always_inline))
template <int N, typename F>
INLINE inline void each(const F& f) {
  if constexpr (N > 0) {
    each<N - 1>(f);
    f(Index<N - 1>());
  }
}

struct Range {  // rows begin..end-1 of a tile
  int begin, end;
};

__m256 widen8(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
__m256 widen8(const float* p) { return _mm256_loadu_ps(p); }
__m256 widen8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
float widen(uint16_t x) { return half_to_float(x); }
float widen(float x) { return x; }
float widen(int8_t x) { return x; }

// (rows, n) of the cache as (rows, stride) floats; zeros up to a multiple of eight columns.
template <typename Kv>
void widen_rows(const Kv* from, size_t from_stride, int n, Range rows, float* to, size_t stride) {
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

template <int R, typename Kv>
void score(const float* q, size_t q_stride, const Kv* k, size_t k_stride, int n_cols, Range rows,
           float scale, float* s) {
  const __m128 scales = _mm_set1_ps(scale);
  constexpr int kRows = R == 4 ? 2 : 4;
  int i = rows.begin;
  for (; i + kRows <= rows.end; i += kRows)
    score_rows<R, kRows>(q, q_stride, k + (size_t)i * k_stride, k_stride, n_cols, scales, s + i);
  for (; i < rows.end; ++i)
    score_rows<R, 1>(q, q_stride, k + (size_t)i * k_stride, k_stride, n_cols, scales, s + i);
}

// The same for a tile of keys in q8_0. Rows outside of the range get scores, too: nobody looks.
template <int R>
void score_q8(const int8_t* codes, const float* q_scales, const uint8_t* tile, int head_dim,
              Range rows, float scale, float* s) {
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

float peak_of(__m256 x) {
  __m128 top = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
}

// Scores (kAttentionTile, aligned) to weights, 0 outside of `rows`. Updates peak and total, returns
// what the sums so far are multiplied by.
float weigh(float* s, Range rows, float cap, float* peak, float* total) {
  if (cap != 0.0f) softcap_avx2(s + rows.begin, rows.end - rows.begin, cap);
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i last_before = _mm256_set1_epi32(rows.begin - 1), end = _mm256_set1_epi32(rows.end);
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

// C vectors of sums (R, stride) of R queries, over the rows of v, weighed with w (R,
// kAttentionTile). Not inline: within a loop over columns GCC keeps `keep` in three of the sixteen
// registers, and has none left.
template <int R, int C, typename Kv>
__attribute__((noinline)) void add_values(const float* w, const float* keep, const Kv* v,
                                          size_t v_stride, Range rows, float* sums, size_t stride) {
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

template <int R, typename Kv>
void add_all_values(const float* w, const float* keep, const Kv* v, size_t v_stride, int n_cols,
                    Range rows, float* sums, size_t stride) {
  constexpr int kVectors = R == 1 ? 8 : R == 4 ? 2 : 4;
  int d = 0;
  for (; d + 8 * kVectors <= n_cols; d += 8 * kVectors)
    add_values<R, kVectors>(w, keep, v + d, v_stride, rows, sums + d, stride);
  for (; d < n_cols; d += 8) add_values<R, 1>(w, keep, v + d, v_stride, rows, sums + d, stride);
}

// The same for values in q8_0: codes times one scale per row and 32 columns.
template <int R, typename Kv>
void add_codes(const float* w, const float* keep, const Kv* v, const uint8_t* tile, int head_dim,
               Range rows, float* sums) {
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
      add_values<R, kVectors>(scaled, keep, v + d, padded, rows, sums + d, padded);
  }
}

// Sums (queries, padded) with a peak and a total each.
struct States {
  float* sums;
  float peak[kAttentionQueries], total[kAttentionQueries];
};

// whole = whole * keep + part * add
void merge_sums(const float* part, float* whole, int n, float keep, float add) {
  const __m256 keeps = _mm256_set1_ps(keep), adds = _mm256_set1_ps(add);
  int d = 0;
  for (; d + 8 <= n; d += 8) {
    const __m256 kept = _mm256_mul_ps(_mm256_loadu_ps(whole + d), keeps);
    _mm256_storeu_ps(whole + d, _mm256_fmadd_ps(_mm256_loadu_ps(part + d), adds, kept));
  }
  for (; d < n; ++d) whole[d] = __builtin_fmaf(part[d], add, whole[d] * keep);
}

void merge(const float* part, float part_peak, float part_total, float* whole, float* peak,
           float* total, int n) {
  const float higher = part_peak > *peak ? part_peak : *peak;
  const float keep = canonical_exp(*peak - higher), add = canonical_exp(part_peak - higher);
  merge_sums(part, whole, n, keep, add);
  *total = __builtin_fmaf(part_total, add, *total * keep);
  *peak = higher;
}

void divide(const float* sums, float total, int n, float* out) {
  const __m256 totals = _mm256_set1_ps(total);
  int d = 0;
  for (; d + 8 <= n; d += 8)
    _mm256_storeu_ps(out + d, _mm256_div_ps(_mm256_loadu_ps(sums + d), totals));
  for (; d < n; ++d) out[d] = sums[d] / total;
}

// Queries of one call, made ready, and the scratch that is left.
struct Queries {
  size_t padded;  // columns from one to the next
  float* values;  // (queries, padded); for keys in q8_0
  int8_t* codes;  //   (queries, padded) and
  float* scales;  //   (queries, padded / 32) instead
  float *k, *v;   // (kAttentionTile, padded)
  States part, whole;
};

void prepare(const AttentionArgs* a, Queries* q) {
  const int n = a->head_dim;
  const size_t padded = padded_columns(n), all = kAttentionQueries * padded;
  float* room = (float*)a->scratch;
  q->padded = padded;
  q->values = room;
  q->codes = (int8_t*)room;
  q->scales = room + all / 4;
  q->part.sums = room + all;
  q->whole.sums = room + 2 * all;
  q->k = room + 3 * all;
  q->v = q->k + kAttentionTile * padded;
  for (int t = 0, i = 0; t < a->n_tokens; ++t) {
    for (int h = 0; h < a->n_heads; ++h, ++i) {
      const float* x = a->q + (size_t)t * a->stride + (size_t)h * (size_t)n;
      const bool codes = a->kv_format == kKvQ8_0;
      float* row = codes ? q->k : q->values + (size_t)i * padded;
      memcpy(row, x, (size_t)n * sizeof *x);
      for (size_t d = (size_t)n; d < padded; ++d) row[d] = 0.0f;
      if (codes)
        quantize_avx2(row, (int)padded, q->codes + (size_t)i * padded,
                      q->scales + (size_t)i * (padded / 32), (int16_t*)q->v);
    }
  }
}

// What one tile holds: the cache's rows, or those widened.
template <typename Kv>
struct FloatTile {
  const Kv *k, *v;
  size_t stride;
  int n_cols;

  template <int R>
  void score(const Queries& q, int i, Range rows, float scale, float* s) const {
    edge_rt::score<R>(q.values + (size_t)i * q.padded, q.padded, k, stride, n_cols, rows, scale, s);
  }
  template <int R>
  void add(const float* w, const float* keep, Range rows, float* sums, size_t padded) const {
    add_all_values<R>(w, keep, v, stride, n_cols, rows, sums, padded);
  }
};

template <typename Kv>
struct Q8Tile {
  const uint8_t *k, *v;  // the tiles
  const Kv* codes;       // of v
  int head_dim;

  template <int R>
  void score(const Queries& q, int i, Range rows, float scale, float* s) const {
    score_q8<R>(q.codes + (size_t)i * q.padded, q.scales + (size_t)i * (q.padded / 32), k, head_dim,
                rows, scale, s);
  }
  template <int R>
  void add(const float* w, const float* keep, Range rows, float* sums, size_t) const {
    add_codes<R>(w, keep, codes, v, head_dim, rows, sums);
  }
};

// Rows of the tile at `start` that token t sees.
Range seen_by(const AttentionArgs* a, int t, int start) {
  const int end = a->position + t + 1;
  const int first = a->window > 0 && end > a->window ? end - a->window : 0;
  return {first > start ? first - start : 0,
          end - start < kAttentionTile ? end - start : kAttentionTile};
}

template <int R, typename Tile>
void attend_queries(const AttentionArgs* a, const Tile& tile, Queries* q, int i, Range rows) {
  alignas(32) float s[R * kAttentionTile];
  float keep[R];
  tile.template score<R>(*q, i, rows, a->scales[i / a->n_heads], s);
  for (int r = 0; r < R; ++r)
    keep[r] =
        weigh(s + r * kAttentionTile, rows, a->cap, &q->part.peak[i + r], &q->part.total[i + r]);
  tile.template add<R>(s, keep, rows, q->part.sums + (size_t)i * q->padded, q->padded);
}

template <typename Tile>
void attend_tile(const AttentionArgs* a, const Tile& tile, Queries* q, int start) {
  for (int t = 0; t < a->n_tokens;) {
    const Range rows = seen_by(a, t, start);
    int after = t + 1;  // tokens that see the same rows, with the same scale
    while (after < a->n_tokens && a->scales[after] == a->scales[t]) {
      const Range next = seen_by(a, after, start);
      if (next.begin != rows.begin || next.end != rows.end) break;
      ++after;
    }
    const int end = rows.begin < rows.end ? after * a->n_heads : 0;
    for (int i = t * a->n_heads, n; i < end; i += n) {
      const int left = end - i, parts = (left + 3) / 4;
      n = left > kFewQueries ? 3 : (left + parts - 1) / parts;
      if (n == 1) attend_queries<1>(a, tile, q, i, rows);
      if (n == 2) attend_queries<2>(a, tile, q, i, rows);
      if (n == 3) attend_queries<3>(a, tile, q, i, rows);
      if (n == 4) attend_queries<4>(a, tile, q, i, rows);
    }
    t = after;
  }
}

template <typename Kv>
void attend_float_tile(const AttentionArgs* a, Queries* q, int start, int end) {
  const size_t n = (size_t)a->head_dim;
  const Kv* k = (const Kv*)kv_tile(a->kv_format, a->k, a->head_dim, start % a->ring);
  const Kv* v = (const Kv*)kv_tile(a->kv_format, a->v, a->head_dim, start % a->ring);
  const int n_cols = (a->head_dim + 7) & ~7;
  const bool few = sizeof(Kv) == 4 || a->n_tokens * a->n_heads <= kFewQueries;
  if (few && n % 8 == 0) {
    const FloatTile<Kv> tile = {k, v, n, n_cols};
    return attend_tile(a, tile, q, start);
  }
  const Range rows = {0, end - start};
  widen_rows(k, n, a->head_dim, rows, q->k, q->padded);
  widen_rows(v, n, a->head_dim, rows, q->v, q->padded);
  const FloatTile<float> tile = {q->k, q->v, q->padded, n_cols};
  attend_tile(a, tile, q, start);
}

void attend_q8_tile(const AttentionArgs* a, Queries* q, int start, int end) {
  const uint8_t* k = kv_tile(a->kv_format, a->k, a->head_dim, start % a->ring);
  const uint8_t* v = kv_tile(a->kv_format, a->v, a->head_dim, start % a->ring);
  if (a->n_tokens * a->n_heads <= kFewQueries) {
    const Q8Tile<int8_t> tile = {k, v, (const int8_t*)v, a->head_dim};
    return attend_tile(a, tile, q, start);
  }
  widen_rows((const int8_t*)v, q->padded, (int)q->padded, Range{0, end - start}, q->v, q->padded);
  const Q8Tile<float> tile = {k, v, q->v, a->head_dim};
  attend_tile(a, tile, q, start);
}

void clear(States* states, int n_queries, size_t padded) {
  memset(states->sums, 0, (size_t)n_queries * padded * sizeof(float));
  for (int i = 0; i < n_queries; ++i) states->peak[i] = -INFINITY, states->total[i] = 0.0f;
}

}  // namespace

void attention_avx2(const AttentionArgs* a) {
  Queries q;
  prepare(a, &q);
  const int n_queries = a->n_tokens * a->n_heads, n = a->head_dim;
  // What the tokens see between them.
  const int end = a->position + a->n_tokens;
  const int first = a->window > 0 && a->position + 1 > a->window ? a->position + 1 - a->window : 0;
  const int first_span = a->span >= 0 ? a->span : first / kAttentionSpan;
  const int last_span = a->span >= 0 ? a->span : (end - 1) / kAttentionSpan;
  clear(&q.whole, n_queries, q.padded);
  for (int span = first_span; span <= last_span; ++span) {
    const int span_start = span * kAttentionSpan, span_end = span_start + kAttentionSpan;
    const int stop = end < span_end ? end : span_end;
    clear(&q.part, n_queries, q.padded);
    for (int start = first > span_start ? first - first % kAttentionTile : span_start; start < stop;
         start += kAttentionTile) {
      const int tile_end = stop - start < kAttentionTile ? stop : start + kAttentionTile;
      if (a->kv_format == kKvF16) attend_float_tile<uint16_t>(a, &q, start, tile_end);
      if (a->kv_format == kKvF32) attend_float_tile<float>(a, &q, start, tile_end);
      if (a->kv_format == kKvQ8_0) attend_q8_tile(a, &q, start, tile_end);
    }
    if (a->span >= 0) break;
    for (int t = 0; t < a->n_tokens; ++t) {
      const int t_end = a->position + t + 1;
      const int t_first = a->window > 0 && t_end > a->window ? t_end - a->window : 0;
      if (t_end <= span_start || t_first >= span_end) continue;
      for (int i = t * a->n_heads; i < (t + 1) * a->n_heads; ++i) {
        const size_t at = (size_t)i * q.padded;
        merge(q.part.sums + at, q.part.peak[i], q.part.total[i], q.whole.sums + at,
              &q.whole.peak[i], &q.whole.total[i], n);
      }
    }
  }
  for (int t = 0, i = 0; t < a->n_tokens; ++t) {
    for (int h = 0; h < a->n_heads; ++h, ++i) {
      const size_t at = (size_t)i * q.padded;
      if (a->span < 0) {
        divide(q.whole.sums + at, q.whole.total[i], n,
               a->out + (size_t)t * a->stride + (size_t)h * (size_t)n);
        continue;
      }
      float* out = a->out + (size_t)h * (size_t)(n + 2);
      memcpy(out, q.part.sums + at, (size_t)n * sizeof *out);
      out[n] = q.part.peak[i], out[n + 1] = q.part.total[i];
    }
  }
}

void merge_spans_avx2(const float* spans, int n_spans, int n_heads, int head_dim, float* out) {
  const size_t row = (size_t)head_dim + 2;
  for (int h = 0; h < n_heads; ++h, spans += row, out += head_dim) {
    float peak = -INFINITY, total = 0.0f;
    memset(out, 0, (size_t)head_dim * sizeof *out);
    for (int s = 0; s < n_spans; ++s) {
      const float* span = spans + (size_t)s * (size_t)n_heads * row;
      merge(span, span[head_dim], span[head_dim + 1], out, &peak, &total, head_dim);
    }
    divide(out, total, head_dim, out);
  }
}

}  // namespace edge_rt
