// The NEON matmul over block formats, for the files matmul_*neon.cc. Only C headers and internal
// linkage here: see CONTRIBUTING.md, "add a kernel ISA". It is compiled three times: for ARMv8.0,
// with the dot product instructions, and with those for 8-bit matrices besides.
//
// One token: four rows at a time straight from the file layout, or eight interleaved ones; four
// rows' integers (lane = row) go through the canonical arithmetic together. Several tokens: of
// eight rows, two `units` of four, a slab of columns at a time is unpacked into scratch. There a
// vector has eight columns of two rows, which is what all three instruction sets multiply by the
// same eight columns of one or two tokens.
#pragma once

#include "kernels/one_token_neon.h"

namespace edge_rt {
namespace {

constexpr int kUnits = 2;  // of four rows in scratch
constexpr int kUnitRows = kLanes * kUnits;
constexpr int kSlabColumns = 1024;  // unpacked at a time: 10 KiB, which stay in the first cache
constexpr int kSlabTokens = 64;     // whose sums wait for the next slab

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
