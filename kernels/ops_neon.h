// What the NEON files of element-wise operations and of attention share; static, as everything of
// an ISA.
#pragma once

#include <arm_neon.h>

#include "kernels/canonical.h"

namespace edge_rt {

static inline float32x4_t exp4(float32x4_t x) {  // canonical_exp, four at a time
  const uint32x4_t vanish = vcltq_f32(x, vdupq_n_f32(kExpLowest));
  x = vminq_f32(x, vdupq_n_f32(kExpHighest));  // a NaN stays one
  const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, kLog2E));
  float32x4_t r = vfmaq_f32(x, n, vdupq_n_f32(-kLn2High));
  r = vfmaq_f32(r, n, vdupq_n_f32(-kLn2Low));
  float32x4_t p = vdupq_n_f32(kExpPolynomial[0]);
  for (int i = 1; i < kExpTerms; ++i) p = vfmaq_f32(vdupq_n_f32(kExpPolynomial[i]), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
  const uint32x4_t shifted = vshlq_n_u32(vreinterpretq_u32_s32(vcvtq_s32_f32(n)), 23);
  return vreinterpretq_f32_u32(vbicq_u32(vaddq_u32(vreinterpretq_u32_f32(p), shifted), vanish));
}

static inline float32x4_t tanh4(float32x4_t x) {  // canonical_tanh, four at a time
  const float32x4_t one = vdupq_n_f32(1.0f), size = vabsq_f32(x), square = vmulq_f32(x, x);
  float32x4_t p = vdupq_n_f32(kTanhSeries[0]);
  for (int i = 1; i < kTanhTerms; ++i) p = vfmaq_f32(vdupq_n_f32(kTanhSeries[i]), p, square);
  const float32x4_t e = exp4(vmulq_n_f32(size, -2.0f));
  const float32x4_t far = vdivq_f32(vsubq_f32(one, e), vaddq_f32(one, e));
  const float32x4_t signed_far = vbslq_f32(vdupq_n_u32(0x80000000u), x, far);
  const uint32x4_t near = vcltq_f32(size, vdupq_n_f32(kTanhSeriesEnd));
  return vbslq_f32(near, vmulq_f32(p, x), signed_far);
}

static inline void softcap_neon(float* x, int n, float cap) {
  const float32x4_t caps = vdupq_n_f32(cap);
  const int whole = n & ~3;
  for (int j = 0; j < whole; j += 4)
    vst1q_f32(x + j, vmulq_f32(tanh4(vdivq_f32(vld1q_f32(x + j), caps)), caps));
  for (int j = whole; j < n; ++j) x[j] = canonical_softcap(x[j], cap);
}

}  // namespace edge_rt
