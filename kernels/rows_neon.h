// NEON: four rows of a matrix in file layout, and the codes of 32 columns of one of them. Only C
// headers and internal linkage here: see CONTRIBUTING.md, "add a kernel ISA".
#pragma once

#include <arm_neon.h>
#include <stddef.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"

namespace edge_rt {
namespace {

constexpr int kLanes = 4;  // rows per vector

struct RowGroup {
  const uint8_t* row[kLanes];  // rows past the end repeat the last one and are not stored
};

struct Codes {
  int8x16_t half[2];  // columns 0..15 and 16..31
};

struct Scale {
  float32x4_t d, m;  // lane = row
};

inline RowGroup group_at(const Rows* w, int first) {
  RowGroup g;
  for (int i = 0; i < kLanes; ++i) {
    const int row = first + i < w->n_rows ? first + i : w->n_rows - 1;
    g.row[i] = w->data + (size_t)row * w->row_bytes;
  }
  return g;
}

// The half float at byte `offset` of every row, widened.
inline float32x4_t row_halves(const RowGroup* g, size_t offset) {
  uint16x4_t h = vdup_n_u16(load_u16(g->row[0] + offset));
  h = vset_lane_u16(load_u16(g->row[1] + offset), h, 1);
  h = vset_lane_u16(load_u16(g->row[2] + offset), h, 2);
  h = vset_lane_u16(load_u16(g->row[3] + offset), h, 3);
  return vcvt_f32_f16(vreinterpret_f16_u16(h));
}

// The 32-bit word at byte `offset` of every row.
inline uint32x4_t row_words(const RowGroup* g, size_t offset) {
  uint32x4_t w = vdupq_n_u32(load_u32(g->row[0] + offset));
  w = vsetq_lane_u32(load_u32(g->row[1] + offset), w, 1);
  w = vsetq_lane_u32(load_u32(g->row[2] + offset), w, 2);
  return vsetq_lane_u32(load_u32(g->row[3] + offset), w, 3);
}

// The four words at byte `offset` of every row: out[i], lane = row.
inline void row_quads(const RowGroup* g, size_t offset, uint32x4_t* out) {
  uint32x4_t r[kLanes];
  for (int i = 0; i < kLanes; ++i) r[i] = vreinterpretq_u32_u8(vld1q_u8(g->row[i] + offset));
  const uint32x4_t a = vzip1q_u32(r[0], r[2]), b = vzip2q_u32(r[0], r[2]);
  const uint32x4_t c = vzip1q_u32(r[1], r[3]), d = vzip2q_u32(r[1], r[3]);
  out[0] = vzip1q_u32(a, c);
  out[1] = vzip2q_u32(a, c);
  out[2] = vzip1q_u32(b, d);
  out[3] = vzip2q_u32(b, d);
}

// Likewise the first n words, n a multiple of four.
inline void row_runs(const RowGroup* g, size_t offset, int n, uint32x4_t* out) {
  for (int i = 0; i < n; i += 4) row_quads(g, offset + 4 * i, out + i);
}

// The half floats in the low (d) and high (dmin) 16 bits of every lane; m = -dmin.
inline Scale scale_and_dmin(uint32x4_t words) {
  Scale scale;
  scale.d = vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(words)));
  scale.m = vnegq_f32(vcvt_f32_f16(vreinterpret_f16_u16(vshrn_n_u32(words, 16))));
  return scale;
}

// Four bytes of every lane, the lowest first; < 0: zero.
inline uint32x4_t pick_bytes(uint32x4_t words, int a, int b, int c, int d) {
  const uint32_t pick = (a & 0xffu) | (b & 0xffu) << 8 | (c & 0xffu) << 16 | (d & 0xffu) << 24;
  const uint8x16_t base = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
  return vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(words),
                                         vaddq_u8(vreinterpretq_u8_u32(vdupq_n_u32(pick)), base)));
}

struct Bytes32 {
  uint8x16_t half[2];
};

inline Bytes32 load32(const uint8_t* p) { return {{vld1q_u8(p), vld1q_u8(p + 16)}}; }

inline Codes codes_of(uint8x16_t low, uint8x16_t high) {
  return {{vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high)}};
}

// 16 bytes: low nibbles, then high ones.
inline Bytes32 unpack_nibbles(const uint8_t* codes) {
  const uint8x16_t bytes = vld1q_u8(codes);
  return {{vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8(bytes, 4)}};
}

// Byte j is 255 if bit j is set, else 0.
inline Bytes32 spread_bits(uint32_t bits) {
  const uint8x16_t low = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  const uint8x16_t mask = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t word = vreinterpretq_u8_u32(vdupq_n_u32(bits));
  return {{vtstq_u8(vqtbl1q_u8(word, low), mask),
           vtstq_u8(vqtbl1q_u8(word, vaddq_u8(low, vdupq_n_u8(2))), mask)}};
}

// value where bit `bit` of the byte is set, else 0.
inline uint8x16_t where_bit(uint8x16_t bytes, int bit, int value) {
  return vandq_u8(vtstq_u8(bytes, vdupq_n_u8((uint8_t)(1 << bit))), vdupq_n_u8((uint8_t)value));
}

inline Codes look_up(const int8_t* table16, Bytes32 nibbles) {
  const int8x16_t table = vld1q_s8(table16);
  return {{vqtbl1q_s8(table, nibbles.half[0]), vqtbl1q_s8(table, nibbles.half[1])}};
}

template <typename Block>
inline Scale scale_at(const RowGroup* g, size_t at) {  // formats whose only scale is the half d
  Scale scale;
  scale.d = scale.m = row_halves(g, at + offsetof(Block, d));
  return scale;
}

}  // namespace
}  // namespace edge_rt
