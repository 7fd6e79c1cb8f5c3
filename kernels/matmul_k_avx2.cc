// AVX2: the formats with blocks of 256 columns and a bit field for every code.
#include "kernels/matmul_avx2.h"

namespace edge_rt {
namespace {

constexpr int kSubBlocks = 8;

// Two bits `part` of each byte, times 1 << up.
inline __m256i two_bits(__m256i bytes, int part, int up) {
  const __m256i mask = set1_code(3 << up);
  const int shift = 2 * part - up;
  return _mm256_and_si256(
      shift < 0 ? _mm256_slli_epi16(bytes, -shift) : _mm256_srli_epi16(bytes, shift), mask);
}

inline __m256i nibble(__m256i bytes, int part) {
  return _mm256_and_si256(part ? _mm256_srli_epi16(bytes, 4) : bytes, set1_code(15));
}

struct FormatQ2_K : Format<BlockQ2_K> {
  static constexpr int kParts = 4, kLargest = 3, kScales = 2, kMins = 2;
  static Codes load(const uint8_t* block, int chunk, int part, const uint32_t*) {
    const __m256i codes = load32(block + offsetof(Block, codes) + 32 * chunk);
    return unsigned_codes(two_bits(codes, part, 0));
  }
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatQ2_K>* out) {
    __m256i words[4];
    row_quads(g, at + offsetof(Block, scales), words);
    for (int s = 0; s < kSubBlocks; ++s) {
      const int i = s % 2 * 2;
      const __m256i twice = pick_bytes(words[s / 2], i, i + 1, i, i + 1);
      out->k[s] = _mm256_or_si256(
          _mm256_and_si256(twice, _mm256_set1_epi32(0x0f0f)),
          _mm256_and_si256(_mm256_srli_epi32(twice, 4), _mm256_set1_epi32(0x0f0f0000)));
    }
  }
  static Scale scale(const RowGroup* g, size_t at) {
    return scale_and_dmin(row_words(g, at + offsetof(Block, d)));
  }
};

struct FormatQ3_K : Format<BlockQ3_K> {
  static constexpr int kParts = 4, kOffset = 4, kLargest = 7, kScales = 2;
  static Codes load(const uint8_t* block, int chunk, int part, const uint32_t*) {
    const __m256i codes = load32(block + offsetof(Block, codes) + 32 * chunk);
    const __m256i high = load32(block + offsetof(Block, high));
    return unsigned_codes(
        _mm256_or_si256(two_bits(codes, part, 0), where_bit(high, chunk * kParts + part, 4)));
  }
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatQ3_K>* out) {
    // The last 16 bytes of the block: two codes, the scales, d.
    __m256i quads[4];
    row_quads(g, at + offsetof(Block, scales) - 2, quads);
    __m256i raw[3];
    for (int i = 0; i < 3; ++i)
      raw[i] =
          _mm256_or_si256(_mm256_srli_epi32(quads[i], 16), _mm256_slli_epi32(quads[i + 1], 16));
    for (int i = 0; i < 4; ++i) {  // scales 4i..4i+3
      const __m256i low = _mm256_and_si256(_mm256_srli_epi32(raw[i % 2], i / 2 * 4), set1_code(15));
      const __m256i high = two_bits(_mm256_srli_epi32(raw[2], 2 * i), 0, 0);
      const __m256i k =
          _mm256_sub_epi8(_mm256_or_si256(low, _mm256_slli_epi32(high, 4)), set1_code(32));
      out->k[2 * i] = pick_bytes(k, 0, 1, -128, -128);
      out->k[2 * i + 1] = pick_bytes(k, 2, 3, -128, -128);
    }
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_at<Block>(g, at); }
};

// Q4_K and Q5_K begin alike: d, dmin and 12 bytes of scales.
void multipliers_of_k4(const RowGroup* g, size_t at, __m256i* out) {
  __m256i quads[4];
  row_quads(g, at, quads);
  const __m256i six = set1_code(63), four = set1_code(15), top = set1_code(48);
  const __m256i k[2] = {_mm256_and_si256(quads[1], six),
                        _mm256_or_si256(_mm256_and_si256(quads[3], four),
                                        _mm256_and_si256(_mm256_srli_epi32(quads[1], 2), top))};
  const __m256i n[2] = {_mm256_and_si256(quads[2], six),
                        _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32(quads[3], 4), four),
                                        _mm256_and_si256(_mm256_srli_epi32(quads[2], 2), top))};
  for (int s = 0; s < kSubBlocks; ++s)
    out[s] = _mm256_or_si256(pick_bytes(k[s / 4], s % 4, s % 4, -128, -128),
                             pick_bytes(n[s / 4], -128, -128, s % 4, s % 4));
}

struct FormatQ4_K : Format<BlockQ4_K> {
  static constexpr int kParts = 2, kLargest = 15, kScales = 1, kMins = 2;
  static Codes load(const uint8_t* block, int chunk, int part, const uint32_t*) {
    return unsigned_codes(nibble(load32(block + offsetof(Block, codes) + 32 * chunk), part));
  }
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatQ4_K>* out) {
    multipliers_of_k4(g, at, out->k);
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_and_dmin(row_words(g, at)); }
};

struct FormatQ5_K : Format<BlockQ5_K> {
  static constexpr int kParts = 2, kLargest = 31, kScales = 1, kMins = 2;
  static Codes load(const uint8_t* block, int chunk, int part, const uint32_t*) {
    const __m256i codes = load32(block + offsetof(Block, codes) + 32 * chunk);
    const __m256i high = load32(block + offsetof(Block, high));
    return unsigned_codes(
        _mm256_or_si256(nibble(codes, part), where_bit(high, chunk * kParts + part, 16)));
  }
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatQ5_K>* out) {
    multipliers_of_k4(g, at, out->k);
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_and_dmin(row_words(g, at)); }
};

struct FormatQ6_K : Format<BlockQ6_K> {
  static constexpr int kParts = 4, kOffset = 32, kLargest = 63, kScales = 2;
  static Codes load(const uint8_t* block, int chunk, int part, const uint32_t*) {
    const __m256i codes = load32(block + offsetof(Block, codes) + 64 * chunk + 32 * (part % 2));
    const __m256i high = load32(block + offsetof(Block, high) + 32 * chunk);
    return unsigned_codes(_mm256_or_si256(nibble(codes, part / 2), two_bits(high, part, 4)));
  }
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatQ6_K>* out) {
    row_quads(g, at + offsetof(Block, scales), out->k);
    for (int s = kSubBlocks - 1; s >= 0; --s)
      out->k[s] = pick_bytes(out->k[s / 2], s % 2 * 2, s % 2 * 2 + 1, -128, -128);
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_at<Block>(g, at); }
};

struct FormatIQ4_XS : Format<BlockIQ4_XS> {
  static constexpr int kSigned = 1, kLargest = 127, kScales = 1;
  static Codes load(const uint8_t* block, int chunk, int, const uint32_t*) {
    const __m256i nibbles = unpack_nibbles(block + offsetof(Block, codes) + 16 * chunk);
    return signed_codes(_mm256_shuffle_epi8(codebook(kCodebookIQ4), nibbles));
  }
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatIQ4_XS>* out) {
    const __m256i high = _mm256_srli_epi32(row_words(g, at), 16);
    const __m256i low = row_words(g, at + offsetof(Block, scales_low));
    for (int s = 0; s < kSubBlocks; ++s) {
      const __m256i four = _mm256_and_si256(_mm256_srli_epi32(low, 4 * s), _mm256_set1_epi32(15));
      const __m256i two = _mm256_and_si256(_mm256_srli_epi32(high, 2 * s), _mm256_set1_epi32(3));
      out->k[s] =
          _mm256_sub_epi32(_mm256_or_si256(four, _mm256_slli_epi32(two, 4)), _mm256_set1_epi32(32));
    }
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
  static Codes load(const uint8_t* block, int chunk, int, const uint32_t*) {
    static const Source kSources[kSubBlocks] = {
        {0, 16, {1, 1, 1, 1, 1, 1, 1, 1}},         {0, 16, {3, 3, 3, 3, 3, 3, 3, 3}},
        {0, 16, {9, 9, 9, 9, 9, 9, 9, 9}},         {0, 16, {27, 27, 27, 27, 27, 27, 27, 27}},
        {0, 16, {81, 81, 81, 81, 81, 81, 81, 81}}, {32, 32, {1, 1, 1, 1, 3, 3, 3, 3}},
        {32, 32, {9, 9, 9, 9, 27, 27, 27, 27}},    {32, 38, {81, 81, 81, 81, 1, 3, 9, 27}},
    };
    const Source* from = &kSources[chunk];
    const __m256i bytes = _mm256_set_m128i(_mm_loadu_si128((const __m128i*)(block + from->high)),
                                           _mm_loadu_si128((const __m128i*)(block + from->low)));
    // The last source is the end of the block: ten codes, `high`, which serves four times, and d.
    const __m256i in_order = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
                                              0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m256i last =
        _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,  //
                         10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13);
    const __m256i source = _mm256_shuffle_epi8(bytes, chunk == 7 ? last : in_order);
    const __m256i power = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from->power));
    const __m256i factor = _mm256_or_si256(power, _mm256_slli_epi32(power, 16));
    // A byte in the upper half of 16 bits: times the power modulo 256, then times 3, upper half.
    const __m256i three = _mm256_set1_epi16(3), upper = _mm256_set1_epi16((short)0xff00);
    const __m256i even =
        _mm256_mulhi_epu16(_mm256_mullo_epi16(_mm256_slli_epi16(source, 8), factor), three);
    const __m256i odd =
        _mm256_mulhi_epu16(_mm256_mullo_epi16(_mm256_and_si256(source, upper), factor), three);
    return unsigned_codes(_mm256_or_si256(even, _mm256_slli_epi16(odd, 8)));
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_at<Block>(g, at); }
};

struct FormatTQ2_0 : Format<BlockTQ2_0> {
  static constexpr int kParts = 4, kOffset = 1, kLargest = 3;
  static Codes load(const uint8_t* block, int chunk, int part, const uint32_t*) {
    return unsigned_codes(two_bits(load32(block + offsetof(Block, codes) + 32 * chunk), part, 0));
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_at<Block>(g, at); }
};

}  // namespace

MatmulKernel matmul_k_avx2(int format) {
  switch (format) {
    case kQ2_K:
      return matmul_blocks<FormatQ2_K>;
    case kQ3_K:
      return matmul_blocks<FormatQ3_K>;
    case kQ4_K:
      return matmul_blocks<FormatQ4_K>;
    case kQ5_K:
      return matmul_blocks<FormatQ5_K>;
    case kQ6_K:
      return matmul_blocks<FormatQ6_K>;
    case kIQ4_XS:
      return matmul_blocks<FormatIQ4_XS>;
    case kTQ1_0:
      return matmul_blocks<FormatTQ1_0>;
    case kTQ2_0:
      return matmul_blocks<FormatTQ2_0>;
  }
  return nullptr;
}

}  // namespace edge_rt
