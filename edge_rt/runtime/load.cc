// What a Runtime reads besides the stream: vectors and resident weights once, embedding rows per
// pass.
#include <algorithm>
#include <condition_variable>
#include <exception>
#include <stdexcept>

#include "edge_rt/runtime/runtime.h"

namespace edge_rt {
namespace {

constexpr size_t kLoadRequestBytes = 1 << 20;  // per read while loading
constexpr int kLoadRequests = 8;               // in flight while loading

}  // namespace

template <typename Next>
void Runtime::read_staged(int n, const Next& next) {
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    int left, error = 0;
    std::string reason;
  } state;
  state.left = n;
  for (int i = 0; i < n; ++i) {
    const StagedRead read = next(i);
    extra_bytes_.fetch_add(read.extent.length, std::memory_order_relaxed);
    extra_requests_.fetch_add(1, std::memory_order_relaxed);
    reader_->submit({read.extent.offset, read.extent.length, read.needed, read.target,
                     [](void* context, uint64_t, int error, const char* reason) {
                       auto* s = static_cast<State*>(context);
                       std::lock_guard<std::mutex> lock(s->mutex);
                       if (error != 0 && s->error == 0) s->error = error, s->reason = reason;
                       if (--s->left == 0) s->changed.notify_all();
                     },
                     &state, 0},
                    /*urgent=*/true);
  }
  std::unique_lock<std::mutex> lock(state.mutex);
  state.changed.wait(lock, [&] { return state.left == 0; });
  if (state.error != 0) throw IoError(state.error, state.reason);
}

void Runtime::embed(const int32_t* tokens, int n_tokens) {
  const Embedding& e = embedding_;
  const size_t bytes = row_bytes(e.format, e.n_cols);
  for (int t = 0; t < n_tokens; ++t) {
    if (tokens[t] < 0 || tokens[t] >= e.n_rows)
      throw std::invalid_argument("token " + std::to_string(tokens[t]) +
                                  " is not in the vocabulary");
  }
  const auto read = [&](int t) -> StagedRead {
    const AlignedExtent extent = file_.cover(e.file_offset + tokens[t] * bytes, bytes);
    return {extent, extent.lead + bytes, at(e.staging_offset) + t * e.staging_bytes};
  };
  read_staged(n_tokens, read);
  for (int t = 0; t < n_tokens; ++t) {
    const StagedRead done = read(t);
    const auto* p = reinterpret_cast<const uint8_t*>(done.target + done.extent.lead);
    dequantize_row(e.format, p, e.n_cols, row(e.buffer, t));
  }
}

// Through the staging buffers of the embedding rows, which no pass uses yet: as many pieces at a
// time as fit.
void Runtime::load_vectors() {
  const size_t room = static_cast<size_t>(max_tokens_) * embedding_.staging_bytes;
  struct Piece {
    const Vector* vector;
    int first, n;
    StagedRead read;
  };
  std::vector<Piece> batch;
  size_t used = 0;
  const auto flush = [&] {
    read_staged(static_cast<int>(batch.size()), [&](int i) { return batch[i].read; });
    for (const Piece& piece : batch) {
      float* values = reinterpret_cast<float*>(at(piece.vector->arena_offset)) + piece.first;
      const std::byte* p = piece.read.target + piece.read.extent.lead;
      dequantize_row(piece.vector->format, reinterpret_cast<const uint8_t*>(p), piece.n, values);
      if (piece.vector->offset != 0)
        for (int i = 0; i < piece.n; ++i) values[i] = values[i] + piece.vector->offset;
    }
    batch.clear();
    used = 0;
  };
  for (const Vector& vector : vectors_) {
    const size_t element = row_bytes(vector.format, 1);
    if (element == 0 || room < file_.alignment() + element)
      throw std::invalid_argument("a vector of floats and staging room for it are needed");
    const int most =
        static_cast<int>(std::min<size_t>((room - file_.alignment()) / element, vector.n));
    for (int first = 0, n; first < vector.n; first += n) {
      n = std::min(most, vector.n - first);
      const AlignedExtent extent = file_.cover(vector.file_offset + first * element, n * element);
      if (used + extent.length > room) flush();
      batch.push_back({&vector,
                       first,
                       n,
                       {extent, extent.lead + n * element, at(embedding_.staging_offset) + used}});
      used += extent.length;
    }
  }
  flush();
}

bool Runtime::load(const std::vector<ResidentRun>& runs,
                   const std::function<bool(uint64_t, uint64_t)>& progress) {
  load_vectors();
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    int in_flight = 0, error = 0;
    uint64_t done = 0;
    std::string reason;
  } state;
  uint64_t total = 0;
  for (const ResidentRun& run : runs) total += run.length;
  bool cancelled = false;
  std::exception_ptr raised;  // by progress: thrown on only when no read uses `state` any more
  const auto wait_below = [&](int limit) {
    std::unique_lock<std::mutex> lock(state.mutex);
    while (state.in_flight >= limit) {
      state.changed.wait_for(lock, std::chrono::milliseconds(50));
      const uint64_t done = state.done;
      lock.unlock();
      try {
        if (!raised) cancelled = progress(done, total) || cancelled;
      } catch (...) {
        raised = std::current_exception();
        cancelled = true;
      }
      lock.lock();
    }
    return state.error == 0 && !cancelled;
  };
  bool go_on = true;
  for (const ResidentRun& run : runs) {
    // Pieces of one run share its alignment phase, so each piece after the first starts on the
    // grid.
    const AlignedExtent extent = file_.cover(run.file_offset, run.length);
    const size_t needed = extent.lead + run.length;
    std::byte* base = at(run.arena_offset) - extent.lead;
    for (size_t piece = 0; piece < extent.length && go_on; piece += kLoadRequestBytes) {
      const size_t length = std::min(kLoadRequestBytes, extent.length - piece);
      go_on = wait_below(kLoadRequests);
      if (!go_on) break;
      {
        std::lock_guard<std::mutex> lock(state.mutex);
        ++state.in_flight;
      }
      extra_bytes_.fetch_add(length, std::memory_order_relaxed);
      extra_requests_.fetch_add(1, std::memory_order_relaxed);
      reader_->submit({extent.offset + piece, length,
                       std::min(length, needed > piece ? needed - piece : 0), base + piece,
                       [](void* context, uint64_t bytes, int error, const char* reason) {
                         auto* s = static_cast<State*>(context);
                         std::lock_guard<std::mutex> lock(s->mutex);
                         --s->in_flight;
                         s->done += bytes;
                         if (error != 0 && s->error == 0) s->error = error, s->reason = reason;
                         s->changed.notify_all();
                       },
                       &state, length},
                      /*urgent=*/false);
    }
    if (!go_on) break;
  }
  wait_below(1);
  if (raised) std::rethrow_exception(raised);
  if (state.error != 0) throw IoError(state.error, state.reason);
  file_.check_unchanged();
  return !cancelled;
}

}  // namespace edge_rt
