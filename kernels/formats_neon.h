// NEON: the matmul of every block format, for the instruction set of the file that includes this.
#pragma once

#include "kernels/formats_block32_neon.h"
#include "kernels/formats_grid_neon.h"
#include "kernels/formats_k_neon.h"

namespace edge_rt {
namespace {

MatmulKernel matmul_of(int format) {
  switch (format) {
#define EDGE_RT_MATMUL(name) \
  case k##name:              \
    return matmul_blocks<Format##name>;
    EDGE_RT_BLOCK_FORMATS(EDGE_RT_MATMUL)
#undef EDGE_RT_MATMUL
  }
  return nullptr;
}

}  // namespace
}  // namespace edge_rt
