// The AVX2 matmul over formats whose codes are bits of bytes, from interleaved rows (formats.h): a
// load gives the bytes of four columns of eight rows, masks and shifts the codes. Eight rows that
// are as in the file are interleaved block by block into the first-level cache.
//
// Besides what matmul_tile_avx2.h needs, a format F has, given eight rows of one interleaved block,
//   scale(small)                 d (and m), from the small fields
//   multipliers(small, words, k) of all sub-blocks, see pick_bytes; if kScales
//   code(words, s, i)            vector i of sub-block s
#pragma once

#include "kernels/matmul_tile_avx2.h"

namespace edge_rt {
namespace {

// Eight rows of the block at byte `at`. Loads stay inside the block.
template <typename B>
EDGE_RT_INLINE void interleave_block(const RowGroup* g, size_t at, uint8_t* out) {
  constexpr SmallFields small = B::kSmall;
  constexpr int kFirst = Interleaving<B>::kFirstWord, kWords = Interleaving<B>::kWords;
  for (int i = 0; i < small.n; ++i, out += kGroup * small.bytes) {
    if constexpr (small.bytes == 1) {
      for (int r = 0; r < kGroup; ++r) out[r] = g->row[r][at + small.at + i];
    } else {
      _mm_storeu_si128((__m128i*)out, row_halves(g, at + small.at + 2 * i));
    }
  }
  static_assert(kWords >= 4, "four words at a time, the last four perhaps again");
#pragma GCC unroll 16
  for (int i = 0; i < kWords; i += 4) {
    const int word = i + 4 <= kWords ? i : kWords - 4;
    __m256i quad[4];
    row_quads(g, at + kFirst + 4 * word, quad);
    for (int j = 0; j < 4; ++j) _mm256_storeu_si256((__m256i*)out + word + j, quad[j]);
  }
}

template <typename B>
void interleave_rows(uint8_t* rows, size_t row_bytes, int n_rows, uint8_t* scratch) {
  for (int first = 0; first + kGroup <= n_rows; first += kGroup, rows += kGroup * row_bytes) {
    __builtin_memcpy(scratch, rows, kGroup * row_bytes);
    const Rows copy = {scratch, row_bytes, kGroup, 0, false};
    const RowGroup g = group_at(&copy, 0);
    for (size_t at = 0; at < row_bytes; at += sizeof(B))
      interleave_block<B>(&g, at, rows + kGroup * at);
  }
}

// Eight rows, whichever way they lie.
template <typename B>
struct Words {
  RowGroup g;
  bool interleaved;
  alignas(64) uint8_t buffer[kGroup * sizeof(B)];

  Words(const Rows* w, int first) {
    interleaved = w->interleaved && first + kGroup <= w->n_rows;
    if (interleaved) {
      g.row[0] = w->data + (size_t)first * w->row_bytes;
      g.count = kGroup;
    } else {
      g = group_at(w, first);
    }
  }
  EDGE_RT_INLINE const uint8_t* block(int b) {
    if (interleaved) return g.row[0] + (size_t)b * sizeof buffer;
    interleave_block<B>(&g, (size_t)b * sizeof(B), buffer);
    return buffer;
  }
};

template <typename B>
struct WordFormat : Format<B> {
  static constexpr int kSmallBytes = kGroup * Interleaving<B>::kSmallBytes;
};

template <typename F>
EDGE_RT_INLINE __m256i tile_code(const uint8_t* words, int s, int i) {
  const __m256i code = F::code(words, s, i);
  return F::kSigned && kVnni ? _mm256_xor_si256(code, set1_code(128)) : code;
}

// y after one block. Meanwhile as many bytes from `ahead` on are fetched, evenly: a burst would
// have to wait for the few fetches that can be under way.
template <typename F>
EDGE_RT_INLINE void one_block(const uint8_t* block, const uint8_t* ahead, Columns* x,
                              __m256 (*y)[1]) {
  constexpr int kLines = kGroup * sizeof(typename F::Block) / 64 + 1;
  const uint8_t* words = block + F::kSmallBytes;
  const Scale scale = F::scale(block);
  __m256i k[Tile<F>::kSubBlocks] = {};
  if constexpr (F::kScales != 0) F::multipliers(block, words, k);
#pragma GCC unroll 8
  for (int s = 0; s < Tile<F>::kSubBlocks; ++s) {
    // Keeps the compiler from doing early what it lacks registers for, or all fetches at once:
    // sub-blocks share bytes, which are better loaded again.
    __asm__("" : "+r"(words), "+r"(ahead), "+x"(y[0][0]));
    for (int line = s * kLines / Tile<F>::kSubBlocks; line < (s + 1) * kLines / Tile<F>::kSubBlocks;
         ++line)
      _mm_prefetch((const char*)(ahead + 64 * line), _MM_HINT_T1);
    const Factors f = factors_of<F>(k[s]);
    sub_block<F, 1, 1>([=](int, int i)
                           __attribute__((always_inline)) { return tile_code<F>(words, s, i); },
                       &f, &scale, *x, y);
    x->next();
  }
}

// How far ahead of their use interleaved weights are fetched: more than the memory's latency, into
// the second-level cache, since the first would lose the activations.
constexpr int kAhead = 8192;

template <typename F>
void one_token(const Rows* w, const Activations* x, const Output* out) {
  constexpr int kBytes = kGroup * sizeof(typename F::Block);
  const int n_blocks = w->n_cols / F::Block::kColumns;
  for (int first = 0; first < w->n_rows; first += kGroup) {
    Words<typename F::Block> rows(w, first);
    Columns columns(x, 0, 0);
    __m256 y[1][1] = {{_mm256_setzero_ps()}};
    // Eight short streams confuse the hardware prefetcher: there it is the next eight rows.
    const uint8_t* ahead = rows.interleaved ? rows.g.row[0] + kAhead
                                            : w->data + (size_t)(first + kGroup) * w->row_bytes;
    for (int b = 0; b < n_blocks; ++b, ahead += kBytes)
      one_block<F>(rows.block(b), ahead, &columns, y);
    store(out, 0, first, rows.g.count, y[0][0]);
  }
}

template <typename F>
struct Unpack : F {
  static void unpack(const Rows* w, int first, int block, int n_blocks, __m256i* v) {
    typedef UnpackedBlock<F> Unpacked;
    Words<typename F::Block> rows(w, first);
    for (int b = 0; b < n_blocks; ++b, v += Unpacked::kVectorsOfBlock) {
      const uint8_t* p = rows.block(block + b);
      const uint8_t* words = p + F::kSmallBytes;
      Unpacked::put_scale(v, F::scale(p));
      __m256i k[Tile<F>::kSubBlocks];
      if constexpr (F::kScales != 0) F::multipliers(p, words, k);
#pragma GCC unroll 8
      for (int s = 0; s < Tile<F>::kSubBlocks; ++s) {
        __m256i* sub = Unpacked::sub_block(v, s);
        __asm__("" : "+r"(words));
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; ++i) sub[i] = tile_code<F>(words, s, i);
        if constexpr (F::kScales != 0) Unpacked::put_factors(sub, factors_of<F>(k[s]));
      }
    }
  }
};

template <typename F>
void matmul_words(const Rows* w, const Activations* x, int n_tokens, const Output* out,
                  uint8_t* scratch) {
  if (n_tokens == 1)
    one_token<F>(w, x, out);
  else
    matmul_tokens<Unpack<F>>(w, x, n_tokens, out, scratch);
}

}  // namespace
}  // namespace edge_rt
