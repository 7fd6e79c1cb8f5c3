// The NEON matmul over block formats, for the files matmul_*neon.cc. Only C headers and internal
// linkage here: see CONTRIBUTING.md, "add a kernel ISA". It is compiled three times: for ARMv8.0,
// with the dot product instructions, and with those for 8-bit matrices besides.
//
// One token: four rows at a time straight from the file layout, or eight interleaved ones; four
// rows' integers (lane = row) go through the canonical arithmetic together. Several tokens: of
// eight rows, two `units` of four, a slab of columns at a time is unpacked into scratch. There a
// vector has eight columns of two rows, which is what all three instruction sets multiply by the
// same eight columns of one or two tokens.
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

constexpr int kUnits = 2;  // of four rows in scratch
constexpr int kUnitRows = kLanes * kUnits;
constexpr int kSlabColumns = 1024;  // unpacked at a time: 10 KiB, which stay in the first cache
constexpr int kSlabTokens = 64;     // whose sums wait for the next slab

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

  void add_two(const int8x16_t* c, int8x16_t x0, int8x16_t x1) {
    sum[0] = vpadalq_s16(sum[0], vmlal_s8(vmull_s8(vget_low_s8(c[0]), vget_low_s8(x0)),
                                          vget_low_s8(c[1]), vget_low_s8(x1)));
    sum[1] = vpadalq_s16(sum[1], vmlal_high_s8(vmull_high_s8(c[0], x0), c[1], x1));
  }
  void add(const int8x16_t* c, int8x16_t x) {
    const int32x4_t words = vreinterpretq_s32_s8(x);
    add_two(c, vreinterpretq_s8_s32(vdupq_laneq_s32(words, 0)),
            vreinterpretq_s8_s32(vdupq_laneq_s32(words, 1)));
    add_two(c + 2, vreinterpretq_s8_s32(vdupq_laneq_s32(words, 2)),
            vreinterpretq_s8_s32(vdupq_laneq_s32(words, 3)));
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
  for (int u = 0; u < kN; ++u) y[u] = vdupq_n_f32(0);
  for (int b = 0; b < n_blocks; ++b) {
    Scale scale[kN];
    uint32x4_t k[kN][kSubBlocks];
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
  for (int u = 0; u < kN; ++u) store(out, 0, row + u * kLanes, w->n_rows, y[u]);
}

// A unit in scratch, in vectors of 16 bytes: per block d, then m if the format has one; per
// sub-block the codes, columns 8i..8i+7 of rows 0 and 1, then of rows 2 and 3, for i = 0..3; then
// the multipliers if the format has any.
constexpr int kCodeVectors = 8;

template <typename F>
constexpr int vectors_per_block() {
  return (F::kMins != 0 ? 2 : 1) +
         F::Block::kColumns / kBlockColumns * (kCodeVectors + (F::kScales != 0 ? 1 : 0));
}

inline int8x16_t pair_of_rows(int8x16_t a, int8x16_t b, int upper) {
  const int64x2_t p = vreinterpretq_s64_s8(a), q = vreinterpretq_s64_s8(b);
  return vreinterpretq_s8_s64(upper ? vzip2q_s64(p, q) : vzip1q_s64(p, q));
}

template <typename F>
inline void unpack_codes(FileBlock b, int chunk, int part, int8x16_t* v) {
  Codes q[kLanes];
  for (int i = 0; i < kLanes; ++i) q[i] = load_codes<F>(b.row(i), chunk, part);
  for (int i = 0; i < 4; ++i)
    for (int row = 0; row < kLanes; row += 2)
      *v++ = pair_of_rows(q[row].half[i / 2], q[row + 1].half[i / 2], i % 2);
}

template <typename F>
inline void unpack_codes(WordBlock<typename F::Block> b, int chunk, int part, int8x16_t* v) {
  for (int half = 0; half < 2; ++half) {
    int8x16_t codes[4];
    word_codes<F>(b, chunk, part, half, codes);
    for (int i = 0; i < 4; i += 2) {
      const int32x4_t p = vreinterpretq_s32_s8(codes[i]), q = vreinterpretq_s32_s8(codes[i + 1]);
      *v++ = vreinterpretq_s8_s32(vzip1q_s32(p, q));
      *v++ = vreinterpretq_s8_s32(vzip2q_s32(p, q));
    }
  }
}

// The blocks first..first + n_blocks - 1 of a unit.
template <typename F, typename Units>
void unpack_unit(const Units& units, int unit, int first, int n_blocks, int8x16_t* v) {
  constexpr int kSubBlocks = F::Block::kColumns / kBlockColumns;
  for (int b = first; b < first + n_blocks; ++b) {
    const auto block = units.template block<F>(b, unit);
    const Scale scale = F::scale(block);
    *v++ = vreinterpretq_s8_f32(scale.d);
    if (F::kMins != 0) *v++ = vreinterpretq_s8_f32(scale.m);
    uint32x4_t k[kSubBlocks];
    if constexpr (F::kScales != 0) F::prepare(block, k);
    for (int chunk = 0; chunk < kSubBlocks / F::kParts; ++chunk) {
#pragma GCC unroll 4
      for (int part = 0; part < F::kParts; ++part) {
        unpack_codes<F>(block, chunk, part, v);
        v += kCodeVectors;
        if constexpr (F::kScales != 0) *v++ = vreinterpretq_s8_u32(k[chunk * F::kParts + part]);
      }
    }
  }
}

#ifdef __ARM_FEATURE_MATMUL_INT8
constexpr bool kMatrices = true;
inline int32x4_t multiply_pairs(int32x4_t sum, int8x16_t rows, int8x16_t tokens) {
  return vmmlaq_s32(sum, rows, tokens);
}
#else
constexpr bool kMatrices = false;
inline int32x4_t multiply_pairs(int32x4_t sum, int8x16_t, int8x16_t) { return sum; }
#endif

// Adds the products of 16 columns of two rows, `w`[0] and `w`[2], with those of one token: lanes 0
// and 1 are two parts of the first row's sum, 2 and 3 of the second's.
template <typename F>
inline int32x4_t add_dots(int32x4_t sum, const int8x16_t* w, int8x16_t x) {
#ifdef __ARM_FEATURE_DOTPROD
  sum = vdotq_s32(sum, w[0], pair_of_rows(x, x, 0));
  return vdotq_s32(sum, w[2], pair_of_rows(x, x, 1));
#else
  const int16x8_t p = vmlal_s8(vmull_s8(vget_low_s8(w[0]), vget_low_s8(x)),  //
                               vget_low_s8(w[2]), vget_high_s8(x));
  const int16x8_t r = vmlal_s8(vmull_s8(vget_high_s8(w[0]), vget_low_s8(x)),  //
                               vget_high_s8(w[2]), vget_high_s8(x));
  if (four_fit<F>()) return vpadalq_s16(sum, vpaddq_s16(p, r));
  return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(p), vpaddlq_s16(r)));
#endif
}

// Sums of eight rows with several tokens. By `add_dots` sum[t][u][p] has two parts for rows 2p and
// 2p + 1 of unit u; by matrices, where the tokens come in pairs, it has for these two rows the sums
// with token t and with token t + 1, and there is none for odd t.
template <typename F, int kTokens>
struct Sums {
  static constexpr bool kPairs = kMatrices && kTokens % 2 == 0;
  int32x4_t sum[kTokens][kUnits][2];

  void clear() {
    for (int t = 0; t < kTokens; ++t)
      for (int u = 0; u < kUnits; ++u)
        for (int p = 0; p < 2; ++p) sum[t][u][p] = vdupq_n_s32(0);
  }

  // The columns 16 * h..16 * h + 15 of a sub-block.
  void add(const int8x16_t* const* w, int h, const int8_t* x, size_t stride) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t += kPairs ? 2 : 1) {
      const int8x16_t x0 = vld1q_s8(x + t * stride + 16 * h);
      const int8x16_t x1 = kPairs ? vld1q_s8(x + (t + 1) * stride + 16 * h) : x0;
      const int8x16_t low = pair_of_rows(x0, x1, 0), high = pair_of_rows(x0, x1, 1);
#pragma GCC unroll 2
      for (int u = 0; u < kUnits; ++u) {
#pragma GCC unroll 2
        for (int p = 0; p < 2; ++p) {
          const int8x16_t* of = w[u] + 4 * h + p;
          int32x4_t* to = &sum[t][u][p];
          *to = kPairs ? multiply_pairs(multiply_pairs(*to, of[0], low), of[2], high)
                       : add_dots<F>(*to, of, x0);
        }
      }
    }
  }

  int32x4_t rows(int t, int u) const {  // the sums with token t, lane = row of the unit
    if (!kPairs) return vpaddq_s32(sum[t][u][0], sum[t][u][1]);
    const int32x4_t* pair = sum[t & ~1][u];
    return t % 2 ? vuzp2q_s32(pair[0], pair[1]) : vuzp1q_s32(pair[0], pair[1]);
  }
};

// Goes on with the sums of `kTokens` tokens, y_of[t][u], over a slab that begins with block
// `first`.
template <typename F, int kTokens>
void several_tokens(const int8x16_t* slab, int first, int n_blocks, const Activations* x, int token,
                    float32x4_t (*y_of)[kUnits]) {
  constexpr int kSubBlocks = F::Block::kColumns / kBlockColumns;
  const size_t block_stride = x->stride / kBlockColumns;
  const int8_t* codes = x->codes + token * x->stride + (size_t)first * F::Block::kColumns;
  const float* scales = x->scales + token * block_stride + (size_t)first * kSubBlocks;
  const int16_t* sums = x->sums + (token * block_stride + (size_t)first * kSubBlocks) * 2;
  const int8x16_t* v[kUnits];
  float32x4_t y[kTokens][kUnits];
  for (int u = 0; u < kUnits; ++u) {
    v[u] = slab + (size_t)u * n_blocks * vectors_per_block<F>();
    for (int t = 0; t < kTokens; ++t) y[t][u] = y_of[t][u];
  }
  for (int b = 0; b < n_blocks; ++b) {
    Scale scale[kUnits];
    for (int u = 0; u < kUnits; ++u) {
      scale[u].d = scale[u].m = vreinterpretq_f32_s8(*v[u]++);
      if (F::kMins != 0) scale[u].m = vreinterpretq_f32_s8(*v[u]++);
    }
    for (int sub = 0; sub < kSubBlocks; ++sub) {
      Sums<F, kTokens> products;
      int32x4_t low[kTokens][kUnits];
      products.clear();
      products.add(v, 0, codes, x->stride);
      if (F::kScales == 2) {
        for (int t = 0; t < kTokens; ++t)
          for (int u = 0; u < kUnits; ++u) low[t][u] = products.rows(t, u);
        products.clear();
      }
      products.add(v, 1, codes, x->stride);
      for (int u = 0; u < kUnits; ++u) {
        const uint32x4_t k =
            F::kScales != 0 ? vreinterpretq_u32_s8(v[u][kCodeVectors]) : vdupq_n_u32(0);
        for (int t = 0; t < kTokens; ++t) {
          const int16_t* sum = sums + t * block_stride * 2;
          const int32x4_t last = products.rows(t, u);
          const int32x4_t total = total_of<F>(F::kScales == 2 ? low[t][u] : last, last, k, sum);
          y[t][u] = finish<F>(y[t][u], total, scale[u], k, scales[t * block_stride], sum);
        }
        v[u] += kCodeVectors + (F::kScales != 0 ? 1 : 0);
      }
      codes += kBlockColumns, scales += 1, sums += 2;
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int u = 0; u < kUnits; ++u) y_of[t][u] = y[t][u];
}

// Unpacks a slab of eight rows, of which the first is `row`.
template <typename F>
void unpack_slab(const Rows* w, int row, bool interleaved, int first, int n_blocks,
                 int8x16_t* slab) {
  for (int u = 0; u < kUnits; ++u, slab += (size_t)n_blocks * vectors_per_block<F>()) {
    if constexpr (kInterleaves<F>) {
      if (interleaved) {
        const WordUnits units = {w->data + (size_t)row * w->row_bytes};
        unpack_unit<F>(units, u, first, n_blocks, slab);
        continue;
      }
    }
    unpack_unit<F>(FileUnits{group_at(w, row + u * kLanes)}, 0, first, n_blocks, slab);
  }
}

template <typename F>
void matmul_blocks(const Rows* w, const Activations* x, int n_tokens, const Output* out,
                   uint8_t* scratch) {
  // Rows past a multiple of eight are as in the file.
  const int n_interleaved =
      kInterleaves<F> && w->interleaved ? w->n_rows / kInterleavedRows * kInterleavedRows : 0;
  if (n_tokens == 1) {
    if constexpr (kInterleaves<F>)
      for (int row = 0; row < n_interleaved; row += kInterleavedRows)
        one_token<F, kUnits>(WordUnits{w->data + (size_t)row * w->row_bytes}, row, w, x, out);
    for (int row = n_interleaved; row < w->n_rows; row += kLanes)
      one_token<F, 1>(FileUnits{group_at(w, row)}, row, w, x, out);
    return;
  }
  constexpr int kSlab = kSlabColumns / F::Block::kColumns;
  static_assert(kSlab * kUnits * vectors_per_block<F>() * 16 <= kUnpackedBytes,
                "see matmul_scratch_bytes");
  const int n_blocks = w->n_cols / F::Block::kColumns;
  int8x16_t* slab = (int8x16_t*)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
  for (int row = 0; row < w->n_rows; row += kUnitRows) {
    for (int token = 0; token < n_tokens; token += kSlabTokens) {
      const int n = n_tokens - token < kSlabTokens ? n_tokens - token : kSlabTokens;
      float32x4_t y[kSlabTokens][kUnits];
      for (int t = 0; t < n; ++t)
        for (int u = 0; u < kUnits; ++u) y[t][u] = vdupq_n_f32(0);
      for (int first = 0; first < n_blocks; first += kSlab) {
        const int count = n_blocks - first < kSlab ? n_blocks - first : kSlab;
        if (token == 0 || n_blocks > kSlab)
          unpack_slab<F>(w, row, row < n_interleaved, first, count, slab);
        int t = 0;
        for (; t + 4 <= n; t += 4) several_tokens<F, 4>(slab, first, count, x, token + t, y + t);
        if (n - t >= 2) {
          several_tokens<F, 2>(slab, first, count, x, token + t, y + t);
          t += 2;
        }
        if (t < n) several_tokens<F, 1>(slab, first, count, x, token + t, y + t);
      }
      for (int t = 0; t < n; ++t)
        for (int u = 0; u < kUnits; ++u)
          if (row + u * kLanes < w->n_rows)
            store(out, token + t, row + u * kLanes, w->n_rows, y[t][u]);
    }
  }
}

}  // namespace
}  // namespace edge_rt
