// NEON matmuls over block formats with the dot product instructions (ARMv8.2). See CONTRIBUTING.md,
// "add a kernel ISA".
#include "kernels/formats_neon.h"

namespace edge_rt {

MatmulKernel matmul_blocks_dotprod_neon(int format) { return matmul_of(format); }

}  // namespace edge_rt
