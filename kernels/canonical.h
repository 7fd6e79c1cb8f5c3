// The scalar pieces of the canonical arithmetic that both reference and SIMD tails use. Everything
// is static: an ISA file must emit no symbol that the linker could choose for another CPU.
#pragma once

#include <stdint.h>

#include "kernels/half.h"

namespace edge_rt {

static inline float reduce8(const float* lane) {
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// exp for x <= 88: x = n ln2 + r, a degree-6 polynomial in r (max relative error 2e-7), times 2^n.
// Below -87.3 the result would be subnormal and is 0.
enum { kExpTerms = 6 };
static const float kExpPolynomial[kExpTerms] = {1.0f / 720, 1.0f / 120, 1.0f / 24,
                                                1.0f / 6,   0.5f,       1.0f};
static const float kExpLowest = -87.3f, kExpHighest = 88.0f;
static const float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;

static inline float canonical_exp(float x) {
  if (!(x >= kExpLowest)) return x < kExpLowest ? 0.0f : x;  // a NaN has no integer n
  if (x > kExpHighest) x = kExpHighest;
  const float n = __builtin_rintf(x * kLog2E);
  float r = __builtin_fmaf(n, -kLn2High, x);
  r = __builtin_fmaf(n, -kLn2Low, r);
  float p = kExpPolynomial[0];
  for (int i = 1; i < kExpTerms; ++i) p = __builtin_fmaf(p, r, kExpPolynomial[i]);
  p = __builtin_fmaf(p, r, 1.0f);
  return float_from_bits(bits_of(p) + ((uint32_t)(int32_t)n << 23));
}

static inline float canonical_silu_gate(float gate, float up) {
  return gate / (1.0f + canonical_exp(-gate)) * up;
}

// Weight codes of IQ4_NL and IQ4_XS, and of MXFP4.
static const int8_t kCodebookIQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};
static const int8_t kCodebookFP4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// 2^(exponent - 128): the codes above are twice the values. 0 and 1 give subnormal floats.
static inline float scale_of_mxfp4(uint8_t exponent) {
  return float_from_bits(exponent < 2 ? 0x200000u << exponent : (exponent - 1u) << 23);
}

// GELU in its tanh form, x / 2 (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3)
// (Hendrycks & Gimpel, arXiv:1606.08415, section 2), is x / (1 + exp(-2u)): no cancellation.
static const float kGeluCubic = 0.044715f, kGeluTwice = 1.59576912f;  // 2 sqrt(2 / pi)

static inline float canonical_gelu_gate(float gate, float up) {
  const float twice_u = gate * __builtin_fmaf(kGeluCubic, gate * gate, 1.0f) * kGeluTwice;
  return gate / (1.0f + canonical_exp(-twice_u)) * up;
}

// tanh: its series around 0, where (1 - e) / (1 + e) with e = exp(-2|x|) would cancel.
enum { kTanhTerms = 6 };
static const float kTanhSeries[kTanhTerms] = {-1382.0f / 155925, 62.0f / 2835, -17.0f / 315,
                                              2.0f / 15,         -1.0f / 3,    1.0f};
static const float kTanhSeriesEnd = 0.25f;

static inline float canonical_tanh(float x) {
  const float size = __builtin_fabsf(x);
  if (size < kTanhSeriesEnd) {
    const float square = x * x;
    float p = kTanhSeries[0];
    for (int i = 1; i < kTanhTerms; ++i) p = __builtin_fmaf(p, square, kTanhSeries[i]);
    return p * x;
  }
  const float e = canonical_exp(-2.0f * size);
  return __builtin_copysignf((1.0f - e) / (1.0f + e), x);
}

static inline float canonical_softcap(float x, float cap) { return canonical_tanh(x / cap) * cap; }

}  // namespace edge_rt
