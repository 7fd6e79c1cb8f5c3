// AVX2 matmuls. Only C headers and static code here: see CONTRIBUTING.md, "add a kernel ISA".
//
// One token: eight rows at a time straight from the file layout; each row's 32 products are reduced
// to one integer, the eight integers become one vector (lane = row) and go through the canonical
// fma. Several tokens: the eight rows are transposed once into scratch, so that a 32-bit lane holds
// four columns of its row and the inner loop needs no reduction at all.
#include <immintrin.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"

namespace edge_rt {
namespace {

enum { kGroup = 8 };  // rows per vector

struct RowGroup {
  const uint8_t* row[kGroup];  // rows past the end repeat the last one and are not stored
  int count;
};

RowGroup group_at(const Rows* w, int first) {
  RowGroup g;
  g.count = w->n_rows - first < kGroup ? w->n_rows - first : kGroup;
  for (int i = 0; i < kGroup; ++i)
    g.row[i] = w->data + (size_t)(first + (i < g.count ? i : g.count - 1)) * w->row_bytes;
  return g;
}

void store(const Output* out, int token, int row, int count, __m256 y) {
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

// [sum(p0), ..., sum(p7)] of eight vectors of 32-bit integers.
__m256i sum_lanes(const __m256i* p) {
  const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(p[0], p[1]), _mm256_hadd_epi32(p[2], p[3]));
  const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(p[4], p[5]), _mm256_hadd_epi32(p[6], p[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                          _mm256_permute2x128_si256(a, b, 0x31));
}

// The half floats at byte `offset` of every row, widened.
__m256 load_scales(const RowGroup* g, size_t offset) {
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

__m256i unpack_nibbles(const uint8_t* codes) {
  const __m128i bytes = _mm_loadu_si128((const __m128i*)codes);
  const __m256i both = _mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

// Each format: its block, how codes are loaded, and what follows the integer sum.
struct FormatQ4_0 {
  enum { kBytes = sizeof(BlockQ4_0), kCodes = 2, kUnsigned = 1, kOffset = 8, kMin = 0 };
  static __m256i load(const uint8_t* codes) { return unpack_nibbles(codes); }
};
struct FormatQ4_1 {
  enum { kBytes = sizeof(BlockQ4_1), kCodes = 4, kUnsigned = 1, kOffset = 0, kMin = 1 };
  static __m256i load(const uint8_t* codes) { return unpack_nibbles(codes); }
};
struct FormatQ8_0 {
  enum { kBytes = sizeof(BlockQ8_0), kCodes = 2, kUnsigned = 0, kOffset = 0, kMin = 0 };
  static __m256i load(const uint8_t* codes) { return _mm256_loadu_si256((const __m256i*)codes); }
};

// y after one block: s is the sum of (unsigned or signed) codes * x, lane = row.
template <typename F>
__m256 finish_block(__m256 y, __m256i s, __m256 d, __m256 m, float dx, int32_t sum_x) {
  const __m256 scale = _mm256_set1_ps(dx);
  if (F::kOffset != 0) s = _mm256_sub_epi32(s, _mm256_set1_epi32(F::kOffset * sum_x));
  y = _mm256_fmadd_ps(_mm256_mul_ps(d, scale), _mm256_cvtepi32_ps(s), y);
  if (F::kMin != 0) y = _mm256_fmadd_ps(_mm256_mul_ps(m, scale), _mm256_set1_ps((float)sum_x), y);
  return y;
}

template <typename F>
void one_token(const Rows* w, const Activations* x, const Output* out) {
  const __m256i ones = _mm256_set1_epi16(1);
  const int n_blocks = w->n_cols / kBlockColumns;
  for (int first = 0; first < w->n_rows; first += kGroup) {
    const RowGroup g = group_at(w, first);
    // Eight short streams confuse the hardware prefetcher: fetch the next group, which is
    // contiguous.
    const uint8_t* ahead = w->data + (size_t)(first + kGroup) * w->row_bytes;
    __m256 y = _mm256_setzero_ps();
    for (int b = 0; b < n_blocks; ++b) {
      const size_t at = (size_t)b * F::kBytes;
      for (int line = 0; line < kGroup * (int)F::kBytes; line += 64)
        _mm_prefetch((const char*)(ahead + at * kGroup + line), _MM_HINT_T0);
      const __m256i codes = _mm256_loadu_si256((const __m256i*)(x->codes + b * kBlockColumns));
      __m256i p[kGroup];
      for (int i = 0; i < kGroup; ++i) {
        const __m256i q = F::load(g.row[i] + at + F::kCodes);
        const __m256i pairs =
            F::kUnsigned ? _mm256_maddubs_epi16(q, codes)
                         : _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(codes, q));
        p[i] = _mm256_madd_epi16(pairs, ones);
      }
      const __m256 d = load_scales(&g, at);
      const __m256 m = F::kMin ? load_scales(&g, at + 2) : d;
      y = finish_block<F>(y, sum_lanes(p), d, m, x->scales[b], x->sums[b]);
    }
    store(out, 0, first, g.count, y);
  }
}

// Transposed group: per block 8 vectors (vector v: columns 4v..4v+3 of every row), then d, then m.
enum { kVectors = 8, kTransposedBytes = kVectors * 32 + 2 * 32 };

template <typename F>
void transpose_group(const RowGroup* g, int n_blocks, uint8_t* scratch) {
  for (int b = 0; b < n_blocks; ++b, scratch += kTransposedBytes) {
    const size_t at = (size_t)b * F::kBytes;
    __m256i r[8], t[8];
    for (int i = 0; i < 8; ++i) r[i] = F::load(g->row[i] + at + F::kCodes);
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
    __m256i* v = (__m256i*)scratch;
    for (int i = 0; i < 4; ++i) {
      _mm256_store_si256(v + i, _mm256_permute2x128_si256(r[i], r[i + 4], 0x20));
      _mm256_store_si256(v + i + 4, _mm256_permute2x128_si256(r[i], r[i + 4], 0x31));
    }
    _mm256_store_ps((float*)(v + 8), load_scales(g, at));
    if (F::kMin != 0) _mm256_store_ps((float*)(v + 9), load_scales(g, at + 2));
  }
}

__m256i broadcast4(const int8_t* p) {
  int32_t word;
  memcpy(&word, p, sizeof word);
  return _mm256_set1_epi32(word);
}

template <typename F, int kTokens>
void transposed_tokens(const uint8_t* scratch, int n_blocks, const Activations* x, int token,
                       const Output* out, int first, int count) {
  const __m256i ones = _mm256_set1_epi16(1);
  const size_t block_stride = x->stride / kBlockColumns;
  const int8_t* codes = x->codes + token * x->stride;
  const float* scales = x->scales + token * block_stride;
  const int32_t* sums = x->sums + token * block_stride;
  __m256 y[kTokens];
  for (int t = 0; t < kTokens; ++t) y[t] = _mm256_setzero_ps();
  for (int b = 0; b < n_blocks; ++b, scratch += kTransposedBytes, codes += kBlockColumns) {
    const __m256i* v = (const __m256i*)scratch;
    __m256i s[kTokens];
    for (int t = 0; t < kTokens; ++t) s[t] = _mm256_setzero_si256();
    for (int i = 0; i < kVectors; ++i) {
      const __m256i q = _mm256_load_si256(v + i);
      for (int t = 0; t < kTokens; ++t) {
        const __m256i c = broadcast4(codes + t * x->stride + 4 * i);
        if (F::kUnsigned) {  // 8 sums of two products of at most 15 * 127 fit into int16
          s[t] = _mm256_add_epi16(s[t], _mm256_maddubs_epi16(q, c));
        } else {
          const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(c, q));
          s[t] = _mm256_add_epi32(s[t], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
    const __m256 d = _mm256_load_ps((const float*)(v + 8));
    const __m256 m = F::kMin ? _mm256_load_ps((const float*)(v + 9)) : d;
    for (int t = 0; t < kTokens; ++t) {
      const __m256i total = F::kUnsigned ? _mm256_madd_epi16(s[t], ones) : s[t];
      y[t] = finish_block<F>(y[t], total, d, m, scales[t * block_stride + b],
                             sums[t * block_stride + b]);
    }
  }
  for (int t = 0; t < kTokens; ++t) store(out, token + t, first, count, y[t]);
}

template <typename F>
void matmul_quantized(const Rows* w, const Activations* x, int n_tokens, const Output* out,
                      uint8_t* scratch) {
  if (n_tokens == 1) return one_token<F>(w, x, out);
  const int n_blocks = w->n_cols / kBlockColumns;
  scratch = (uint8_t*)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
  for (int first = 0; first < w->n_rows; first += kGroup) {
    const RowGroup g = group_at(w, first);
    transpose_group<F>(&g, n_blocks, scratch);
    int t = 0;
    for (; t + 4 <= n_tokens; t += 4)
      transposed_tokens<F, 4>(scratch, n_blocks, x, t, out, first, g.count);
    if (n_tokens - t >= 2) {
      transposed_tokens<F, 2>(scratch, n_blocks, x, t, out, first, g.count);
      t += 2;
    }
    if (t < n_tokens) transposed_tokens<F, 1>(scratch, n_blocks, x, t, out, first, g.count);
  }
}

struct WidenF32 {
  enum { kBytes = 4 };
  static __m256 load8(const uint8_t* p) { return _mm256_loadu_ps((const float*)p); }
  static float load1(const uint8_t* p) { return load_f32(p); }
};
struct WidenF16 {
  enum { kBytes = 2 };
  static __m256 load8(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  }
  static float load1(const uint8_t* p) { return half_to_float(load_u16(p)); }
};
struct WidenBF16 {
  enum { kBytes = 2 };
  static __m256 load8(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static float load1(const uint8_t* p) { return bf16_to_float(load_u16(p)); }
};

template <typename W, int kTokens>
void float_rows(const Rows* w, const Activations* x, int token, const Output* out) {
  enum { kRows = 4 };
  const int whole = w->n_cols & ~7;
  for (int first = 0; first < w->n_rows; first += kRows) {
    const int count = w->n_rows - first < kRows ? w->n_rows - first : kRows;
    const uint8_t* row[kRows];
    for (int i = 0; i < kRows; ++i)
      row[i] = w->data + (size_t)(first + (i < count ? i : count - 1)) * w->row_bytes;
    __m256 acc[kTokens][kRows];
    for (int t = 0; t < kTokens; ++t)
      for (int i = 0; i < kRows; ++i) acc[t][i] = _mm256_setzero_ps();
    for (int j = 0; j < whole; j += 8) {
      __m256 v[kRows];
      for (int i = 0; i < kRows; ++i) v[i] = W::load8(row[i] + (size_t)j * W::kBytes);
      for (int t = 0; t < kTokens; ++t) {
        const __m256 values = _mm256_loadu_ps(x->values + (token + t) * x->stride + j);
        for (int i = 0; i < kRows; ++i) acc[t][i] = _mm256_fmadd_ps(v[i], values, acc[t][i]);
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      const float* values = x->values + (token + t) * x->stride;
      for (int i = 0; i < count; ++i) {
        float lane[8];
        _mm256_storeu_ps(lane, acc[t][i]);
        for (int j = whole; j < w->n_cols; ++j)
          lane[j % 8] =
              __builtin_fmaf(W::load1(row[i] + (size_t)j * W::kBytes), values[j], lane[j % 8]);
        float* y = out->y + (token + t) * out->stride + first + i;
        *y = out->accumulate ? *y + reduce8(lane) : reduce8(lane);
      }
    }
  }
}

template <typename W>
void matmul_float(const Rows* w, const Activations* x, int n_tokens, const Output* out, uint8_t*) {
  int t = 0;
  for (; t + 2 <= n_tokens; t += 2) float_rows<W, 2>(w, x, t, out);
  if (t < n_tokens) float_rows<W, 1>(w, x, t, out);
}

}  // namespace

extern const MatmulKernel kMatmulF32Avx2 = matmul_float<WidenF32>;
extern const MatmulKernel kMatmulF16Avx2 = matmul_float<WidenF16>;
extern const MatmulKernel kMatmulBF16Avx2 = matmul_float<WidenBF16>;
extern const MatmulKernel kMatmulQ4_0Avx2 = matmul_quantized<FormatQ4_0>;
extern const MatmulKernel kMatmulQ4_1Avx2 = matmul_quantized<FormatQ4_1>;
extern const MatmulKernel kMatmulQ8_0Avx2 = matmul_quantized<FormatQ8_0>;

}  // namespace edge_rt
