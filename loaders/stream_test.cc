// The stream ring under schedules that vary: contents, states, errors, and no deadlock.
#include "loaders/stream.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <thread>

#include "tests/native/check.h"
#include "tests/native/fake_reader.h"
#include "tests/native/temp_file.h"

namespace edge_rt {
namespace {

using test::Aligned;
using test::aligned_memory;
using test::byte_at;
using test::FakeReader;
using test::Random;

constexpr size_t kPage = 4096;
constexpr uint8_t kGuard = 0xa5;
const std::function<bool()> kNeverStop = [] { return false; };

using Blocks = std::vector<StreamBlock>;

bool holds_content(const std::byte* p, const StreamBlock& block) {
  for (size_t i = 0; i < block.length; ++i)
    if (p[i] != static_cast<std::byte>(byte_at(block.offset + i))) return false;
  return true;
}

// Buffered, so that the alignment is a page everywhere. The fake reader never touches the file.
const File& any_file() {
  static const test::TempFile temp(test::test_content(1));
  static const File file(temp.path(), /*direct=*/false);
  return file;
}

// A ring between two guard pages, over a fake reader.
struct Bench {
  const size_t bytes;
  Aligned<> memory;
  FakeReader reader;
  std::unique_ptr<StreamRing> ring;
  std::vector<Blocks> segments;

  Bench(uint64_t salt, std::vector<Blocks> segments_, size_t ring_bytes)
      : bytes(ring_bytes),
        memory(aligned_memory(ring_bytes + 2 * kPage)),
        reader(salt),
        segments(std::move(segments_)) {
    std::memset(memory.get(), kGuard, bytes + 2 * kPage);
    ring = std::make_unique<StreamRing>(reader, any_file(), memory.get() + kPage, bytes);
    ring->set_segments(segments);
  }
  ~Bench() {
    const uint64_t requested = ring->bytes_requested(), requests = ring->requests();
    ring.reset();
    reader.drain();
    CHECK(requested == reader.bytes() && requests == reader.requests());
    for (size_t i = 0; i < kPage; ++i) {
      CHECK(memory[i] == static_cast<std::byte>(kGuard));
      CHECK(memory[kPage + bytes + i] == static_cast<std::byte>(kGuard));
    }
  }

  // Threads use the blocks of one segment in order, `uses` times each; the last use releases it.
  // Returns whether all blocks were used; false after an error or when `poll` stopped it.
  bool consume(int segment, int n_threads, int uses, uint64_t salt,
               const std::function<bool()>& poll = kNeverStop) {
    const Blocks& blocks = segments[segment];
    const uint64_t first = ring->begin(segment);
    std::atomic<size_t> next{0};
    std::atomic<bool> stop{false};
    std::deque<std::atomic<int>> left(blocks.size());
    for (auto& count : left) count = uses;
    const std::function<bool()> stop_or_poll = [&] { return stop.load() || poll(); };
    const auto work = [&](int thread) {
      Random random(salt * 16 + thread);
      for (size_t u; (u = next.fetch_add(1)) < blocks.size() * uses && !stop;) {
        const size_t b = u / uses;
        const std::byte* p = nullptr;
        try {
          p = ring->wait(first + b, stop_or_poll);
        } catch (const IoError& problem) {
          CHECK(problem.error() == EIO);
          CHECK(std::strstr(problem.what(), "made to fail") != nullptr);
        }
        if (p == nullptr) {
          stop = true;
          return;
        }
        CHECK(p >= memory.get() + kPage && p + blocks[b].length <= memory.get() + kPage + bytes);
        if (random.chance(0.1)) std::this_thread::sleep_for(std::chrono::microseconds(50));
        CHECK_CASE(holds_content(p, blocks[b]), "segment %d block %zu", segment, b);
        if (left[b].fetch_sub(1) == 1) ring->release(first + b);
      }
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < n_threads; ++i) threads.emplace_back(work, i);
    work(0);
    for (std::thread& thread : threads) thread.join();
    return !stop;
  }
};

Blocks random_blocks(Random& random, int n, uint64_t base, size_t largest) {
  Blocks blocks;
  for (int i = 0; i < n; ++i) {
    const size_t length = random.between(1, random.chance(0.3) ? largest : largest / 8);
    blocks.push_back({base, length});
    base += length + random.between(0, 5000);
  }
  return blocks;
}

size_t largest_extent(const std::vector<Blocks>& segments) {
  size_t largest = kPage;
  for (const Blocks& blocks : segments)
    for (const StreamBlock& block : blocks)
      largest = std::max(largest, any_file().cover(block.offset, block.length).length);
  return largest;
}

std::vector<int> random_plan(Random& random) {
  switch (random.between(0, 4)) {
    case 0:
      return {0, 1};  // decoding
    case 1:
      return {0, 0, 0, 1, 1};  // prefill, then logits of several rows
    case 2:
      return {0, 1, 0, 1, 0, 1};  // further than will be run
    case 3:
      return {1};  // logits again
  }
  std::vector<int> wanted(random.between(0, 6));
  for (int& segment : wanted) segment = random.chance(0.5);
  return wanted;
}

// Many passes with right, wrong, short, long and abandoned plans, resets, failures and cancels.
void test_passes(uint64_t salt, int shape, size_t ring_units, double failures) {
  Random random(salt);
  const size_t largest = 20000;
  std::vector<Blocks> segments = {random_blocks(random, shape == 1 ? 0 : 17, 100, largest),
                                  random_blocks(random, shape == 2 ? 0 : 5, 900000, largest)};
  // Later blocks have up to largest / 2 bytes, and their extents up to a page more at each end.
  const size_t unit = std::max(largest_extent(segments), largest / 2 + 2 * kPage);
  Bench bench(salt, segments, unit * ring_units);
  bench.reader.set_failures(failures);
  for (int pass = 0; pass < 60; ++pass) {
    const std::vector<int> wanted = random_plan(random);
    if (random.chance(0.15))
      CHECK(bench.ring->plan(random_plan(random), kNeverStop));  // abandoned at once
    CHECK(bench.ring->plan(wanted, kNeverStop));
    const size_t n_run = random.chance(0.2) ? random.between(0, wanted.size()) : wanted.size();
    for (size_t i = 0; i < n_run; ++i) {
      const bool cancels = random.chance(0.05);
      std::atomic<int> polls{0};
      const std::function<bool()> poll = [&] { return cancels && polls.fetch_add(1) >= 1; };
      const int n_threads = static_cast<int>(random.between(1, 4));
      const int uses = static_cast<int>(random.between(1, 3));
      if (bench.consume(wanted[i], n_threads, uses, salt * 1000 + pass, poll)) continue;
      CHECK(failures > 0 || cancels);
      bench.ring->reset();
      break;
    }
    if (random.chance(0.1)) bench.ring->reset();
    if (random.chance(0.05)) {  // other tiles are resident now
      bench.segments[0] = random_blocks(random, shape == 1 ? 0 : 11, 50, largest / 2);
      bench.ring->set_segments(bench.segments);
    }
  }
}

// After a wrong guess a sequence number is given again: what was read for the guess must not
// answer.
void test_stale_guess() {
  const std::vector<Blocks> segments = {{{0, 3 * kPage}, {3 * kPage, 3 * kPage}},
                                        {{20 * kPage, kPage}, {21 * kPage, kPage}}};
  for (bool reset : {false, true}) {
    Bench bench(1, segments, 4 * kPage);
    CHECK(bench.ring->plan({1}, kNeverStop));  // blocks 0 and 1 of the head are read
    bench.reader.drain();
    CHECK(bench.ring->plan(
        {0}, kNeverStop));  // now 0 and 1 are the layers' and only the first has memory
    if (reset) {
      bench.ring->reset();
      CHECK(bench.ring->plan({0}, kNeverStop));
    }
    const uint64_t first = bench.ring->begin(0);
    const std::byte* a = bench.ring->wait(first, kNeverStop);
    int polls = 0;
    const auto give_up = [&] { return ++polls > 2; };
    CHECK(bench.ring->wait(first + 1, give_up) == nullptr);
    CHECK(holds_content(a, segments[0][0]));
    bench.ring->release(first);
    CHECK(holds_content(bench.ring->wait(first + 1, kNeverStop), segments[0][1]));
    bench.ring->release(first + 1);
  }
}

// Whatever less direct reads of the file ask for.
void test_blocks_begin_on_pages() {
  const test::TempFile temp(test::test_content(1));
  const File file(temp.path(), /*direct=*/true);
  if (file.alignment() >= kPage)
    std::fprintf(stderr, "SKIPPED: direct reads here are aligned to pages anyway\n");
  const Blocks blocks = {{600, 700}, {5000, 100}, {12345, 5000}, {40000, 8192}};
  FakeReader reader(7);
  const Aligned<> memory = aligned_memory(6 * kPage);
  StreamRing ring(reader, file, memory.get(), 6 * kPage);
  ring.set_segments({blocks, {}});
  CHECK(ring.plan({0}, kNeverStop));
  const uint64_t first = ring.begin(0);
  for (size_t b = 0; b < blocks.size(); ++b) {
    const std::byte* p = ring.wait(first + b, kNeverStop);
    CHECK(holds_content(p, blocks[b]));
    const size_t lead = file.cover(blocks[b].offset, blocks[b].length).lead;
    CHECK_CASE((p - lead - memory.get()) % kPage == 0, "block %zu", b);
    ring.release(first + b);
  }
  ring.reset();
  reader.drain();
}

void test_contract() {
  const std::vector<Blocks> segments = {{{10, 5000}, {9000, 100}}, {{50000, 4000}}};
  Bench bench(2, segments, 5 * kPage);
  StreamRing& ring = *bench.ring;
  CHECK_THROWS(std::invalid_argument, "fit", ring.set_segments({{{1, 5 * kPage}}, {}}));
  CHECK_THROWS(std::invalid_argument, "two", ring.set_segments({{}}));
  CHECK_THROWS(std::logic_error, "planned", ring.begin(0));
  CHECK(ring.plan({0}, kNeverStop));
  CHECK_THROWS(std::logic_error, "planned", ring.begin(1));

  // The guess behind a plan is read ahead and kept where the next plan agrees.
  bench.reader.drain();
  const uint64_t ahead = ring.requests();
  CHECK(ahead >= 3);
  CHECK(ring.plan({0, 1}, kNeverStop));
  CHECK(ring.requests() == ahead);
  CHECK(bench.consume(0, 1, 1, 1) && bench.consume(1, 1, 1, 2));

  // A wait for a read that does not come ends when poll says so, in every waiting thread. Giving up
  // waits for nothing; the next plan does, and can be given up as well.
  ring.reset();
  bench.reader.drain();
  bench.reader.hold(true);
  CHECK(ring.plan({0}, kNeverStop));
  std::atomic<int> polls{0};
  CHECK(!bench.consume(0, 3, 1, 3, [&] { return ++polls > 3; }));
  ring.reset();
  const uint64_t before_hang = ring.requests();
  polls = 0;
  const auto give_up = [&] { return ++polls > 3; };
  CHECK(!ring.plan({0, 1}, give_up) && !ring.drain(give_up));
  CHECK_THROWS(std::logic_error, "planned", ring.begin(0));
  CHECK(ring.requests() == before_hang);  // the memory is the old reads' until they come back
  bench.reader.hold(false);
  CHECK(ring.plan({0, 1}, kNeverStop));
  CHECK(bench.consume(0, 2, 1, 4) && bench.consume(1, 2, 1, 4));

  // An error reaches the waiting thread; after reset() the ring works.
  ring.reset();
  CHECK(ring.drain(kNeverStop));
  bench.reader.set_failures(1.0);
  CHECK(ring.plan({0, 1}, kNeverStop));
  CHECK_THROWS(IoError, "made to fail", ring.wait(ring.begin(0), kNeverStop));
  bench.reader.set_failures(0.0);
  ring.reset();
  CHECK(ring.plan({1, 0}, kNeverStop));
  CHECK(bench.consume(1, 2, 2, 4) && bench.consume(0, 2, 2, 5));

  // What failed while it was a guess is read again once it is planned.
  ring.reset();
  CHECK(ring.drain(kNeverStop));
  bench.reader.set_failures(1.0);
  CHECK(ring.plan({}, kNeverStop));
  bench.reader.drain();
  bench.reader.set_failures(0.0);
  CHECK(ring.plan({0, 1}, kNeverStop));
  CHECK(bench.consume(0, 2, 1, 6) && bench.consume(1, 2, 1, 7));

  // Only what is asked for is counted, in whole pages.
  const uint64_t before = ring.bytes_requested();
  ring.set_segments({{}, {}});
  CHECK(ring.plan({0, 1, 0}, kNeverStop));
  bench.segments = {{}, {}};
  CHECK(bench.consume(0, 2, 1, 6) && bench.consume(1, 2, 1, 7));
  CHECK(ring.bytes_requested() == before);
}

void test_destruction() {  // with reads queued, nothing may be written afterwards
  Random random(3);
  const std::vector<Blocks> segments = {random_blocks(random, 30, 0, 9000), {}};
  for (int i = 0; i < 20; ++i) {
    Bench bench(40 + i, segments, 20 * kPage);
    CHECK(bench.ring->plan({0}, kNeverStop));
  }
}

}  // namespace
}  // namespace edge_rt

int main() {
  using namespace edge_rt;
  test::test_seed();
  test::section("blocks begin on pages", test_blocks_begin_on_pages);
  test::section("contract", test_contract);
  test::section("stale guess", test_stale_guess);
  test::section("destruction", test_destruction);
  uint64_t salt = 100;
  for (double failures : {0.0, 0.01})
    for (int shape = 0; shape < 3; ++shape)  // all blocks, only the head's, only the layers'
      for (size_t units : {1, 2, 3, 25})
        test::section("passes", [&] { test_passes(salt++, shape, units, failures); });
  return test::finish("stream_test");
}
