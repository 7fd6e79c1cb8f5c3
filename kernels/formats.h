// The block formats of GGUF tensors, as they lie in the file (little-endian, no padding).
//
// A row of n columns is n / kBlockColumns blocks, one after the other; rows follow each other.
// Scales are IEEE half floats. Weight value of column j of a block:
//   Q4_0: d * (code_j - 8)      codes 0..15, low nibbles are columns 0..15, high ones 16..31
//   Q4_1: d * code_j + m        codes as in Q4_0
//   Q8_0: d * code_j            codes -128..127
#pragma once

#include <stdint.h>

namespace edge_rt {

enum Format : int { kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kBF16 = 30 };

enum { kBlockColumns = 32 };

struct BlockQ4_0 {
  uint16_t d;
  uint8_t codes[16];
};
struct BlockQ4_1 {
  uint16_t d;
  uint16_t m;
  uint8_t codes[16];
};
struct BlockQ8_0 {
  uint16_t d;
  int8_t codes[32];
};

static_assert(sizeof(struct BlockQ4_0) == 18, "as in the file");
static_assert(sizeof(struct BlockQ4_1) == 20, "as in the file");
static_assert(sizeof(struct BlockQ8_0) == 34, "as in the file");

}  // namespace edge_rt
