// The way of attention through the KV cache, for the files attention_<isa>.cc: the queries that
// share a KV head go through its cache together, tile by tile, so that a tile is loaded and widened
// once for several of them, or once for all. Only C headers and internal linkage here: see
// CONTRIBUTING.md, "add a kernel ISA".
//
// An instruction set is a struct of static functions and of kManyTogether, how many queries go
// through a tile at a time where many share it (at most four). R queries (a constant from 1 to 4)
// have their weights or scores s as (R, kAttentionTile); Kv is uint16_t (halves), float or int8_t:
//   widen_rows(from, from_stride, n, rows, to, stride)  those rows of (tile, n) as floats, with
//       zeros up to a multiple of eight columns
//   quantize(x, n, codes, scales, scratch)              a query, for keys in q8_0
//   score<R>(q, q_stride, k, k_stride, n_cols, rows, scale, s)         n_cols: a multiple of eight
//   score_codes<R>(codes, q_scales, tile, head_dim, rows, scale, s)    perhaps other rows, too
//   weigh(s, rows, cap, peak, total)                    scores to weights, 0 outside of `rows`; the
//       result is what the sums so far are multiplied by
//   add_values<R>(w, keep, v, v_stride, n_cols, rows, sums, stride)
//   add_codes<R>(w, keep, v, tile, head_dim, rows, sums)               v: tile's codes, or as
//   floats merge_sums(part, whole, n, keep, add)               whole = whole * keep + part * add
//   divide(sums, total, n, out)
#pragma once

#include <math.h>
#include <string.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"
#include "kernels/kv_cache.h"

namespace edge_rt {
namespace {

// Queries that have few beside them convert the cache themselves, up to four at a time, so that it
// is converted seldom; more share a tile that was widened before.
constexpr int kFewQueries = 8, kFewTogether = 4;

struct Range {  // rows begin..end-1 of a tile
  int begin, end;
};

// Sums (queries, padded) with a peak and a total each.
struct States {
  float* sums;
  float peak[kAttentionQueries], total[kAttentionQueries];
};

// Queries of one call, made ready, and the scratch that is left.
struct Queries {
  size_t padded;  // columns from one to the next
  float* values;  // (queries, padded); for keys in q8_0
  int8_t* codes;  //   (queries, padded) and
  float* scales;  //   (queries, padded / 32) instead
  float *k, *v;   // (kAttentionTile, padded)
  States part, whole;
};

template <typename Isa>
void prepare(const AttentionArgs* a, Queries* q) {
  const int n = a->head_dim;
  const size_t padded = padded_columns(n), all = kAttentionQueries * padded;
  float* room = (float*)a->scratch;
  q->padded = padded;
  q->values = room;
  q->codes = (int8_t*)room;
  q->scales = room + all / sizeof(float);
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
        Isa::quantize(row, (int)padded, q->codes + (size_t)i * padded,
                      q->scales + (size_t)i * (padded / 32), q->v);
    }
  }
}

// What one tile holds: the cache's rows, or those widened.
template <typename Isa, typename Kv>
struct FloatTile {
  const Kv *k, *v;
  size_t stride;
  int n_cols;

  template <int R>
  void score(const Queries& q, int i, Range rows, float scale, float* s) const {
    Isa::template score<R>(q.values + (size_t)i * q.padded, q.padded, k, stride, n_cols, rows,
                           scale, s);
  }
  template <int R>
  void add(const float* w, const float* keep, Range rows, float* sums, size_t padded) const {
    Isa::template add_values<R>(w, keep, v, stride, n_cols, rows, sums, padded);
  }
};

template <typename Isa, typename Kv>
struct Q8Tile {
  const uint8_t *k, *v;  // the tiles
  const Kv* codes;       // of v
  int head_dim;

  template <int R>
  void score(const Queries& q, int i, Range rows, float scale, float* s) const {
    Isa::template score_codes<R>(q.codes + (size_t)i * q.padded,
                                 q.scales + (size_t)i * (q.padded / 32), k, head_dim, rows, scale,
                                 s);
  }
  template <int R>
  void add(const float* w, const float* keep, Range rows, float* sums, size_t) const {
    Isa::template add_codes<R>(w, keep, codes, v, head_dim, rows, sums);
  }
};

// The first position that token t sees.
inline int first_seen(const AttentionArgs* a, int t) {
  const int end = a->position + t + 1;
  return a->window > 0 && end > a->window ? end - a->window : 0;
}

// Rows of the tile at `start` that token t sees.
inline Range seen_by(const AttentionArgs* a, int t, int start) {
  const int end = a->position + t + 1, first = first_seen(a, t);
  return {first > start ? first - start : 0,
          end - start < kAttentionTile ? end - start : kAttentionTile};
}

template <typename Isa, int R, typename Tile>
void attend_queries(const AttentionArgs* a, const Tile& tile, Queries* q, int i, Range rows) {
  alignas(32) float s[R * kAttentionTile];
  float keep[R];
  tile.template score<R>(*q, i, rows, a->scales[i / a->n_heads], s);
  for (int r = 0; r < R; ++r)
    keep[r] = Isa::weigh(s + r * kAttentionTile, rows, a->cap, &q->part.peak[i + r],
                         &q->part.total[i + r]);
  tile.template add<R>(s, keep, rows, q->part.sums + (size_t)i * q->padded, q->padded);
}

template <typename Isa, typename Tile>
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
      const int left = end - i, most = left > kFewQueries ? Isa::kManyTogether : kFewTogether;
      const int parts = (left + most - 1) / most;
      n = (left + parts - 1) / parts;
      if (n == 1) attend_queries<Isa, 1>(a, tile, q, i, rows);
      if (n == 2) attend_queries<Isa, 2>(a, tile, q, i, rows);
      if (n == 3) attend_queries<Isa, 3>(a, tile, q, i, rows);
      if (n == 4) attend_queries<Isa, 4>(a, tile, q, i, rows);
    }
    t = after;
  }
}

template <typename Isa, typename Kv>
void attend_float_tile(const AttentionArgs* a, Queries* q, int start, int end) {
  const size_t n = (size_t)a->head_dim;
  const Kv* k = (const Kv*)kv_tile(a->kv_format, a->k, a->head_dim, start % a->ring);
  const Kv* v = (const Kv*)kv_tile(a->kv_format, a->v, a->head_dim, start % a->ring);
  const int n_cols = (a->head_dim + 7) & ~7;
  const bool few = sizeof(Kv) == 4 || a->n_tokens * a->n_heads <= kFewQueries;
  if (few && n % 8 == 0) {
    const FloatTile<Isa, Kv> tile = {k, v, n, n_cols};
    return attend_tile<Isa>(a, tile, q, start);
  }
  const Range rows = {0, end - start};
  Isa::widen_rows(k, n, a->head_dim, rows, q->k, q->padded);
  Isa::widen_rows(v, n, a->head_dim, rows, q->v, q->padded);
  const FloatTile<Isa, float> tile = {q->k, q->v, q->padded, n_cols};
  attend_tile<Isa>(a, tile, q, start);
}

template <typename Isa>
void attend_q8_tile(const AttentionArgs* a, Queries* q, int start, int end) {
  const uint8_t* k = kv_tile(a->kv_format, a->k, a->head_dim, start % a->ring);
  const uint8_t* v = kv_tile(a->kv_format, a->v, a->head_dim, start % a->ring);
  if (a->n_tokens * a->n_heads <= kFewQueries) {
    const Q8Tile<Isa, int8_t> tile = {k, v, (const int8_t*)v, a->head_dim};
    return attend_tile<Isa>(a, tile, q, start);
  }
  Isa::widen_rows((const int8_t*)v, q->padded, (int)q->padded, Range{0, end - start}, q->v,
                  q->padded);
  const Q8Tile<Isa, float> tile = {k, v, q->v, a->head_dim};
  attend_tile<Isa>(a, tile, q, start);
}

inline void clear(States* states, int n_queries, size_t padded) {
  memset(states->sums, 0, (size_t)n_queries * padded * sizeof(float));
  for (int i = 0; i < n_queries; ++i) states->peak[i] = -INFINITY, states->total[i] = 0.0f;
}

// One span's sums, peak and total into those so far.
template <typename Isa>
void merge(const float* part, float part_peak, float part_total, float* whole, float* peak,
           float* total, int n) {
  const float higher = part_peak > *peak ? part_peak : *peak;
  const float keep = canonical_exp(*peak - higher), add = canonical_exp(part_peak - higher);
  Isa::merge_sums(part, whole, n, keep, add);
  *total = __builtin_fmaf(part_total, add, *total * keep);
  *peak = higher;
}

// What each token sees of a span into what it saw before.
template <typename Isa>
void merge_part(const AttentionArgs* a, Queries* q, int span_start) {
  for (int t = 0; t < a->n_tokens; ++t) {
    if (a->position + t + 1 <= span_start || first_seen(a, t) >= span_start + kAttentionSpan)
      continue;
    for (int i = t * a->n_heads; i < (t + 1) * a->n_heads; ++i) {
      const size_t at = (size_t)i * q->padded;
      merge<Isa>(q->part.sums + at, q->part.peak[i], q->part.total[i], q->whole.sums + at,
                 &q->whole.peak[i], &q->whole.total[i], a->head_dim);
    }
  }
}

template <typename Isa>
void attention(const AttentionArgs* a) {
  Queries q;
  prepare<Isa>(a, &q);
  const int n_queries = a->n_tokens * a->n_heads, n = a->head_dim;
  // What the tokens see between them.
  const int first = first_seen(a, 0), end = a->position + a->n_tokens;
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
      if (a->kv_format == kKvF16) attend_float_tile<Isa, uint16_t>(a, &q, start, tile_end);
      if (a->kv_format == kKvF32) attend_float_tile<Isa, float>(a, &q, start, tile_end);
      if (a->kv_format == kKvQ8_0) attend_q8_tile<Isa>(a, &q, start, tile_end);
    }
    if (a->span < 0) merge_part<Isa>(a, &q, span_start);
  }
  for (int t = 0, i = 0; t < a->n_tokens; ++t) {
    for (int h = 0; h < a->n_heads; ++h, ++i) {
      const size_t at = (size_t)i * q.padded;
      if (a->span < 0) {
        Isa::divide(q.whole.sums + at, q.whole.total[i], n,
                    a->out + (size_t)t * a->stride + (size_t)h * (size_t)n);
        continue;
      }
      float* out = a->out + (size_t)h * (size_t)(n + 2);
      memcpy(out, q.part.sums + at, (size_t)n * sizeof *out);
      out[n] = q.part.peak[i], out[n + 1] = q.part.total[i];
    }
  }
}

template <typename Isa>
void merge_spans(const float* spans, int n_spans, int n_heads, int head_dim, float* out) {
  const size_t row = (size_t)head_dim + 2;
  for (int h = 0; h < n_heads; ++h, spans += row, out += head_dim) {
    float peak = -INFINITY, total = 0.0f;
    memset(out, 0, (size_t)head_dim * sizeof *out);
    for (int s = 0; s < n_spans; ++s) {
      const float* span = spans + (size_t)s * (size_t)n_heads * row;
      merge<Isa>(span, span[head_dim], span[head_dim + 1], out, &peak, &total, head_dim);
    }
    Isa::divide(out, total, head_dim, out);
  }
}

}  // namespace
}  // namespace edge_rt
