#include "flash_io/measure.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <vector>

#include "flash_io/reader.h"

namespace edge_rt {
namespace {

using Clock = std::chrono::steady_clock;

double cpu_seconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double thread_cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

constexpr size_t kHugePage = 2 << 20;
constexpr size_t kCacheLine = 64;

void look_at(const std::byte* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; i += kCacheLine)
    (void)*static_cast<const volatile std::byte*>(memory + i);
}

struct Measurement {
  Reader* reader;
  std::byte* memory;
  size_t request_bytes;
  uint64_t n_places, state;
  Clock::time_point end;
  bool used;

  std::mutex mutex;
  std::condition_variable changed;
  uint64_t requests = 0, left = 0;  // answered; buffers that are not yet done with
  std::vector<uint64_t> arrived;    // buffers to look at
  int error = 0;
  std::string reason;

  void submit(uint64_t buffer) {  // with mutex held
    state = state * 6364136223846793005u + 1442695040888963407u;
    const uint64_t place = (state >> 33) % n_places;
    reader->submit({place * request_bytes, request_bytes, request_bytes,
                    memory + buffer * request_bytes, &Measurement::done, this, buffer},
                   false);
  }

  static void done(void* context, uint64_t buffer, int error, const char* reason) {
    auto* self = static_cast<Measurement*>(context);
    std::lock_guard<std::mutex> lock(self->mutex);
    ++self->requests;
    if (error != 0) self->error = error, self->reason = reason;
    if (!self->used) return self->reuse(buffer);
    self->arrived.push_back(buffer);
    self->changed.notify_all();
  }

  void reuse(uint64_t buffer) {  // with mutex held
    if (error == 0 && Clock::now() < end) {
      submit(buffer);
    } else if (--left == 0) {
      changed.notify_all();
    }
  }

  // Until all buffers are done with; returns the processor time that looking at them took.
  double wait() {
    double looking = 0;
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return left == 0 || !arrived.empty(); });
      if (left == 0) return looking;
      const uint64_t buffer = arrived.front();  // in the order of arrival, as a stream is used
      arrived.erase(arrived.begin());
      lock.unlock();
      const double before = thread_cpu_seconds();
      look_at(memory + buffer * request_bytes, request_bytes);
      looking += thread_cpu_seconds() - before;
      lock.lock();
      reuse(buffer);
    }
  }
};

}  // namespace

ReadRate measure_reads(const File& file, const std::string& io, size_t request_bytes, int depth,
                       double seconds, uint64_t seed, bool used) {
  if (request_bytes == 0 || request_bytes % file.alignment() != 0 || request_bytes > file.size())
    throw std::invalid_argument("a request must be whole units of " +
                                std::to_string(file.alignment()) + " bytes, and in the file");
  if (depth < 1 || depth > 1024) throw std::invalid_argument("depth must be 1 to 1024");
  // One more is looked at, as in a stream; else as many again are queued, so that no completion
  // finds the queue empty.
  const uint64_t n_buffers = static_cast<uint64_t>(depth) + (used ? 1 : depth);
  const size_t bytes = n_buffers * request_bytes;
  // As the arena's: in huge pages where the kernel has them. A drive that takes a list of segments
  // per request is asked with far shorter lists then, and a virtual one was up to twice as fast.
  const size_t alignment = std::max(kHugePage, file.alignment());
  const size_t mapped = (bytes + alignment - 1) / alignment * alignment;
  const std::unique_ptr<std::byte, void (*)(void*)> memory(
      static_cast<std::byte*>(std::aligned_alloc(alignment, mapped)),
      [](void* p) { std::free(p); });
  if (!memory) throw std::bad_alloc();
  madvise(memory.get(), mapped, MADV_HUGEPAGE);
  for (size_t i = 0; i < mapped; i += 4096) memory.get()[i] = std::byte{1};  // pages are there now
  std::unique_ptr<Reader> reader;
  if (io == "uring") {
    std::string why;
    reader = make_uring_reader(file, depth, memory.get(), bytes, &why);
    if (!reader) throw IoError(ENOSYS, why);
  } else if (io == "pread") {
    reader = make_pread_reader(file, depth);
  } else {
    throw std::invalid_argument("no reader is called " + io);
  }
  Measurement m;
  m.reader = reader.get();
  m.memory = memory.get();
  m.request_bytes = request_bytes;
  m.n_places = file.size() / request_bytes;
  m.state = seed;
  m.used = used;
  m.arrived.reserve(n_buffers);
  const double cpu = cpu_seconds();
  const auto start = Clock::now();
  m.end =
      start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  {
    std::lock_guard<std::mutex> lock(m.mutex);
    m.left = n_buffers;
    for (uint64_t i = 0; i < n_buffers; ++i) m.submit(i);
  }
  const double looking = m.wait();
  const double wall = std::chrono::duration<double>(Clock::now() - start).count();
  reader.reset();
  if (m.error != 0) throw IoError(m.error, m.reason);
  return {m.requests, m.requests * request_bytes, wall, cpu_seconds() - cpu - looking};
}

}  // namespace edge_rt
