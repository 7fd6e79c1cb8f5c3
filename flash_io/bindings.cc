// Plain synchronous reads through the flash reader, for tests and measuring, and the one loop over
// a GGUF header that Python is too slow for: a vocabulary and its merges are 400 000 strings.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <bit>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "flash_io/reader.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace edge_rt {
namespace {

// Reads [offset, offset + length) in requests of `request_bytes` through a pread pool.
nb::bytes read_range(const std::string& path, uint64_t offset, size_t length, size_t request_bytes,
                     int n_threads, bool direct) {
  const File file(path, direct);
  const AlignedExtent extent = file.cover(offset, length);
  std::unique_ptr<std::byte, void (*)(void*)> memory(
      static_cast<std::byte*>(std::aligned_alloc(4096, (extent.length + 4095) / 4096 * 4096)),
      [](void* p) { std::free(p); });
  if (!memory) throw std::bad_alloc();
  struct State {
    std::mutex mutex;
    int error = 0;
    std::string reason;
  } state;
  {
    nb::gil_scoped_release unlocked;
    const auto reader = make_pread_reader(file, n_threads);
    const size_t step = file.cover(0, request_bytes ? request_bytes : 1).length;
    const size_t needed = extent.lead + length;
    for (size_t at = 0; at < extent.length; at += step) {
      const size_t n = std::min(step, extent.length - at);
      reader->submit(
          {extent.offset + at, n, std::min(n, needed > at ? needed - at : 0), memory.get() + at,
           [](void* context, uint64_t, int error, const char* reason) {
             auto* s = static_cast<State*>(context);
             std::lock_guard<std::mutex> lock(s->mutex);
             if (error != 0) s->error = error, s->reason = reason;
           },
           &state, 0},
          false);
    }
    reader->drain();
  }
  if (state.error != 0) throw IoError(state.error, state.reason);
  return nb::bytes(reinterpret_cast<const char*>(memory.get()) + extent.lead, length);
}

// Steps over strings of a GGUF array (u64 length, then the bytes) from `at` on, while their lengths
// lie in `buffer`: where the next one begins, perhaps past the end, and how many of `count` are
// left.
std::pair<uint64_t, uint64_t> skip_strings(const nb::bytes& buffer, uint64_t at, uint64_t count) {
  constexpr uint64_t kFar = uint64_t{1} << 62;  // no file is as long: lengths must not wrap around
  const uint64_t size = buffer.size();
  while (count != 0 && at <= size && size - at >= sizeof(uint64_t)) {
    uint64_t length;
    std::memcpy(&length, buffer.c_str() + at, sizeof length);
    if constexpr (std::endian::native == std::endian::big) length = __builtin_bswap64(length);
    at += sizeof(uint64_t) + std::min(length, kFar);
    --count;
  }
  return {at, count};
}

}  // namespace

NB_MODULE(_flash_io, m) {
  m.doc() = "Reads that bypass the page cache.";
  nb::exception<IoError>(m, "IoError", PyExc_OSError);
  m.def("read_range", &read_range, "path"_a, "offset"_a, "length"_a, "request_bytes"_a = 1 << 20,
        "n_threads"_a = 4, "direct"_a = true);
  m.def("skip_strings", &skip_strings, "buffer"_a, "at"_a, "count"_a);
}

}  // namespace edge_rt
