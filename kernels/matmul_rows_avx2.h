// The AVX2 matmul over formats whose codes are looked up, not cut out of bytes.
//
// One token: eight rows at a time straight from the file layout; each row's products over 32
// columns are reduced to one integer per 16 columns, and eight rows' integers (lane = row) go
// through the canonical arithmetic together. Several tokens: the eight rows' codes are transposed
// into what matmul_tile_avx2.h works from.
//
// Besides what that needs, a format F, derived from `RowFormat`, has
//   kWords                words that `prepare` computes for each row and sub-block
//   scale(g, at)          d of the block at byte `at` of eight rows
//   prepare(g, at, out)   multipliers and words of that block
//   load(block, s, words) the 32 codes of sub-block s of one row; words[i * kGroup] is its word i
#pragma once

#include "kernels/matmul_tile_avx2.h"

namespace edge_rt {
namespace {

struct Codes {
  __m256i magnitude;  // or the unsigned code
  __m256i sign;       // any number of that sign; not set for unsigned formats
};

// What is computed for eight rows of a block at once, lane = row.
template <typename F>
struct Prepared {
  static constexpr int kSubBlocks = F::Block::kColumns / kBlockColumns;
  __m256i k[kSubBlocks];  // see pick_bytes
  alignas(32) uint32_t words[kSubBlocks][F::kWords ? F::kWords : 1][kGroup];
};

template <typename B>
struct RowFormat : Format<B> {
  static constexpr int kWords = 0;
};

// The first n words at byte `offset` of every row, n a multiple of four.
inline void row_runs(const RowGroup* g, size_t offset, int n, __m256i* out) {
  for (int i = 0; i < n; i += 4) row_quads(g, offset + 4 * i, out + i);
}

// S of eight rows from their products of neighbouring columns, p[i] of row i, as 16-bit integers.
// As floats the products with k are exact too: |S| and each of its two terms are below 2^24.
template <typename F>
inline __m256 reduce_rows(const __m256i* p, __m256i k, const int16_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  const int largest_pair = 2 * 127 * F::kLargest;
  __m256i
      half[2];  // rows 4h..4h+3: sums over columns 0..15 in the low 128 bits, 16..31 in the high
  for (int h = 0; h < 2; ++h) {
    const __m256i* q = p + 4 * h;
    if (4 * largest_pair <= 32767) {
      half[h] = _mm256_madd_epi16(
          _mm256_hadd_epi16(_mm256_hadd_epi16(q[0], q[1]), _mm256_hadd_epi16(q[2], q[3])), ones);
    } else if (2 * largest_pair <= 32767) {
      half[h] = _mm256_hadd_epi32(_mm256_madd_epi16(_mm256_hadd_epi16(q[0], q[1]), ones),
                                  _mm256_madd_epi16(_mm256_hadd_epi16(q[2], q[3]), ones));
    } else {
      half[h] = _mm256_hadd_epi32(
          _mm256_hadd_epi32(_mm256_madd_epi16(q[0], ones), _mm256_madd_epi16(q[1], ones)),
          _mm256_hadd_epi32(_mm256_madd_epi16(q[2], ones), _mm256_madd_epi16(q[3], ones)));
    }
  }
  __m256i low = _mm256_permute2x128_si256(half[0], half[1], 0x20);
  __m256i high = _mm256_permute2x128_si256(half[0], half[1], 0x31);
  if (F::kScales == 2) {
    if (F::kOffset != 0) {
      low = _mm256_sub_epi32(low, _mm256_set1_epi32(F::kOffset * sums[0]));
      high = _mm256_sub_epi32(high, _mm256_set1_epi32(F::kOffset * sums[1]));
    }
    return _mm256_fmadd_ps(multiplier_k1(k), _mm256_cvtepi32_ps(high),
                           times(multiplier_k0(k), _mm256_cvtepi32_ps(low)));
  }
  __m256i both = _mm256_add_epi32(low, high);
  if (F::kOffset != 0)
    both = _mm256_sub_epi32(both, _mm256_set1_epi32(F::kOffset * (sums[0] + sums[1])));
  return times(multiplier_k0(k), _mm256_cvtepi32_ps(both));
}

template <typename F>
void one_token(const Rows* w, const Activations* x, const Output* out) {
  constexpr int kSubBlocks = F::Block::kColumns / kBlockColumns, kBytes = sizeof(typename F::Block);
  const int n_blocks = w->n_cols / F::Block::kColumns;
  for (int first = 0; first < w->n_rows; first += kGroup) {
    const RowGroup g = group_at(w, first);
    // Eight short streams confuse the hardware prefetcher: fetch the next group, which is
    // contiguous.
    const uint8_t* ahead = w->data + (size_t)(first + kGroup) * w->row_bytes;
    const int8_t* codes = x->codes;
    const float* scales = x->scales;
    const int16_t* sums = x->sums;
    __m256 y = _mm256_setzero_ps();
    for (int b = 0; b < n_blocks; ++b) {
      const size_t at = (size_t)b * kBytes;
      const Scale scale = F::scale(&g, at);
      Prepared<F> prepared;
      F::prepare(&g, at, &prepared);
      for (int s = 0; s < kSubBlocks; ++s) {
        for (int line = 0; line < kGroup * kBytes / kSubBlocks; line += 64)
          _mm_prefetch((const char*)(ahead + line), _MM_HINT_T0);
        ahead += kGroup * kBytes / kSubBlocks;
        const __m256i c = load32(codes);
        __m256i p[kGroup];
#pragma GCC unroll 8
        for (int i = 0; i < kGroup; ++i) {
          const Codes q = F::load(g.row[i] + at, s, prepared.words[s][0] + i);
          p[i] = _mm256_maddubs_epi16(q.magnitude, F::kSigned ? _mm256_sign_epi8(c, q.sign) : c);
        }
        y = _mm256_fmadd_ps(_mm256_mul_ps(scale.d, _mm256_set1_ps(*scales)),
                            reduce_rows<F>(p, prepared.k[s], sums), y);
        codes += kBlockColumns, scales += 1, sums += 2;
      }
    }
    store(out, 0, first, g.count, y);
  }
}

template <typename F>
inline void transpose_codes(const RowGroup* g, size_t at, int s, const uint32_t* words,
                            __m256i* v) {
  __m256i r[8], t[8];
  for (int i = 0; i < 8; ++i) {
    const Codes q = F::load(g->row[i] + at, s, words + i);
    r[i] = F::kSigned ? _mm256_sign_epi8(q.magnitude, q.sign) : q.magnitude;
  }
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int h = 0; h < 8; h += 4) {
    r[h] = _mm256_unpacklo_epi64(t[h], t[h + 2]);
    r[h + 1] = _mm256_unpackhi_epi64(t[h], t[h + 2]);
    r[h + 2] = _mm256_unpacklo_epi64(t[h + 1], t[h + 3]);
    r[h + 3] = _mm256_unpackhi_epi64(t[h + 1], t[h + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_store_si256(v + i, _mm256_permute2x128_si256(r[i], r[i + 4], 0x20));
    _mm256_store_si256(v + i + 4, _mm256_permute2x128_si256(r[i], r[i + 4], 0x31));
  }
}

template <typename F>
struct Transpose : F {
  static void unpack(const Rows* w, int first, int block, int n_blocks, __m256i* v) {
    typedef UnpackedBlock<F> Unpacked;
    const RowGroup g = group_at(w, first);
    for (int b = 0; b < n_blocks; ++b, v += Unpacked::kVectorsOfBlock) {
      const size_t at = (size_t)(block + b) * sizeof(typename F::Block);
      Unpacked::put_scale(v, F::scale(&g, at));
      Prepared<F> prepared;
      F::prepare(&g, at, &prepared);
      for (int s = 0; s < Tile<F>::kSubBlocks; ++s) {
        __m256i* sub = Unpacked::sub_block(v, s);
        transpose_codes<F>(&g, at, s, prepared.words[s][0], sub);
        Unpacked::put_factors(sub, factors_of<F>(prepared.k[s]));
      }
    }
  }
};

template <typename F>
void matmul_rows(const Rows* w, const Activations* x, int n_tokens, const Output* out,
                 uint8_t* scratch) {
  if (n_tokens == 1)
    one_token<F>(w, x, out);
  else
    matmul_tokens<Transpose<F>>(w, x, n_tokens, out, scratch);
}

// Codes, for the formats below.

inline Codes unsigned_codes(__m256i code) {
  Codes q;
  q.magnitude = q.sign = code;
  return q;
}

// Byte j is 255 if bit j is set, else 0.
inline __m256i spread_bits(uint32_t bits) {
  const __m256i byte_of =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i mask = _mm256_set1_epi64x((long long)0x8040201008040201ull);
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), byte_of);
  return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask);
}

template <typename Block>
inline Scale scale_at(const RowGroup* g, size_t at) {  // formats whose only scale is the half d
  Scale scale;
  scale.d = scale.m = _mm256_cvtph_ps(row_halves(g, at + offsetof(Block, d)));
  return scale;
}

}  // namespace
}  // namespace edge_rt
