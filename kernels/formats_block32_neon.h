// NEON: the formats with blocks of 32 columns, which have no multipliers.
#pragma once

#include "kernels/matmul_neon.h"

namespace edge_rt {
namespace {

template <typename B>
struct Block32 : Format<B> {
  static constexpr int kMins = B::kHasMin;
  template <typename Four>
  static Scale scale(Four b) {
    Scale scale = scale_of<B>(b);
    if constexpr (B::kHasMin) scale.m = row_halves(b, offsetof(B, m));
    return scale;
  }
};

template <typename B, int kCodeOffset>
struct FourBits : Block32<B> {
  static constexpr int kOffset = kCodeOffset, kLargest = 15;
  template <typename Columns>
  static int8x16_t codes(Columns x, int, int, int half) {
    return vreinterpretq_s8_u8(nibble(x.bytes(offsetof(B, codes)), half));
  }
};
struct FormatQ4_0 : FourBits<BlockQ4_0, 8> {};
struct FormatQ4_1 : FourBits<BlockQ4_1, 0> {};

template <typename B, int kCodeOffset>
struct FiveBits : Block32<B> {
  static constexpr int kOffset = kCodeOffset, kLargest = 31;
  template <typename Columns>
  static int8x16_t codes(Columns x, int, int, int half) {
    const uint8x16_t high = vandq_u8(x.bits(offsetof(B, high) + 2 * half), vdupq_n_u8(16));
    return vreinterpretq_s8_u8(vorrq_u8(nibble(x.bytes(offsetof(B, codes)), half), high));
  }
};
struct FormatQ5_0 : FiveBits<BlockQ5_0, 16> {};
struct FormatQ5_1 : FiveBits<BlockQ5_1, 0> {};

struct FormatQ8_0 : Block32<BlockQ8_0> {
  static constexpr int kLargest = 128;
  template <typename Columns>
  static int8x16_t codes(Columns x, int, int, int half) {
    return vreinterpretq_s8_u8(x.bytes(offsetof(Block, codes) + 16 * half));
  }
};

struct FormatIQ4_NL : Block32<BlockIQ4_NL> {
  static constexpr int kLargest = 127;
  template <typename Columns>
  static int8x16_t codes(Columns x, int, int, int half) {
    return look_up(kCodebookIQ4, nibble(x.bytes(offsetof(Block, codes)), half));
  }
};

struct FormatMXFP4 : Format<BlockMXFP4> {
  static constexpr int kLargest = 12;
  template <typename Columns>
  static int8x16_t codes(Columns x, int, int, int half) {
    return look_up(kCodebookFP4, nibble(x.bytes(offsetof(Block, codes)), half));
  }
  template <typename Four>
  static Scale scale(Four b) {  // scale_of_mxfp4
    const uint32x4_t e = row_byte(b, offsetof(Block, exponent));
    const uint32x4_t normal = vshlq_n_u32(vsubq_u32(e, vdupq_n_u32(1)), 23);
    const uint32x4_t subnormal = vshlq_u32(vdupq_n_u32(0x200000), vreinterpretq_s32_u32(e));
    Scale scale;
    scale.d = scale.m =
        vreinterpretq_f32_u32(vbslq_u32(vcltq_u32(e, vdupq_n_u32(2)), subnormal, normal));
    return scale;
  }
};

}  // namespace
}  // namespace edge_rt
