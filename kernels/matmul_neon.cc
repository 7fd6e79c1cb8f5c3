// NEON matmuls over block formats on ARMv8.0. See CONTRIBUTING.md, "add a kernel ISA".
#include "kernels/formats_neon.h"

namespace edge_rt {

MatmulKernel matmul_blocks_neon(int format) { return matmul_of(format); }

}  // namespace edge_rt
