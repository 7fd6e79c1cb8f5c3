// The walk over a GGUF array of strings, on any bytes, from any place, for any count: it reads
// inside the buffer, does not wrap around and finds what one careful step after the other finds.
#include <memory>

#include "flash_io/strings.h"
#include "tests/fuzz/native/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using edge_rt::skip_strings;
  edge_rt::fuzz::Input in(data, size);
  const bool far = in.flag();
  const uint64_t start = far ? in.take<uint64_t>() : in.take<uint8_t>();
  const uint64_t count = in.flag() ? in.take<uint64_t>() : in.take<uint8_t>();
  const size_t n = in.left();
  const std::unique_ptr<char[]> buffer(new char[n]);  // not a byte more
  in.fill(buffer.get(), n);
  const auto [at, left] = skip_strings(buffer.get(), n, start, count);
  REQUIRE(left <= count && at >= start);
  uint64_t place = start, todo = count;
  while (todo != 0 && place <= n && n - place >= 8) {
    uint64_t length = 0;
    for (int i = 7; i >= 0; --i)
      length = length << 8 | static_cast<unsigned char>(buffer[place + i]);
    --todo;
    if (length > n) {  // past the end, however far: nothing more can be walked
      REQUIRE(at > n && left == todo);
      return 0;
    }
    place += 8 + length;
  }
  REQUIRE(at == place && left == todo);
  return 0;
}
