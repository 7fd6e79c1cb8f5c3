// NEON: the formats whose codes are indices into grids. Indices and signs of a row are taken apart
// by scalar instructions, which run beside the vector ones; the multipliers are for four rows.
#pragma once

#include "kernels/formats_k_neon.h"
#include "kernels/grids.h"

namespace edge_rt {
namespace {

// 32 columns of four entries of two-bit codes, which stand for values[0..3].
inline Codes grid8(const uint16_t* grid, int i0, int i1, int i2, int i3, const int8_t* values) {
  const uint64_t entries =
      grid[i0] | (uint64_t)grid[i1] << 16 | (uint64_t)grid[i2] << 32 | (uint64_t)grid[i3] << 48;
  const uint8x16_t bytes = vreinterpretq_u8_u64(vdupq_n_u64(entries));
  const uint8x16_t fours = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
  const int8x16_t down = {0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6};
  const int8x16_t table = vreinterpretq_s8_u32(vdupq_n_u32(load_u32(values)));
  Codes q;
  for (int h = 0; h < 2; ++h) {
    const uint8x16_t of_column = vqtbl1q_u8(bytes, vaddq_u8(fours, vdupq_n_u8((uint8_t)(4 * h))));
    q.half[h] = vqtbl1q_s8(table, vandq_u8(vshlq_u8(of_column, down), vdupq_n_u8(3)));
  }
  return q;
}

// 32 columns of eight entries of four-bit codes.
inline Codes grid4(const uint16_t* entries, const int8_t* magnitudes) {
  const uint8x16_t bytes = vreinterpretq_u8_u16(vld1q_u16(entries));
  const uint8x16_t even = vandq_u8(bytes, vdupq_n_u8(15)), odd = vshrq_n_u8(bytes, 4);
  return {{look_up(magnitudes, vzip1q_u8(even, odd)), look_up(magnitudes, vzip2q_u8(even, odd))}};
}

// Minus where bit j of `signs` is set.
inline Codes with_signs(Codes q, uint32_t signs) {
  for (int h = 0; h < 2; ++h) {
    const int8x16_t mask = vreinterpretq_s8_u8(spread_bits(signs >> 16 * h));
    q.half[h] = vsubq_s8(veorq_s8(q.half[h], mask), mask);
  }
  return q;
}

// Four bytes of seven signs to eight: the eighth makes the number of minuses even.
inline uint32_t eight_signs(uint32_t sevens) {
  uint32_t parity = sevens ^ sevens >> 4;
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return sevens | (parity & 0x01010101) << 7;
}

// The same from four fields of seven bits, the first one lowest.
inline uint32_t eight_signs_of_fields(uint32_t word) {
  return eight_signs((word & 0x7f) | (word << 1 & 0x7f00) | (word << 2 & 0x7f0000) |
                     (word << 3 & 0x7f000000));
}

template <typename Block>
inline Scale scale_times(FileBlock b, float factor) {
  Scale scale = scale_of<Block>(b);
  scale.d = vmulq_n_f32(scale.d, factor);
  return scale;
}

// 2 * bits + 1 in the two lowest bytes, from `bits` in these.
inline uint32x4_t odd(uint32x4_t bits) {
  return vaddq_u32(vaddq_u32(bits, bits), vdupq_n_u32(0x0101));
}

struct FormatIQ2_XXS : Format<BlockIQ2_XXS> {
  static constexpr int kLargest = 43, kScales = 1;
  static void prepare(FileBlock b, uint32x4_t* k) {
    uint32x4_t words[2 * kBlock256];
    row_runs(b, offsetof(Block, words), 2 * kBlock256, words);
    for (int s = 0; s < kBlock256; ++s) k[s] = odd(vshrq_n_u32(words[2 * s + 1], 28));
  }
  static Codes load(const uint8_t* block, int s, int) {
    const uint8_t* p = block + offsetof(Block, words) + 8 * s;
    return with_signs(grid8(kGridIQ2XXS, p[0], p[1], p[2], p[3], kMagnitudesIQ2),
                      eight_signs_of_fields(load_u32(p + 4)));
  }
  static Scale scale(FileBlock b) { return scale_times<Block>(b, 0.125f); }
};

// IQ2_XS and IQ2_S: byte s has the two scales of sub-block s.
inline void nibble_multipliers(FileBlock b, size_t at, uint32x4_t* out) {
  const uint32x4_t words[2] = {row_words(b, at), row_words(b, at + 4)};
  for (int s = 0; s < kBlock256; ++s) {
    const uint32x4_t byte = field(words[s / 4], s % 4 * 8, 255);
    out[s] = odd(field(vorrq_u32(byte, vshlq_n_u32(byte, 4)), 0, 0x0f0f));
  }
}

struct FormatIQ2_XS : Format<BlockIQ2_XS> {
  static constexpr int kLargest = 43, kScales = 2;
  static void prepare(FileBlock b, uint32x4_t* k) {
    nibble_multipliers(b, offsetof(Block, scales), k);
  }
  static Codes load(const uint8_t* block, int s, int) {
    const uint8_t* p = block + offsetof(Block, codes) + 8 * s;
    const uint32_t low = load_u32(p), high = load_u32(p + 4);
    const uint32_t sevens = (low >> 9 & 0x7f) | (low >> 17 & 0x7f00) | (high << 7 & 0x7f0000) |
                            (high >> 1 & 0x7f000000);
    return with_signs(
        grid8(kGridIQ2XS, low & 511, low >> 16 & 511, high & 511, high >> 16 & 511, kMagnitudesIQ2),
        eight_signs(sevens));
  }
  static Scale scale(FileBlock b) { return scale_times<Block>(b, 0.125f); }
};

// An index of 8 low bits and those above, of which index i's begin at bit `step` * i of `high`.
inline int index_of(uint32_t low, uint32_t high, int i, int step, uint32_t mask) {
  return (int)((low >> 8 * i & 255) | (high >> step * i & mask) << 8);
}

inline Codes grid8_of(const uint16_t* grid, uint32_t low, uint32_t high, int step, uint32_t mask,
                      const int8_t* values) {
  return grid8(grid, index_of(low, high, 0, step, mask), index_of(low, high, 1, step, mask),
               index_of(low, high, 2, step, mask), index_of(low, high, 3, step, mask), values);
}

struct FormatIQ2_S : Format<BlockIQ2_S> {
  static constexpr int kLargest = 43, kScales = 2;
  static void prepare(FileBlock b, uint32x4_t* k) {
    nibble_multipliers(b, offsetof(Block, scales), k);
  }
  static Codes load(const uint8_t* block, int s, int) {
    const uint32_t low = load_u32(block + offsetof(Block, codes) + 4 * s);
    return with_signs(
        grid8_of(kGridIQ2S, low, block[offsetof(Block, high) + s], 2, 3, kMagnitudesIQ2),
        load_u32(block + offsetof(Block, signs) + 4 * s));
  }
  static Scale scale(FileBlock b) { return scale_times<Block>(b, 0.125f); }
};

struct FormatIQ3_XXS : Format<BlockIQ3_XXS> {
  static constexpr int kLargest = 62, kScales = 1;
  static void prepare(FileBlock b, uint32x4_t* k) {
    uint32x4_t words[kBlock256];
    row_runs(b, offsetof(Block, words), kBlock256, words);
    for (int s = 0; s < kBlock256; ++s) k[s] = odd(vshrq_n_u32(words[s], 28));
  }
  static Codes load(const uint8_t* block, int s, int) {
    const uint8_t* p = block + offsetof(Block, codes) + 8 * s;
    uint16_t entries[8];
    for (int i = 0; i < 8; ++i) entries[i] = kGridIQ3XXS[p[i]];
    return with_signs(grid4(entries, kMagnitudesIQ3XXS),
                      eight_signs_of_fields(load_u32(block + offsetof(Block, words) + 4 * s)));
  }
  static Scale scale(FileBlock b) { return scale_times<Block>(b, 0.25f); }
};

struct FormatIQ3_S : Format<BlockIQ3_S> {
  static constexpr int kLargest = 15, kScales = 1;
  static void prepare(FileBlock b, uint32x4_t* k) {
    const uint32x4_t scales = row_words(b, offsetof(Block, scales));
    for (int s = 0; s < kBlock256; ++s) k[s] = odd(field(scales, 4 * s, 15));
  }
  static Codes load(const uint8_t* block, int s, int) {
    const uint8_t* p = block + offsetof(Block, codes) + 8 * s;
    const int high = block[offsetof(Block, high) + s];
    uint16_t entries[8];
    for (int i = 0; i < 8; ++i) entries[i] = kGridIQ3S[p[i] | (high >> i & 1) << 8];
    return with_signs(grid4(entries, kMagnitudesIQ3S),
                      load_u32(block + offsetof(Block, signs) + 4 * s));
  }
  static Scale scale(FileBlock b) { return scale_of<Block>(b); }
};

// Adds a byte of `deltas` to each eight columns.
inline Codes with_deltas(Codes q, uint32_t deltas) {
  const int8x16_t bytes = vreinterpretq_s8_u32(vdupq_n_u32(deltas));
  const uint8x16_t eights = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  q.half[0] = vaddq_s8(q.half[0], vqtbl1q_s8(bytes, eights));
  q.half[1] = vaddq_s8(q.half[1], vqtbl1q_s8(bytes, vaddq_u8(eights, vdupq_n_u8(2))));
  return q;
}

struct FormatIQ1_S : Format<BlockIQ1_S> {
  static constexpr int kLargest = 9, kScales = 1;
  static void prepare(FileBlock b, uint32x4_t* k) {
    uint32x4_t pairs[4];
    row_quads(b, offsetof(Block, high), pairs);
    for (int s = 0; s < kBlock256; ++s) k[s] = odd(field(pairs[s / 2], s % 2 * 16 + 12, 7));
  }
  static Codes load(const uint8_t* block, int s, int) {
    const uint32_t low = load_u32(block + offsetof(Block, codes) + 4 * s);
    const uint32_t high = load_u16(block + offsetof(Block, high) + 2 * s);
    return with_deltas(grid8_of(kGridIQ1, low, high, 3, 7, kValuesIQ1),
                       high >> 15 ? 0xffffffff : 0x01010101);
  }
  static Scale scale(FileBlock b) { return scale_times<Block>(b, 0.125f); }
};

struct FormatIQ1_M : Format<BlockIQ1_M> {
  static constexpr int kLargest = 9, kScales = 2;
  static void prepare(FileBlock b, uint32x4_t* k) {
    const uint32x4_t scales[2] = {row_words(b, offsetof(Block, scales)),
                                  row_words(b, offsetof(Block, scales) + 4)};
    for (int s = 0; s < kBlock256; ++s) {
      const int shift = s / 2 % 2 * 16 + s % 2 * 6;
      k[s] = odd(vorrq_u32(field(scales[s / 4], shift, 7),
                           vshlq_n_u32(field(scales[s / 4], shift + 3, 7), 8)));
    }
  }
  static Codes load(const uint8_t* block, int s, int) {
    const uint32_t low = load_u32(block + offsetof(Block, codes) + 4 * s);
    const uint32_t high = load_u16(block + offsetof(Block, high) + 2 * s);
    const uint32_t minus =
        (high >> 3 & 1) | (high << 1 & 0x100) | (high << 5 & 0x10000) | (high << 9 & 0x1000000);
    return with_deltas(grid8_of(kGridIQ1, low, high, 4, 7, kValuesIQ1),
                       0x01010101 ^ minus * 0xfe);  // 1, or 255 where the byte of `minus` is 1
  }
  static Scale scale(FileBlock b) {  // the top nibbles of the four scales
    const uint32x4_t low = row_words(b, offsetof(Block, scales));
    const uint32x4_t high = row_words(b, offsetof(Block, scales) + 4);
    const uint32x4_t d = vorrq_u32(vorrq_u32(field(low, 12, 0xf), field(low, 24, 0xf0)),
                                   vorrq_u32(field(high, 4, 0xf00), field(high, 16, 0xf000)));
    Scale scale;
    scale.d = scale.m = vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(d))), 0.125f);
    return scale;
  }
};

}  // namespace
}  // namespace edge_rt
