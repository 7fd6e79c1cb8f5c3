#include "edge_rt/runtime/bandwidth.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "edge_rt/runtime/arena.h"
#include "edge_rt/runtime/thread_pool.h"

namespace edge_rt {
namespace {

using Clock = std::chrono::steady_clock;
using Words = uint64_t __attribute__((vector_size(64)));

constexpr size_t kLine = 64;
constexpr size_t kStreams = 8;  // of one thread: as many pages as the kernels' rows

// Sums n bytes, a multiple of kStreams lines, in lines that lie far apart from one another.
uint64_t sum(const std::byte* data, size_t n) {
  const size_t part = n / kStreams;
  Words totals[kStreams] = {};
  for (size_t at = 0; at < part; at += kLine) {
    for (size_t s = 0; s < kStreams; ++s) {
      Words words;
      std::memcpy(&words, data + s * part + at, kLine);
      totals[s] += words;
    }
  }
  uint64_t total = 0;
  for (const Words& words : totals)
    for (int i = 0; i < 8; ++i) total += words[i];
  return total;
}

}  // namespace

double measure_memory(int n_threads, size_t bytes, double seconds) {
  const size_t unit = kLine * kStreams * static_cast<size_t>(n_threads > 0 ? n_threads : 1);
  if (n_threads < 1 || n_threads > 1024 || bytes < unit)
    throw std::invalid_argument("1 to 1024 threads, and some lines of memory for each, are needed");
  const size_t part = bytes / unit * kLine * kStreams;
  Arena memory(part * n_threads);
  ThreadPool pool(n_threads);
  std::atomic<uint64_t> kept{0};  // or the sums would not be made
  const auto pass = [&](int thread) {
    kept.fetch_add(sum(memory.data() + thread * part, part), std::memory_order_relaxed);
  };
  std::memset(memory.data(), 1, memory.size());
  pool.run(pass, [] {});  // threads are awake, pages are mapped
  const auto start = Clock::now();
  double elapsed = 0;
  size_t done = 0;
  while (elapsed < seconds) {
    pool.run(pass, [] {});
    done += part * n_threads;
    elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  }
  return static_cast<double>(done) / elapsed;
}

}  // namespace edge_rt
