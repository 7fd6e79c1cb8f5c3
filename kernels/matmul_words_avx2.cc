// AVX2: the formats whose codes are bits of bytes.
#include "kernels/formats_words_avx2.h"

namespace edge_rt {

MatmulKernel matmul_words_avx2(int format) { return word_matmul(format); }

InterleaveKernel interleave_avx2(int format) {
  switch (format) {
#define EDGE_RT_INTERLEAVE(name) \
  case k##name:                  \
    return interleave_rows<Block##name>;
    EDGE_RT_WORD_FORMATS(EDGE_RT_INTERLEAVE)
#undef EDGE_RT_INTERLEAVE
  }
  return nullptr;
}

}  // namespace edge_rt
