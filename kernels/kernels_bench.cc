// How fast the matmuls run against what the memory delivers: see scripts/bench_kernels.py, which
// builds this and prints it. Every line of output is a JSON object of one measurement:
//   kind "read"  GB/s of plain loads from a buffer that no cache holds
//   kind "gemv"  GB/s of weights, one token
//   kind "gemm"  Gop/s (a multiplication and an addition are two), several tokens
// Rounds alternate between everything that is measured, so that what disturbs one disturbs all.
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "kernels/kernels.h"
#include "tests/native/matmul_problem.h"
#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace edge_rt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kChunkBytes = 64 * 1024;  // as the runtime hands them out

struct Memory {
  explicit Memory(size_t bytes_) : bytes(bytes_) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    madvise(p, bytes, MADV_HUGEPAGE);
    data = static_cast<uint8_t*>(p);
  }
  ~Memory() { munmap(data, bytes); }
  Memory(const Memory&) = delete;
  uint8_t* data;
  size_t bytes;
};

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Seconds for `n_chunks` calls of work(chunk, thread), handed out to threads as they come; or the
// processor time of the threads divided by their number, for machines where others compute, too.
template <typename Work>
double timed(int n_threads, int n_chunks, bool processor_time, const Work& work) {
  std::atomic<int> next{0}, ready{0};
  std::atomic<bool> go{false};
  std::atomic<double> spent{0};
  const auto run = [&](int thread) {
    ready.fetch_add(1);
    while (!go.load()) {
    }
    const double before = thread_seconds();
    for (int c; (c = next.fetch_add(1)) < n_chunks;) work(c, thread);
    spent.fetch_add(thread_seconds() - before);
  };
  std::vector<std::thread> threads;
  for (int t = 1; t < n_threads; ++t) threads.emplace_back(run, t);
  while (ready.load() < n_threads - 1) {
  }
  const auto start = Clock::now();
  go.store(true);
  run(0);
  for (std::thread& thread : threads) thread.join();
  if (processor_time) return spent.load() / n_threads;
  return std::chrono::duration<double>(Clock::now() - start).count();
}

#ifdef __x86_64__
__attribute__((target("avx2"))) uint64_t read_all(const uint8_t* p, size_t bytes) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (size_t i = 0; i < bytes; i += 128) {
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 2048), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 2048 + 64), _MM_HINT_T0);
    const auto* v = reinterpret_cast<const __m256i*>(p + i);
    a = _mm256_xor_si256(a, v[0]);
    b = _mm256_xor_si256(b, v[1]);
    c = _mm256_xor_si256(c, v[2]);
    d = _mm256_xor_si256(d, v[3]);
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0) ^ _mm256_extract_epi64(all, 2));
}
#else
uint64_t read_all(const uint8_t* p, size_t bytes) {
  uint64_t sum[8] = {};
  for (size_t i = 0; i < bytes; i += sizeof sum)
    for (int j = 0; j < 8; ++j) {
      uint64_t value;
      std::memcpy(&value, p + i + 8 * j, 8);
      sum[j] ^= value;
    }
  for (int j = 1; j < 8; ++j) sum[0] ^= sum[j];
  return sum[0];
}
#endif

struct Options {
  size_t bytes = size_t{128} << 20;
  int rounds = 5, cols = 3072;
  bool processor_time = false;
  std::string isa = "auto";
  std::vector<int> formats, threads = {1, 2}, tokens = {1};
};

std::vector<int> numbers(const char* text) {
  std::vector<int> all;
  for (char* end; *text != 0; text = *end == ',' ? end + 1 : end)
    all.push_back(static_cast<int>(std::strtol(text, &end, 10)));
  return all;
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        kernels_(kernels_named(options.isa.c_str())),
        plain_(options.bytes),
        interleaved_(options.bytes) {
    if (kernels_ == nullptr) throw std::runtime_error("no such kernels here");
    int tokens = 1;
    for (int n : options.tokens) tokens = std::max(tokens, n);
    const size_t n = static_cast<size_t>(tokens) * options.cols;
    test::Random random(1);
    values_.resize(n);
    for (float& value : values_) value = random.normal();
    codes_.resize(n), scales_.resize(n / 32), sums_.resize(n / 16);
    kernels_->quantize(values_.data(), static_cast<int>(n), codes_.data(), scales_.data(),
                       sums_.data());
  }

  void run() {
    for (int format : options_.formats) {
      prepare(format);
      for (int round = 0; round < options_.rounds; ++round) {
        for (int n_threads : options_.threads) {
          read(n_threads, format);
          for (int n_tokens : options_.tokens) {
            matmul(format, false, n_tokens, n_threads);
            if (can_interleave_) matmul(format, true, n_tokens, n_threads);
          }
        }
      }
    }
  }

 private:
  void prepare(int format) {
    bytes_ = row_bytes(format, options_.cols);
    n_rows_ = static_cast<int>(options_.bytes / bytes_ / 8 * 8);
    constexpr int kSome = 64;  // random rows, which are then repeated
    test::Random random(format);
    test::fill_weights(random, format, plain_.data, kSome, options_.cols);
    for (int row = kSome; row < n_rows_; row += kSome)
      std::memcpy(plain_.data + row * bytes_, plain_.data, std::min(kSome, n_rows_ - row) * bytes_);
    std::memcpy(interleaved_.data, plain_.data, n_rows_ * bytes_);
    const InterleaveKernel interleave =
        kernels_->interleave != nullptr ? kernels_->interleave(format) : nullptr;
    can_interleave_ = interleave != nullptr;
    scratch_.clear();
    for (int t = 0; t < 64; ++t)
      scratch_.push_back(test::aligned_memory<uint8_t>(matmul_scratch_bytes(options_.cols), 64));
    if (can_interleave_) {
      const auto start = Clock::now();
      interleave(interleaved_.data, bytes_, n_rows_, scratch_[0].get());
      const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
      std::printf("{\"kind\":\"interleave\",\"format\":%d,\"threads\":1,\"rate\":%.3f}\n", format,
                  n_rows_ * bytes_ / seconds / 1e9);
    }
  }

  void read(int n_threads, int format) {
    const size_t bytes = n_rows_ * bytes_ / 128 * 128;
    const int n_chunks = static_cast<int>(bytes / kChunkBytes);
    std::atomic<uint64_t> sum{0};
    const double seconds = timed(n_threads, n_chunks, options_.processor_time, [&](int c, int) {
      sum += read_all(plain_.data + c * kChunkBytes, kChunkBytes);
    });
    if (sum.load() == 1) std::puts("");  // keeps the loads
    std::printf("{\"kind\":\"read\",\"format\":%d,\"threads\":%d,\"rate\":%.3f}\n", format,
                n_threads, n_chunks * kChunkBytes / seconds / 1e9);
  }

  void matmul(int format, bool interleaved, int n_tokens, int n_threads) {
    const uint8_t* data = interleaved ? interleaved_.data : plain_.data;
    const int chunk = std::max<int>(16, static_cast<int>(kChunkBytes / bytes_ / 16 * 16));
    // Many tokens take long: fewer rows do.
    const int rows = n_tokens == 1 ? n_rows_ : std::max(chunk, n_rows_ / n_tokens / 8 * 8);
    y_.resize(static_cast<size_t>(n_tokens) * rows);
    const Activations x = {values_.data(), codes_.data(), scales_.data(), sums_.data(),
                           static_cast<size_t>(options_.cols)};
    const MatmulKernel kernel = kernels_->matmul(format);
    const int n_chunks = (rows + chunk - 1) / chunk;
    const auto work_on = [&](int c, int thread) {
      const int first = c * chunk, n = std::min(chunk, rows - first);
      const Rows w = {data + first * bytes_, bytes_, n, options_.cols, interleaved};
      const Output out = {y_.data() + first, static_cast<size_t>(rows), false};
      kernel(&w, &x, n_tokens, &out, scratch_[thread].get());
    };
    const double seconds = timed(n_threads, n_chunks, options_.processor_time, work_on);
    const double work =
        n_tokens == 1 ? static_cast<double>(rows * bytes_) : 2.0 * rows * options_.cols * n_tokens;
    std::printf(
        "{\"kind\":\"%s\",\"format\":%d,\"isa\":\"%s\",\"layout\":\"%s\",\"tokens\":%d,"
        "\"threads\":%d,\"rate\":%.3f}\n",
        n_tokens == 1 ? "gemv" : "gemm", format, kernels_->name,
        interleaved ? "interleaved" : "file", n_tokens, n_threads, work / seconds / 1e9);
    std::fflush(stdout);
  }

  const Options options_;
  const Kernels* const kernels_;
  Memory plain_, interleaved_;
  std::vector<float> values_, scales_, y_;
  std::vector<int8_t> codes_;
  std::vector<int16_t> sums_;
  std::vector<test::Aligned<uint8_t>> scratch_;
  size_t bytes_ = 0;
  int n_rows_ = 0;
  bool can_interleave_ = false;
};

}  // namespace
}  // namespace edge_rt

int main(int argc, char** argv) {
  edge_rt::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const char* value = argv[i + 1];
    if (name == "--mib") options.bytes = static_cast<size_t>(std::atoi(value)) << 20;
    if (name == "--rounds") options.rounds = std::atoi(value);
    if (name == "--cols") options.cols = std::atoi(value);
    if (name == "--clock") options.processor_time = std::strcmp(value, "processor") == 0;
    if (name == "--isa") options.isa = value;
    if (name == "--formats") options.formats = edge_rt::numbers(value);
    if (name == "--threads") options.threads = edge_rt::numbers(value);
    if (name == "--tokens") options.tokens = edge_rt::numbers(value);
  }
  edge_rt::Bench(options).run();
}
