// What the AVX2 files of element-wise operations and of attention share; static, as everything of
// an ISA.
#pragma once

#include <immintrin.h>

#include "kernels/canonical.h"

namespace edge_rt {

static inline __m256 exp8(__m256 x) {  // canonical_exp, eight at a time
  const __m256 vanish = _mm256_cmp_ps(x, _mm256_set1_ps(kExpLowest), _CMP_LT_OQ);
  x = _mm256_min_ps(_mm256_set1_ps(kExpHighest), x);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(kLog2E)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-kLn2High), x);
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(-kLn2Low), r);
  __m256 p = _mm256_set1_ps(kExpPolynomial[0]);
  for (int i = 1; i < kExpTerms; ++i) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpPolynomial[i]));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  const __m256i shifted = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  const __m256 y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), shifted));
  return _mm256_andnot_ps(vanish, y);
}

static inline __m256 tanh8(__m256 x) {  // canonical_tanh, eight at a time
  const __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
  const __m256 size = _mm256_andnot_ps(sign, x), square = _mm256_mul_ps(x, x);
  __m256 p = _mm256_set1_ps(kTanhSeries[0]);
  for (int i = 1; i < kTanhTerms; ++i)
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(kTanhSeries[i]));
  const __m256 e = exp8(_mm256_mul_ps(_mm256_set1_ps(-2.0f), size));
  const __m256 far = _mm256_div_ps(_mm256_sub_ps(one, e), _mm256_add_ps(one, e));
  const __m256 signed_far = _mm256_or_ps(_mm256_andnot_ps(sign, far), _mm256_and_ps(sign, x));
  const __m256 near = _mm256_cmp_ps(size, _mm256_set1_ps(kTanhSeriesEnd), _CMP_LT_OQ);
  return _mm256_blendv_ps(signed_far, _mm256_mul_ps(p, x), near);
}

static inline void softcap_avx2(float* x, int n, float cap) {
  const __m256 caps = _mm256_set1_ps(cap);
  const int whole = n & ~7;
  for (int j = 0; j < whole; j += 8) {
    const __m256 y = tanh8(_mm256_div_ps(_mm256_loadu_ps(x + j), caps));
    _mm256_storeu_ps(x + j, _mm256_mul_ps(y, caps));
  }
  for (int j = whole; j < n; ++j) x[j] = canonical_softcap(x[j], cap);
}

}  // namespace edge_rt
