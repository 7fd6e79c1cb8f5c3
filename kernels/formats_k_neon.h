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

inline uint8x16_t nibble(uint8x16_t bytes, int part) {
  return part ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(15));
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
  static Codes load(const uint8_t* block, int chunk, int part) {
    const Bytes32 codes = load32(block + offsetof(B, codes) + 32 * chunk);
    return codes_of(two_bits(codes.half[0], part, 0), two_bits(codes.half[1], part, 0));
  }
};

struct FormatQ2_K : TwoBits<BlockQ2_K> {
  static constexpr int kScales = 2, kMins = 2;
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatQ2_K>* out) {
    uint32x4_t words[4];
    row_quads(g, at + offsetof(Block, scales), words);
    for (int s = 0; s < kBlock256; ++s) {
      const int i = s % 2 * 2;
      const uint32x4_t twice = pick_bytes(words[s / 2], i, i + 1, i, i + 1);
      out->k[s] = vorrq_u32(field(twice, 0, 0x0f0f), field(twice, 4, 0x0f0f0000));
    }
  }
  static Scale scale(const RowGroup* g, size_t at) {
    return scale_and_dmin(row_words(g, at + offsetof(Block, d)));
  }
};

struct FormatQ3_K : Format<BlockQ3_K> {
  static constexpr int kParts = 4, kOffset = 4, kLargest = 7, kScales = 2;
  static Codes load(const uint8_t* block, int chunk, int part) {
    const Bytes32 codes = load32(block + offsetof(Block, codes) + 32 * chunk);
    const Bytes32 high = load32(block + offsetof(Block, high));
    const int bit = chunk * kParts + part;
    return codes_of(vorrq_u8(two_bits(codes.half[0], part, 0), where_bit(high.half[0], bit, 4)),
                    vorrq_u8(two_bits(codes.half[1], part, 0), where_bit(high.half[1], bit, 4)));
  }
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatQ3_K>* out) {
    // The last 16 bytes of the block: two codes, the scales, d.
    uint32x4_t quads[4], raw[3];
    row_quads(g, at + offsetof(Block, scales) - 2, quads);
    for (int i = 0; i < 3; ++i)
      raw[i] = vorrq_u32(vshrq_n_u32(quads[i], 16), vshlq_n_u32(quads[i + 1], 16));
    for (int i = 0; i < 4; ++i) {  // scales 4i..4i+3
      const uint32x4_t low = field(raw[i % 2], i / 2 * 4, 0x0f0f0f0f);
      const uint32x4_t high = vshlq_n_u32(field(raw[2], 2 * i, 0x03030303), 4);
      const uint32x4_t k = sub_bytes(vorrq_u32(low, high), 32);
      out->k[2 * i] = pick_bytes(k, 0, 1, -128, -128);
      out->k[2 * i + 1] = pick_bytes(k, 2, 3, -128, -128);
    }
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_at<Block>(g, at); }
};

// Q4_K and Q5_K begin alike: d, dmin and 12 bytes of scales.
template <typename F>
void multipliers_of_k4(const RowGroup* g, size_t at, Prepared<F>* out) {
  uint32x4_t quads[4];
  row_quads(g, at, quads);
  const uint32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, top = 0x30303030;
  const uint32x4_t k[2] = {field(quads[1], 0, six),
                           vorrq_u32(field(quads[3], 0, four), field(quads[1], 2, top))};
  const uint32x4_t n[2] = {field(quads[2], 0, six),
                           vorrq_u32(field(quads[3], 4, four), field(quads[2], 2, top))};
  for (int s = 0; s < kBlock256; ++s)
    out->k[s] = vorrq_u32(pick_bytes(k[s / 4], s % 4, s % 4, -128, -128),
                          pick_bytes(n[s / 4], -128, -128, s % 4, s % 4));
}

struct FormatQ4_K : Format<BlockQ4_K> {
  static constexpr int kParts = 2, kLargest = 15, kScales = 1, kMins = 2;
  static Codes load(const uint8_t* block, int chunk, int part) {
    const Bytes32 codes = load32(block + offsetof(Block, codes) + 32 * chunk);
    return codes_of(nibble(codes.half[0], part), nibble(codes.half[1], part));
  }
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatQ4_K>* out) {
    multipliers_of_k4(g, at, out);
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_and_dmin(row_words(g, at)); }
};

struct FormatQ5_K : Format<BlockQ5_K> {
  static constexpr int kParts = 2, kLargest = 31, kScales = 1, kMins = 2;
  static Codes load(const uint8_t* block, int chunk, int part) {
    const Bytes32 codes = load32(block + offsetof(Block, codes) + 32 * chunk);
    const Bytes32 high = load32(block + offsetof(Block, high));
    const int bit = chunk * kParts + part;
    return codes_of(vorrq_u8(nibble(codes.half[0], part), where_bit(high.half[0], bit, 16)),
                    vorrq_u8(nibble(codes.half[1], part), where_bit(high.half[1], bit, 16)));
  }
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatQ5_K>* out) {
    multipliers_of_k4(g, at, out);
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_and_dmin(row_words(g, at)); }
};

struct FormatQ6_K : Format<BlockQ6_K> {
  static constexpr int kParts = 4, kOffset = 32, kLargest = 63, kScales = 2;
  static Codes load(const uint8_t* block, int chunk, int part) {
    const Bytes32 codes = load32(block + offsetof(Block, codes) + 64 * chunk + 32 * (part % 2));
    const Bytes32 high = load32(block + offsetof(Block, high) + 32 * chunk);
    return codes_of(vorrq_u8(nibble(codes.half[0], part / 2), two_bits(high.half[0], part, 4)),
                    vorrq_u8(nibble(codes.half[1], part / 2), two_bits(high.half[1], part, 4)));
  }
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatQ6_K>* out) {
    uint32x4_t words[4];
    row_quads(g, at + offsetof(Block, scales), words);
    for (int s = 0; s < kBlock256; ++s)
      out->k[s] = pick_bytes(words[s / 2], s % 2 * 2, s % 2 * 2 + 1, -128, -128);
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_at<Block>(g, at); }
};

struct FormatIQ4_XS : Format<BlockIQ4_XS> {
  static constexpr int kLargest = 127, kScales = 1;
  static Codes load(const uint8_t* block, int chunk, int) {
    return look_up(kCodebookIQ4, unpack_nibbles(block + offsetof(Block, codes) + 16 * chunk));
  }
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatIQ4_XS>* out) {
    const uint32x4_t high = vshrq_n_u32(row_words(g, at), 16);
    const uint32x4_t low = row_words(g, at + offsetof(Block, scales_low));
    for (int s = 0; s < kBlock256; ++s)
      out->k[s] =
          sub_bytes(vorrq_u32(field(low, 4 * s, 15), vshlq_n_u32(field(high, 2 * s, 3), 4)), 32);
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_at<Block>(g, at); }
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
  static Codes load(const uint8_t* block, int chunk, int) {
    static const Source kSources[kBlock256] = {
        {0, 16, {1, 1, 1, 1, 1, 1, 1, 1}},         {0, 16, {3, 3, 3, 3, 3, 3, 3, 3}},
        {0, 16, {9, 9, 9, 9, 9, 9, 9, 9}},         {0, 16, {27, 27, 27, 27, 27, 27, 27, 27}},
        {0, 16, {81, 81, 81, 81, 81, 81, 81, 81}}, {32, 32, {1, 1, 1, 1, 3, 3, 3, 3}},
        {32, 32, {9, 9, 9, 9, 27, 27, 27, 27}},    {32, 38, {81, 81, 81, 81, 1, 3, 9, 27}},
    };
    const Source* from = &kSources[chunk];
    const uint8x16_t fours = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    const uint8x8_t powers = vld1_u8(from->power);
    const uint8x16_t power = vcombine_u8(powers, powers);
    const uint8x16_t low = vld1q_u8(block + from->low);
    uint8x16_t high = vld1q_u8(block + from->high);
    if (chunk == 7) {  // the end of the block: ten codes, `high`, which serves four times, and d
      const uint8x16_t last = {10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13};
      high = vqtbl1q_u8(high, last);
    }
    return codes_of(trits(low, vqtbl1q_u8(power, fours)),
                    trits(high, vqtbl1q_u8(power, vaddq_u8(fours, vdupq_n_u8(4)))));
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_at<Block>(g, at); }
};

struct FormatTQ2_0 : TwoBits<BlockTQ2_0> {
  static constexpr int kOffset = 1;
  static Scale scale(const RowGroup* g, size_t at) { return scale_at<Block>(g, at); }
};

}  // namespace
}  // namespace edge_rt
