// What a Runtime reads besides the stream: vectors and resident weights once, embedding rows per
// pass.
#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "edge_rt/runtime/runtime.h"

namespace edge_rt {
namespace {

constexpr size_t kLoadRequestBytes = 1 << 20;  // per read while loading
constexpr int kLoadRequests = 8;               // in flight while loading
constexpr int64_t kInterleaveBytes = 2 << 20;  // at a time: less than what is in flight meanwhile
constexpr int kTagBits = 48;  // of a request's tag for its bytes; its place is above
constexpr uint64_t kTagBytes = (uint64_t{1} << kTagBits) - 1;
constexpr auto kPollInterval = std::chrono::milliseconds(20);

}  // namespace

template <typename Condition>
bool Runtime::wait_for_reads(const Condition& condition, const std::function<bool()>& poll) {
  sync::Lock lock(batch_.mutex);
  while (!batch_.changed.wait_for(lock, kPollInterval, condition)) {
    lock.unlock();
    if (poll()) return false;
    lock.lock();
  }
  return true;
}

bool Runtime::wait_for_batch(int limit, const std::function<bool()>& poll) {
  return wait_for_reads([&] { return batch_.in_flight < limit; }, poll);
}

bool Runtime::begin_batch(const std::function<bool()>& poll) {
  if (!wait_for_batch(1, poll)) return false;
  batch_.error = 0;
  batch_.done = 0;
  return true;
}

void Runtime::submit_to_batch(const StagedRead& read, bool urgent, uint32_t place) {
  extra_bytes_.fetch_add(read.extent.length, std::memory_order_relaxed);
  extra_requests_.fetch_add(1, std::memory_order_relaxed);
  sync::Lock lock(batch_.mutex);  // it may be done before it counts: that waits for us
  batch_.back &= ~(1u << place);
  reader_->submit({read.extent.offset, read.extent.length, read.needed, read.target,
                   [](void* context, uint64_t tag, int error, const char* reason) {
                     auto* batch = static_cast<Batch*>(context);
                     sync::Lock done(batch->mutex);
                     if (error != 0 && batch->error == 0)
                       batch->error = error, batch->reason = reason;
                     --batch->in_flight;
                     batch->done += tag & kTagBytes;
                     batch->back |= 1u << (tag >> kTagBits);
                     batch->changed.notify_all();
                   },
                   &batch_, read.extent.length | uint64_t{place} << kTagBits},
                  urgent);
  ++batch_.in_flight;
}

void Runtime::check_batch() {
  sync::Lock lock(batch_.mutex);
  if (batch_.error != 0) throw IoError(batch_.error, batch_.reason);
}

template <typename Next>
bool Runtime::read_staged(int n, const Next& next, const std::function<bool()>& poll) {
  if (!begin_batch(poll)) return false;
  for (int i = 0; i < n; ++i) submit_to_batch(next(i), /*urgent=*/true);
  if (!wait_for_batch(1, poll)) return false;
  check_batch();
  return true;
}

bool Runtime::embed(const int32_t* tokens, int n_tokens, const std::function<bool()>& poll) {
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
  if (!read_staged(n_tokens, read, poll)) return false;
  for (int t = 0; t < n_tokens; ++t) {
    const StagedRead done = read(t);
    const auto* p = reinterpret_cast<const uint8_t*>(done.target + done.extent.lead);
    dequantize_row(e.format, p, e.n_cols, row(e.buffer, t));
  }
  return true;
}

// Through the staging buffers of the embedding rows, which no pass uses yet: as many pieces at a
// time as fit.
bool Runtime::load_vectors(const std::function<bool()>& poll) {
  const size_t room = static_cast<size_t>(max_tokens_) * embedding_.staging_bytes;
  struct Piece {
    const Vector* vector;
    int first, n;
    StagedRead read;
  };
  std::vector<Piece> batch;
  size_t used = 0;
  const auto flush = [&] {
    if (!read_staged(static_cast<int>(batch.size()), [&](int i) { return batch[i].read; }, poll))
      return false;
    for (const Piece& piece : batch) {
      float* values = reinterpret_cast<float*>(at(piece.vector->arena_offset)) + piece.first;
      const std::byte* p = piece.read.target + piece.read.extent.lead;
      dequantize_row(piece.vector->format, reinterpret_cast<const uint8_t*>(p), piece.n, values);
      if (piece.vector->offset != 0)
        for (int i = 0; i < piece.n; ++i) values[i] = values[i] + piece.vector->offset;
    }
    batch.clear();
    used = 0;
    return true;
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
      if (used + extent.length > room && !flush()) return false;
      batch.push_back({&vector,
                       first,
                       n,
                       {extent, extent.lead + n * element, at(embedding_.staging_offset) + used}});
      used += extent.length;
    }
  }
  return flush();
}

std::vector<Runtime::ResidentTile> Runtime::tiles_to_interleave() const {
  std::vector<ResidentTile> tiles;
  for (const Weight& weight : weights_) {
    if (weight.interleave == nullptr) continue;
    const auto bytes = static_cast<int64_t>(row_bytes(weight.format, weight.n_cols));
    for (const Tile& tile : weight.tiles)
      if (tile.arena_offset >= 0)
        tiles.push_back(
            {tile.arena_offset, tile.arena_offset + tile.n_rows * bytes, &weight, tile.n_rows});
  }
  std::sort(tiles.begin(), tiles.end(),
            [](const ResidentTile& a, const ResidentTile& b) { return a.begin < b.begin; });
  return tiles;
}

void Runtime::interleave(const ResidentTile* tiles, int n_tiles) {
  struct Interleaving final : Work {
    Runtime* runtime;
    const ResidentTile* tiles;
    int n_tiles;

    Interleaving(Runtime* r, const ResidentTile* t, int n) : runtime(r), tiles(t), n_tiles(n) {}
    int n_steps() const override { return 1; }
    Units units(int) const override { return {0, n_tiles}; }
    bool is_ready(int, int) const override { return true; }
    void run_unit(int, int unit, int thread) override {
      const ResidentTile& tile = tiles[unit];
      tile.weight->interleave(reinterpret_cast<uint8_t*>(runtime->at(tile.begin)),
                              row_bytes(tile.weight->format, tile.weight->n_cols), tile.n_rows,
                              reinterpret_cast<uint8_t*>(runtime->at(runtime->scratch_offset_)) +
                                  thread * runtime->scratch_bytes_);
    }
    void leave_step(int) override {}
    void meanwhile() override {}
  } work(this, tiles, n_tiles);
  pool_->run(work);
}

// Requests are sent in the order of the arena. While the later ones are in flight, the compute
// threads interleave the tiles of the first ones.
bool Runtime::load(const std::vector<ResidentRun>& runs,
                   const std::function<bool(uint64_t, uint64_t)>& progress) {
  const Use use(*this);
  uint64_t total = 0;
  for (const ResidentRun& run : runs) total += run.length;
  const std::function<bool()> poll = [&] {
    uint64_t done;
    {
      sync::Lock lock(batch_.mutex);
      done = std::min(batch_.done, total);
    }
    return cancelled_.load() || progress(done, total);
  };
  const auto before = [&] { return cancelled_.load() || progress(0, total); };
  if (!load_vectors(before) || !begin_batch(before)) return ended(false);
  const std::vector<ResidentTile> tiles = tiles_to_interleave();
  size_t tile = 0;
  int64_t ends[kLoadRequests] = {};  // of the payload in flight, by place
  uint32_t sent = 0, arrived = 0;    // in order
  int64_t sent_to = 0;
  const auto arrive = [&](int64_t at_least) {  // one more; its tiles, once there are enough
    const uint32_t place = arrived % kLoadRequests;
    if (!wait_for_reads([&] { return (batch_.back >> place & 1) != 0; }, poll) || poll())
      return false;
    check_batch();
    ++arrived;
    size_t last = tile;
    while (last < tiles.size() && tiles[last].end <= ends[place]) ++last;
    if (last == tile || tiles[last - 1].end - tiles[tile].begin < at_least) return true;
    interleave(&tiles[tile], static_cast<int>(last - tile));
    tile = last;
    return true;
  };
  for (const ResidentRun& run : runs) {
    if (run.arena_offset < sent_to) throw std::invalid_argument("resident runs must ascend");
    // Pieces of one run share its alignment phase, so each piece after the first starts on the
    // grid.
    const AlignedExtent extent = file_.cover(run.file_offset, run.length);
    const size_t needed = extent.lead + run.length;
    const int64_t base = run.arena_offset - static_cast<int64_t>(extent.lead);
    for (size_t piece = 0; piece < extent.length; piece += kLoadRequestBytes) {
      const size_t length = std::min(kLoadRequestBytes, extent.length - piece);
      if (sent - arrived == kLoadRequests && !arrive(kInterleaveBytes)) return ended(false);
      const uint32_t place = sent++ % kLoadRequests;
      sent_to = ends[place] = base + static_cast<int64_t>(std::min(piece + length, needed));
      submit_to_batch({{extent.offset + piece, length, 0},
                       std::min(length, needed > piece ? needed - piece : 0),
                       at(base) + piece},
                      /*urgent=*/false, place);
    }
  }
  while (arrived < sent)
    if (!arrive(arrived + 1 < sent ? kInterleaveBytes : 0)) return ended(false);
  file_.check_unchanged();
  return ended(true);
}

}  // namespace edge_rt
