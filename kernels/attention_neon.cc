// NEON softmax attention.
#include <arm_neon.h>
#include <math.h>

#include "kernels/attention_simd.h"
#include "kernels/canonical.h"
#include "kernels/kernels.h"
#include "kernels/kv_cache.h"
#include "kernels/ops_neon.h"

namespace edge_rt {

void quantize_neon(const float* x, int n, int8_t* codes, float* scales, int16_t* sums);

namespace {

struct Eight {  // lanes 0..3 and 4..7 of canonical sums, or eight columns, or eight rows
  float32x4_t low, high;
};

Eight zero() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
Eight widen8(const uint16_t* p) {
  const float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(p));
  return {vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)};
}
Eight widen8(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
Eight widen8(const int8_t* p) {
  const int16x8_t x = vmovl_s8(vld1_s8(p));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(x))), vcvtq_f32_s32(vmovl_high_s16(x))};
}
float widen(uint16_t x) { return half_to_float(x); }
float widen(float x) { return x; }
float widen(int8_t x) { return x; }

void put8(float* p, Eight x) {
  vst1q_f32(p, x.low);
  vst1q_f32(p + 4, x.high);
}
Eight fma8(Eight sum, Eight x, Eight y) {
  return {vfmaq_f32(sum.low, x.low, y.low), vfmaq_f32(sum.high, x.high, y.high)};
}
Eight fma8(Eight sum, Eight x, float y) {
  return {vfmaq_n_f32(sum.low, x.low, y), vfmaq_n_f32(sum.high, x.high, y)};
}
Eight times8(Eight x, float y) { return {vmulq_n_f32(x.low, y), vmulq_n_f32(x.high, y)}; }
Eight times8(Eight x, Eight y) { return {vmulq_f32(x.low, y.low), vmulq_f32(x.high, y.high)}; }

float32x4_t pair_of(float32x4_t a, float32x4_t b, bool upper) {  // halves of a and b
  const float64x2_t p = vreinterpretq_f64_f32(a), q = vreinterpretq_f64_f32(b);
  return vreinterpretq_f32_f64(upper ? vzip2q_f64(p, q) : vzip1q_f64(p, q));
}

// reduce8 of four accumulators.
float32x4_t reduce4x8(const Eight* x) {
  float32x4_t y[4];
  for (int i = 0; i < 4; ++i) y[i] = vaddq_f32(x[i].low, x[i].high);
  return vpaddq_f32(vaddq_f32(pair_of(y[0], y[1], false), pair_of(y[0], y[1], true)),
                    vaddq_f32(pair_of(y[2], y[3], false), pair_of(y[2], y[3], true)));
}
float reduce1x8(Eight x) {
  const float32x4_t y = vaddq_f32(x.low, x.high);
  return vpadds_f32(vadd_f32(vget_low_f32(y), vget_high_f32(y)));
}

// The integer sums of one block of 32 columns: sum[r] (eight rows) for R queries, `stride` codes
// from one to the next. `k` has the keys' codes as (4 columns, 8 rows, 4 columns).
template <int R>
inline void dot_keys(const int8_t* q, size_t stride, const uint8_t* k, int32x4_t (*sum)[2]) {
  int32x4_t part[R][4];  // for two rows each: of either two parts of the sum
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < 4; ++p) part[r][p] = vdupq_n_s32(0);
#pragma GCC unroll 4
  for (int w = 0; w < 8; w += 2) {  // two products of codes fit into 16 bits
    int8x16_t key[2][2];
    for (int i = 0; i < 4; ++i) key[i / 2][i % 2] = vld1q_s8((const int8_t*)k + 32 * w + 16 * i);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const int8_t* x = q + (size_t)r * stride + 4 * w;
      const int8x16_t x0 = vreinterpretq_s8_u32(vdupq_n_u32(load_u32(x)));
      const int8x16_t x1 = vreinterpretq_s8_u32(vdupq_n_u32(load_u32(x + 4)));
      for (int i = 0; i < 2; ++i) {
        const int16x8_t low = vmull_s8(vget_low_s8(key[0][i]), vget_low_s8(x0));
        const int16x8_t high = vmull_high_s8(key[0][i], x0);
        part[r][2 * i] =
            vpadalq_s16(part[r][2 * i], vmlal_s8(low, vget_low_s8(key[1][i]), vget_low_s8(x1)));
        part[r][2 * i + 1] = vpadalq_s16(part[r][2 * i + 1], vmlal_high_s8(high, key[1][i], x1));
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < 2; ++i) sum[r][i] = vpaddq_s32(part[r][2 * i], part[r][2 * i + 1]);
}

// P rows at a time; accumulators take at most 16 of the 32 registers.
template <int R, int P, typename Kv>
inline void score_rows(const float* q, size_t q_stride, const Kv* k, size_t k_stride, int n_cols,
                       float scale, float* s) {
  Eight sum[R][P];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) sum[r][p] = zero();
  for (int d = 0; d < n_cols; d += 8) {
    Eight x[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) x[r] = widen8(q + (size_t)r * q_stride + d);
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const Eight y = widen8(k + (size_t)p * k_stride + d);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r][p] = fma8(sum[r][p], x[r], y);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    float* to = s + r * kAttentionTile;
    if constexpr (P == 4) {
      vst1q_f32(to, vmulq_n_f32(reduce4x8(sum[r]), scale));
    } else {
      for (int p = 0; p < P; ++p) to[p] = reduce1x8(sum[r][p]) * scale;
    }
  }
}

// C times eight columns of sums (R, stride) of R queries, over the rows of v.
template <int R, int C, typename Kv>
void add_columns(const float* w, const float* keep, const Kv* v, size_t v_stride, Range rows,
                 float* sums, size_t stride) {
  Eight sum[R][C];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      sum[r][c] = times8(widen8(sums + (size_t)r * stride + 8 * c), keep[r]);
  for (int i = rows.begin; i < rows.end; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const Eight y = widen8(v + (size_t)i * v_stride + 8 * c);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r][c] = fma8(sum[r][c], y, w[r * kAttentionTile + i]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) put8(sums + (size_t)r * stride + 8 * c, sum[r][c]);
}

struct Neon {
  static constexpr int kManyTogether = 4;

  template <typename Kv>
  static void widen_rows(const Kv* from, size_t from_stride, int n, Range rows, float* to,
                         size_t stride) {
    for (int i = rows.begin; i < rows.end; ++i) {
      const Kv* x = from + (size_t)i * from_stride;
      float* y = to + (size_t)i * stride;
      int d = 0;
      for (; d + 8 <= n; d += 8) put8(y + d, widen8(x + d));
      if (d == n) continue;
      put8(y + d, zero());
      for (; d < n; ++d) y[d] = widen(x[d]);
    }
  }

  static void quantize(const float* x, int n, int8_t* codes, float* scales, void* scratch) {
    quantize_neon(x, n, codes, scales, (int16_t*)scratch);
  }

  template <int R, typename Kv>
  static void score(const float* q, size_t q_stride, const Kv* k, size_t k_stride, int n_cols,
                    Range rows, float scale, float* s) {
    constexpr int kRows = R > 2 ? 2 : 4;
    int i = rows.begin;
    for (; i + kRows <= rows.end; i += kRows)
      score_rows<R, kRows>(q, q_stride, k + (size_t)i * k_stride, k_stride, n_cols, scale, s + i);
    for (; i < rows.end; ++i)
      score_rows<R, 1>(q, q_stride, k + (size_t)i * k_stride, k_stride, n_cols, scale, s + i);
  }

  template <int R>
  static void score_codes(const int8_t* codes, const float* q_scales, const uint8_t* tile,
                          int head_dim, Range rows, float scale, float* s) {
    const size_t padded = padded_columns(head_dim), n_blocks = padded / 32;
    for (int i = rows.begin & ~7; i < rows.end; i += 8) {
      const uint8_t* k = tile + key_code(head_dim, i, 0);
      Eight y[R];
      for (int r = 0; r < R; ++r) y[r] = zero();
      for (size_t b = 0; b < n_blocks; ++b) {
        int32x4_t sum[R][2];
        dot_keys<R>(codes + 32 * b, padded, k + 256 * b, sum);
        const Eight d = widen8((const uint16_t*)(tile + kv_scale(head_dim, i, b)));
        for (int r = 0; r < R; ++r) {
          const Eight total = {vcvtq_f32_s32(sum[r][0]), vcvtq_f32_s32(sum[r][1])};
          y[r] = fma8(y[r], times8(d, q_scales[(size_t)r * n_blocks + b]), total);
        }
      }
      for (int r = 0; r < R; ++r) put8(s + r * kAttentionTile + i, times8(y[r], scale));
    }
  }

  static float weigh(float* s, Range rows, float cap, float* peak, float* total) {
    constexpr int kFours = kAttentionTile / 4;
    if (cap != 0.0f) softcap_neon(s + rows.begin, rows.end - rows.begin, cap);
    const int32x4_t index = {0, 1, 2, 3};
    const int32x4_t begin = vdupq_n_s32(rows.begin), end = vdupq_n_s32(rows.end);
    float32x4_t x[kFours], top = vdupq_n_f32(*peak);
    uint32x4_t seen[kFours];
    for (int j = 0; j < kFours; ++j) {
      const int32x4_t i = vaddq_s32(index, vdupq_n_s32(4 * j));
      seen[j] = vandq_u32(vcgeq_s32(i, begin), vcltq_s32(i, end));
      x[j] = vbslq_f32(seen[j], vld1q_f32(s + 4 * j), vdupq_n_f32(-INFINITY));
      top = vmaxnmq_f32(top, x[j]);  // a NaN leaves top as it is
    }
    const float tile_peak = vmaxvq_f32(top);
    Eight sum = zero();
    for (int j = 0; j < kFours; ++j) {
      const float32x4_t weight = exp4(vsubq_f32(x[j], vdupq_n_f32(tile_peak)));
      const float32x4_t e =
          vreinterpretq_f32_u32(vandq_u32(seen[j], vreinterpretq_u32_f32(weight)));
      vst1q_f32(s + 4 * j, e);
      float32x4_t* lanes = j % 2 ? &sum.high : &sum.low;
      *lanes = vaddq_f32(*lanes, e);
    }
    // exp(0) is 1: mostly the peak is an earlier tile's.
    const bool same = tile_peak == *peak && tile_peak > -INFINITY;
    const float keep = same ? 1.0f : canonical_exp(*peak - tile_peak);
    *total = __builtin_fmaf(*total, keep, reduce1x8(sum));
    *peak = tile_peak;
    return keep;
  }

  template <int R, typename Kv>
  static void add_values(const float* w, const float* keep, const Kv* v, size_t v_stride,
                         int n_cols, Range rows, float* sums, size_t stride) {
    constexpr int kColumns = R > 2 ? 2 : 4;
    int d = 0;
    for (; d + 8 * kColumns <= n_cols; d += 8 * kColumns)
      add_columns<R, kColumns>(w, keep, v + d, v_stride, rows, sums + d, stride);
    for (; d < n_cols; d += 8) add_columns<R, 1>(w, keep, v + d, v_stride, rows, sums + d, stride);
  }

  template <int R, typename Kv>
  static void add_codes(const float* w, const float* keep, const Kv* v, const uint8_t* tile,
                        int head_dim, Range rows, float* sums) {
    const size_t padded = padded_columns(head_dim);
    for (size_t b = 0; b < padded / 32; ++b) {
      float scaled[R * kAttentionTile];
      for (int i = 0; i < kAttentionTile; i += 8) {
        const Eight d = widen8((const uint16_t*)(tile + kv_scale(head_dim, i, b)));
        for (int r = 0; r < R; ++r) {
          const int at = r * kAttentionTile + i;
          put8(scaled + at, times8(widen8(w + at), d));
        }
      }
      add_values<R>(scaled, keep, v + 32 * b, padded, 32, rows, sums + 32 * b, padded);
    }
  }

  static void merge_sums(const float* part, float* whole, int n, float keep, float add) {
    int d = 0;
    for (; d + 8 <= n; d += 8)
      put8(whole + d, fma8(times8(widen8(whole + d), keep), widen8(part + d), add));
    for (; d < n; ++d) whole[d] = __builtin_fmaf(part[d], add, whole[d] * keep);
  }

  static void divide(const float* sums, float total, int n, float* out) {
    const float32x4_t totals = vdupq_n_f32(total);
    int d = 0;
    for (; d + 4 <= n; d += 4) vst1q_f32(out + d, vdivq_f32(vld1q_f32(sums + d), totals));
    for (; d < n; ++d) out[d] = sums[d] / total;
  }
};

}  // namespace

void attention_neon(const AttentionArgs* a) { attention<Neon>(a); }

void merge_spans_neon(const float* spans, int n_spans, int n_heads, int head_dim, float* out) {
  merge_spans<Neon>(spans, n_spans, n_heads, head_dim, out);
}

}  // namespace edge_rt
