// AVX2: the formats whose codes are indices into grids.
#include "kernels/grids.h"
#include "kernels/matmul_avx2.h"

namespace edge_rt {
namespace {

constexpr int kSubBlocks = 8;

// 32 columns of four entries of two-bit codes, looked up in a table of `lookup2`.
inline __m256i grid8(const uint16_t* grid, int i0, int i1, int i2, int i3, __m256i table) {
  const uint64_t entries = (uint64_t)grid[i0] | (uint64_t)grid[i1] << 16 |
                           (uint64_t)grid[i2] << 32 | (uint64_t)grid[i3] << 48;
  const __m256i byte_of = _mm256_setr_epi32(0, 0x01010101, 0x02020202, 0x03030303,  //
                                            0x04040404, 0x05050505, 0x06060606, 0x07070707);
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi64x((long long)entries), byte_of);
  // Of four equal bytes the last two use the upper nibble; an odd column's code stays times 4.
  const __m256i nibbles = _mm256_blend_epi16(bytes, _mm256_srli_epi16(bytes, 4), 0xaa);
  return _mm256_shuffle_epi8(table, _mm256_and_si256(nibbles, _mm256_set1_epi16(0x0c03)));
}

inline __m256i lookup2(const int8_t* values) {  // codes 0..3 and four times these
  const char a = values[0], b = values[1], c = values[2];
  return _mm256_broadcastsi128_si256(_mm_setr_epi8(a, b, c, 0, b, 0, 0, 0, c, 0, 0, 0, 0, 0, 0, 0));
}

// 32 columns of the eight entries of four-bit codes in `entries`.
inline __m256i grid4(const uint16_t* entries, const int8_t* magnitudes) {
  const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)entries));
  const __m256i codes =
      _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi16(wide, 4)), set1_code(15));
  return _mm256_shuffle_epi8(codebook(magnitudes), codes);
}

inline Codes with_signs(__m256i magnitude, uint32_t signs) {
  Codes q;
  q.magnitude = magnitude;
  q.sign = _mm256_or_si256(spread_bits(signs), set1_code(1));
  return q;
}

// Four times seven signs to four times eight: the eighth makes the number of minuses even.
inline uint32_t eight_signs(uint32_t sevens) {
  const uint32_t signs = (sevens & 0x7f) | (sevens << 1 & 0x7f00) | (sevens << 2 & 0x7f0000) |
                         (sevens << 3 & 0x7f000000);
  uint32_t parity = signs ^ signs >> 4;
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return signs | (parity & 0x01010101) << 7;
}

template <typename Block>
inline Scale scale_times(const RowGroup* g, size_t at, float factor) {
  Scale scale = scale_at<Block>(g, at);
  scale.d = _mm256_mul_ps(scale.d, _mm256_set1_ps(factor));
  return scale;
}

// 2 * bits + 1 in the two lowest bytes, from `bits` in these or (for kScales 1) in the lowest.
inline __m256i odd(__m256i bits) {
  return _mm256_add_epi32(_mm256_add_epi32(bits, bits), _mm256_set1_epi32(0x0101));
}

inline __m256i field(__m256i words, int shift, int mask) {
  return _mm256_and_si256(_mm256_srli_epi32(words, shift), _mm256_set1_epi32(mask));
}

struct Signed {
  static constexpr int kParts = 1, kSigned = 1, kOffset = 0, kMins = 0;
};

struct FormatIQ2_XXS : Signed {
  typedef BlockIQ2_XXS Block;
  static constexpr int kLargest = 43, kScales = 1;
  static Codes load(const uint8_t* block, int s, int) {
    const uint8_t* p = block + offsetof(Block, words) + 8 * s;
    return with_signs(grid8(kGridIQ2XXS, p[0], p[1], p[2], p[3], lookup2(kMagnitudesIQ2)),
                      eight_signs(load_u32(p + 4)));
  }
  static void multipliers(const RowGroup* g, size_t at, __m256i* out) {
    for (int s = 0; s < kSubBlocks; ++s)
      out[s] = odd(field(row_words(g, at + offsetof(Block, words) + 8 * s + 4), 28, 15));
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_times<Block>(g, at, 0.125f); }
};

// IQ2_XS and IQ2_S: byte s has the two scales of sub-block s.
inline void nibble_multipliers(const RowGroup* g, size_t at, __m256i* out) {
  const __m256i words[2] = {row_words(g, at), row_words(g, at + 4)};
  for (int s = 0; s < kSubBlocks; ++s) {
    const __m256i byte = field(words[s / 4], s % 4 * 8, 255);
    out[s] = odd(_mm256_and_si256(_mm256_or_si256(byte, _mm256_slli_epi32(byte, 4)),
                                  _mm256_set1_epi32(0x0f0f)));
  }
}

struct FormatIQ2_XS : Signed {
  typedef BlockIQ2_XS Block;
  static constexpr int kLargest = 43, kScales = 2;
  static Codes load(const uint8_t* block, int s, int) {
    const uint8_t* p = block + offsetof(Block, codes) + 8 * s;
    const int a = load_u16(p), b = load_u16(p + 2), c = load_u16(p + 4), d = load_u16(p + 6);
    const uint32_t sevens = (uint32_t)(a >> 9 | b >> 9 << 7 | c >> 9 << 14 | d >> 9 << 21);
    return with_signs(
        grid8(kGridIQ2XS, a & 511, b & 511, c & 511, d & 511, lookup2(kMagnitudesIQ2)),
        eight_signs(sevens));
  }
  static void multipliers(const RowGroup* g, size_t at, __m256i* out) {
    nibble_multipliers(g, at + offsetof(Block, scales), out);
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_times<Block>(g, at, 0.125f); }
};

struct FormatIQ2_S : Signed {
  typedef BlockIQ2_S Block;
  static constexpr int kLargest = 43, kScales = 2;
  static Codes load(const uint8_t* block, int s, int) {
    const uint8_t* p = block + offsetof(Block, codes) + 4 * s;
    const int high = block[offsetof(Block, high) + s] << 8;
    return with_signs(
        grid8(kGridIQ2S, p[0] | (high & 0x300), p[1] | (high >> 2 & 0x300),
              p[2] | (high >> 4 & 0x300), p[3] | (high >> 6 & 0x300), lookup2(kMagnitudesIQ2)),
        load_u32(block + offsetof(Block, signs) + 4 * s));
  }
  static void multipliers(const RowGroup* g, size_t at, __m256i* out) {
    nibble_multipliers(g, at + offsetof(Block, scales), out);
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_times<Block>(g, at, 0.125f); }
};

struct FormatIQ3_XXS : Signed {
  typedef BlockIQ3_XXS Block;
  static constexpr int kLargest = 62, kScales = 1;
  static Codes load(const uint8_t* block, int s, int) {
    const uint8_t* p = block + offsetof(Block, codes) + 8 * s;
    uint16_t entries[8];
    for (int i = 0; i < 8; ++i) entries[i] = kGridIQ3XXS[p[i]];
    return with_signs(grid4(entries, kMagnitudesIQ3XXS),
                      eight_signs(load_u32(block + offsetof(Block, words) + 4 * s)));
  }
  static void multipliers(const RowGroup* g, size_t at, __m256i* out) {
    for (int s = 0; s < kSubBlocks; ++s)
      out[s] = odd(field(row_words(g, at + offsetof(Block, words) + 4 * s), 28, 15));
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_times<Block>(g, at, 0.25f); }
};

struct FormatIQ3_S : Signed {
  typedef BlockIQ3_S Block;
  static constexpr int kLargest = 15, kScales = 1;
  static Codes load(const uint8_t* block, int s, int) {
    const uint8_t* p = block + offsetof(Block, codes) + 8 * s;
    const int high = block[offsetof(Block, high) + s];
    uint16_t entries[8];
    for (int i = 0; i < 8; ++i) entries[i] = kGridIQ3S[p[i] | (high << (8 - i) & 0x100)];
    return with_signs(grid4(entries, kMagnitudesIQ3S),
                      load_u32(block + offsetof(Block, signs) + 4 * s));
  }
  static void multipliers(const RowGroup* g, size_t at, __m256i* out) {
    const __m256i words = row_words(g, at + offsetof(Block, scales));
    for (int s = 0; s < kSubBlocks; ++s) out[s] = odd(field(words, 4 * s, 15));
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_at<Block>(g, at); }
};

// Values of the grid are 8, 16 and 24, so that with the delta all codes are positive.
struct Ternary {
  static constexpr int kParts = 1, kSigned = 0, kOffset = 16, kLargest = 25, kMins = 0;
  static __m256i table() {
    static const int8_t kValues[3] = {8, 16, 24};
    return lookup2(kValues);
  }
};

struct FormatIQ1_S : Ternary {
  typedef BlockIQ1_S Block;
  static constexpr int kScales = 1;
  static Codes load(const uint8_t* block, int s, int) {
    const uint8_t* p = block + offsetof(Block, codes) + 4 * s;
    const int high = load_u16(block + offsetof(Block, high) + 2 * s);
    const __m256i values = grid8(kGridIQ1, p[0] | (high << 8 & 0x700), p[1] | (high << 5 & 0x700),
                                 p[2] | (high << 2 & 0x700), p[3] | (high >> 1 & 0x700), table());
    return unsigned_codes(_mm256_add_epi8(values, set1_code(1 - (high >> 15 << 1))));
  }
  static void multipliers(const RowGroup* g, size_t at, __m256i* out) {
    for (int s = 0; s < kSubBlocks; s += 2) {
      const __m256i words = row_words(g, at + offsetof(Block, high) + 2 * s);
      for (int i = 0; i < 2; ++i) {
        const __m256i bits = field(words, 16 * i + 12, 7);
        out[s + i] = odd(_mm256_or_si256(bits, _mm256_slli_epi32(bits, 8)));
      }
    }
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_times<Block>(g, at, 0.125f); }
};

struct FormatIQ1_M : Ternary {
  typedef BlockIQ1_M Block;
  static constexpr int kScales = 2;
  static Codes load(const uint8_t* block, int s, int) {
    const uint8_t* p = block + offsetof(Block, codes) + 4 * s;
    const int high = load_u16(block + offsetof(Block, high) + 2 * s);
    const __m256i values = grid8(kGridIQ1, p[0] | (high << 8 & 0x700), p[1] | (high << 4 & 0x700),
                                 p[2] | (high & 0x700), p[3] | (high >> 4 & 0x700), table());
    const __m256i byte_of = _mm256_setr_epi64x(0, 0, 0x0101010101010101, 0x0101010101010101);
    const __m256i mask = _mm256_setr_epi64x(0x0808080808080808, (long long)0x8080808080808080ull,
                                            0x0808080808080808, (long long)0x8080808080808080ull);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi16((short)high), byte_of);
    const __m256i minus = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask);
    return unsigned_codes(_mm256_add_epi8(values, _mm256_or_si256(minus, set1_code(1))));
  }
  static void multipliers(const RowGroup* g, size_t at, __m256i* out) {
    const __m256i words[2] = {row_words(g, at + offsetof(Block, scales)),
                              row_words(g, at + offsetof(Block, scales) + 4)};
    for (int s = 0; s < kSubBlocks; ++s) {
      const int shift = s / 2 % 2 * 16 + s % 2 * 6;
      out[s] = odd(_mm256_or_si256(field(words[s / 4], shift, 7),
                                   _mm256_slli_epi32(field(words[s / 4], shift + 3, 7), 8)));
    }
  }
  static Scale scale(const RowGroup* g, size_t at) {  // the top nibbles of the four scales
    const __m256i low = row_words(g, at + offsetof(Block, scales));
    const __m256i high = row_words(g, at + offsetof(Block, scales) + 4);
    const __m256i d =
        _mm256_or_si256(_mm256_or_si256(field(low, 12, 0xf), field(low, 24, 0xf0)),
                        _mm256_or_si256(field(high, 4, 0xf00), field(high, 16, 0xf000)));
    const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(d, d), 0xd8);
    Scale scale;
    scale.d = scale.m =
        _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(both)), _mm256_set1_ps(0.125f));
    return scale;
  }
};

}  // namespace

MatmulKernel matmul_grid_avx2(int format) {
  switch (format) {
    case kIQ2_XXS:
      return matmul_blocks<FormatIQ2_XXS>;
    case kIQ2_XS:
      return matmul_blocks<FormatIQ2_XS>;
    case kIQ2_S:
      return matmul_blocks<FormatIQ2_S>;
    case kIQ3_XXS:
      return matmul_blocks<FormatIQ3_XXS>;
    case kIQ3_S:
      return matmul_blocks<FormatIQ3_S>;
    case kIQ1_S:
      return matmul_blocks<FormatIQ1_S>;
    case kIQ1_M:
      return matmul_blocks<FormatIQ1_M>;
  }
  return nullptr;
}

}  // namespace edge_rt
