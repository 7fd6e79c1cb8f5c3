// Scalar softmax attention over the KV cache.
#include <math.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"
#include "kernels/kv_cache.h"

namespace edge_rt {

void quantize_ref(const float* x, int n, int8_t* codes, float* scales,
                  int16_t* sums);  // ops_ref.cc

namespace {

struct Query {
  const float* values;     // (head_dim)
  const int8_t* codes;     // (padded), for keys in q8_0
  const float* scales;     // (padded / 32)
  int first, n_positions;  // positions first..n_positions-1 are seen
  float scale;
};

// What positions have given so far.
struct State {
  float* sums;  // (head_dim)
  float peak, total;
};

void clear(State* state, int head_dim) {
  for (int d = 0; d < head_dim; ++d) state->sums[d] = 0.0f;
  state->peak = -INFINITY, state->total = 0.0f;
}

template <typename Kv>
struct FloatTile {
  const Kv *k, *v;
  size_t n;

  FloatTile(const AttentionArgs* a, int row)
      : k((const Kv*)kv_tile(a->kv_format, a->k, a->head_dim, row)),
        v((const Kv*)kv_tile(a->kv_format, a->v, a->head_dim, row)),
        n((size_t)a->head_dim) {}

  static float widen(uint16_t x) { return half_to_float(x); }
  static float widen(float x) { return x; }

  float dot(const Query& q, int i) const {
    float lane[8] = {};
    for (size_t d = 0; d < n; ++d)
      lane[d % 8] = fmaf(q.values[d], widen(k[(size_t)i * n + d]), lane[d % 8]);
    return reduce8(lane);
  }
  float weight(float e, int, size_t) const { return e; }
  float value(int i, size_t d) const { return widen(v[(size_t)i * n + d]); }
};

struct Q8Tile {
  const uint8_t *k, *v;
  int n;

  Q8Tile(const AttentionArgs* a, int row)
      : k(kv_tile(a->kv_format, a->k, a->head_dim, row)),
        v(kv_tile(a->kv_format, a->v, a->head_dim, row)),
        n(a->head_dim) {}

  float dot(const Query& q, int i) const {
    float y = 0.0f;
    for (size_t b = 0; b < padded_columns(n) / 32; ++b) {
      int32_t sum = 0;
      for (size_t d = 32 * b; d < 32 * b + 32; ++d)
        sum += (int32_t)q.codes[d] * (int8_t)k[key_code(n, i, d)];
      y = fmaf(q.scales[b] * half_to_float(load_u16(k + kv_scale(n, i, b))), (float)sum, y);
    }
    return y;
  }
  float weight(float e, int i, size_t d) const {
    return e * half_to_float(load_u16(v + kv_scale(n, i, d / 32)));
  }
  float value(int i, size_t d) const { return (float)(int8_t)v[value_code(n, i, d)]; }
};

template <typename Tile>
void attend_tile(const AttentionArgs* a, const Query& q, int start, State* state) {
  const Tile tile(a, start % a->ring);
  const int begin = q.first > start ? q.first - start : 0;
  const int left = q.n_positions - start, end = left < kAttentionTile ? left : kAttentionTile;
  float e[kAttentionTile], tile_peak = state->peak, lane[8] = {};
  for (int i = begin; i < end; ++i) {
    e[i] = tile.dot(q, i) * q.scale;
    if (a->cap != 0.0f) e[i] = canonical_softcap(e[i], a->cap);
    tile_peak = e[i] > tile_peak ? e[i] : tile_peak;
  }
  const float keep = canonical_exp(state->peak - tile_peak);
  for (int i = begin; i < end; ++i) {
    e[i] = canonical_exp(e[i] - tile_peak);
    lane[i % 8] = lane[i % 8] + e[i];
  }
  state->peak = tile_peak;
  state->total = fmaf(state->total, keep, reduce8(lane));
  for (int d = 0; d < a->head_dim; ++d) {
    float sum = state->sums[d] * keep;
    for (int i = begin; i < end; ++i)
      sum = fmaf(tile.weight(e[i], i, (size_t)d), tile.value(i, (size_t)d), sum);
    state->sums[d] = sum;
  }
}

// The positions of `q` in the span: there is one at least.
template <typename Tile>
void attend_span(const AttentionArgs* a, const Query& q, int span, State* state) {
  int start = span * kAttentionSpan, end = start + kAttentionSpan;
  if (q.first > start) start = q.first - q.first % kAttentionTile;
  if (q.n_positions < end) end = q.n_positions;
  clear(state, a->head_dim);
  for (; start < end; start += kAttentionTile) attend_tile<Tile>(a, q, start, state);
}

void merge(const State& span, State* state, int head_dim) {
  const float peak = span.peak > state->peak ? span.peak : state->peak;
  const float keep = canonical_exp(state->peak - peak), add = canonical_exp(span.peak - peak);
  for (int d = 0; d < head_dim; ++d)
    state->sums[d] = fmaf(span.sums[d], add, state->sums[d] * keep);
  state->total = fmaf(span.total, add, state->total * keep);
  state->peak = peak;
}

void divide(const State& state, int head_dim) {
  for (int d = 0; d < head_dim; ++d) state.sums[d] = state.sums[d] / state.total;
}

template <typename Tile>
void attention(const AttentionArgs* a) {
  const size_t padded = padded_columns(a->head_dim);
  const size_t n = (size_t)a->head_dim;
  float *q_values = (float*)a->scratch, *q_scales = q_values + padded;
  State part = {q_scales + padded, 0.0f, 0.0f};
  int8_t* q_codes = (int8_t*)(part.sums + padded);
  int16_t* q_sums = (int16_t*)(q_codes + padded);
  for (int t = 0; t < a->n_tokens; ++t) {
    for (int h = 0; h < a->n_heads; ++h) {
      const float* q = a->q + (size_t)t * a->stride + (size_t)h * n;
      for (size_t d = 0; d < padded; ++d) q_values[d] = d < n ? q[d] : 0.0f;
      if (a->kv_format == kKvQ8_0) quantize_ref(q_values, (int)padded, q_codes, q_scales, q_sums);
      const int end = a->position + t + 1;
      const int first = a->window > 0 && end > a->window ? end - a->window : 0;
      const Query query = {q_values, q_codes, q_scales, first, end, a->scales[t]};
      if (a->span >= 0) {
        State span = {a->out + (size_t)h * (n + 2), 0.0f, 0.0f};
        attend_span<Tile>(a, query, a->span, &span);
        span.sums[n] = span.peak, span.sums[n + 1] = span.total;
        continue;
      }
      State whole = {a->out + (size_t)t * a->stride + (size_t)h * n, 0.0f, 0.0f};
      clear(&whole, a->head_dim);
      for (int s = first / kAttentionSpan; s * kAttentionSpan < end; ++s) {
        attend_span<Tile>(a, query, s, &part);
        merge(part, &whole, a->head_dim);
      }
      divide(whole, a->head_dim);
    }
  }
}

}  // namespace

void attention_ref(const AttentionArgs* a) {
  if (a->kv_format == kKvF16) return attention<FloatTile<uint16_t>>(a);
  if (a->kv_format == kKvF32) return attention<FloatTile<float>>(a);
  attention<Q8Tile>(a);
}

void merge_spans_ref(const float* spans, int n_spans, int n_heads, int head_dim, float* out) {
  const size_t row = (size_t)head_dim + 2;
  for (int h = 0; h < n_heads; ++h, spans += row, out += head_dim) {
    State whole = {out, 0.0f, 0.0f};
    clear(&whole, head_dim);
    for (int s = 0; s < n_spans; ++s) {
      float* span = (float*)spans + (size_t)s * (size_t)n_heads * row;
      merge({span, span[head_dim], span[head_dim + 1]}, &whole, head_dim);
    }
    divide(whole, head_dim);
  }
}

void quantize_kv_ref(const float* x, int head_dim, int8_t* codes, uint16_t* scales) {
  for (int first = 0; first < head_dim; first += 32, x += 32, codes += 32, ++scales) {
    const int n = head_dim - first < 32 ? head_dim - first : 32;
    float peak = 0.0f;
    bool finite = true;
    for (int j = 0; j < n; ++j) {
      peak = fabsf(x[j]) > peak ? fabsf(x[j]) : peak;
      finite = finite && fabsf(x[j]) < INFINITY;
    }
    *scales = finite ? float_to_half(peak / 127.0f) : 0x7e00;
    const float d = half_to_float(*scales);
    const float inverse = d > 0.0f ? 1.0f / d : 0.0f;  // of a NaN, too
    for (int j = 0; j < 32; ++j) {
      const float code = j < n && finite ? rintf(x[j] * inverse) : 0.0f;
      codes[j] = (int8_t)(code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code);
    }
  }
}

}  // namespace edge_rt
