// Any sequence of calls that the stream ring's header allows, over a reader that completes what and
// when the input says: blocks have their content from wait() to release(), no two of them share
// memory, errors arrive where they belong, and nothing waits for ever.
#include <algorithm>
#include <cerrno>
#include <deque>
#include <map>
#include <vector>

#include "loaders/stream.h"
#include "tests/fuzz/native/input.h"
#include "tests/native/check.h"
#include "tests/native/temp_file.h"

namespace edge_rt {
namespace {

using fuzz::Input;
using test::byte_at;

constexpr size_t kPage = 4096;
constexpr auto kGuard = std::byte{0xa5};
using Blocks = std::vector<StreamBlock>;

// Buffered, so that the alignment is a page everywhere. Nobody reads it.
const File& any_file() {
  static const test::TempFile temp(test::test_content(1));
  static const File file(temp.path(), /*direct=*/false);
  return file;
}

class ManualReader final : public Reader {
 public:
  explicit ManualReader(Input& in) : in_(in) {}
  void submit(const ReadRequest& request, bool) override { queue_.push_back(request); }
  void drain() override {
    while (!queue_.empty()) complete();
  }
  const char* name() const override { return "manual"; }

  bool idle() const { return queue_.empty(); }
  const std::vector<ReadRequest>& queue() const { return queue_; }
  void set_failures(bool on) { failures_ = on; }
  void complete() {  // any one
    const size_t i = static_cast<size_t>(in_.between(0, static_cast<int64_t>(queue_.size()) - 1));
    const ReadRequest r = queue_[i];
    queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(i));
    const bool fails = failures_ && in_.between(0, 15) == 0;
    for (size_t k = 0; k < r.length; ++k)
      r.destination[k] = static_cast<std::byte>(fails ? 0 : byte_at(r.offset + k));
    r.done(r.context, r.tag, fails ? EIO : 0, fails ? "made to fail" : "");
  }

 private:
  Input& in_;
  std::vector<ReadRequest> queue_;
  bool failures_ = false;
};

bool holds_content(const std::byte* p, const StreamBlock& block) {
  for (size_t i = 0; i < block.length; ++i)
    if (p[i] != static_cast<std::byte>(byte_at(block.offset + i))) return false;
  return true;
}

class Model {
 public:
  explicit Model(Input& in) : in_(in), reader_(in) {
    segments_ = {some_blocks(0), some_blocks(1 << 20)};
    bytes_ = (kLargest / kPage + 2) * kPage * static_cast<size_t>(in.between(1, 5));
    memory_ = test::aligned_memory(bytes_ + 2 * kPage);
    std::fill_n(memory_.get(), bytes_ + 2 * kPage, kGuard);
    ring_ = std::make_unique<StreamRing>(reader_, any_file(), memory_.get() + kPage, bytes_);
    ring_->set_segments(segments_);
  }
  ~Model() {
    release_all();
    reader_.drain();
    ring_.reset();
    for (size_t i = 0; i < kPage; ++i)
      REQUIRE(memory_[i] == kGuard && memory_[kPage + bytes_ + i] == kGuard);
  }

  void step() {
    switch (in_.between(0, 9)) {
      case 0:
        return plan();
      case 1:
        return begin_wrong();
      case 2:
        if (in_.between(0, 7) == 0) return reset();
        return pass();
      case 3:
        if (in_.between(0, 15) == 0) return replace();
        return pass();
      case 4:
        reader_.set_failures(in_.flag());
        return;
      case 5:
        for (int n = static_cast<int>(in_.between(0, 5)); n > 0 && !reader_.idle(); --n)
          reader_.complete();
        return;
      default:
        return pass();
    }
  }

 private:
  static constexpr size_t kLargest = 3 * kPage;
  struct Held {
    uint64_t sequence;
    const std::byte* data;
    StreamBlock block;
  };

  Blocks some_blocks(uint64_t base) {
    Blocks blocks(static_cast<size_t>(in_.between(0, 9)));
    for (StreamBlock& block : blocks) {
      block = {base, static_cast<size_t>(in_.between(1, in_.flag() ? kLargest : kPage / 2))};
      base += block.length + static_cast<uint64_t>(in_.between(0, 3000));
    }
    return blocks;
  }

  void plan() {
    std::vector<int> wanted(static_cast<size_t>(in_.between(0, 5)));
    for (int& segment : wanted) segment = in_.flag();
    bool gives_up = in_.between(0, 31) == 0;
    const std::function<bool()> poll = [&] {
      if (gives_up) return true;
      while (!reader_.idle()) reader_.complete();
      return false;
    };
    if (!ring_->plan(wanted, poll)) {  // everything is as it was
      REQUIRE(gives_up);
      gives_up = false;
      REQUIRE(ring_->plan(wanted, poll));
    }
    planned_.assign(wanted.begin(), wanted.end());
  }

  void begin_wrong() {
    if (planned_.empty()) return;
    try {
      ring_->begin(1 - planned_.front());
      REQUIRE(!"begin() of another segment than the planned one");
    } catch (const std::logic_error&) {
    }
  }

  void reset() {
    if (in_.flag()) reader_.drain();
    while (!reader_.idle()) reader_.complete();
    ring_->reset();
    planned_.clear();
  }

  void replace() {
    reader_.drain();
    segments_[in_.flag()] = some_blocks(5 << 20);
    ring_->set_segments(segments_);
    planned_.clear();
  }

  // Runs the next planned segment, to its end or until an error or a cancelled wait.
  void pass() {
    if (planned_.empty()) plan();
    if (planned_.empty()) return;
    const int segment = planned_.front();
    planned_.pop_front();
    const uint64_t first = ring_->begin(segment);
    const Blocks& blocks = segments_[static_cast<size_t>(segment)];
    for (size_t b = 0; b < blocks.size();) {
      if (!wait(first + b, blocks[b])) {
        if (!held_.empty() && !failed_ && !cancelled_) {  // its memory is what we hold
          release(0);
          continue;
        }
        release_all();
        while (!reader_.idle()) reader_.complete();
        ring_->reset();
        planned_.clear();
        return;
      }
      ++b;
      while (!held_.empty() && in_.between(0, 2) != 0)
        release(static_cast<size_t>(in_.between(0, static_cast<int64_t>(held_.size()) - 1)));
    }
    release_all();
  }

  bool wait(uint64_t sequence, const StreamBlock& block) {
    failed_ = cancelled_ = false;
    const bool cancels = in_.between(0, 63) == 0;
    bool starved = false;
    const std::function<bool()> poll = [&] {
      if (cancels) return cancelled_ = true;
      if (reader_.idle()) return starved = true;
      while (!reader_.idle()) reader_.complete();  // among them the one that is waited for
      return false;
    };
    try {
      const std::byte* data = ring_->wait(sequence, poll);
      if (data == nullptr) {
        REQUIRE(cancelled_ || starved);
        // Only what is held can keep memory from the block that is needed next.
        REQUIRE(cancelled_ || !held_.empty());
        return false;
      }
      REQUIRE(data >= memory_.get() + kPage);
      REQUIRE(data + block.length <= memory_.get() + kPage + bytes_);
      REQUIRE(holds_content(data, block));
      held_.push_back({sequence, data, block});
      return true;
    } catch (const IoError& problem) {
      REQUIRE(problem.error() == EIO);
      failed_ = true;
      return false;
    }
  }

  void release(size_t i) {
    const Held held = held_[i];
    REQUIRE(holds_content(held.data, held.block));  // nobody wrote there meanwhile
    for (const ReadRequest& r : reader_.queue())
      REQUIRE(r.destination + r.length <= held.data ||
              held.data + held.block.length <= r.destination);
    held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(i));
    ring_->release(held.sequence);
  }
  void release_all() {
    while (!held_.empty()) release(held_.size() - 1);
  }

  Input& in_;
  ManualReader reader_;
  std::vector<Blocks> segments_;
  size_t bytes_;
  test::Aligned<> memory_;
  std::unique_ptr<StreamRing> ring_;
  std::deque<int> planned_;
  std::vector<Held> held_;
  bool failed_ = false, cancelled_ = false;
};

}  // namespace
}  // namespace edge_rt

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  edge_rt::fuzz::Input in(data, size);
  edge_rt::Model model(in);
  for (int i = 0; i < 60 && in.left() > 0; ++i) model.step();
  return 0;
}
