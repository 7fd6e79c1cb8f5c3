#include "edge_rt/runtime/bandwidth.h"

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
constexpr int kPieces = 8;      // for each thread: one that is put aside leaves the others more

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

// Reads all of the memory once; sums are kept, or they would not be made.
struct Reading final : Work {
  const std::byte* data;
  size_t piece;
  int n_pieces;
  sync::Atomic<uint64_t> kept{0};

  Reading(const std::byte* d, size_t p, int n) : data(d), piece(p), n_pieces(n) {}
  int n_steps() const override { return 1; }
  Units units(int) const override { return {0, n_pieces}; }
  bool is_ready(int, int) const override { return true; }
  void run_unit(int, int unit, int) override {
    kept.fetch_add(sum(data + static_cast<size_t>(unit) * piece, piece));
  }
  void leave_step(int) override {}
  void meanwhile() override {}
};

}  // namespace

double measure_memory(int n_threads, size_t bytes, double seconds) {
  const int n_pieces = n_threads < 1 || n_threads > 1024 ? 0 : kPieces * n_threads;
  if (n_pieces == 0 || bytes < kLine * kStreams * n_pieces)
    throw std::invalid_argument("1 to 1024 threads, and some lines of memory for each, are needed");
  const size_t piece = bytes / (kLine * kStreams * n_pieces) * kLine * kStreams;
  Arena memory(piece * n_pieces);
  ThreadPool pool(n_threads);
  Reading reading(memory.data(), piece, n_pieces);
  std::memset(memory.data(), 1, memory.size());
  pool.run(reading);  // threads are awake, pages are mapped
  const auto start = Clock::now();
  double elapsed = 0;
  size_t done = 0;
  while (elapsed < seconds) {
    pool.run(reading);
    done += piece * n_pieces;
    elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  }
  return static_cast<double>(done) / elapsed;
}

}  // namespace edge_rt
