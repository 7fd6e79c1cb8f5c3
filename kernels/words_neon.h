// NEON: what rows_neon.h has, of interleaved rows (formats.h): 16 bytes are the same four bytes of
// four rows, so that whatever makes codes of 16 columns' bytes makes codes of four rows' four
// columns, too. Only C headers and internal linkage here: see CONTRIBUTING.md, "add a kernel ISA".
#pragma once

#include "kernels/rows_neon.h"

namespace edge_rt {
namespace {

template <typename F>
constexpr bool kInterleaves = requires { F::Block::kSmall; };

// A block of the rows 4 * unit..4 * unit + 3 of eight.
template <typename B>
struct WordBlock {
  const uint8_t *small, *words;

  WordBlock(const uint8_t* eight, int unit)
      : small(eight + kLanes * B::kSmall.bytes * unit),
        words(eight + kInterleavedRows * Interleaving<B>::kSmallBytes + 16 * unit) {}

  const uint8_t* small_at(size_t offset) const {
    return small + kInterleavedRows * (offset - B::kSmall.at);
  }
  const uint8_t* word_at(size_t offset) const {
    return words + kInterleavedRows * (offset - Interleaving<B>::kFirstWord);
  }
};

template <typename B>
inline uint16x4_t row_shorts(WordBlock<B> b, size_t offset) {
  return vreinterpret_u16_u8(vld1_u8(b.small_at(offset)));
}

template <typename B>
inline uint32x4_t row_words(WordBlock<B> b, size_t offset) {
  return vreinterpretq_u32_u8(vld1q_u8(b.word_at(offset)));
}

template <typename B>
inline uint32x4_t row_byte(WordBlock<B> b, size_t offset) {
  const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(load_u32(b.small_at(offset))));
  return vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
}

template <typename B>
inline void row_triples(WordBlock<B> b, size_t offset, uint32x4_t* out) {
  for (int i = 0; i < 3; ++i) out[i] = row_words(b, offset + 4 * i);
}

template <typename B>
inline void row_quads(WordBlock<B> b, size_t offset, uint32x4_t* out) {
  for (int i = 0; i < 4; ++i) out[i] = row_words(b, offset + 4 * i);
}

// The columns 4 * kFour..4 * kFour + 3 of 16, of four rows.
template <typename B, int kFour>
struct WordColumns {
  WordBlock<B> block;

  uint8x16_t bytes(size_t at) const { return vld1q_u8(block.word_at(at + 4 * kFour)); }
  uint8x16_t bits(size_t at) const {
    const size_t in_word = (at - Interleaving<B>::kFirstWord) % 4, byte = in_word + kFour / 2;
    const uint8x16_t base = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
    const uint8x16_t four = vqtbl1q_u8(vld1q_u8(block.word_at(at - in_word)),
                                       vaddq_u8(base, vdupq_n_u8((uint8_t)byte)));
    return vtstq_u8(four, vreinterpretq_u8_u32(vdupq_n_u32(kFour % 2 ? 0x80402010 : 0x08040201)));
  }
  uint8x16_t same(size_t at) const { return vld1q_u8(block.word_at(at)); }
  uint8x16_t fours(const uint8_t* numbers) const { return vdupq_n_u8(numbers[kFour]); }
};

// Columns 16 * half..16 * half + 15 of a sub-block, four to a vector.
template <typename F>
inline void word_codes(WordBlock<typename F::Block> b, int chunk, int part, int half,
                       int8x16_t* codes) {
  typedef typename F::Block B;
  codes[0] = F::codes(WordColumns<B, 0>{b}, chunk, part, half);
  codes[1] = F::codes(WordColumns<B, 1>{b}, chunk, part, half);
  codes[2] = F::codes(WordColumns<B, 2>{b}, chunk, part, half);
  codes[3] = F::codes(WordColumns<B, 3>{b}, chunk, part, half);
}

// Eight rows of the block at byte `at`.
template <typename B>
void interleave_block(const RowGroup* g, size_t at, uint8_t* out) {
  constexpr SmallFields small = B::kSmall;
  constexpr int kWords = Interleaving<B>::kWords;
  for (int i = 0; i < small.n; ++i)
    for (int r = 0; r < kInterleavedRows; ++r, out += small.bytes)
      memcpy(out, g[r / kLanes].row[r % kLanes] + at + small.at + i * small.bytes, small.bytes);
  static_assert(kWords >= 4, "four words at a time, the last four perhaps again");
  for (int i = 0; i < kWords; i += 4) {
    const int word = i + 4 <= kWords ? i : kWords - 4;
    for (int u = 0; u < 2; ++u) {
      uint32x4_t quad[4];
      row_quads(FileBlock{g + u, at}, Interleaving<B>::kFirstWord + 4 * word, quad);
      for (int j = 0; j < 4; ++j)
        vst1q_u8(out + 32 * (word + j) + 16 * u, vreinterpretq_u8_u32(quad[j]));
    }
  }
}

template <typename B>
void interleave_rows(uint8_t* rows, size_t row_bytes, int n_rows, uint8_t* scratch) {
  const size_t group = kInterleavedRows * row_bytes;
  for (; n_rows >= kInterleavedRows; n_rows -= kInterleavedRows, rows += group) {
    memcpy(scratch, rows, group);
    const Rows copy = {scratch, row_bytes, kInterleavedRows, 0, false};
    const RowGroup g[2] = {group_at(&copy, 0), group_at(&copy, kLanes)};
    for (size_t at = 0; at < row_bytes; at += sizeof(B))
      interleave_block<B>(g, at, rows + kInterleavedRows * at);
  }
}

}  // namespace
}  // namespace edge_rt
