// NEON matmuls over block formats with the instructions for 8-bit matrices (ARMv8.6). See
// CONTRIBUTING.md, "add a kernel ISA".
#include "kernels/formats_neon.h"

namespace edge_rt {

MatmulKernel matmul_blocks_i8mm_neon(int format) { return matmul_of(format); }

}  // namespace edge_rt
