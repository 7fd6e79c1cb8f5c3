// Scalar unpacking of 32 columns of each block format: the readable truth, from formats.h.
#pragma once

#include <string.h>

#include "kernels/canonical.h"
#include "kernels/formats.h"
#include "kernels/grids.h"

namespace edge_rt {

struct SubBlock {
  int8_t c[kBlockColumns];
  int k[2], n[2];  // per 16 columns
  float d, m;      // m and n only where the format has kHasMin
};

namespace {

void set(SubBlock* out, float d, int k0, int k1) {
  out->d = d;
  out->k[0] = k0;
  out->k[1] = k1;
}

void set_min(SubBlock* out, float m, int n0, int n1) {
  out->m = m;
  out->n[0] = n0;
  out->n[1] = n1;
}

int nibble(const uint8_t* codes, int j) { return codes[j % 16] >> (j < 16 ? 0 : 4) & 15; }
int bit(const uint8_t* bits, int j) { return bits[j / 8] >> j % 8 & 1; }

void unpack(const BlockQ4_0& b, int, SubBlock* out) {
  for (int j = 0; j < kBlockColumns; ++j) out->c[j] = nibble(b.codes, j) - 8;
  set(out, half_to_float(b.d), 1, 1);
}

void unpack(const BlockQ4_1& b, int, SubBlock* out) {
  for (int j = 0; j < kBlockColumns; ++j) out->c[j] = nibble(b.codes, j);
  set(out, half_to_float(b.d), 1, 1);
  set_min(out, half_to_float(b.m), 1, 1);
}

void unpack(const BlockQ5_0& b, int, SubBlock* out) {
  for (int j = 0; j < kBlockColumns; ++j) out->c[j] = nibble(b.codes, j) + 16 * bit(b.high, j) - 16;
  set(out, half_to_float(b.d), 1, 1);
}

void unpack(const BlockQ5_1& b, int, SubBlock* out) {
  for (int j = 0; j < kBlockColumns; ++j) out->c[j] = nibble(b.codes, j) + 16 * bit(b.high, j);
  set(out, half_to_float(b.d), 1, 1);
  set_min(out, half_to_float(b.m), 1, 1);
}

void unpack(const BlockQ8_0& b, int, SubBlock* out) {
  memcpy(out->c, b.codes, sizeof b.codes);
  set(out, half_to_float(b.d), 1, 1);
}

void unpack(const BlockIQ4_NL& b, int, SubBlock* out) {
  for (int j = 0; j < kBlockColumns; ++j) out->c[j] = kCodebookIQ4[nibble(b.codes, j)];
  set(out, half_to_float(b.d), 1, 1);
}

void unpack(const BlockMXFP4& b, int, SubBlock* out) {
  for (int j = 0; j < kBlockColumns; ++j) out->c[j] = kCodebookFP4[nibble(b.codes, j)];
  set(out, scale_of_mxfp4(b.exponent), 1, 1);
}

int two_bits(const uint8_t* codes, int s, int j) {
  return codes[s / 4 * 32 + j] >> 2 * (s % 4) & 3;
}

void unpack(const BlockQ2_K& b, int s, SubBlock* out) {
  for (int j = 0; j < kBlockColumns; ++j) out->c[j] = two_bits(b.codes, s, j);
  const uint8_t* scale = b.scales + 2 * s;
  set(out, half_to_float(b.d), scale[0] & 15, scale[1] & 15);
  set_min(out, -half_to_float(b.dmin), scale[0] >> 4, scale[1] >> 4);
}

int scale_q3_k(const uint8_t* scales, int i) {
  return (scales[i % 8] >> i / 8 * 4 & 15) + (scales[8 + i % 4] >> i / 4 * 2 & 3) * 16 - 32;
}

void unpack(const BlockQ3_K& b, int s, SubBlock* out) {
  for (int j = 0; j < kBlockColumns; ++j)
    out->c[j] = two_bits(b.codes, s, j) - (b.high[j] >> s & 1 ? 0 : 4);
  set(out, half_to_float(b.d), scale_q3_k(b.scales, 2 * s), scale_q3_k(b.scales, 2 * s + 1));
}

template <typename Block>
void unpack_k4_or_k5(const Block& b, int s, const uint8_t* high, SubBlock* out) {
  for (int j = 0; j < kBlockColumns; ++j)
    out->c[j] = (b.codes[s / 2 * 32 + j] >> s % 2 * 4 & 15) + (high ? (high[j] >> s & 1) * 16 : 0);
  int k, n;
  if (s < 4) {
    k = b.scales[s] & 63;
    n = b.scales[s + 4] & 63;
  } else {
    k = (b.scales[s + 4] & 15) + (b.scales[s - 4] >> 6) * 16;
    n = (b.scales[s + 4] >> 4) + (b.scales[s] >> 6) * 16;
  }
  set(out, half_to_float(b.d), k, k);
  set_min(out, -half_to_float(b.dmin), n, n);
}

void unpack(const BlockQ4_K& b, int s, SubBlock* out) { unpack_k4_or_k5(b, s, nullptr, out); }
void unpack(const BlockQ5_K& b, int s, SubBlock* out) { unpack_k4_or_k5(b, s, b.high, out); }

void unpack(const BlockQ6_K& b, int s, SubBlock* out) {
  const int half = s / 4, t = s % 4;
  for (int j = 0; j < kBlockColumns; ++j) {
    const int low = b.codes[64 * half + 32 * (t % 2) + j] >> t / 2 * 4 & 15;
    out->c[j] = low + 16 * (b.high[32 * half + j] >> 2 * t & 3) - 32;
  }
  set(out, half_to_float(b.d), b.scales[2 * s], b.scales[2 * s + 1]);
}

void unpack(const BlockIQ4_XS& b, int s, SubBlock* out) {
  for (int j = 0; j < kBlockColumns; ++j) out->c[j] = kCodebookIQ4[nibble(b.codes + 16 * s, j)];
  const int k = (b.scales_low[s / 2] >> s % 2 * 4 & 15) + (b.scales_high >> 2 * s & 3) * 16 - 32;
  set(out, half_to_float(b.d), k, k);
}

// Eight columns from `index` of a grid of two-bit codes for `magnitude`, with one sign bit each.
void unpack_grid8(const uint16_t* grid, int index, const int8_t* magnitude, int signs, int8_t* c) {
  for (int j = 0; j < 8; ++j) {
    const int value = magnitude[grid[index] >> 2 * j & 3];
    c[j] = signs >> j & 1 ? -value : value;
  }
}

// Four columns from `index` of a grid of four-bit codes.
void unpack_grid4(const uint16_t* grid, int index, const int8_t* magnitude, int signs, int8_t* c) {
  for (int j = 0; j < 4; ++j) {
    const int value = magnitude[grid[index] >> 4 * j & 15];
    c[j] = signs >> j & 1 ? -value : value;
  }
}

int eight_signs(uint32_t seven) {  // the eighth makes the number of minuses even
  seven &= 127;
  return seven | (__builtin_popcount(seven) & 1) << 7;
}

void unpack(const BlockIQ2_XXS& b, int s, SubBlock* out) {
  const uint32_t word = load_u32(b.words + 8 * s + 4);
  for (int i = 0; i < 4; ++i)
    unpack_grid8(kGridIQ2XXS, b.words[8 * s + i], kMagnitudesIQ2, eight_signs(word >> 7 * i),
                 out->c + 8 * i);
  const int k = 2 * (word >> 28) + 1;
  set(out, half_to_float(b.d) * 0.125f, k, k);
}

void unpack(const BlockIQ2_XS& b, int s, SubBlock* out) {
  for (int i = 0; i < 4; ++i) {
    const int code = b.codes[4 * s + i];
    unpack_grid8(kGridIQ2XS, code & 511, kMagnitudesIQ2, eight_signs(code >> 9), out->c + 8 * i);
  }
  set(out, half_to_float(b.d) * 0.125f, 2 * (b.scales[s] & 15) + 1, 2 * (b.scales[s] >> 4) + 1);
}

void unpack(const BlockIQ2_S& b, int s, SubBlock* out) {
  for (int i = 0; i < 4; ++i)
    unpack_grid8(kGridIQ2S, b.codes[4 * s + i] | (b.high[s] >> 2 * i & 3) << 8, kMagnitudesIQ2,
                 b.signs[4 * s + i], out->c + 8 * i);
  set(out, half_to_float(b.d) * 0.125f, 2 * (b.scales[s] & 15) + 1, 2 * (b.scales[s] >> 4) + 1);
}

void unpack(const BlockIQ3_XXS& b, int s, SubBlock* out) {
  const uint32_t word = load_u32(b.words + 4 * s);
  for (int i = 0; i < 8; ++i)
    unpack_grid4(kGridIQ3XXS, b.codes[8 * s + i], kMagnitudesIQ3XXS,
                 eight_signs(word >> i / 2 * 7) >> i % 2 * 4, out->c + 4 * i);
  const int k = 2 * (word >> 28) + 1;
  set(out, half_to_float(b.d) * 0.25f, k, k);
}

void unpack(const BlockIQ3_S& b, int s, SubBlock* out) {
  for (int i = 0; i < 8; ++i)
    unpack_grid4(kGridIQ3S, b.codes[8 * s + i] | (b.high[s] >> i & 1) << 8, kMagnitudesIQ3S,
                 b.signs[4 * s + i / 2] >> i % 2 * 4, out->c + 4 * i);
  const int k = 2 * (b.scales[s / 2] >> s % 2 * 4 & 15) + 1;
  set(out, half_to_float(b.d), k, k);
}

void add_delta(int8_t* c, bool minus) {  // eight columns: the grid's codes are -8, 0 and 8
  for (int j = 0; j < 8; ++j) c[j] += minus ? -1 : 1;
}

void unpack(const BlockIQ1_S& b, int s, SubBlock* out) {
  const int high = b.high[s];
  for (int i = 0; i < 4; ++i) {
    unpack_grid8(kGridIQ1, b.codes[4 * s + i] | (high >> 3 * i & 7) << 8, kValuesIQ1, 0,
                 out->c + 8 * i);
    add_delta(out->c + 8 * i, high >> 15);
  }
  const int k = 2 * (high >> 12 & 7) + 1;
  set(out, half_to_float(b.d) * 0.125f, k, k);
}

void unpack(const BlockIQ1_M& b, int s, SubBlock* out) {
  for (int i = 0; i < 4; ++i) {
    const int high = b.high[2 * s + i / 2] >> i % 2 * 4;
    unpack_grid8(kGridIQ1, b.codes[4 * s + i] | (high & 7) << 8, kValuesIQ1, 0, out->c + 8 * i);
    add_delta(out->c + 8 * i, high & 8);
  }
  uint16_t d = 0;
  for (int i = 0; i < 4; ++i) d |= b.scales[i] >> 12 << 4 * i;
  const int scales = b.scales[s / 2] >> s % 2 * 6;
  set(out, half_to_float(d) * 0.125f, 2 * (scales & 7) + 1, 2 * (scales >> 3 & 7) + 1);
}

void unpack(const BlockTQ1_0& b, int s, SubBlock* out) {
  static const uint8_t kPower[5] = {1, 3, 9, 27, 81};
  for (int j = 0; j < kBlockColumns; ++j) {
    const int column = 32 * s + j;
    int byte, trit;
    if (column < 160) {
      byte = b.codes[column % 32], trit = column / 32;
    } else if (column < 240) {
      byte = b.codes[32 + column % 16], trit = (column - 160) / 16;
    } else {
      byte = b.high[column % 4], trit = (column - 240) / 4;
    }
    out->c[j] = ((byte * kPower[trit] & 255) * 3 >> 8) - 1;
  }
  set(out, half_to_float(b.d), 1, 1);
}

void unpack(const BlockTQ2_0& b, int s, SubBlock* out) {
  for (int j = 0; j < kBlockColumns; ++j) out->c[j] = two_bits(b.codes, s, j) - 1;
  set(out, half_to_float(b.d), 1, 1);
}

}  // namespace
}  // namespace edge_rt
