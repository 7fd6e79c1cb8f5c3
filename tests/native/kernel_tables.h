// The kernels that this CPU runs, for the tests that compare them.
#pragma once

#include <cstdio>
#include <vector>

#include "kernels/kernels.h"

namespace edge_rt::test {

inline std::vector<const Kernels*> tables() {  // "ref" is the first
  std::vector<const Kernels*> all;
  for (const char* name : kKernelNames)
    if (kernels_named(name) != nullptr) all.push_back(kernels_named(name));
  return all;
}

inline void say_tables() {
  for (const Kernels* kernels : tables()) std::fprintf(stderr, "%s ", kernels->name);
  std::fprintf(stderr, "%s\n", tables().size() == 1 ? "(no SIMD kernels run here)" : "");
}

}  // namespace edge_rt::test
