// AVX2: the formats whose codes are indices into grids.
#include "kernels/grids.h"
#include "kernels/matmul_rows_avx2.h"

namespace edge_rt {
namespace {

constexpr int kSubBlocks = 8;

// 32 columns of four entries of two-bit codes, looked up in a table of `lookup2`.
inline __m256i grid8(const uint16_t* grid, int i0, int i1, int i2, int i3, __m256i table) {
  __m128i entries = _mm_cvtsi32_si128(grid[i0]);
  entries = _mm_insert_epi16(entries, grid[i1], 1);
  entries = _mm_insert_epi16(entries, grid[i2], 2);
  entries = _mm_insert_epi16(entries, grid[i3], 3);
  const __m256i byte_of = _mm256_setr_epi32(0, 0x01010101, 0x02020202, 0x03030303,  //
                                            0x04040404, 0x05050505, 0x06060606, 0x07070707);
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), byte_of);
  // Of four equal bytes the last two use the upper nibble; an odd column's code stays times 4.
  const __m256i nibbles = _mm256_blend_epi16(bytes, _mm256_srli_epi16(bytes, 4), 0xaa);
  return _mm256_shuffle_epi8(table, _mm256_and_si256(nibbles, _mm256_set1_epi16(0x0c03)));
}

// The same with the indices in two words of a row: 16 bits each, the first one lowest.
inline __m256i grid8(const uint16_t* grid, const uint32_t* words, __m256i table) {
  const uint8_t *low = (const uint8_t*)words, *high = (const uint8_t*)(words + kGroup);
  return grid8(grid, load_u16(low), load_u16(low + 2), load_u16(high), load_u16(high + 2), table);
}

inline __m256i lookup2(const int8_t* values) {  // codes 0..3 and four times these
  const char a = values[0], b = values[1], c = values[2];
  return _mm256_broadcastsi128_si256(_mm_setr_epi8(a, b, c, 0, b, 0, 0, 0, c, 0, 0, 0, 0, 0, 0, 0));
}

// 32 columns of eight entries of four-bit codes.
inline __m256i grid4(__m128i entries, const int8_t* magnitudes) {
  const __m256i wide = _mm256_cvtepu8_epi16(entries);
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

// Four bytes of seven signs to eight: the eighth makes the number of minuses even.
inline __m256i eight_signs(__m256i sevens) {
  __m256i parity = _mm256_xor_si256(sevens, _mm256_srli_epi32(sevens, 4));
  parity = _mm256_xor_si256(parity, _mm256_srli_epi32(parity, 2));
  parity = _mm256_xor_si256(parity, _mm256_srli_epi32(parity, 1));
  return _mm256_or_si256(
      sevens, _mm256_slli_epi32(_mm256_and_si256(parity, _mm256_set1_epi32(0x01010101)), 7));
}

// The same from four fields of seven bits, the first one lowest.
inline __m256i eight_signs_of_fields(__m256i words) {
  const __m256i low =
      _mm256_or_si256(_mm256_and_si256(words, _mm256_set1_epi32(0x7f)),
                      _mm256_and_si256(_mm256_slli_epi32(words, 1), _mm256_set1_epi32(0x7f00)));
  const __m256i high =
      _mm256_or_si256(_mm256_and_si256(_mm256_slli_epi32(words, 2), _mm256_set1_epi32(0x7f0000)),
                      _mm256_and_si256(_mm256_slli_epi32(words, 3), _mm256_set1_epi32(0x7f000000)));
  return eight_signs(_mm256_or_si256(low, high));
}

inline void store_word(uint32_t* words, __m256i value) {
  _mm256_store_si256((__m256i*)words, value);
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

// (words << up or >> -up) & mask
inline __m256i moved(__m256i words, int up, int mask) {
  return _mm256_and_si256(up < 0 ? _mm256_srli_epi32(words, -up) : _mm256_slli_epi32(words, up),
                          _mm256_set1_epi32(mask));
}

// The four indices of a sub-block in two words: the low bytes, and the bits above these out of
// `high`, where index i begins at bit `step` * i.
inline void store_indices(uint32_t (*words)[kGroup], __m256i low, __m256i high, int step,
                          int mask) {
  const int first = mask << 8, second = mask << 24;
  store_word(words[0], _mm256_or_si256(
                           _mm256_or_si256(moved(low, 0, 0xff), moved(low, 8, 0xff0000)),
                           _mm256_or_si256(moved(high, 8, first), moved(high, 24 - step, second))));
  store_word(words[1],
             _mm256_or_si256(_mm256_or_si256(moved(low, -16, 0xff), moved(low, -8, 0xff0000)),
                             _mm256_or_si256(moved(high, 8 - 2 * step, first),
                                             moved(high, 24 - 3 * step, second))));
}

struct FormatIQ2_XXS : RowFormat<BlockIQ2_XXS> {
  static constexpr int kSigned = 1, kLargest = 43, kScales = 1, kWords = 1;
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatIQ2_XXS>* out) {
    __m256i words[2 * kSubBlocks];
    row_runs(g, at + offsetof(Block, words), 2 * kSubBlocks, words);
    for (int s = 0; s < kSubBlocks; ++s) {
      out->k[s] = odd(field(words[2 * s + 1], 28, 15));
      store_word(out->words[s][0], eight_signs_of_fields(words[2 * s + 1]));
    }
  }
  static Codes load(const uint8_t* block, int s, const uint32_t* words) {
    const uint8_t* p = block + offsetof(Block, words) + 8 * s;
    return with_signs(grid8(kGridIQ2XXS, p[0], p[1], p[2], p[3], lookup2(kMagnitudesIQ2)),
                      words[0]);
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

struct FormatIQ2_XS : RowFormat<BlockIQ2_XS> {
  static constexpr int kSigned = 1, kLargest = 43, kScales = 2, kWords = 3;
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatIQ2_XS>* out) {
    nibble_multipliers(g, at + offsetof(Block, scales), out->k);
    const __m256i index = _mm256_set1_epi32(0x01ff01ff);
    __m256i codes[2 * kSubBlocks];
    row_runs(g, at + offsetof(Block, codes), 2 * kSubBlocks, codes);
    for (int s = 0; s < kSubBlocks; ++s) {
      const __m256i low = codes[2 * s], high = codes[2 * s + 1];
      store_word(out->words[s][0], _mm256_and_si256(low, index));
      store_word(out->words[s][1], _mm256_and_si256(high, index));
      const __m256i sevens =
          _mm256_or_si256(_mm256_or_si256(moved(low, -9, 0x7f), moved(low, -17, 0x7f00)),
                          _mm256_or_si256(moved(high, 7, 0x7f0000), moved(high, -1, 0x7f000000)));
      store_word(out->words[s][2], eight_signs(sevens));
    }
  }
  static Codes load(const uint8_t*, int, const uint32_t* words) {
    return with_signs(grid8(kGridIQ2XS, words, lookup2(kMagnitudesIQ2)), words[2 * kGroup]);
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_times<Block>(g, at, 0.125f); }
};

struct FormatIQ2_S : RowFormat<BlockIQ2_S> {
  static constexpr int kSigned = 1, kLargest = 43, kScales = 2, kWords = 2;
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatIQ2_S>* out) {
    nibble_multipliers(g, at + offsetof(Block, scales), out->k);
    __m256i codes[kSubBlocks], high[4];  // the latter 8 bytes, then the scales
    row_runs(g, at + offsetof(Block, codes), kSubBlocks, codes);
    row_quads(g, at + offsetof(Block, high), high);
    for (int s = 0; s < kSubBlocks; ++s)
      store_indices(out->words[s], codes[s], field(high[s / 4], s % 4 * 8, 255), 2, 3);
  }
  static Codes load(const uint8_t* block, int s, const uint32_t* words) {
    return with_signs(grid8(kGridIQ2S, words, lookup2(kMagnitudesIQ2)),
                      load_u32(block + offsetof(Block, signs) + 4 * s));
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_times<Block>(g, at, 0.125f); }
};

struct FormatIQ3_XXS : RowFormat<BlockIQ3_XXS> {
  static constexpr int kSigned = 1, kLargest = 62, kScales = 1, kWords = 1;
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatIQ3_XXS>* out) {
    __m256i words[kSubBlocks];
    row_runs(g, at + offsetof(Block, words), kSubBlocks, words);
    for (int s = 0; s < kSubBlocks; ++s) {
      out->k[s] = odd(field(words[s], 28, 15));
      store_word(out->words[s][0], eight_signs_of_fields(words[s]));
    }
  }
  static Codes load(const uint8_t* block, int s, const uint32_t* words) {
    const uint8_t* p = block + offsetof(Block, codes) + 8 * s;
    const __m128i entries =
        _mm_setr_epi16((short)kGridIQ3XXS[p[0]], (short)kGridIQ3XXS[p[1]], (short)kGridIQ3XXS[p[2]],
                       (short)kGridIQ3XXS[p[3]], (short)kGridIQ3XXS[p[4]], (short)kGridIQ3XXS[p[5]],
                       (short)kGridIQ3XXS[p[6]], (short)kGridIQ3XXS[p[7]]);
    return with_signs(grid4(entries, kMagnitudesIQ3XXS), words[0]);
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_times<Block>(g, at, 0.25f); }
};

struct FormatIQ3_S : RowFormat<BlockIQ3_S> {
  static constexpr int kSigned = 1, kLargest = 15, kScales = 1, kWords = 4;
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatIQ3_S>* out) {
    const __m256i scales = row_words(g, at + offsetof(Block, scales));
    const __m256i highs[2] = {row_words(g, at + offsetof(Block, high)),
                              row_words(g, at + offsetof(Block, high) + 4)};
    __m256i codes[2 * kSubBlocks];
    row_runs(g, at + offsetof(Block, codes), 2 * kSubBlocks, codes);
    for (int s = 0; s < kSubBlocks; ++s) {
      out->k[s] = odd(field(scales, 4 * s, 15));
      const __m256i high = field(highs[s / 4], s % 4 * 8, 255);
      store_indices(out->words[s], codes[2 * s], high, 1, 1);
      store_indices(out->words[s] + 2, codes[2 * s + 1], _mm256_srli_epi32(high, 4), 1, 1);
    }
  }
  static Codes load(const uint8_t* block, int s, const uint32_t* words) {
    const uint8_t* p = (const uint8_t*)words;
    const size_t next = kGroup * sizeof *words;
    const __m128i entries = _mm_setr_epi16(
        (short)kGridIQ3S[load_u16(p)], (short)kGridIQ3S[load_u16(p + 2)],
        (short)kGridIQ3S[load_u16(p + next)], (short)kGridIQ3S[load_u16(p + next + 2)],
        (short)kGridIQ3S[load_u16(p + 2 * next)], (short)kGridIQ3S[load_u16(p + 2 * next + 2)],
        (short)kGridIQ3S[load_u16(p + 3 * next)], (short)kGridIQ3S[load_u16(p + 3 * next + 2)]);
    return with_signs(grid4(entries, kMagnitudesIQ3S),
                      load_u32(block + offsetof(Block, signs) + 4 * s));
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_at<Block>(g, at); }
};

// Values of the grid are 8, 16 and 24, so that with the deltas all codes are positive. Words: the
// indices and the deltas, a byte for each eight columns.
template <typename B>
struct FormatIQ1 : RowFormat<B> {
  static constexpr int kOffset = 16, kLargest = 25, kWords = 3;
  static Codes load(const uint8_t*, int, const uint32_t* words) {
    static const int8_t kValues[3] = {8, 16, 24};
    const __m256i byte_of =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i deltas = _mm256_shuffle_epi8(_mm256_set1_epi32((int)words[2 * kGroup]), byte_of);
    return unsigned_codes(_mm256_add_epi8(grid8(kGridIQ1, words, lookup2(kValues)), deltas));
  }
};

// Bytes 1, or -1 where the byte of `minus` is 1.
inline __m256i deltas(__m256i minus) {
  return _mm256_sub_epi8(set1_code(1), _mm256_add_epi8(minus, minus));
}

struct FormatIQ1_S : FormatIQ1<BlockIQ1_S> {
  static constexpr int kScales = 1;
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatIQ1_S>* out) {
    __m256i codes[kSubBlocks], pairs[4];
    row_runs(g, at + offsetof(Block, codes), kSubBlocks, codes);
    row_quads(g, at + offsetof(Block, high), pairs);
    for (int s = 0; s < kSubBlocks; ++s) {
      const __m256i high = s % 2 ? _mm256_srli_epi32(pairs[s / 2], 16) : pairs[s / 2];
      const __m256i bits = field(high, 12, 7);
      out->k[s] = odd(_mm256_or_si256(bits, _mm256_slli_epi32(bits, 8)));
      store_indices(out->words[s], codes[s], high, 3, 7);
      store_word(out->words[s][2], deltas(pick_bytes(field(high, 15, 1), 0, 0, 0, 0)));
    }
  }
  static Scale scale(const RowGroup* g, size_t at) { return scale_times<Block>(g, at, 0.125f); }
};

struct FormatIQ1_M : FormatIQ1<BlockIQ1_M> {
  static constexpr int kScales = 2;
  static void prepare(const RowGroup* g, size_t at, Prepared<FormatIQ1_M>* out) {
    __m256i codes[kSubBlocks], pairs[4];
    row_runs(g, at + offsetof(Block, codes), kSubBlocks, codes);
    row_quads(g, at + offsetof(Block, high), pairs);
    const __m256i scales[2] = {row_words(g, at + offsetof(Block, scales)),
                               row_words(g, at + offsetof(Block, scales) + 4)};
    for (int s = 0; s < kSubBlocks; ++s) {
      const int shift = s / 2 % 2 * 16 + s % 2 * 6;
      out->k[s] = odd(_mm256_or_si256(field(scales[s / 4], shift, 7),
                                      _mm256_slli_epi32(field(scales[s / 4], shift + 3, 7), 8)));
      const __m256i high = s % 2 ? _mm256_srli_epi32(pairs[s / 2], 16) : pairs[s / 2];
      store_indices(out->words[s], codes[s], high, 4, 7);
      const __m256i minus =
          _mm256_or_si256(_mm256_or_si256(moved(high, -3, 1), moved(high, 1, 0x100)),
                          _mm256_or_si256(moved(high, 5, 0x10000), moved(high, 9, 0x1000000)));
      store_word(out->words[s][2], deltas(minus));
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
      return matmul_rows<FormatIQ2_XXS>;
    case kIQ2_XS:
      return matmul_rows<FormatIQ2_XS>;
    case kIQ2_S:
      return matmul_rows<FormatIQ2_S>;
    case kIQ3_XXS:
      return matmul_rows<FormatIQ3_XXS>;
    case kIQ3_S:
      return matmul_rows<FormatIQ3_S>;
    case kIQ1_S:
      return matmul_rows<FormatIQ1_S>;
    case kIQ1_M:
      return matmul_rows<FormatIQ1_M>;
  }
  return nullptr;
}

}  // namespace edge_rt
