// What the native tests share: checks that name their line, random data with a printed seed, and
// heap memory of the exact size, so that AddressSanitizer sees a kernel that reads past its end.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <string>

namespace edge_rt::test {

constexpr int kMostPrinted = 20;  // one mistake often fails thousands of checks

constexpr unsigned kLongestSection = 600;  // seconds: of a starved machine, or an emulated one

inline std::atomic<int> failures{0};

inline bool check(bool holds, const char* file, int line, const char* text) {
  if (holds) return true;
  if (failures.fetch_add(1) < kMostPrinted)
    std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, text);
  return false;
}

#define CHECK(condition) ::edge_rt::test::check((condition), __FILE__, __LINE__, #condition)

// The text after `condition` is a printf format with its arguments: which case failed.
#define CHECK_CASE(condition, ...)                                             \
  do {                                                                         \
    if (!CHECK(condition)) {                                                   \
      if (::edge_rt::test::failures.load() <= ::edge_rt::test::kMostPrinted) { \
        std::fprintf(stderr, "  case: " __VA_ARGS__);                          \
        std::fputc('\n', stderr);                                              \
      }                                                                        \
    }                                                                          \
  } while (0)

// `expression` throws `Type`, and its what() contains `text`.
#define CHECK_THROWS(Type, text, expression)                                     \
  do {                                                                           \
    bool thrown = false;                                                         \
    try {                                                                        \
      expression;                                                                \
    } catch (const Type& problem) {                                              \
      thrown = true;                                                             \
      CHECK_CASE(std::strstr(problem.what(), text), "what: %s", problem.what()); \
    }                                                                            \
    CHECK(thrown && #expression " throws " #Type);                               \
  } while (0)

// EDGE_RT_TEST_SEED repeats a run.
inline uint64_t test_seed() {
  static const uint64_t seed = [] {
    const char* given = std::getenv("EDGE_RT_TEST_SEED");
    const uint64_t value = given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
    std::fprintf(stderr, "EDGE_RT_TEST_SEED=%llu\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

class Random {
 public:
  explicit Random(uint64_t salt = 0) : engine_(test_seed() * 0x9e3779b97f4a7c15u + salt) {}

  uint64_t bits() { return engine_(); }
  int64_t between(int64_t low, int64_t high) {  // both included
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  bool chance(double p) { return std::bernoulli_distribution(p)(engine_); }
  float normal(float deviation = 1.0f) {
    return std::normal_distribution<float>(0.0f, deviation)(engine_);
  }

 private:
  std::mt19937_64 engine_;
};

// n elements and not a byte more.
template <typename T>
class Exact {
 public:
  explicit Exact(size_t n) : n_(n), data_(new T[n]()) {}
  Exact(const Exact& other) : Exact(other.n_) {
    if (n_ != 0) std::memcpy(data(), other.data(), n_ * sizeof(T));
  }
  Exact(Exact&&) = default;
  Exact& operator=(Exact&&) = default;
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return n_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  bool operator==(const Exact& other) const {  // by bits
    return n_ == other.n_ && std::memcmp(data(), other.data(), n_ * sizeof(T)) == 0;
  }
  Exact copy() const { return *this; }

 private:
  size_t n_;
  std::unique_ptr<T[]> data_;
};

struct FreeMemory {
  void operator()(void* p) const { std::free(p); }
};
template <typename T = std::byte>
using Aligned = std::unique_ptr<T[], FreeMemory>;

template <typename T = std::byte>
Aligned<T> aligned_memory(size_t bytes, size_t alignment = 4096) {
  return Aligned<T>(static_cast<T*>(
      std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)));
}

// A deadlock must fail the test, not hang it.
inline void watchdog(unsigned seconds) { alarm(seconds); }

// Runs one part of a test under the watchdog and says how long it took.
template <typename Part>
void section(const char* name, Part part) {
  const auto start = std::chrono::steady_clock::now();
  watchdog(kLongestSection);
  part();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::fprintf(stderr, "  %-24s %6.2f s\n", name, seconds.count());
}

inline int finish(const char* name) {
  const int n = failures.load();
  if (n == 0) {
    std::fprintf(stderr, "%s: ok\n", name);
  } else {
    std::fprintf(stderr, "%s: %d checks failed (EDGE_RT_TEST_SEED=%llu)\n", name, n,
                 static_cast<unsigned long long>(test_seed()));
  }
  return n == 0 ? 0 : 1;
}

}  // namespace edge_rt::test
