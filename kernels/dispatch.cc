#include <string.h>
#ifdef EDGE_RT_HAVE_AVX2
#include <cpuid.h>
#endif

#include "kernels/kernels.h"

namespace edge_rt {

#ifdef EDGE_RT_HAVE_AVX2
const Kernels* kernel_table_avx2();  // ops_avx2.cc; only safe to run after the check below

const Kernels* kernels_avx2() {
  unsigned a, b, c = 0, d;
  __get_cpuid(1, &a, &b, &c, &d);  // older clangs' __builtin_cpu_supports has no f16c
  const bool runs =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (c & bit_F16C) != 0;
  return runs ? kernel_table_avx2() : nullptr;
}

MatmulKernel matmul_words_avx512vnni(int format);

// The rest is as fast with AVX2.
const Kernels* kernels_avx512vnni() {
  static const Kernels* avx2 = kernels_avx2();
  if (avx2 == nullptr || !__builtin_cpu_supports("avx512f") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512vnni"))
    return nullptr;
  static const Kernels table = [] {
    Kernels copy = *avx2;
    copy.name = "avx512vnni";
    copy.matmul = [](int format) {
      const MatmulKernel found = matmul_words_avx512vnni(format);
      return found != nullptr ? found : avx2->matmul(format);
    };
    return copy;
  }();
  return &table;
}
#else
const Kernels* kernels_avx2() { return nullptr; }
const Kernels* kernels_avx512vnni() { return nullptr; }
#endif

const Kernels* kernels_named(const char* name) {
  if (strcmp(name, "ref") == 0) return kernels_ref();
  if (strcmp(name, "avx2") == 0) return kernels_avx2();
  if (strcmp(name, "avx512vnni") == 0) return kernels_avx512vnni();
  if (strcmp(name, "auto") != 0) return nullptr;
  if (const Kernels* vnni = kernels_avx512vnni()) return vnni;
  const Kernels* avx2 = kernels_avx2();
  return avx2 ? avx2 : kernels_ref();
}

namespace {

struct BlockShape {
  size_t columns, bytes;  // 0: not a format
};

BlockShape shape_of(int format) {
  switch (format) {
    case kF32:
      return {1, 4};
    case kF16:
    case kBF16:
      return {1, 2};
#define EDGE_RT_SHAPE(name) \
  case k##name:             \
    return {Block##name::kColumns, sizeof(Block##name)};
      EDGE_RT_BLOCK_FORMATS(EDGE_RT_SHAPE)
#undef EDGE_RT_SHAPE
  }
  return {0, 0};
}

}  // namespace

bool is_block_format(int format) { return shape_of(format).columns > 1; }

size_t row_bytes(int format, int n_cols) {
  const BlockShape block = shape_of(format);
  const size_t n = static_cast<size_t>(n_cols);
  return block.columns == 0 || n % block.columns != 0 ? 0 : n / block.columns * block.bytes;
}

}  // namespace edge_rt
