// Choices from a fuzzer's bytes; past their end every choice is zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace edge_rt::fuzz {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : p_(data), left_(size) {}

  size_t left() const { return left_; }
  template <typename T>
  T take() {
    T value{};
    const size_t n = left_ < sizeof(T) ? left_ : sizeof(T);
    if (n != 0) std::memcpy(&value, p_, n);
    p_ += n, left_ -= n;
    return value;
  }
  int64_t between(int64_t low, int64_t high) {  // both included
    const uint64_t span = static_cast<uint64_t>(high - low) + 1;
    const uint64_t raw = span <= 256 ? take<uint8_t>() : take<uint32_t>();
    return low + static_cast<int64_t>(raw % span);
  }
  bool flag() { return take<uint8_t>() & 1; }
  // Fills `bytes` from the input, and from a generator once it has ended.
  void fill(void* to, size_t bytes) {
    auto* out = static_cast<uint8_t*>(to);
    const size_t n = left_ < bytes ? left_ : bytes;
    if (n != 0) std::memcpy(out, p_, n);
    p_ += n, left_ -= n;
    for (size_t i = n; i < bytes; ++i) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      out[i] = static_cast<uint8_t>(state_ >> 56);
    }
  }

 private:
  const uint8_t* p_;
  size_t left_;
  uint64_t state_ = 1;
};

// A broken promise ends the process, so that the fuzzer keeps the input.
#define REQUIRE(condition)                                                                        \
  do {                                                                                            \
    if (!(condition)) {                                                                           \
      std::fprintf(stderr, "%s:%d: finding: %s does not hold\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                               \
    }                                                                                             \
  } while (0)

}  // namespace edge_rt::fuzz
