// AVX2: the formats with blocks of 32 columns, which have no multipliers.
#include "kernels/matmul_avx2.h"

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

struct FormatQ4_0 : Block32<BlockQ4_0> {
  static constexpr int kOffset = 8, kLargest = 15;
  static Codes load(const uint8_t* block, int, int, const uint32_t*) {
    return unsigned_codes(unpack_nibbles(block + offsetof(Block, codes)));
  }
};
struct FormatQ4_1 : Block32<BlockQ4_1> {
  static constexpr int kLargest = 15;
  static Codes load(const uint8_t* block, int, int, const uint32_t*) {
    return unsigned_codes(unpack_nibbles(block + offsetof(Block, codes)));
  }
};

template <typename Block>
__m256i unpack_five_bits(const uint8_t* block) {
  const __m256i high = spread_bits(load_u32(block + offsetof(Block, high)));
  return _mm256_or_si256(unpack_nibbles(block + offsetof(Block, codes)),
                         _mm256_and_si256(high, set1_code(16)));
}
struct FormatQ5_0 : Block32<BlockQ5_0> {
  static constexpr int kOffset = 16, kLargest = 31;
  static Codes load(const uint8_t* block, int, int, const uint32_t*) {
    return unsigned_codes(unpack_five_bits<Block>(block));
  }
};
struct FormatQ5_1 : Block32<BlockQ5_1> {
  static constexpr int kLargest = 31;
  static Codes load(const uint8_t* block, int, int, const uint32_t*) {
    return unsigned_codes(unpack_five_bits<Block>(block));
  }
};

struct FormatQ8_0 : Block32<BlockQ8_0> {
  static constexpr int kSigned = 1, kLargest = 128;
  static Codes load(const uint8_t* block, int, int, const uint32_t*) {
    return signed_codes(load32(block + offsetof(Block, codes)));
  }
};

struct FormatIQ4_NL : Block32<BlockIQ4_NL> {
  static constexpr int kSigned = 1, kLargest = 127;
  static Codes load(const uint8_t* block, int, int, const uint32_t*) {
    const __m256i nibbles = unpack_nibbles(block + offsetof(Block, codes));
    return signed_codes(_mm256_shuffle_epi8(codebook(kCodebookIQ4), nibbles));
  }
};

struct FormatMXFP4 : Block32<BlockMXFP4> {
  static constexpr int kOffset = 12, kLargest = 24;
  static Codes load(const uint8_t* block, int, int, const uint32_t*) {
    const __m256i nibbles = unpack_nibbles(block + offsetof(Block, codes));
    const __m256i table = _mm256_add_epi8(codebook(kCodebookFP4), set1_code(kOffset));
    return unsigned_codes(_mm256_shuffle_epi8(table, nibbles));
  }
  static Scale scale(const RowGroup* g, size_t at) {  // scale_of_mxfp4
    const __m256i e = _mm256_cvtepu8_epi32(_mm_setr_epi8(
        (char)g->row[0][at], (char)g->row[1][at], (char)g->row[2][at], (char)g->row[3][at],
        (char)g->row[4][at], (char)g->row[5][at], (char)g->row[6][at], (char)g->row[7][at],  //
        0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x200000), e);
    const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
    Scale scale;
    scale.d = scale.m = _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, small));
    return scale;
  }
};

}  // namespace

MatmulKernel matmul_block32_avx2(int format) {
  switch (format) {
    case kQ4_0:
      return matmul_blocks<FormatQ4_0>;
    case kQ4_1:
      return matmul_blocks<FormatQ4_1>;
    case kQ5_0:
      return matmul_blocks<FormatQ5_0>;
    case kQ5_1:
      return matmul_blocks<FormatQ5_1>;
    case kQ8_0:
      return matmul_blocks<FormatQ8_0>;
    case kIQ4_NL:
      return matmul_blocks<FormatIQ4_NL>;
    case kMXFP4:
      return matmul_blocks<FormatMXFP4>;
  }
  return nullptr;
}

}  // namespace edge_rt
