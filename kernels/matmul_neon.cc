// NEON matmuls over block formats on ARMv8.0, and interleaving for all of NEON. See
// CONTRIBUTING.md, "add a kernel ISA".
#include "kernels/formats_neon.h"

namespace edge_rt {

MatmulKernel matmul_blocks_neon(int format) { return matmul_of(format); }

InterleaveKernel interleave_neon(int format) {
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
