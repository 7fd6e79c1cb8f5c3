// How fast threads read memory: the ceiling of decoding, whose every token reads all weights.
#pragma once

#include <cstddef>

namespace edge_rt {

// Bytes per second that `n_threads` read together from `bytes` of memory in huge pages where the
// kernel has them, each its own part again and again, for about `seconds`. Throws
// std::invalid_argument, std::bad_alloc, std::system_error.
double measure_memory(int n_threads, size_t bytes, double seconds);

}  // namespace edge_rt
