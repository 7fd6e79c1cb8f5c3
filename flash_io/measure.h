// How fast a drive gives random pieces of a file: the curve that the planner and people ask for.
#pragma once

#include <string>

#include "flash_io/file.h"

namespace edge_rt {

struct ReadRate {
  uint64_t requests, bytes;
  double seconds, cpu_seconds;  // wall time; processor time of the whole process meanwhile
};

// Reads `request_bytes` at random multiples of it, `depth` at a time, for about `seconds`. `io`:
// "pread" or "uring". `used`: the calling thread looks at all that was read before its memory is
// read into again, as a stream of weights does (docs/measurements.md: where memory that another
// core has just looked at is written to slowly, a drive has only that speed for us); that is not
// part of cpu_seconds. Throws IoError when a read fails or the backend is missing, and
// std::invalid_argument for a request that is not aligned or longer than the file.
ReadRate measure_reads(const File& file, const std::string& io, size_t request_bytes, int depth,
                       double seconds, uint64_t seed, bool used);

}  // namespace edge_rt
