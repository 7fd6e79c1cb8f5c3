// The block formats of GGUF tensors, as they lie in the file (little-endian, no padding).
//
// A row of n columns is n / kColumns blocks, one after the other; rows follow each other. Whatever
// its size, a block is computed in sub-blocks of 32 columns. Sub-block s of a row has 32 integer
// codes c, a multiplier k for each 16 of its columns, a scale d and, where kHasMin, a minimum m
// with a multiplier n for each 16 columns. The weight of a column is
//   (d * k) * c + m * n
// k and n are 1 where a format has none; d and m are IEEE half floats unless stated. Below, j is
// the column within the sub-block and "nibbles" are 4-bit codes, the low ones columns 0..15, the
// high ones columns 16..31 of 16 bytes.
#pragma once

#include <stdint.h>

namespace edge_rt {

enum Format : int {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kMXFP4 = 39,
};

// Every block format, for tables: X(Q4_0) stands for the id kQ4_0 and the struct BlockQ4_0.
// clang-format off
#define EDGE_RT_BLOCK_FORMATS(X)                                            \
  X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(IQ4_NL) X(MXFP4)                \
  X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_XS) X(TQ1_0) X(TQ2_0)       \
  X(IQ2_XXS) X(IQ2_XS) X(IQ2_S) X(IQ3_XXS) X(IQ3_S) X(IQ1_S) X(IQ1_M)
// clang-format on

constexpr int kBlockColumns = 32;  // columns of a sub-block: one scale of the activations

// The interleaved layout of resident weights. Eight rows that follow each other take the same bytes
// as in the file, block by block: first the n small fields of `bytes` bytes that a block has at
// byte `at`, then the rest of it as 32-bit words, each field of row 0, of row 1, ... of row 7. So
// 32 bytes are the same four codes' bytes of eight rows, a lane each. Rows past a multiple of eight
// keep the file's layout, and so do formats without kSmall.
struct SmallFields {
  int at, bytes, n;
};
constexpr int kInterleavedRows = 8;

// Offsets in one block of the file's, and how many words it has.
template <typename Block>
struct Interleaving {
  static constexpr int kSmallBytes = Block::kSmall.bytes * Block::kSmall.n;
  static constexpr int kFirstWord = Block::kSmall.at == 0 ? kSmallBytes : 0;
  static constexpr int kWords = (static_cast<int>(sizeof(Block)) - kSmallBytes) / 4;
};

struct BlockQ4_0 {  // c = nibble - 8
  static constexpr int kColumns = 32, kHasMin = 0;
  static constexpr SmallFields kSmall = {0, 2, 1};
  uint16_t d;
  uint8_t codes[16];
};
struct BlockQ4_1 {  // c = nibble
  static constexpr int kColumns = 32, kHasMin = 1;
  static constexpr SmallFields kSmall = {0, 2, 2};
  uint16_t d;
  uint16_t m;
  uint8_t codes[16];
};
struct BlockQ5_0 {  // c = (nibble + 16 * bit j of high) - 16
  static constexpr int kColumns = 32, kHasMin = 0;
  static constexpr SmallFields kSmall = {0, 2, 1};
  uint16_t d;
  uint8_t high[4];
  uint8_t codes[16];
};
struct BlockQ5_1 {  // c = nibble + 16 * bit j of high
  static constexpr int kColumns = 32, kHasMin = 1;
  static constexpr SmallFields kSmall = {0, 2, 2};
  uint16_t d;
  uint16_t m;
  uint8_t high[4];
  uint8_t codes[16];
};
struct BlockQ8_0 {
  static constexpr int kColumns = 32, kHasMin = 0;
  static constexpr SmallFields kSmall = {0, 2, 1};
  uint16_t d;
  int8_t codes[32];
};
struct BlockIQ4_NL {  // c = kCodebookIQ4[nibble]
  static constexpr int kColumns = 32, kHasMin = 0;
  static constexpr SmallFields kSmall = {0, 2, 1};
  uint16_t d;
  uint8_t codes[16];
};
struct BlockMXFP4 {  // c = kCodebookFP4[nibble] = 2 * e2m1, d = 2^(exponent - 128)
  static constexpr int kColumns = 32, kHasMin = 0;
  static constexpr SmallFields kSmall = {0, 1, 1};
  uint8_t exponent;
  uint8_t codes[16];
};

struct BlockQ2_K {  // c = 2 bits s % 4 of byte 32 * (s / 4) + j
  static constexpr int kColumns = 256, kHasMin = 1;
  static constexpr SmallFields kSmall = {80, 2, 2};
  uint8_t scales[16];  // per 16 columns: k in the low nibble, n in the high one
  uint8_t codes[64];
  uint16_t d;
  uint16_t dmin;  // m = -dmin
};
struct BlockQ3_K {  // c as in Q2_K, less 4 where bit s of high[j] is 0
  static constexpr int kColumns = 256, kHasMin = 0;
  static constexpr SmallFields kSmall = {108, 2, 1};
  uint8_t high[32];
  uint8_t codes[64];
  // k = 6 bits - 32, per 16 columns i: low four bits in nibble i / 8 of byte i % 8, high two in
  // bits i / 4 of byte 8 + i % 4.
  uint8_t scales[12];
  uint16_t d;
};
struct BlockQ4_K {  // c = nibble s % 2 of byte 32 * (s / 2) + j
  static constexpr int kColumns = 256, kHasMin = 1;
  static constexpr SmallFields kSmall = {0, 2, 2};
  uint16_t d;
  uint16_t dmin;  // m = -dmin
  // k and n are 6 bits, per 32 columns. k of s < 4 is the low six bits of byte s, n those of byte
  // s + 4. For s >= 4 the low four bits are nibbles of byte s + 4 (k low, n high), the high two are
  // the top bits of byte s - 4 (k) and byte s (n).
  uint8_t scales[12];
  uint8_t codes[128];
};
struct BlockQ5_K {  // c as in Q4_K, plus 16 * bit s of high[j]
  static constexpr int kColumns = 256, kHasMin = 1;
  static constexpr SmallFields kSmall = {0, 2, 2};
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t high[32];
  uint8_t codes[128];
};
struct BlockQ6_K {
  // With half h = s / 4 and t = s % 4: c = nibble t / 2 of codes[64 * h + 32 * (t % 2) + j]
  // + 16 * the 2 bits t of high[32 * h + j] - 32.
  static constexpr int kColumns = 256, kHasMin = 0;
  static constexpr SmallFields kSmall = {208, 2, 1};
  uint8_t codes[128];
  uint8_t high[64];
  int8_t scales[16];  // k, per 16 columns
  uint16_t d;
};
struct BlockIQ4_XS {  // c = kCodebookIQ4[nibble], 16 bytes for each s
  static constexpr int kColumns = 256, kHasMin = 0;
  static constexpr SmallFields kSmall = {0, 2, 2};
  uint16_t d;
  uint16_t scales_high;   // k = 6 bits - 32, per 32 columns: two bits each here,
  uint8_t scales_low[4];  // four bits each here
  uint8_t codes[128];
};

// Grid formats: an index stands for the magnitudes of 8 (IQ2, IQ1) or 4 (IQ3) columns, see grids.h.
// "Seven signs" are the sign bits of 8 columns, of which the last makes their number even.
struct BlockIQ2_XXS {  // d / 8 is the scale
  static constexpr int kColumns = 256, kHasMin = 0;
  uint16_t d;
  // Per s two words: four indices of 8 bits; four times seven signs and 4 bits of scale,
  // k = 2 * bits + 1.
  uint8_t words[64];
};
struct BlockIQ2_XS {  // d / 8 is the scale
  static constexpr int kColumns = 256, kHasMin = 0;
  uint16_t d;
  uint16_t codes[32];  // per 8 columns: index of 9 bits, seven signs
  uint8_t scales[8];   // 4 bits per 16 columns, low first, k = 2 * bits + 1
};
struct BlockIQ2_S {  // d / 8 is the scale
  static constexpr int kColumns = 256, kHasMin = 0;
  uint16_t d;
  uint8_t codes[32];  // per 8 columns: low 8 bits of the index,
  uint8_t signs[32];
  uint8_t high[8];    // its high 2 bits
  uint8_t scales[8];  // as in IQ2_XS
};
struct BlockIQ3_XXS {  // d / 4 is the scale
  static constexpr int kColumns = 256, kHasMin = 0;
  uint16_t d;
  uint8_t codes[64];  // per 4 columns: the index
  uint8_t words[32];  // per s: four times seven signs and 4 bits of scale, k = 2 * bits + 1
};
struct BlockIQ3_S {
  static constexpr int kColumns = 256, kHasMin = 0;
  uint16_t d;
  uint8_t codes[64];  // per 4 columns: low 8 bits of the index,
  uint8_t high[8];    // its ninth bit
  uint8_t signs[32];
  uint8_t scales[4];  // 4 bits per 32 columns, low first, k = 2 * bits + 1
};
struct BlockIQ1_S {  // d / 8 is the scale; c = 8 * grid + 1, or - 1 where the top bit is set
  static constexpr int kColumns = 256, kHasMin = 0;
  uint16_t d;
  uint8_t codes[32];  // per 8 columns: low 8 bits of the index,
  uint16_t high[8];  // per s: its high 3 bits (four times), 3 bits of scale, k = 2 * bits + 1, sign
};
struct BlockIQ1_M {  // d / 8 is the scale; c as in IQ1_S with a sign for each 8 columns
  static constexpr int kColumns = 256, kHasMin = 0;
  uint8_t codes[32];   // per 8 columns: low 8 bits of the index,
  uint8_t high[16];    // its high 3 bits and the sign, in a nibble
  uint16_t scales[4];  // 3 bits per 16 columns, k = 2 * bits + 1; the top nibbles are d, low first
};
struct BlockTQ1_0 {  // c = trit - 1; trit n of byte b is the top two bits of 3 * (3^n b mod 256)
  static constexpr int kColumns = 256, kHasMin = 0;
  static constexpr SmallFields kSmall = {52, 2, 1};
  uint8_t codes[48];  // 32 bytes with trits 0..4 of columns 0..159, 16 bytes for 160..239
  uint8_t high[4];    // trits 0..3 of the last 16 columns
  uint16_t d;
};
struct BlockTQ2_0 {  // c = (2 bits as in Q2_K) - 1
  static constexpr int kColumns = 256, kHasMin = 0;
  static constexpr SmallFields kSmall = {64, 2, 1};
  uint8_t codes[64];
  uint16_t d;
};

// clang-format off
#define EDGE_RT_WORD_FORMATS(X)                              \
  X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(IQ4_NL) X(MXFP4) \
  X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_XS) X(TQ1_0) X(TQ2_0)
// clang-format on

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20, "as in the file");
static_assert(sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24, "as in the file");
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockIQ4_NL) == 18, "as in the file");
static_assert(sizeof(BlockMXFP4) == 17 && sizeof(BlockQ2_K) == 84, "as in the file");
static_assert(sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144, "as in the file");
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210, "as in the file");
static_assert(sizeof(BlockIQ4_XS) == 136 && sizeof(BlockIQ2_XXS) == 66, "as in the file");
static_assert(sizeof(BlockIQ2_XS) == 74 && sizeof(BlockIQ2_S) == 82, "as in the file");
static_assert(sizeof(BlockIQ3_XXS) == 98 && sizeof(BlockIQ3_S) == 110, "as in the file");
static_assert(sizeof(BlockIQ1_S) == 50 && sizeof(BlockIQ1_M) == 56, "as in the file");
static_assert(sizeof(BlockTQ1_0) == 54 && sizeof(BlockTQ2_0) == 66, "as in the file");

}  // namespace edge_rt
