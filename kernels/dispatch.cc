#include <string.h>
#ifdef EDGE_RT_HAVE_AVX2
#include <cpuid.h>
#endif
#if defined(EDGE_RT_HAVE_NEON) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "kernels/kernels.h"
#include "kernels/kv_cache.h"

namespace edge_rt {

#ifdef EDGE_RT_HAVE_AVX2
const Kernels* kernel_table_avx2();  // ops_avx2.cc; only safe to run after the check below
MatmulKernel matmul_words_avx512vnni(int format);

namespace {

const Kernels* kernels_avx2() {
  unsigned a, b, c = 0, d;
  __get_cpuid(1, &a, &b, &c, &d);  // older clangs' __builtin_cpu_supports has no f16c
  const bool runs =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (c & bit_F16C) != 0;
  return runs ? kernel_table_avx2() : nullptr;
}

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

}  // namespace
#else
namespace {
const Kernels* kernels_avx2() { return nullptr; }
const Kernels* kernels_avx512vnni() { return nullptr; }
}  // namespace
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
  const Kernels* (*const tables[])() = {
      kernels_ref,  kernels_avx2,    kernels_avx512vnni,
      kernels_neon, kernels_dotprod, kernels_i8mm};  // as in kKernelNames, the fastest last
  static_assert(sizeof tables / sizeof *tables == sizeof kKernelNames / sizeof *kKernelNames);
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

int kv_format_named(const char* name) {
  const char* const names[] = {"f16", "f32", "q8_0"};  // as KvFormat
  for (int format = 0; format < 3; ++format)
    if (strcmp(name, names[format]) == 0) return format;
  return -1;
}

void store_kv(const Kernels* kernels, int format, bool is_key, const float* x, int head_dim,
              void* head, int row) {
  uint8_t* rows = static_cast<uint8_t*>(head);
  const size_t n = static_cast<size_t>(head_dim);
  if (format == kKvF16)
    return kernels->to_half(x, reinterpret_cast<uint16_t*>(rows) + row * n, head_dim);
  if (format == kKvF32) {
    memcpy(reinterpret_cast<float*>(rows) + row * n, x, n * sizeof(float));
    return;
  }
  rows += static_cast<size_t>(row / kAttentionTile) * kv_tile_bytes(format, head_dim);
  row %= kAttentionTile;
  constexpr int kColumns = 256;  // at a time
  for (int first = 0; first < head_dim; first += kColumns) {
    int8_t codes[kColumns];
    uint16_t scales[kColumns / 32];
    const int count = head_dim - first < kColumns ? head_dim - first : kColumns;
    kernels->quantize_kv(x + first, count, codes, scales);
    for (int j = 0; j < (count + 31) / 32 * 32; j += 4) {
      const size_t column = static_cast<size_t>(first + j);
      memcpy(rows + (is_key ? key_code : value_code)(head_dim, row, column), codes + j, 4);
    }
    for (int b = 0; b * 32 < count; ++b)
      memcpy(rows + kv_scale(head_dim, row, static_cast<size_t>(first / 32 + b)), scales + b, 2);
  }
}

}  // namespace edge_rt
