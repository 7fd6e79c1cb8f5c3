// NEON: the formats with blocks of 256 columns and a bit field for every code.
#pragma once

#include "kernels/matmul_neon.h"

namespace edge_rt {
namespace {

constexpr int kBlock256 = 8;  // sub-blocks

// Two bits `part` of each byte, times 1 << up.
inline uint8x16_t two_bits(uint8x16_t bytes, int part, int up) {
  return vandq_u8(vshlq_u8(bytes, vdupq_n_s8((int8_t)(up - 2 * part))),
                  vdupq_n_u8((uint8_t)(3 << up)));
}

// (words >> shift) & mask
inline uint32x4_t field(uint32x4_t words, int shift, uint32_t mask) {
  return vandq_u32(vshlq_u32(words, vdupq_n_s32(-shift)), vdupq_n_u32(mask));
}

inline uint32x4_t sub_bytes(uint32x4_t words, int value) {
  return vreinterpretq_u32_u8(vsubq_u8(vreinterpretq_u8_u32(words), vdupq_n_u8((uint8_t)value)));
}

template <typename B>
struct TwoBits : Format<B> {  // of each byte, and nothing else
  static constexpr int kParts = 4, kLargest = 3;
  template <typename Columns>
  static int8x16_t codes(Columns x, int chunk, int part, int half) {
    const uint8x16_t bytes = x.bytes(offsetof(B, codes) + 32 * chunk + 16 * half);
    return vreinterpretq_s8_u8(two_bits(bytes, part, 0));
  }
};

struct FormatQ2_K : TwoBits<BlockQ2_K> {
  static constexpr int kScales = 2, kMins = 2;
  template <typename Four>
  static void prepare(Four b, uint32x4_t* k) {
    uint32x4_t words[4];
    row_quads(b, offsetof(Block, scales), words);
    for (int s = 0; s < kBlock256; ++s) {
      const int i = s % 2 * 2;
      const uint32x4_t twice = pick_bytes(words[s / 2], i, i + 1, i, i + 1);
      k[s] = vorrq_u32(field(twice, 0, 0x0f0f), field(twice, 4, 0x0f0f0000));
    }
  }
  template <typename Four>
  static Scale scale(Four b) {
    return scale_and_dmin<Block>(b);
  }
};

struct FormatQ3_K : Format<BlockQ3_K> {
  static constexpr int kParts = 4, kOffset = 4, kLargest = 7, kScales = 2;
  template <typename Columns>
  static int8x16_t codes(Columns x, int chunk, int part, int half) {
    const uint8x16_t low = x.bytes(offsetof(Block, codes) + 32 * chunk + 16 * half);
    const uint8x16_t high = x.bytes(offsetof(Block, high) + 16 * half);
    return vreinterpretq_s8_u8(
        vorrq_u8(two_bits(low, part, 0), where_bit(high, chunk * kParts + part, 4)));
  }
  template <typename Four>
  static void prepare(Four b, uint32x4_t* k) {
    uint32x4_t words[3];
    row_triples(b, offsetof(Block, scales), words);
    for (int i = 0; i < 4; ++i) {  // scales 4i..4i+3
      const uint32x4_t low = field(words[i % 2], i / 2 * 4, 0x0f0f0f0f);
      const uint32x4_t high = vshlq_n_u32(field(words[2], 2 * i, 0x03030303), 4);
      const uint32x4_t four = sub_bytes(vorrq_u32(low, high), 32);
      k[2 * i] = pick_bytes(four, 0, 1, -128, -128);
      k[2 * i + 1] = pick_bytes(four, 2, 3, -128, -128);
    }
  }
  template <typename Four>
  static Scale scale(Four b) {
    return scale_of<Block>(b);
  }
};

// The 12 bytes of scales of Q4_K and Q5_K.
template <typename Four>
void multipliers_of_k4(Four b, size_t at, uint32x4_t* out) {
  uint32x4_t words[3];
  row_triples(b, at, words);
  const uint32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, top = 0x30303030;
  const uint32x4_t k[2] = {field(words[0], 0, six),
                           vorrq_u32(field(words[2], 0, four), field(words[0], 2, top))};
  const uint32x4_t n[2] = {field(words[1], 0, six),
                           vorrq_u32(field(words[2], 4, four), field(words[1], 2, top))};
  for (int s = 0; s < kBlock256; ++s)
    out[s] = vorrq_u32(pick_bytes(k[s / 4], s % 4, s % 4, -128, -128),
                       pick_bytes(n[s / 4], -128, -128, s % 4, s % 4));
}

template <typename B>
struct FormatK4 : Format<B> {
  static constexpr int kParts = 2, kScales = 1, kMins = 2;
  template <typename Columns>
  static uint8x16_t nibbles(Columns x, int chunk, int part, int half) {
    return nibble(x.bytes(offsetof(B, codes) + 32 * chunk + 16 * half), part);
  }
  template <typename Four>
  static void prepare(Four b, uint32x4_t* k) {
    multipliers_of_k4(b, offsetof(B, scales), k);
  }
  template <typename Four>
  static Scale scale(Four b) {
    return scale_and_dmin<B>(b);
  }
};

struct FormatQ4_K : FormatK4<BlockQ4_K> {
  static constexpr int kLargest = 15;
  template <typename Columns>
  static int8x16_t codes(Columns x, int chunk, int part, int half) {
    return vreinterpretq_s8_u8(nibbles(x, chunk, part, half));
  }
};

struct FormatQ5_K : FormatK4<BlockQ5_K> {
  static constexpr int kLargest = 31;
  template <typename Columns>
  static int8x16_t codes(Columns x, int chunk, int part, int half) {
    const uint8x16_t high = x.bytes(offsetof(Block, high) + 16 * half);
    return vreinterpretq_s8_u8(
        vorrq_u8(nibbles(x, chunk, part, half), where_bit(high, chunk * kParts + part, 16)));
  }
};

struct FormatQ6_K : Format<BlockQ6_K> {
  static constexpr int kParts = 4, kOffset = 32, kLargest = 63, kScales = 2;
  template <typename Columns>
  static int8x16_t codes(Columns x, int chunk, int part, int half) {
    const uint8x16_t low =
        x.bytes(offsetof(Block, codes) + 64 * chunk + 32 * (part % 2) + 16 * half);
    const uint8x16_t high = x.bytes(offsetof(Block, high) + 32 * chunk + 16 * half);
    return vreinterpretq_s8_u8(vorrq_u8(nibble(low, part / 2), two_bits(high, part, 4)));
  }
  template <typename Four>
  static void prepare(Four b, uint32x4_t* k) {
    uint32x4_t words[4];
    row_quads(b, offsetof(Block, scales), words);
    for (int s = 0; s < kBlock256; ++s)
      k[s] = pick_bytes(words[s / 2], s % 2 * 2, s % 2 * 2 + 1, -128, -128);
  }
  template <typename Four>
  static Scale scale(Four b) {
    return scale_of<Block>(b);
  }
};

struct FormatIQ4_XS : Format<BlockIQ4_XS> {
  static constexpr int kLargest = 127, kScales = 1;
  template <typename Columns>
  static int8x16_t codes(Columns x, int chunk, int, int half) {
    return look_up(kCodebookIQ4, nibble(x.bytes(offsetof(Block, codes) + 16 * chunk), half));
  }
  template <typename Four>
  static void prepare(Four b, uint32x4_t* k) {
    const uint32x4_t high = vmovl_u16(row_shorts(b, offsetof(Block, scales_high)));
    const uint32x4_t low = row_words(b, offsetof(Block, scales_low));
    for (int s = 0; s < kBlock256; ++s)
      k[s] = sub_bytes(vorrq_u32(field(low, 4 * s, 15), vshlq_n_u32(field(high, 2 * s, 3), 4)), 32);
  }
  template <typename Four>
  static Scale scale(Four b) {
    return scale_of<Block>(b);
  }
};

// Ternary: no multipliers.

struct FormatTQ1_0 : Format<BlockTQ1_0> {
  static constexpr int kOffset = 1, kLargest = 2;
  struct Source {      // of sub-block s
    int low, high;     // where the bytes of columns 0..15 and 16..31 begin
    uint8_t power[8];  // of three, for every four columns
  };
  static uint8x16_t trits(uint8x16_t bytes, uint8x16_t power) {  // 3 * (power b mod 256) / 256
    const uint8x16_t shifted = vmulq_u8(bytes, power), three = vdupq_n_u8(3);
    const uint16x8_t low = vmull_u8(vget_low_u8(shifted), vget_low_u8(three));
    return vshrn_high_n_u16(vshrn_n_u16(low, 8), vmull_high_u8(shifted, three), 8);
  }
  template <typename Columns>
  static int8x16_t codes(Columns x, int chunk, int, int half) {
    static const Source kSources[kBlock256] = {
        {0, 16, {1, 1, 1, 1, 1, 1, 1, 1}},         {0, 16, {3, 3, 3, 3, 3, 3, 3, 3}},
        {0, 16, {9, 9, 9, 9, 9, 9, 9, 9}},         {0, 16, {27, 27, 27, 27, 27, 27, 27, 27}},
        {0, 16, {81, 81, 81, 81, 81, 81, 81, 81}}, {32, 32, {1, 1, 1, 1, 3, 3, 3, 3}},
        {32, 32, {9, 9, 9, 9, 27, 27, 27, 27}},    {32, 48, {81, 81, 81, 81, 1, 3, 9, 27}},
    };
    const Source* from = &kSources[chunk];
    // The last columns' codes are trits 0..3 of the four bytes of `high`.
    const bool last = half == 1 && chunk == kBlock256 - 1;
    const uint8x16_t bytes =
        last ? x.same(offsetof(Block, high)) : x.bytes(half ? from->high : from->low);
    return vreinterpretq_s8_u8(trits(bytes, x.fours(from->power + 4 * half)));
  }
  template <typename Four>
  static Scale scale(Four b) {
    return scale_of<Block>(b);
  }
};

struct FormatTQ2_0 : TwoBits<BlockTQ2_0> {
  static constexpr int kOffset = 1;
  template <typename Four>
  static Scale scale(Four b) {
    return scale_of<Block>(b);
  }
};

}  // namespace
}  // namespace edge_rt
