// The inner loop of the AVX2 matmuls: 32 columns of R groups of eight rows times T tokens, and the
// matmul of several tokens made of it (GEMM).
//
// A vector of codes has four columns of each of eight rows, a 32-bit lane per row, so that a row's
// sum grows in its own lane: nothing is ever added across lanes. The four codes of a token are
// broadcast against it.
//
// Compiled for AVX-512 VNNI too (EDGE_RT_VNNI), whose dot product of four bytes takes one
// instruction, has no 16-bit step that could overflow, and wants unsigned weights. The integers are
// the same, hence the bits.
//
// A format F has a Block and
//   kSigned    codes are signed; else they are unsigned codes c + kOffset
//   kLargest   the largest (unsigned) code or magnitude
//   kScales    multipliers k: 0 none, 1 per 32 columns, 2 per 16 columns
//   kMins      0: no m; 1: m, but no multipliers n; 2: n too, which needs kScales
//   unpack(w, first, block, n_blocks, v)   blocks of eight rows, as `UnpackedBlock` says
#pragma once

#include "kernels/matmul_avx2.h"

namespace edge_rt {
namespace {

#define EDGE_RT_INLINE inline __attribute__((always_inline))

#ifdef EDGE_RT_VNNI
constexpr bool kVnni = true;
#else
constexpr bool kVnni = false;
#endif

template <typename B>
struct Format {
  typedef B Block;
  static constexpr int kSigned = 0, kOffset = 0, kScales = 0, kMins = 0;
};

// How F is computed with this instruction set.
template <typename F>
struct Tile {
  static constexpr int kSubBlocks = F::Block::kColumns / kBlockColumns;
  static constexpr bool kSigned = F::kSigned && !kVnni;
  static constexpr int kOffset = F::kSigned && kVnni ? 128 : F::kOffset;

  // Vectors of products that fit into 16 bits together and have one multiplier.
  static constexpr int vectors_per_run() {
    int n = F::kScales == 2 ? kVectors / 2 : kVectors;
    while (n > 1 && n * 2 * 127 * F::kLargest > 32767) n /= 2;
    return n;
  }
  static constexpr int kRun = vectors_per_run();
  // As many sums as the registers hold.
  static constexpr int kRowGroups = kVnni || kRun == kVectors ? 2 : 1;

  static constexpr bool kOffsetFactor = !kVnni && F::kScales != 0 && kOffset != 0;
  static constexpr int kFactors = F::kScales + kOffsetFactor + (F::kMins == 2);
  static constexpr int kSubVectors = kVectors + kFactors;
  static constexpr int kScaleVectors = F::kMins != 0 ? 2 : 1;
};

// The multipliers of a sub-block as the tile wants them: k0 and k1 as floats (VNNI) or twice in
// 16 bits; k0 and k1 times the offset, and n0 and n1, in 16 bits each.
struct Factors {
  __m256i k0, k1, k01, n01;
};

template <typename F>
inline Factors factors_of(__m256i k) {
  Factors f = {k, k, k, k};
  if constexpr (kVnni) {
    if constexpr (F::kScales > 0) f.k0 = _mm256_castps_si256(multiplier_k0(k));
    if constexpr (F::kScales > 1) f.k1 = _mm256_castps_si256(multiplier_k1(k));
  } else {
    const auto pair = [k](int low, int high) __attribute__((always_inline)) {
      return _mm256_srai_epi16(pick_bytes(k, -128, low, -128, high), 8);
    };
    if constexpr (F::kScales > 0) f.k0 = pair(0, 0);
    if constexpr (F::kScales > 1) f.k1 = pair(1, 1);
    if constexpr (Tile<F>::kOffsetFactor)
      f.k01 = _mm256_mullo_epi16(F::kScales > 1 ? pair(0, 1) : f.k0,
                                 _mm256_set1_epi16(Tile<F>::kOffset));
  }
  if constexpr (F::kMins == 2) f.n01 = pick_bytes(k, 2, -128, 3, -128);
  return f;
}

// Eight rows of a block: d, then m if the format has one; per sub-block its codes, then as many of
// its Factors as it needs.
template <typename F>
struct UnpackedBlock {
  static constexpr int kVectorsOfBlock =
      Tile<F>::kScaleVectors + Tile<F>::kSubBlocks * Tile<F>::kSubVectors;

  static void put_scale(__m256i* v, Scale scale) {
    _mm256_store_ps((float*)v, scale.d);
    if constexpr (F::kMins != 0) _mm256_store_ps((float*)(v + 1), scale.m);
  }
  static Scale scale(const __m256i* v) {
    Scale scale;
    scale.d = scale.m = _mm256_load_ps((const float*)v);
    if constexpr (F::kMins != 0) scale.m = _mm256_load_ps((const float*)(v + 1));
    return scale;
  }
  static __m256i* sub_block(__m256i* v, int s) {
    return v + Tile<F>::kScaleVectors + s * Tile<F>::kSubVectors;
  }
  static void put_factors(__m256i* sub_block, const Factors& f) {
    __m256i* v = sub_block + kVectors;
    if constexpr (F::kScales > 0) *v++ = f.k0;
    if constexpr (F::kScales > 1) *v++ = f.k1;
    if constexpr (Tile<F>::kOffsetFactor) *v++ = f.k01;
    if constexpr (F::kMins == 2) *v++ = f.n01;
  }
  static Factors factors(const __m256i* sub_block) {
    const __m256i* v = sub_block + kVectors;
    Factors f = {};
    if constexpr (F::kScales > 0) f.k0 = *v++;
    if constexpr (F::kScales > 1) f.k1 = *v++;
    if constexpr (Tile<F>::kOffsetFactor) f.k01 = *v++;
    if constexpr (F::kMins == 2) f.n01 = *v++;
    return f;
  }
};

// Where the activations of token 0 of a tile are, 32 columns from there on.
struct Columns {
  const int8_t* codes;
  const float* scales;
  const int16_t* sums;
  size_t stride, block_stride;

  Columns(const Activations* x, int token, int column)
      : codes(x->codes + token * x->stride + column),
        scales(x->scales + token * (x->stride / kBlockColumns) + column / kBlockColumns),
        sums(x->sums + token * (x->stride / kBlockColumns * 2) + column / kBlockColumns * 2),
        stride(x->stride),
        block_stride(x->stride / kBlockColumns) {}
  void next() { codes += kBlockColumns, scales += 1, sums += 2; }
};

// The compiler would add products in another order, as a tree, for which it lacks registers.
EDGE_RT_INLINE __m256i in_order(__m256i sum) {
  __asm__("" : "+x"(sum));
  return sum;
}

#ifdef EDGE_RT_VNNI
// total[r][t] = S, exact.
template <typename F, int R, int T, typename Code>
EDGE_RT_INLINE void integer_sums(const Code& code, const Factors* f, const Columns& x,
                                 const __m256i* pairs, __m256 (*total)[T]) {
  constexpr int kHalves = F::kScales == 2 ? 2 : 1, kOffset = Tile<F>::kOffset;
#pragma GCC unroll 2
  for (int half = 0; half < kHalves; ++half) {
    // The sums begin with what the offset of the codes adds.
    const int minus = -kOffset & 0xffff;
    const int factor = kHalves == 1 ? minus | minus << 16 : half == 0 ? minus : minus << 16;
    __m256i s[R][T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const __m256i start = kOffset == 0 ? _mm256_setzero_si256()
                                         : _mm256_madd_epi16(pairs[t], _mm256_set1_epi32(factor));
      for (int r = 0; r < R; ++r) s[r][t] = start;
    }
    const int n = kVectors / kHalves;
#pragma GCC unroll 8
    for (int i = half * n; i < half * n + n; ++i) {
      __m256i q[R];
      for (int r = 0; r < R; ++r) q[r] = code(r, i);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const __m256i c = broadcast4(x.codes + t * x.stride + 4 * i);
        for (int r = 0; r < R; ++r) s[r][t] = _mm256_dpbusd_epi32(s[r][t], q[r], c);
      }
    }
    for (int r = 0; r < R; ++r) {
      const __m256 k = _mm256_castsi256_ps(half == 0 ? f[r].k0 : f[r].k1);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const __m256 sum = _mm256_cvtepi32_ps(s[r][t]);
        total[r][t] = F::kScales == 0 ? sum
                      : half == 0     ? times(k, sum)
                                      : _mm256_fmadd_ps(k, sum, total[r][t]);
      }
    }
  }
}
#else
template <typename F, int R, int T, typename Code>
EDGE_RT_INLINE void integer_sums(const Code& code, const Factors* f, const Columns& x,
                                 const __m256i* pairs, __m256 (*total)[T]) {
  constexpr int kRun = Tile<F>::kRun, kOffset = Tile<F>::kOffset;
  __m256i s[R][T];
#pragma GCC unroll 8
  for (int run = 0; run < kVectors; run += kRun) {
    __m256i p[R][T];
#pragma GCC unroll 8
    for (int i = run; i < run + kRun; ++i) {
      __m256i q[R];
      for (int r = 0; r < R; ++r) q[r] = code(r, i);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const __m256i c = broadcast4(x.codes + t * x.stride + 4 * i);
        for (int r = 0; r < R; ++r) {
          const __m256i product =
              F::kSigned ? _mm256_maddubs_epi16(_mm256_abs_epi8(q[r]), _mm256_sign_epi8(c, q[r]))
                         : _mm256_maddubs_epi16(q[r], c);
          p[r][t] = i == run ? product : in_order(_mm256_add_epi16(p[r][t], product));
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      const __m256i k = F::kScales == 0      ? _mm256_set1_epi16(1)
                        : F::kScales == 1    ? f[r].k0
                        : run < kVectors / 2 ? f[r].k0
                                             : f[r].k1;
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const __m256i sum = _mm256_madd_epi16(p[r][t], k);
        s[r][t] = run == 0 ? sum : in_order(_mm256_add_epi32(s[r][t], sum));
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) {
      if constexpr (kOffset != 0) {
        const __m256i k = F::kScales == 0 ? _mm256_set1_epi16(kOffset) : f[r].k01;
        s[r][t] = _mm256_sub_epi32(s[r][t], _mm256_madd_epi16(pairs[t], k));
      }
      total[r][t] = _mm256_cvtepi32_ps(s[r][t]);
    }
  }
}
#endif

// y[r][t] after one more sub-block. `code(r, i)` gives vector i of row group r.
template <typename F, int R, int T, typename Code>
EDGE_RT_INLINE void sub_block(const Code& code, const Factors* f, const Scale* scale,
                              const Columns& x, __m256 (*y)[T]) {
  __m256i pairs[T];
  for (int t = 0; t < T; ++t) pairs[t] = sum_pair(x.sums + t * x.block_stride * 2);
  __m256 total[R][T];
  integer_sums<F, R, T>(code, f, x, pairs, total);
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    const __m256 d_x = _mm256_set1_ps(x.scales[t * x.block_stride]);
    for (int r = 0; r < R; ++r) {
      y[r][t] = _mm256_fmadd_ps(_mm256_mul_ps(scale[r].d, d_x), total[r][t], y[r][t]);
      if constexpr (F::kMins != 0) {
        const __m256i n = F::kMins == 1 ? _mm256_set1_epi16(1) : f[r].n01;
        y[r][t] = _mm256_fmadd_ps(_mm256_mul_ps(scale[r].m, d_x),
                                  _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs[t], n)), y[r][t]);
      }
    }
  }
}

// GEMM: up to kSlab tokens, a few row groups and kSpan sub-blocks at a time, so that what is
// unpacked stays in the first-level cache while all tokens use it; the tokens' sums wait in scratch
// from one span to the next.
constexpr int kSlab = 256, kSpan = 16, kMostRowGroups = 2;
constexpr int kMostSpanVectors = kSpan * (kVectors + 4) + 4;  // or 2 more per block of 32 columns
static_assert(kMostRowGroups * (kMostSpanVectors * 32 + kSlab * 32) + 64 <= kUnpackedBytes,
              "see matmul_scratch_bytes");

struct SpanOutput {
  float* sums;  // (kSlab, kMostRowGroups, 8)
  const Output* out;
  int row, count;  // count: rows of the last group
  bool begins, ends;
};

template <typename F, int R, int T>
void span_tokens(const __m256i* v, int n_blocks, const Activations* x, int token, int in_slab,
                 int column, const SpanOutput& to) {
  typedef UnpackedBlock<F> Unpacked;
  Columns columns(x, token, column);
  float* sums = to.sums + in_slab * kMostRowGroups * kGroup;
  __m256 y[R][T];
  for (int t = 0; t < T; ++t)
    for (int r = 0; r < R; ++r)
      y[r][t] = to.begins ? _mm256_setzero_ps()
                          : _mm256_load_ps(sums + (t * kMostRowGroups + r) * kGroup);
  for (int b = 0; b < n_blocks; ++b, v += Unpacked::kVectorsOfBlock) {
    const __m256i* rows[R];
    Scale scale[R];
    for (int r = 0; r < R; ++r) {
      rows[r] = v + r * kMostSpanVectors;
      scale[r] = Unpacked::scale(rows[r]);
      rows[r] += Tile<F>::kScaleVectors;
    }
    for (int s = 0; s < Tile<F>::kSubBlocks; ++s) {
      Factors f[R];
      for (int r = 0; r < R; ++r) f[r] = Unpacked::factors(rows[r]);
      sub_block<F, R, T>([&](int r, int i) __attribute__((always_inline)) { return rows[r][i]; }, f,
                         scale, columns, y);
      for (int r = 0; r < R; ++r) rows[r] += Tile<F>::kSubVectors;
      columns.next();
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) {
      if (to.ends)
        store(to.out, token + t, to.row + r * kGroup, r == R - 1 ? to.count : kGroup, y[r][t]);
      else
        _mm256_store_ps(sums + (t * kMostRowGroups + r) * kGroup, y[r][t]);
    }
  }
}

template <typename F, int R>
void span_rows(const __m256i* v, int n_blocks, const Activations* x, int slab, int n_tokens,
               int column, const SpanOutput& to) {
  int t = 0;
  for (; t + 4 <= n_tokens; t += 4) span_tokens<F, R, 4>(v, n_blocks, x, slab + t, t, column, to);
  if (n_tokens - t >= 2) {
    span_tokens<F, R, 2>(v, n_blocks, x, slab + t, t, column, to);
    t += 2;
  }
  if (t < n_tokens) span_tokens<F, R, 1>(v, n_blocks, x, slab + t, t, column, to);
}

template <typename F>
void matmul_tokens(const Rows* w, const Activations* x, int n_tokens, const Output* out,
                   uint8_t* scratch) {
  constexpr int kBlocks = kSpan / Tile<F>::kSubBlocks, kGroups = Tile<F>::kRowGroups;
  static_assert(kBlocks * UnpackedBlock<F>::kVectorsOfBlock <= kMostSpanVectors, "scratch");
  __m256i* v = (__m256i*)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
  SpanOutput to;
  to.sums = (float*)(v + kMostRowGroups * kMostSpanVectors);
  to.out = out;
  const int n_blocks = w->n_cols / F::Block::kColumns;
  for (int slab = 0; slab < n_tokens; slab += kSlab) {
    const int tokens = n_tokens - slab < kSlab ? n_tokens - slab : kSlab;
    for (int row = 0, rows; row < w->n_rows; row += rows) {
      rows = w->n_rows - row < kGroups * kGroup ? w->n_rows - row : kGroups * kGroup;
      const int groups = (rows + kGroup - 1) / kGroup;
      to.row = row;
      to.count = rows - (groups - 1) * kGroup;
      for (int block = 0; block < n_blocks; block += kBlocks) {
        const int blocks = n_blocks - block < kBlocks ? n_blocks - block : kBlocks;
        for (int r = 0; r < groups; ++r)
          F::unpack(w, row + r * kGroup, block, blocks, v + r * kMostSpanVectors);
        to.begins = block == 0;
        to.ends = block + blocks == n_blocks;
        const int column = block * F::Block::kColumns;
        if (kGroups == 2 && groups == 2)
          span_rows<F, kGroups>(v, blocks, x, slab, tokens, column, to);
        else
          span_rows<F, 1>(v, blocks, x, slab, tokens, column, to);
      }
    }
  }
}

}  // namespace
}  // namespace edge_rt
