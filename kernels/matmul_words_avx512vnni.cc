// AVX-512 VNNI on vectors of 256 bits: the formats whose codes are bits of bytes.
#define EDGE_RT_VNNI
#include "kernels/formats_words_avx2.h"

namespace edge_rt {

MatmulKernel matmul_words_avx512vnni(int format) { return word_matmul(format); }

}  // namespace edge_rt
