// NEON: the formats with blocks of 32 columns, which have no multipliers.
#pragma once

#include "kernels/matmul_neon.h"

namespace edge_rt {
namespace {

template <typename B>
struct Block32 : Format<B> {
  static constexpr int kMins = B::kHasMin;
  static Scale scale(const RowGroup* g, size_t at) {
    Scale scale = scale_at<B>(g, at);
    if constexpr (B::kHasMin) scale.m = row_halves(g, at + offsetof(B, m));
    return scale;
  }
};

template <typename B, int kCodeOffset>
struct FourBits : Block32<B> {
  static constexpr int kOffset = kCodeOffset, kLargest = 15;
  static Codes load(const uint8_t* block, int, int) {
    const Bytes32 nibbles = unpack_nibbles(block + offsetof(B, codes));
    return codes_of(nibbles.half[0], nibbles.half[1]);
  }
};
struct FormatQ4_0 : FourBits<BlockQ4_0, 8> {};
struct FormatQ4_1 : FourBits<BlockQ4_1, 0> {};

template <typename B, int kCodeOffset>
struct FiveBits : Block32<B> {
  static constexpr int kOffset = kCodeOffset, kLargest = 31;
  static Codes load(const uint8_t* block, int, int) {
    const Bytes32 nibbles = unpack_nibbles(block + offsetof(B, codes));
    const Bytes32 high = spread_bits(load_u32(block + offsetof(B, high)));
    const uint8x16_t sixteen = vdupq_n_u8(16);
    return codes_of(vorrq_u8(nibbles.half[0], vandq_u8(high.half[0], sixteen)),
                    vorrq_u8(nibbles.half[1], vandq_u8(high.half[1], sixteen)));
  }
};
struct FormatQ5_0 : FiveBits<BlockQ5_0, 16> {};
struct FormatQ5_1 : FiveBits<BlockQ5_1, 0> {};

struct FormatQ8_0 : Block32<BlockQ8_0> {
  static constexpr int kLargest = 128;
  static Codes load(const uint8_t* block, int, int) {
    const Bytes32 codes = load32(block + offsetof(Block, codes));
    return codes_of(codes.half[0], codes.half[1]);
  }
};

struct FormatIQ4_NL : Block32<BlockIQ4_NL> {
  static constexpr int kLargest = 127;
  static Codes load(const uint8_t* block, int, int) {
    return look_up(kCodebookIQ4, unpack_nibbles(block + offsetof(Block, codes)));
  }
};

struct FormatMXFP4 : Block32<BlockMXFP4> {
  static constexpr int kLargest = 12;
  static Codes load(const uint8_t* block, int, int) {
    return look_up(kCodebookFP4, unpack_nibbles(block + offsetof(Block, codes)));
  }
  static Scale scale(const RowGroup* g, size_t at) {
    float d[kLanes];
    for (int i = 0; i < kLanes; ++i)
      d[i] = scale_of_mxfp4(g->row[i][at + offsetof(Block, exponent)]);
    Scale scale;
    scale.d = scale.m = vld1q_f32(d);
    return scale;
  }
};

}  // namespace
}  // namespace edge_rt
