// The one loop over a GGUF header that Python is too slow for: a vocabulary and its merges are
// 400 000 strings.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

namespace edge_rt {

// Steps over strings of a GGUF array (u64 length, then the bytes) from `at` on, while their lengths
// lie in the `size` bytes at `buffer`: where the next one begins, perhaps past the end, and how
// many of `count` are left.
inline std::pair<uint64_t, uint64_t> skip_strings(const char* buffer, uint64_t size, uint64_t at,
                                                  uint64_t count) {
  constexpr uint64_t kFar = uint64_t{1} << 62;  // no file is as long: lengths must not wrap around
  while (count != 0 && at <= size && size - at >= sizeof(uint64_t)) {
    uint64_t length;
    std::memcpy(&length, buffer + at, sizeof length);
    if constexpr (std::endian::native == std::endian::big) length = __builtin_bswap64(length);
    at += sizeof(uint64_t) + std::min(length, kFar);
    --count;
  }
  return {at, count};
}

}  // namespace edge_rt
