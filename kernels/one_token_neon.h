// NEON: the products of four or eight rows with one token, and the arithmetic that those of several
// tokens (matmul_neon.h) share. Only C headers and internal linkage here: see CONTRIBUTING.md, "add
// a kernel ISA". What is here is compiled for each of NEON's instruction sets.
//
// A format F is a struct derived from `Format`, which has the defaults:
//   kParts                sub-blocks that share bytes: the loop over them is unrolled
//   kOffset               what is to be subtracted from the codes
//   kLargest              the largest magnitude of these codes, at most 128
//   kScales               multipliers k: 0 none, 1 per 32 columns, 2 per 16 columns
//   kMins                 0: no m; 1: m, but no multipliers n; 2: n too, as many as k
//   scale(four)           d (and m) of a block of four rows, a FileBlock or a WordBlock
//   prepare(four, k)      multipliers of its sub-blocks, if it has any: k0, k1 (signed), n0 and n1
//                         (not negative), a byte each, lowest first; lane = row
// and for the codes of sub-block chunk * kParts + part
//   codes(x, chunk, part, half)  of columns 16 * half.., from x, FileColumns or WordColumns;
//   load(block, chunk, part)     or, if the format is not interleaved, all 32 of one row
#pragma once

#include "kernels/rows_neon.h"
#include "kernels/words_neon.h"

namespace edge_rt {
namespace {

template <typename B>
struct Format {
  typedef B Block;
  static constexpr int kParts = 1, kOffset = 0, kScales = 0, kMins = 0;
};

inline void store(const Output* out, int token, int row, int n_rows, float32x4_t y) {
  float* p = out->y + token * out->stride + row;
  if (row + kLanes <= n_rows) {
    vst1q_f32(p, out->accumulate ? vaddq_f32(vld1q_f32(p), y) : y);
    return;
  }
  float lane[kLanes];
  vst1q_f32(lane, y);
  for (int i = 0; row + i < n_rows; ++i) p[i] = out->accumulate ? p[i] + lane[i] : lane[i];
}

inline int32x4_t multiplier_k0(uint32x4_t k) {
  return vshrq_n_s32(vshlq_n_s32(vreinterpretq_s32_u32(k), 24), 24);
}
inline int32x4_t multiplier_k1(uint32x4_t k) {
  return vshrq_n_s32(vshlq_n_s32(vreinterpretq_s32_u32(k), 16), 24);
}
inline int32x4_t multiplier_n0(uint32x4_t k) {
  return vreinterpretq_s32_u32(vandq_u32(vshrq_n_u32(k, 16), vdupq_n_u32(255)));
}
inline int32x4_t multiplier_n1(uint32x4_t k) { return vreinterpretq_s32_u32(vshrq_n_u32(k, 24)); }

// S from the sums over the two halves, which have the codes' offset in them; without multipliers
// per half `low` is the sum over both.
template <typename F>
inline int32x4_t total_of(int32x4_t low, int32x4_t high, uint32x4_t k, const int16_t* sums) {
  if (F::kScales == 2) {
    if (F::kOffset != 0) {
      low = vsubq_s32(low, vdupq_n_s32(F::kOffset * sums[0]));
      high = vsubq_s32(high, vdupq_n_s32(F::kOffset * sums[1]));
    }
    return vmlaq_s32(vmulq_s32(multiplier_k0(k), low), multiplier_k1(k), high);
  }
  if (F::kOffset != 0) low = vsubq_s32(low, vdupq_n_s32(F::kOffset * (sums[0] + sums[1])));
  return F::kScales == 0 ? low : vmulq_s32(multiplier_k0(k), low);
}

// y after the line of d, then of m.
template <typename F>
inline float32x4_t finish(float32x4_t y, int32x4_t total, Scale scale, uint32x4_t k, float dx,
                          const int16_t* sums) {
  y = vfmaq_f32(y, vmulq_n_f32(scale.d, dx), vcvtq_f32_s32(total));
  if (F::kMins == 0) return y;
  int32x4_t total_x;
  if (F::kMins == 1) {
    total_x = vdupq_n_s32(sums[0] + sums[1]);
  } else if (F::kScales == 1) {
    total_x = vmulq_n_s32(multiplier_n0(k), sums[0] + sums[1]);
  } else {
    total_x = vmlaq_n_s32(vmulq_n_s32(multiplier_n0(k), sums[0]), multiplier_n1(k), sums[1]);
  }
  return vfmaq_f32(y, vmulq_n_f32(scale.m, dx), vcvtq_f32_s32(total_x));
}

// Products of codes (at most 128) and activations (at most 127): two of them fit into 16 bits, four
// where the codes are at most 64.
template <typename F>
constexpr bool four_fit() {
  return 4 * 127 * F::kLargest <= 32767;
}

// The sum of 16 products, in four parts.
inline int32x4_t dot16(int8x16_t c, int8x16_t x) {
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_s32(vdupq_n_s32(0), c, x);
#else
  return vpaddlq_s16(vmlal_high_s8(vmull_s8(vget_low_s8(c), vget_low_s8(x)), c, x));
#endif
}

// The sum of 32 products, in four parts.
template <typename F>
inline int32x4_t dot32(Codes q, int8x16_t x0, int8x16_t x1) {
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_s32(dot16(q.half[0], x0), q.half[1], x1);
#else
  if (!four_fit<F>()) return vaddq_s32(dot16(q.half[0], x0), dot16(q.half[1], x1));
  const int16x8_t p = vmull_s8(vget_low_s8(q.half[0]), vget_low_s8(x0));
  const int16x8_t r = vmull_s8(vget_low_s8(q.half[1]), vget_low_s8(x1));
  return vpaddlq_s16(vaddq_s16(vmlal_high_s8(p, q.half[0], x0), vmlal_high_s8(r, q.half[1], x1)));
#endif
}

inline int32x4_t sum_rows(const int32x4_t* t) {  // of each row's four parts; lane = row
  return vpaddq_s32(vpaddq_s32(t[0], t[1]), vpaddq_s32(t[2], t[3]));
}

template <typename F>
inline Codes load_codes(const uint8_t* block, int chunk, int part) {
  if constexpr (kInterleaves<F>) {
    const FileColumns x = {block};
    return {{F::codes(x, chunk, part, 0), F::codes(x, chunk, part, 1)}};
  } else {
    return F::load(block, chunk, part);
  }
}

// Sums of four rows' products with the columns of a sub-block, lane = row: over 16 columns each, or
// where one multiplier serves both, over all, twice.
struct Halves {
  int32x4_t low, high;
};

template <typename F>
inline Halves sums_of(FileBlock b, int chunk, int part, int8x16_t x0, int8x16_t x1) {
  int32x4_t low[kLanes], high[kLanes];
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; ++i) {
    const Codes q = load_codes<F>(b.row(i), chunk, part);
    low[i] = F::kScales == 2 ? dot16(q.half[0], x0) : dot32<F>(q, x0, x1);
    if (F::kScales == 2) high[i] = dot16(q.half[1], x1);
  }
  const int32x4_t sum = sum_rows(low);
  return {sum, F::kScales == 2 ? sum_rows(high) : sum};
}

// 16 columns of four rows, as word_codes has them.
template <typename F>
struct WordSums {
#ifdef __ARM_FEATURE_DOTPROD
  int32x4_t sum = vdupq_n_s32(0);

  void add(const int8x16_t* c, int8x16_t x) {
    sum = vdotq_laneq_s32(sum, c[0], x, 0);
    sum = vdotq_laneq_s32(sum, c[1], x, 1);
    sum = vdotq_laneq_s32(sum, c[2], x, 2);
    sum = vdotq_laneq_s32(sum, c[3], x, 3);
  }
  int32x4_t rows() const { return sum; }
#else
  int32x4_t sum[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};  // of rows 0 and 1, 2 and 3; two parts each

  void add(const int8x16_t* c, int8x16_t x) {
    constexpr int kRun = four_fit<F>() ? 4 : 2;
    const int32x4_t fours = vreinterpretq_s32_s8(x);
    const int8x16_t four[4] = {vreinterpretq_s8_s32(vdupq_laneq_s32(fours, 0)),
                               vreinterpretq_s8_s32(vdupq_laneq_s32(fours, 1)),
                               vreinterpretq_s8_s32(vdupq_laneq_s32(fours, 2)),
                               vreinterpretq_s8_s32(vdupq_laneq_s32(fours, 3))};
    for (int i = 0; i < 4; i += kRun) {
      int16x8_t low = vmull_s8(vget_low_s8(c[i]), vget_low_s8(four[i]));
      int16x8_t high = vmull_high_s8(c[i], four[i]);
      for (int j = i + 1; j < i + kRun; ++j) {
        low = vmlal_s8(low, vget_low_s8(c[j]), vget_low_s8(four[j]));
        high = vmlal_high_s8(high, c[j], four[j]);
      }
      sum[0] = vpadalq_s16(sum[0], low);
      sum[1] = vpadalq_s16(sum[1], high);
    }
  }
  int32x4_t rows() const { return vpaddq_s32(sum[0], sum[1]); }
#endif
};

template <typename F>
inline Halves sums_of(WordBlock<typename F::Block> b, int chunk, int part, int8x16_t x0,
                      int8x16_t x1) {
  WordSums<F> low, high;
  int8x16_t codes[4];
  word_codes<F>(b, chunk, part, 0, codes);
  low.add(codes, x0);
  word_codes<F>(b, chunk, part, 1, codes);
  if (F::kScales != 2) {
    low.add(codes, x1);
    return {low.rows(), low.rows()};
  }
  high.add(codes, x1);
  return {low.rows(), high.rows()};
}

// Rows, four to a unit, whichever way they lie.
struct FileUnits {
  RowGroup g;
  template <typename F>
  FileBlock block(int b, int) const {
    return {&g, (size_t)b * sizeof(typename F::Block)};
  }
};
struct WordUnits {
  const uint8_t* eight;
  template <typename F>
  WordBlock<typename F::Block> block(int b, int unit) const {
    return {eight + (size_t)b * kInterleavedRows * sizeof(typename F::Block), unit};
  }
};

template <typename F, int kN, typename Units>
void one_token(const Units& units, int row, const Rows* w, const Activations* x,
               const Output* out) {
  constexpr int kSubBlocks = F::Block::kColumns / kBlockColumns;
  const int n_blocks = w->n_cols / F::Block::kColumns;
  const int8_t* codes = x->codes;
  const float* scales = x->scales;
  const int16_t* sums = x->sums;
  float32x4_t y[kN];
#pragma GCC unroll 2
  for (int u = 0; u < kN; ++u) y[u] = vdupq_n_f32(0);
  for (int b = 0; b < n_blocks; ++b) {
    Scale scale[kN];
    uint32x4_t k[kN][kSubBlocks];
#pragma GCC unroll 2
    for (int u = 0; u < kN; ++u) {
      const auto block = units.template block<F>(b, u);
      scale[u] = F::scale(block);
      if constexpr (F::kScales != 0) F::prepare(block, k[u]);
    }
    for (int chunk = 0; chunk < kSubBlocks / F::kParts; ++chunk) {
#pragma GCC unroll 4
      for (int part = 0; part < F::kParts; ++part) {
        const int s = chunk * F::kParts + part;
        const int8x16_t x0 = vld1q_s8(codes), x1 = vld1q_s8(codes + 16);
#pragma GCC unroll 2
        for (int u = 0; u < kN; ++u) {
          const auto block = units.template block<F>(b, u);
          const Halves sum = sums_of<F>(block, chunk, part, x0, x1);
          const uint32x4_t factors = F::kScales != 0 ? k[u][s] : vdupq_n_u32(0);
          const int32x4_t total = total_of<F>(sum.low, sum.high, factors, sums);
          y[u] = finish<F>(y[u], total, scale[u], factors, *scales, sums);
        }
        codes += kBlockColumns, scales += 1, sums += 2;
      }
    }
  }
#pragma GCC unroll 2
  for (int u = 0; u < kN; ++u) store(out, 0, row + u * kLanes, w->n_rows, y[u]);
}

}  // namespace
}  // namespace edge_rt
