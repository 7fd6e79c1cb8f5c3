// AVX2 matmuls with float weights. See CONTRIBUTING.md, "add a kernel ISA".
#include <immintrin.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"

namespace edge_rt {
namespace {

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
    // Short streams confuse the hardware prefetcher: fetch the next rows, which are contiguous.
    const uint8_t* ahead = w->data + (size_t)(first + kRows) * w->row_bytes;
    for (int j = 0; j < whole; j += 8) {
      for (int line = 0; kTokens == 1 && line < kRows * 8 * W::kBytes; line += 64)
        _mm_prefetch((const char*)(ahead + line), _MM_HINT_T1);
      ahead += kRows * 8 * W::kBytes;
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

MatmulKernel matmul_float_avx2(int format) {
  switch (format) {
    case kF32:
      return matmul_float<WidenF32>;
    case kF16:
      return matmul_float<WidenF16>;
    case kBF16:
      return matmul_float<WidenBF16>;
  }
  return nullptr;
}

}  // namespace edge_rt
