// Pieces of the AVX2 matmuls over block formats, for the files matmul_*. Only C headers and
// internal linkage here: see CONTRIBUTING.md, "add a kernel ISA".
#pragma once

#include <immintrin.h>
#include <stddef.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"

namespace edge_rt {
namespace {

constexpr int kGroup = 8;    // rows per vector
constexpr int kVectors = 8;  // vectors of codes of a sub-block: columns 4v..4v+3 of every row

struct RowGroup {
  const uint8_t* row[kGroup];  // rows past the end repeat the last one and are not stored
  int count;
};

struct Scale {
  __m256 d, m;  // lane = row
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

// The 16 bits at byte `offset` of every row.
inline __m128i row_halves(const RowGroup* g, size_t offset) {
  __m128i h = _mm_cvtsi32_si128(load_u16(g->row[0] + offset));
  h = _mm_insert_epi16(h, load_u16(g->row[1] + offset), 1);
  h = _mm_insert_epi16(h, load_u16(g->row[2] + offset), 2);
  h = _mm_insert_epi16(h, load_u16(g->row[3] + offset), 3);
  h = _mm_insert_epi16(h, load_u16(g->row[4] + offset), 4);
  h = _mm_insert_epi16(h, load_u16(g->row[5] + offset), 5);
  h = _mm_insert_epi16(h, load_u16(g->row[6] + offset), 6);
  h = _mm_insert_epi16(h, load_u16(g->row[7] + offset), 7);
  return h;
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
// k times an exact integer. + 0 because a zero must be positive, as it is when it was an integer.
inline __m256 times(__m256 k, __m256 integer) {
  return _mm256_fmadd_ps(k, integer, _mm256_setzero_ps());
}

inline __m256i sum_pair(const int16_t* sums) { return _mm256_set1_epi32((int)load_u32(sums)); }

inline __m256i broadcast4(const int8_t* p) { return _mm256_set1_epi32((int)load_u32(p)); }

inline __m256i load32(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline __m256i set1_code(int value) { return _mm256_set1_epi8((char)value); }

inline __m256i codebook(const int8_t* table16) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table16));
}

}  // namespace
}  // namespace edge_rt
