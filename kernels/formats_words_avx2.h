// The formats of matmul_words_avx2.h: where formats.h's bits lie in eight interleaved rows.
#pragma once

#include "kernels/matmul_words_avx2.h"

namespace edge_rt {
namespace {

EDGE_RT_INLINE __m256i word(const uint8_t* words, int i) { return load32(words + 32 * i); }

// Bits [bit, bit + n) of every byte, moved to bits [to, to + n).
EDGE_RT_INLINE __m256i bits(__m256i bytes, int bit, int n, int to) {
  const __m256i moved =
      bit > to ? _mm256_srli_epi16(bytes, bit - to) : _mm256_slli_epi16(bytes, to - bit);
  return _mm256_and_si256(bit == to ? bytes : moved, set1_code(((1 << n) - 1) << to));
}

EDGE_RT_INLINE __m256i nibble(__m256i bytes, int high) { return bits(bytes, 4 * high, 4, 0); }

// Vector i of 16 bytes of nibbles that begin at word `first`: the low ones are columns 0..15.
EDGE_RT_INLINE __m256i nibbles16(const uint8_t* words, int first, int i) {
  return nibble(word(words, first + i % 4), i / 4);
}

// Small field i as half floats.
EDGE_RT_INLINE __m256 halves(const uint8_t* small, int i) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)small + i));
}
EDGE_RT_INLINE Scale only_d(const uint8_t* small) {
  Scale scale;
  scale.d = scale.m = halves(small, 0);
  return scale;
}
EDGE_RT_INLINE Scale d_and_m(const uint8_t* small, float sign) {
  Scale scale = only_d(small);
  scale.m = _mm256_xor_ps(halves(small, 1), _mm256_set1_ps(sign));
  return scale;
}

struct FormatQ4_0 : WordFormat<BlockQ4_0> {
  static constexpr int kOffset = 8, kLargest = 15;
  static Scale scale(const uint8_t* small) { return only_d(small); }
  static __m256i code(const uint8_t* words, int, int i) { return nibbles16(words, 0, i); }
};
struct FormatQ4_1 : WordFormat<BlockQ4_1> {
  static constexpr int kLargest = 15, kMins = 1;
  static Scale scale(const uint8_t* small) { return d_and_m(small, 0.0f); }
  static __m256i code(const uint8_t* words, int, int i) { return nibbles16(words, 0, i); }
};

// A fifth bit for each column: bits 4i..4i+3 of word 0 belong to vector i.
EDGE_RT_INLINE __m256i five_bits(const uint8_t* words, int i) {
  const __m256i mask = _mm256_set1_epi32(i % 2 ? (int)0x80402010 : 0x08040201);
  const __m256i byte = pick_bytes(word(words, 0), i / 2, i / 2, i / 2, i / 2);
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(byte, mask), mask);
  return _mm256_or_si256(nibbles16(words, 1, i), _mm256_and_si256(set, set1_code(16)));
}
struct FormatQ5_0 : WordFormat<BlockQ5_0> {
  static constexpr int kOffset = 16, kLargest = 31;
  static Scale scale(const uint8_t* small) { return only_d(small); }
  static __m256i code(const uint8_t* words, int, int i) { return five_bits(words, i); }
};
struct FormatQ5_1 : WordFormat<BlockQ5_1> {
  static constexpr int kLargest = 31, kMins = 1;
  static Scale scale(const uint8_t* small) { return d_and_m(small, 0.0f); }
  static __m256i code(const uint8_t* words, int, int i) { return five_bits(words, i); }
};

struct FormatQ8_0 : WordFormat<BlockQ8_0> {
  static constexpr int kSigned = 1, kLargest = 128;
  static Scale scale(const uint8_t* small) { return only_d(small); }
  static __m256i code(const uint8_t* words, int, int i) { return word(words, i); }
};

struct FormatIQ4_NL : WordFormat<BlockIQ4_NL> {
  static constexpr int kSigned = 1, kLargest = 127;
  static Scale scale(const uint8_t* small) { return only_d(small); }
  static __m256i code(const uint8_t* words, int, int i) {
    return _mm256_shuffle_epi8(codebook(kCodebookIQ4), nibbles16(words, 0, i));
  }
};

struct FormatMXFP4 : WordFormat<BlockMXFP4> {
  static constexpr int kOffset = 12, kLargest = 24;
  static __m256i code(const uint8_t* words, int, int i) {
    const __m256i table = _mm256_add_epi8(codebook(kCodebookFP4), set1_code(kOffset));
    return _mm256_shuffle_epi8(table, nibbles16(words, 0, i));
  }
  static Scale scale(const uint8_t* small) {  // scale_of_mxfp4
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)small));
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x200000), e);
    const __m256i lowest = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
    Scale scale;
    scale.d = scale.m = _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, lowest));
    return scale;
  }
};

constexpr int kSubBlocksOf256 = 8;

struct FormatQ2_K : WordFormat<BlockQ2_K> {
  static constexpr int kLargest = 3, kScales = 2, kMins = 2;
  static Scale scale(const uint8_t* small) { return d_and_m(small, -0.0f); }
  static void multipliers(const uint8_t*, const uint8_t* words, __m256i* k) {
    for (int s = 0; s < kSubBlocksOf256; ++s) {
      const int i = s % 2 * 2;
      const __m256i twice = pick_bytes(word(words, s / 2), i, i + 1, i, i + 1);
      k[s] = _mm256_or_si256(
          _mm256_and_si256(twice, _mm256_set1_epi32(0x0f0f)),
          _mm256_and_si256(_mm256_srli_epi32(twice, 4), _mm256_set1_epi32(0x0f0f0000)));
    }
  }
  static __m256i code(const uint8_t* words, int s, int i) {
    return bits(word(words, 4 + s / 4 * 8 + i), s % 4 * 2, 2, 0);
  }
};

struct FormatQ3_K : WordFormat<BlockQ3_K> {
  static constexpr int kOffset = 4, kLargest = 7, kScales = 2;
  static Scale scale(const uint8_t* small) { return only_d(small); }
  static void multipliers(const uint8_t*, const uint8_t* words, __m256i* k) {
    for (int i = 0; i < 4; ++i) {  // scales 4i..4i+3
      const __m256i low = nibble(word(words, 24 + i % 2), i / 2);
      const __m256i four =
          _mm256_sub_epi8(_mm256_or_si256(low, bits(word(words, 26), 2 * i, 2, 4)), set1_code(32));
      k[2 * i] = pick_bytes(four, 0, 1, -128, -128);
      k[2 * i + 1] = pick_bytes(four, 2, 3, -128, -128);
    }
  }
  static __m256i code(const uint8_t* words, int s, int i) {
    return _mm256_or_si256(bits(word(words, 8 + s / 4 * 8 + i), s % 4 * 2, 2, 0),
                           bits(word(words, i), s, 1, 2));
  }
};

// Words 0..2 of Q4_K and Q5_K are the scales.
EDGE_RT_INLINE void multipliers_of_k4(const uint8_t* words, __m256i* out) {
  const __m256i first = word(words, 0), second = word(words, 1), last = word(words, 2);
  const __m256i six = set1_code(63);
  const __m256i k[2] = {_mm256_and_si256(first, six),
                        _mm256_or_si256(nibble(last, 0), bits(first, 6, 2, 4))};
  const __m256i n[2] = {_mm256_and_si256(second, six),
                        _mm256_or_si256(nibble(last, 1), bits(second, 6, 2, 4))};
  for (int s = 0; s < kSubBlocksOf256; ++s)
    out[s] = _mm256_or_si256(pick_bytes(k[s / 4], s % 4, s % 4, -128, -128),
                             pick_bytes(n[s / 4], -128, -128, s % 4, s % 4));
}

struct FormatQ4_K : WordFormat<BlockQ4_K> {
  static constexpr int kLargest = 15, kScales = 1, kMins = 2;
  static Scale scale(const uint8_t* small) { return d_and_m(small, -0.0f); }
  static void multipliers(const uint8_t*, const uint8_t* words, __m256i* k) {
    multipliers_of_k4(words, k);
  }
  static __m256i code(const uint8_t* words, int s, int i) {
    return nibble(word(words, 3 + s / 2 * 8 + i), s % 2);
  }
};

struct FormatQ5_K : WordFormat<BlockQ5_K> {
  static constexpr int kLargest = 31, kScales = 1, kMins = 2;
  static Scale scale(const uint8_t* small) { return d_and_m(small, -0.0f); }
  static void multipliers(const uint8_t*, const uint8_t* words, __m256i* k) {
    multipliers_of_k4(words, k);
  }
  static __m256i code(const uint8_t* words, int s, int i) {
    return _mm256_or_si256(nibble(word(words, 11 + s / 2 * 8 + i), s % 2),
                           bits(word(words, 3 + i), s, 1, 4));
  }
};

struct FormatQ6_K : WordFormat<BlockQ6_K> {
  static constexpr int kOffset = 32, kLargest = 63, kScales = 2;
  static Scale scale(const uint8_t* small) { return only_d(small); }
  static void multipliers(const uint8_t*, const uint8_t* words, __m256i* k) {
    for (int s = 0; s < kSubBlocksOf256; ++s)
      k[s] = pick_bytes(word(words, 48 + s / 2), s % 2 * 2, s % 2 * 2 + 1, -128, -128);
  }
  static __m256i code(const uint8_t* words, int s, int i) {
    const int half = s / 4, t = s % 4;
    return _mm256_or_si256(nibble(word(words, 16 * half + 8 * (t % 2) + i), t / 2),
                           bits(word(words, 32 + 8 * half + i), 2 * t, 2, 4));
  }
};

struct FormatIQ4_XS : WordFormat<BlockIQ4_XS> {
  static constexpr int kSigned = 1, kLargest = 127, kScales = 1;
  static Scale scale(const uint8_t* small) { return only_d(small); }
  static void multipliers(const uint8_t* small, const uint8_t* words, __m256i* k) {
    const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)small + 1));
    const __m256i low = word(words, 0);
    for (int s = 0; s < kSubBlocksOf256; ++s) {
      const __m256i four = _mm256_and_si256(_mm256_srli_epi32(low, 4 * s), _mm256_set1_epi32(15));
      const __m256i two = _mm256_and_si256(_mm256_srli_epi32(high, 2 * s), _mm256_set1_epi32(3));
      k[s] =
          _mm256_sub_epi32(_mm256_or_si256(four, _mm256_slli_epi32(two, 4)), _mm256_set1_epi32(32));
    }
  }
  static __m256i code(const uint8_t* words, int s, int i) {
    return _mm256_shuffle_epi8(codebook(kCodebookIQ4), nibbles16(words, 1 + 4 * s, i));
  }
};

// Ternary: no multipliers.

struct FormatTQ1_0 : WordFormat<BlockTQ1_0> {
  static constexpr int kOffset = 1, kLargest = 2;
  static Scale scale(const uint8_t* small) { return only_d(small); }
  static __m256i code(const uint8_t* words, int s, int i) {
    constexpr int kPower[5] = {1, 3, 9, 27, 81};
    const bool tail = s == 7 && i >= 4;  // the last 16 columns: word 12
    const int from = s < 5 ? i : tail ? 12 : 8 + i % 4;
    const int trit = s < 5 ? s : tail ? i - 4 : 2 * (s - 5) + i / 4;
    // A byte in the upper half of 16 bits: times the power modulo 256, then times 3, upper half.
    const __m256i source = word(words, from), factor = _mm256_set1_epi16((short)kPower[trit]);
    const __m256i three = _mm256_set1_epi16(3), upper = _mm256_set1_epi16((short)0xff00);
    const __m256i even =
        _mm256_mulhi_epu16(_mm256_mullo_epi16(_mm256_slli_epi16(source, 8), factor), three);
    const __m256i odd =
        _mm256_mulhi_epu16(_mm256_mullo_epi16(_mm256_and_si256(source, upper), factor), three);
    return _mm256_or_si256(even, _mm256_slli_epi16(odd, 8));
  }
};

struct FormatTQ2_0 : WordFormat<BlockTQ2_0> {
  static constexpr int kOffset = 1, kLargest = 3;
  static Scale scale(const uint8_t* small) { return only_d(small); }
  static __m256i code(const uint8_t* words, int s, int i) {
    return bits(word(words, s / 4 * 8 + i), s % 4 * 2, 2, 0);
  }
};

MatmulKernel word_matmul(int format) {
  switch (format) {
#define EDGE_RT_MATMUL(name) \
  case k##name:              \
    return matmul_words<Format##name>;
    EDGE_RT_WORD_FORMATS(EDGE_RT_MATMUL)
#undef EDGE_RT_MATMUL
  }
  return nullptr;
}

}  // namespace
}  // namespace edge_rt
