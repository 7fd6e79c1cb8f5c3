#include <string.h>
#ifdef EDGE_RT_HAVE_AVX2
#include <cpuid.h>
#endif
#if defined(EDGE_RT_HAVE_NEON) && defined(__linux__)
#include <sys/auxv.h>
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
#else
const Kernels* kernels_avx2() { return nullptr; }
#endif

#ifdef EDGE_RT_HAVE_NEON
const Kernels* kernel_table_neon();  // ops_neon.cc
const Kernels* kernel_table_dotprod_neon();
const Kernels* kernel_table_i8mm_neon();

namespace {

const Kernels* kernels_neon() { return kernel_table_neon(); }

#ifdef __linux__
// Of <asm/hwcap.h>; older C libraries' headers lack them.
constexpr unsigned long kHasDotProducts = 1ul << 20, kHasMatrices = 1ul << 13;

const Kernels* kernels_dotprod() {
  return getauxval(AT_HWCAP) & kHasDotProducts ? kernel_table_dotprod_neon() : nullptr;
}

const Kernels* kernels_i8mm() {
  const bool runs = getauxval(AT_HWCAP) & kHasDotProducts && getauxval(AT_HWCAP2) & kHasMatrices;
  return runs ? kernel_table_i8mm_neon() : nullptr;
}
#else
const Kernels* kernels_dotprod() { return nullptr; }
const Kernels* kernels_i8mm() { return nullptr; }
#endif

}  // namespace
#else
namespace {
const Kernels* kernels_neon() { return nullptr; }
const Kernels* kernels_dotprod() { return nullptr; }
const Kernels* kernels_i8mm() { return nullptr; }
}  // namespace
#endif

const Kernels* kernels_named(const char* name) {
  const Kernels* (*const tables[])() = {kernels_ref, kernels_avx2, kernels_neon, kernels_dotprod,
                                        kernels_i8mm};  // as in kKernelNames, the fastest last
  const bool any = strcmp(name, "auto") == 0;
  const Kernels* found = nullptr;
  for (size_t i = 0; i < sizeof tables / sizeof *tables; ++i) {
    const Kernels* table = any || strcmp(name, kKernelNames[i]) == 0 ? tables[i]() : nullptr;
    if (table != nullptr) found = table;
  }
  return found;
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
