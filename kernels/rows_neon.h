// NEON: a block of four rows of a matrix in file layout, and the codes of some columns of one of
// them; words_neon.h has the same for interleaved rows. Only C headers and internal linkage here:
// see CONTRIBUTING.md, "add a kernel ISA".
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <string.h>

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

// A block of four rows. Below, a byte of a block is where the file has it.
struct FileBlock {
  const RowGroup* g;
  size_t at;

  const uint8_t* row(int i) const { return g->row[i] + at; }
};

// The 16 bits at byte `offset` of every row.
inline uint16x4_t row_shorts(FileBlock b, size_t offset) {
  uint16x4_t h = vdup_n_u16(load_u16(b.row(0) + offset));
  h = vset_lane_u16(load_u16(b.row(1) + offset), h, 1);
  h = vset_lane_u16(load_u16(b.row(2) + offset), h, 2);
  return vset_lane_u16(load_u16(b.row(3) + offset), h, 3);
}

// The 32-bit word at byte `offset` of every row.
inline uint32x4_t row_words(FileBlock b, size_t offset) {
  uint32x4_t w = vdupq_n_u32(load_u32(b.row(0) + offset));
  w = vsetq_lane_u32(load_u32(b.row(1) + offset), w, 1);
  w = vsetq_lane_u32(load_u32(b.row(2) + offset), w, 2);
  return vsetq_lane_u32(load_u32(b.row(3) + offset), w, 3);
}

// The byte at byte `offset` of every row.
inline uint32x4_t row_byte(FileBlock b, size_t offset) {
  const uint32_t bytes[kLanes] = {b.row(0)[offset], b.row(1)[offset], b.row(2)[offset],
                                  b.row(3)[offset]};
  return vld1q_u32(bytes);
}

// The four words at byte `offset` of every row: out[i], lane = row.
inline void row_quads(FileBlock b, size_t offset, uint32x4_t* out) {
  uint32x4_t r[kLanes];
  for (int i = 0; i < kLanes; ++i) r[i] = vreinterpretq_u32_u8(vld1q_u8(b.row(i) + offset));
  const uint32x4_t p = vzip1q_u32(r[0], r[2]), q = vzip2q_u32(r[0], r[2]);
  const uint32x4_t s = vzip1q_u32(r[1], r[3]), t = vzip2q_u32(r[1], r[3]);
  out[0] = vzip1q_u32(p, s);
  out[1] = vzip2q_u32(p, s);
  out[2] = vzip1q_u32(q, t);
  out[3] = vzip2q_u32(q, t);
}

// Likewise three words; the one before them is in the block, too.
inline void row_triples(FileBlock b, size_t offset, uint32x4_t* out) {
  uint32x4_t quads[4];
  row_quads(b, offset - 4, quads);
  for (int i = 0; i < 3; ++i) out[i] = quads[i + 1];
}

// Likewise n words, n a multiple of four.
inline void row_runs(FileBlock b, size_t offset, int n, uint32x4_t* out) {
  for (int i = 0; i < n; i += 4) row_quads(b, offset + 4 * i, out + i);
}

// The half float at byte `offset` of every row, widened.
template <typename Four>
inline float32x4_t row_halves(Four b, size_t offset) {
  return vcvt_f32_f16(vreinterpret_f16_u16(row_shorts(b, offset)));
}

template <typename Block, typename Four>
inline Scale scale_of(Four b) {  // formats whose only scale is the half d
  Scale scale;
  scale.d = scale.m = row_halves(b, offsetof(Block, d));
  return scale;
}

template <typename Block, typename Four>
inline Scale scale_and_dmin(Four b) {  // m = -dmin
  Scale scale;
  scale.d = row_halves(b, offsetof(Block, d));
  scale.m = vnegq_f32(row_halves(b, offsetof(Block, dmin)));
  return scale;
}

// Four bytes of every lane, the lowest first; < 0: zero.
inline uint32x4_t pick_bytes(uint32x4_t words, int a, int b, int c, int d) {
  const uint32_t pick = (a & 0xffu) | (b & 0xffu) << 8 | (c & 0xffu) << 16 | (d & 0xffu) << 24;
  const uint8x16_t base = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
  return vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(words),
                                         vaddq_u8(vreinterpretq_u8_u32(vdupq_n_u32(pick)), base)));
}

inline uint8x16_t nibble(uint8x16_t bytes, int part) {
  return part ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(15));
}

// Byte j is 255 if bit j is set, else 0.
inline uint8x16_t spread_bits(uint32_t bits) {
  const uint8x16_t byte = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  const uint8x16_t mask = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  return vtstq_u8(vqtbl1q_u8(vreinterpretq_u8_u32(vdupq_n_u32(bits)), byte), mask);
}

// value where bit `bit` of the byte is set, else 0.
inline uint8x16_t where_bit(uint8x16_t bytes, int bit, int value) {
  return vandq_u8(vtstq_u8(bytes, vdupq_n_u8((uint8_t)(1 << bit))), vdupq_n_u8((uint8_t)value));
}

inline int8x16_t look_up(const int8_t* table16, uint8x16_t nibbles) {
  return vqtbl1q_s8(vld1q_s8(table16), nibbles);
}

// What formats cut codes out of: of one row, 16 columns.
struct FileColumns {
  const uint8_t* block;

  // The bytes of these columns, the first one's at byte `at`.
  uint8x16_t bytes(size_t at) const { return vld1q_u8(block + at); }
  // 255 where their bit is set, the first one's the lowest of byte `at`, an even one; else 0.
  uint8x16_t bits(size_t at) const { return spread_bits(load_u16(block + at)); }
  // The four bytes at byte `at`, for every four columns.
  uint8x16_t same(size_t at) const {
    return vreinterpretq_u8_u32(vdupq_n_u32(load_u32(block + at)));
  }
  // A number for every four columns.
  uint8x16_t fours(const uint8_t* numbers) const {
    const uint8x16_t index = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    return vqtbl1q_u8(vreinterpretq_u8_u32(vdupq_n_u32(load_u32(numbers))), index);
  }
};

}  // namespace
}  // namespace edge_rt
