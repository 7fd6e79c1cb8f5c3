#include <string.h>

#include "kernels/kernels.h"

namespace edge_rt {

#ifdef EDGE_RT_HAVE_AVX2
const Kernels* kernel_table_avx2();  // ops_avx2.cc; only safe to run after the check below

const Kernels* kernels_avx2() {
  const bool runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  return runs ? kernel_table_avx2() : nullptr;
}
#else
const Kernels* kernels_avx2() { return nullptr; }
#endif

const Kernels* kernels_named(const char* name) {
  if (strcmp(name, "ref") == 0) return kernels_ref();
  if (strcmp(name, "avx2") == 0) return kernels_avx2();
  if (strcmp(name, "auto") != 0) return nullptr;
  const Kernels* fastest = kernels_avx2();
  return fastest ? fastest : kernels_ref();
}

MatmulKernel matmul_for(const Kernels* kernels, int format) {
  switch (format) {
    case kF32:
      return kernels->matmul_f32;
    case kF16:
      return kernels->matmul_f16;
    case kBF16:
      return kernels->matmul_bf16;
    case kQ4_0:
      return kernels->matmul_q4_0;
    case kQ4_1:
      return kernels->matmul_q4_1;
    case kQ8_0:
      return kernels->matmul_q8_0;
  }
  return nullptr;
}

size_t row_bytes(int format, int n_cols) {
  const size_t n = (size_t)n_cols, blocks = n / kBlockColumns;
  switch (format) {
    case kF32:
      return n * 4;
    case kF16:
    case kBF16:
      return n * 2;
    case kQ4_0:
      return blocks * sizeof(BlockQ4_0);
    case kQ4_1:
      return blocks * sizeof(BlockQ4_1);
    case kQ8_0:
      return blocks * sizeof(BlockQ8_0);
  }
  return 0;
}

}  // namespace edge_rt
