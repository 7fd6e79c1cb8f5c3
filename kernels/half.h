// Half-float conversions, exact in every case; static so that each ISA file has its own copy.
#pragma once

#include <stdint.h>
#include <string.h>

namespace edge_rt {

static inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float half_to_float(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
  const uint32_t exponent = (h >> 10) & 0x1f;
  const uint32_t mantissa = h & 0x3ff;
  if (exponent == 0x1f) {  // NaNs are quieted, as the hardware does
    const uint32_t quiet = mantissa ? 0x400000u : 0;
    return float_from_bits(sign | 0x7f800000u | quiet | (mantissa << 13));
  }
  if (exponent == 0) {
    const float value = (float)mantissa * 0x1p-24f;
    return sign ? -value : value;
  }
  return float_from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

static inline uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of(value);
  const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00 | (uint16_t)((magnitude >> 13) & 0x1ff);
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {                       // subnormal: the float adder rounds for us
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return sign | (uint16_t)(bits_of(shifted) - bits_of(0.5f));
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return sign | (uint16_t)((magnitude + 0xfff + odd - (112u << 23)) >> 13);
}

static inline float bf16_to_float(uint16_t b) { return float_from_bits((uint32_t)b << 16); }

static inline uint16_t load_u16(const void* p) {
  uint16_t value;
  memcpy(&value, p, sizeof value);
  return value;
}

static inline uint32_t load_u32(const void* p) {
  uint32_t value;
  memcpy(&value, p, sizeof value);
  return value;
}

static inline float load_f32(const void* p) {
  float value;
  memcpy(&value, p, sizeof value);
  return value;
}

}  // namespace edge_rt
