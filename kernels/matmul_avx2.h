// The AVX2 matmul over block formats, for the files matmul_*_avx2.cc. Only C headers and internal
// linkage here: see CONTRIBUTING.md, "add a kernel ISA".
//
// One token: eight rows at a time straight from the file layout; each row's products over 32
// columns are reduced to one integer per 16 columns, and eight rows' integers (lane = row) go
// through the canonical arithmetic together. Several tokens: the eight rows are unpacked and
// transposed once into scratch, so that a 32-bit lane holds four columns of its row and the inner
// loop needs no reduction at all.
//
// A format F is a struct derived from `Format`, which has the defaults:
//   kParts                sub-blocks that share bytes: the loop over them is unrolled
//   kSigned               codes are magnitude and sign; else they are unsigned codes c + kOffset
//   kLargest              the largest (unsigned) code or magnitude
//   kScales               multipliers k: 0 none, 1 per 32 columns, 2 per 16 columns
//   kMins                 0: no m; 1: m, but no multipliers n; 2: n too, which needs kScales
//   kWords                words that `prepare` computes for each row and sub-block
//   scale(g, at)                     d (and m) of the block at byte `at` of eight rows
//   prepare(g, at, out)              multipliers and words of that block, if it has any
//   load(block, chunk, part, words)  the 32 codes of sub-block chunk * kParts + part of one row;
//                                    words[i * kGroup] is its word i
#pragma once

#include <immintrin.h>
#include <stddef.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"

namespace edge_rt {
namespace {

constexpr int kGroup = 8;  // rows per vector

struct RowGroup {
  const uint8_t* row[kGroup];  // rows past the end repeat the last one and are not stored
  int count;
};

struct Codes {
  __m256i magnitude;  // or the unsigned code
  __m256i sign;       // any number of that sign; not set for unsigned formats
};

struct Scale {
  __m256 d, m;  // lane = row
};

// What is computed for eight rows of a block at once, lane = row.
template <typename F>
struct Prepared {
  static constexpr int kSubBlocks = F::Block::kColumns / kBlockColumns;
  __m256i k[kSubBlocks];  // see pick_bytes
  alignas(32) uint32_t words[kSubBlocks][F::kWords ? F::kWords : 1][kGroup];
};

template <typename B>
struct Format {
  typedef B Block;
  static constexpr int kParts = 1, kSigned = 0, kOffset = 0, kScales = 0, kMins = 0, kWords = 0;
};

inline RowGroup group_at(const Rows* w, int first) {
  RowGroup g;
  g.count = w->n_rows - first < kGroup ? w->n_rows - first : kGroup;
  for (int i = 0; i < kGroup; ++i)
    g.row[i] = w->data + (size_t)(first + (i < g.count ? i : g.count - 1)) * w->row_bytes;
  return g;
}

inline void store(const Output* out, int token, int row, int count, __m256 y) {
  float* p = out->y + token * out->stride + row;
  if (count == kGroup) {
    if (out->accumulate) y = _mm256_add_ps(_mm256_loadu_ps(p), y);
    _mm256_storeu_ps(p, y);
    return;
  }
  float lane[kGroup];
  _mm256_storeu_ps(lane, y);
  for (int i = 0; i < count; ++i) p[i] = out->accumulate ? p[i] + lane[i] : lane[i];
}

// The half float at byte `offset` of every row, widened.
inline __m256 row_halves(const RowGroup* g, size_t offset) {
  __m128i h = _mm_cvtsi32_si128(load_u16(g->row[0] + offset));
  h = _mm_insert_epi16(h, load_u16(g->row[1] + offset), 1);
  h = _mm_insert_epi16(h, load_u16(g->row[2] + offset), 2);
  h = _mm_insert_epi16(h, load_u16(g->row[3] + offset), 3);
  h = _mm_insert_epi16(h, load_u16(g->row[4] + offset), 4);
  h = _mm_insert_epi16(h, load_u16(g->row[5] + offset), 5);
  h = _mm_insert_epi16(h, load_u16(g->row[6] + offset), 6);
  h = _mm_insert_epi16(h, load_u16(g->row[7] + offset), 7);
  return _mm256_cvtph_ps(h);
}

// The 32-bit word at byte `offset` of every row.
inline __m256i row_words(const RowGroup* g, size_t offset) {
  return _mm256_setr_epi32((int)load_u32(g->row[0] + offset), (int)load_u32(g->row[1] + offset),
                           (int)load_u32(g->row[2] + offset), (int)load_u32(g->row[3] + offset),
                           (int)load_u32(g->row[4] + offset), (int)load_u32(g->row[5] + offset),
                           (int)load_u32(g->row[6] + offset), (int)load_u32(g->row[7] + offset));
}

// The four words at byte `offset` of every row: out[i], lane = row.
inline void row_quads(const RowGroup* g, size_t offset, __m256i* out) {
  __m256i r[4];
  for (int i = 0; i < 4; ++i)
    r[i] = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(g->row[i] + offset))),
        _mm_loadu_si128((const __m128i*)(g->row[i + 4] + offset)), 1);
  const __m256i a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpackhi_epi32(r[0], r[1]);
  const __m256i c = _mm256_unpacklo_epi32(r[2], r[3]), d = _mm256_unpackhi_epi32(r[2], r[3]);
  out[0] = _mm256_unpacklo_epi64(a, c);
  out[1] = _mm256_unpackhi_epi64(a, c);
  out[2] = _mm256_unpacklo_epi64(b, d);
  out[3] = _mm256_unpackhi_epi64(b, d);
}

// Likewise the first n words, n a multiple of four.
inline void row_runs(const RowGroup* g, size_t offset, int n, __m256i* out) {
  for (int i = 0; i < n; i += 4) row_quads(g, offset + 4 * i, out + i);
}

// The half floats in the low (d) and high (dmin) 16 bits of every lane; m = -dmin.
inline Scale scale_and_dmin(__m256i words) {
  const __m256i low = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
  const __m256i both =
      _mm256_permute4x64_epi64(_mm256_packus_epi32(low, _mm256_srli_epi32(words, 16)), 0xd8);
  Scale scale;
  scale.d = _mm256_cvtph_ps(_mm256_castsi256_si128(both));
  scale.m =
      _mm256_xor_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(both, 1)), _mm256_set1_ps(-0.0f));
  return scale;
}

// The multipliers of a sub-block, lane = row: k0, k1 (signed) and n0, n1 (not negative), a byte
// each, the lowest first.
inline __m256i pick_bytes(__m256i words, int a, int b, int c, int d) {  // of every lane; < 0: zero
  const int pick = (a & 0xff) | (b & 0xff) << 8 | (c & 0xff) << 16 | (int)((unsigned)d << 24);
  const __m256i base = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c,  //
                                         0, 0x04040404, 0x08080808, 0x0c0c0c0c);
  return _mm256_shuffle_epi8(words, _mm256_add_epi8(_mm256_set1_epi32(pick), base));
}

inline __m256 multiplier_k0(__m256i k) {
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(k, 24), 24));
}
inline __m256 multiplier_k1(__m256i k) {
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(k, 16), 24));
}
// Two int16 to a lane, for madd: (k0, k0), (k1, k1), (k0, k1) and (n0, n1).
inline __m256i pairs_k0(__m256i k) { return _mm256_srai_epi16(pick_bytes(k, -128, 0, -128, 0), 8); }
inline __m256i pairs_k1(__m256i k) { return _mm256_srai_epi16(pick_bytes(k, -128, 1, -128, 1), 8); }
inline __m256i pairs_k01(__m256i k) {
  return _mm256_srai_epi16(pick_bytes(k, -128, 0, -128, 1), 8);
}
inline __m256i pairs_n01(__m256i k) { return pick_bytes(k, 2, -128, 3, -128); }

inline __m256i sum_pair(const int16_t* sums) { return _mm256_set1_epi32((int)load_u32(sums)); }

// y after the line of d, then of m: total is S without the offset of the codes.
template <typename F>
inline __m256 finish(__m256 y, __m256 total, Scale scale, __m256i k, float dx,
                     const int16_t* sums) {
  const __m256 d_x = _mm256_set1_ps(dx);
  y = _mm256_fmadd_ps(_mm256_mul_ps(scale.d, d_x), total, y);
  if (F::kMins == 0) return y;
  const __m256 total_x = F::kMins == 1
                             ? _mm256_set1_ps((float)(sums[0] + sums[1]))
                             : _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs_n01(k), sum_pair(sums)));
  return _mm256_fmadd_ps(_mm256_mul_ps(scale.m, d_x), total_x, y);
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
                           _mm256_mul_ps(multiplier_k0(k), _mm256_cvtepi32_ps(low)));
  }
  __m256i both = _mm256_add_epi32(low, high);
  if (F::kOffset != 0)
    both = _mm256_sub_epi32(both, _mm256_set1_epi32(F::kOffset * (sums[0] + sums[1])));
  const __m256 total = _mm256_cvtepi32_ps(both);
  return F::kScales == 0 ? total : _mm256_mul_ps(multiplier_k0(k), total);
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
      if constexpr (F::kScales != 0) F::prepare(&g, at, &prepared);
      for (int chunk = 0; chunk < kSubBlocks / F::kParts; ++chunk) {
        for (int line = 0; line < kGroup * kBytes * F::kParts / kSubBlocks; line += 64)
          _mm_prefetch((const char*)(ahead + line), _MM_HINT_T0);
        ahead += kGroup * kBytes * F::kParts / kSubBlocks;
#pragma GCC unroll 4
        for (int part = 0; part < F::kParts; ++part) {
          const __m256i c = _mm256_loadu_si256((const __m256i*)codes);
          __m256i p[kGroup];
#pragma GCC unroll 8
          for (int i = 0; i < kGroup; ++i) {
            const Codes q = F::load(g.row[i] + at, chunk, part,
                                    prepared.words[chunk * F::kParts + part][0] + i);
            p[i] = _mm256_maddubs_epi16(q.magnitude, F::kSigned ? _mm256_sign_epi8(c, q.sign) : c);
          }
          const __m256i k = F::kScales != 0 ? prepared.k[chunk * F::kParts + part] : c;
          y = finish<F>(y, reduce_rows<F>(p, k, sums), scale, k, *scales, sums);
          codes += kBlockColumns, scales += 1, sums += 2;
        }
      }
    }
    store(out, 0, first, g.count, y);
  }
}

// Transposed group: per block d, then m if the format has one; per sub-block 8 vectors of codes
// (vector v: columns 4v..4v+3 of every row), then its multipliers if the format has any.
constexpr int kVectors = 8;

template <typename F>
inline void transpose_codes(const RowGroup* g, size_t at, int chunk, int part,
                            const uint32_t* words, __m256i* v) {
  __m256i r[8], t[8];
  for (int i = 0; i < 8; ++i) {
    const Codes q = F::load(g->row[i] + at, chunk, part, words + i);
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
void transpose_group(const RowGroup* g, int n_blocks, __m256i* v) {
  constexpr int kSubBlocks = F::Block::kColumns / kBlockColumns;
  for (int b = 0; b < n_blocks; ++b) {
    const size_t at = (size_t)b * sizeof(typename F::Block);
    const Scale scale = F::scale(g, at);
    _mm256_store_ps((float*)v++, scale.d);
    if (F::kMins != 0) _mm256_store_ps((float*)v++, scale.m);
    Prepared<F> prepared;
    if constexpr (F::kScales != 0) F::prepare(g, at, &prepared);
    for (int chunk = 0; chunk < kSubBlocks / F::kParts; ++chunk) {
#pragma GCC unroll 4
      for (int part = 0; part < F::kParts; ++part) {
        const int s = chunk * F::kParts + part;
        transpose_codes<F>(g, at, chunk, part, prepared.words[s][0], v);
        v += kVectors;
        if constexpr (F::kScales != 0) _mm256_store_si256(v++, prepared.k[s]);
      }
    }
  }
}

inline __m256i broadcast4(const int8_t* p) { return _mm256_set1_epi32((int)load_u32(p)); }

// Vectors of products that fit into 16 bits together: at most four, all of which have one
// multiplier.
template <typename F>
constexpr int vectors_per_run() {
  int n = 4;
  while (n > 1 && n * 2 * 127 * F::kLargest > 32767) n /= 2;
  return n;
}

template <typename F, int kTokens>
void transposed_tokens(const __m256i* v, int n_blocks, const Activations* x, int token,
                       const Output* out, int first, int count) {
  constexpr int kSubBlocks = F::Block::kColumns / kBlockColumns, kRun = vectors_per_run<F>();
  constexpr int kBlockVectors =
      (F::kMins != 0 ? 2 : 1) + kSubBlocks * (kVectors + (F::kScales != 0 ? 1 : 0));
  static_assert(kBlockVectors * 32 <= kSubBlocks * kTransposedBytes, "see matmul_scratch_bytes");
  const size_t block_stride = x->stride / kBlockColumns;
  const int8_t* codes = x->codes + token * x->stride;
  const float* scales = x->scales + token * block_stride;
  const int16_t* sums = x->sums + token * block_stride * 2;
  __m256 y[kTokens];
  for (int t = 0; t < kTokens; ++t) y[t] = _mm256_setzero_ps();
  for (int b = 0; b < n_blocks; ++b) {
    Scale scale;
    scale.d = scale.m = _mm256_load_ps((const float*)v++);
    if (F::kMins != 0) scale.m = _mm256_load_ps((const float*)v++);
    for (int sub = 0; sub < kSubBlocks; ++sub) {
      const __m256i k = F::kScales != 0 ? v[kVectors] : _mm256_set1_epi16(1);
      const __m256i k0 = F::kScales != 0 ? pairs_k0(k) : k;
      const __m256i k1 = F::kScales == 2 ? pairs_k1(k) : k0;
      __m256i s[kTokens];
      for (int t = 0; t < kTokens; ++t) s[t] = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int run = 0; run < kVectors; run += kRun) {
        __m256i p[kTokens];
#pragma GCC unroll 8
        for (int i = run; i < run + kRun; ++i) {
          const __m256i q = _mm256_load_si256(v + i);
          const __m256i magnitude = F::kSigned ? _mm256_abs_epi8(q) : q;
          for (int t = 0; t < kTokens; ++t) {
            const __m256i c = broadcast4(codes + t * x->stride + 4 * i);
            const __m256i product =
                _mm256_maddubs_epi16(magnitude, F::kSigned ? _mm256_sign_epi8(c, q) : c);
            p[t] = i == run ? product : _mm256_add_epi16(p[t], product);
          }
        }
        for (int t = 0; t < kTokens; ++t)
          s[t] = _mm256_add_epi32(s[t], _mm256_madd_epi16(p[t], run < kVectors / 2 ? k0 : k1));
      }
      const __m256i k01 = F::kScales != 0 && F::kOffset != 0 ? pairs_k01(k) : k0;
      for (int t = 0; t < kTokens; ++t) {
        const int16_t* sum = sums + t * block_stride * 2;
        if (F::kOffset != 0)
          s[t] = _mm256_sub_epi32(s[t], _mm256_mullo_epi32(_mm256_madd_epi16(k01, sum_pair(sum)),
                                                           _mm256_set1_epi32(F::kOffset)));
        y[t] = finish<F>(y[t], _mm256_cvtepi32_ps(s[t]), scale, k, scales[t * block_stride], sum);
      }
      v += kVectors + (F::kScales != 0 ? 1 : 0);
      codes += kBlockColumns, scales += 1, sums += 2;
    }
  }
  for (int t = 0; t < kTokens; ++t) store(out, token + t, first, count, y[t]);
}

template <typename F>
void matmul_blocks(const Rows* w, const Activations* x, int n_tokens, const Output* out,
                   uint8_t* scratch) {
  if (n_tokens == 1) return one_token<F>(w, x, out);
  const int n_blocks = w->n_cols / F::Block::kColumns;
  __m256i* v = (__m256i*)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
  for (int first = 0; first < w->n_rows; first += kGroup) {
    const RowGroup g = group_at(w, first);
    transpose_group<F>(&g, n_blocks, v);
    int t = 0;
    for (; t + 4 <= n_tokens; t += 4)
      transposed_tokens<F, 4>(v, n_blocks, x, t, out, first, g.count);
    if (n_tokens - t >= 2) {
      transposed_tokens<F, 2>(v, n_blocks, x, t, out, first, g.count);
      t += 2;
    }
    if (t < n_tokens) transposed_tokens<F, 1>(v, n_blocks, x, t, out, first, g.count);
  }
}

// Codes, for the formats below.

inline Codes unsigned_codes(__m256i code) {
  Codes q;
  q.magnitude = q.sign = code;
  return q;
}

inline Codes signed_codes(__m256i code) {
  Codes q;
  q.magnitude = _mm256_abs_epi8(code);
  q.sign = code;
  return q;
}

inline __m256i load32(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline __m256i set1_code(int value) { return _mm256_set1_epi8((char)value); }

// 16 bytes: low nibbles, then high ones.
inline __m256i unpack_nibbles(const uint8_t* codes) {
  const __m128i bytes = _mm_loadu_si128((const __m128i*)codes);
  return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes), set1_code(15));
}

// Byte j is 255 if bit j is set, else 0.
inline __m256i spread_bits(uint32_t bits) {
  const __m256i byte_of =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i mask = _mm256_set1_epi64x((long long)0x8040201008040201ull);
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), byte_of);
  return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask);
}

// value where bit `bit` of the byte is set, else 0.
inline __m256i where_bit(__m256i bytes, int bit, int value) {
  const __m256i mask = set1_code(1 << bit);
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask), set1_code(value));
}

inline __m256i codebook(const int8_t* table16) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table16));
}

template <typename Block>
inline Scale scale_at(const RowGroup* g, size_t at) {  // formats whose only scale is the half d
  Scale scale;
  scale.d = scale.m = row_halves(g, at + offsetof(Block, d));
  return scale;
}

}  // namespace
}  // namespace edge_rt
