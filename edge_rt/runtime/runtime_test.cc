// Thread pool, arena, sampler, and a tiny model whose logits are the same bits however it is run.
#include "edge_rt/runtime/runtime.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

#include "tests/native/check.h"
#include "tests/native/sampler_checks.h"
#include "tests/native/tiny_model.h"

namespace edge_rt {
namespace {

using test::kContext;
using test::kVocab;
using test::Random;
using test::Residency;
using test::TempFile;
using test::TinyModel;
using test::TinyRuntime;
using test::TinySetup;

using Clock = std::chrono::steady_clock;

const std::function<bool()> kNeverStop = [] { return false; };

// Plain integers: if steps or the end of run() did not order them, a thread sanitizer would see it.
struct CountingWork final : Work {
  int n, round = 0, n_calls = 0;
  std::vector<int> cell, seen, n_left;
  explicit CountingWork(int units) : n(units), cell(units), seen(units), n_left(units) {}
  int n_steps() const override { return round % 5; }
  Units units(int) const override { return {n / 2, n - n / 2}; }
  bool is_ready(int, int unit) const override { return unit % 2 != 0; }
  void run_unit(int step, int unit, int thread) override {
    if (step % 2 == 0) {
      cell[unit] = round * 10 + step;
    } else {
      for (int other = 0; other < n; ++other) seen[unit] += cell[other] == round * 10 + step - 1;
    }
    if (thread == 1 && round % 50 == 0) usleep(1000);  // the others sleep meanwhile
  }
  void leave_step(int thread) override { ++n_left[thread]; }
  void meanwhile() override { ++n_calls; }
};

void test_thread_pool() {
  for (int n = 1; n <= 4; ++n) {
    ThreadPool pool(n);
    CHECK(pool.size() == n);
    CountingWork work(2 * n + 1);
    for (work.round = 0; work.round < 400; ++work.round) {
      pool.run(work);
      if (work.round % 100 == 0) usleep(2000);  // the team goes to sleep
    }
    for (int i = 0; i < work.n; ++i) CHECK(work.seen[i] == 80 * (1 + 1 + 2) * work.n);
    CHECK(n > 1 || work.n_calls == 0);
  }
  for (int i = 0; i < 100; ++i) ThreadPool unused(1 + i % 4);
  // One step right behind the other: who is late at one must not be lost at the next.
  struct Empty final : Work {
    int n_steps() const override { return 2000; }
    Units units(int step) const override { return {0, 1 + step % 3}; }
    bool is_ready(int, int) const override { return true; }
    void run_unit(int, int, int) override {}
    void leave_step(int) override {}
    void meanwhile() override {}
  } empty;
  ThreadPool pair(2);
  for (const auto end = Clock::now() + std::chrono::seconds(1); Clock::now() < end;)
    pair.run(empty);
}

size_t pages_held(const std::byte* p, size_t bytes) {
  std::vector<unsigned char> held(bytes / 4096 + 1);
  CHECK(mincore(const_cast<std::byte*>(p), bytes, held.data()) == 0);
  return std::count_if(held.begin(), held.end(), [](unsigned char c) { return c & 1; });
}

void test_arena() {
  Random random(1);
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (int round = 0; round < 120; ++round) {
    Arena arena(random.between(1, 20 * page), random.between(0, 1) * random.between(0, 30 * page));
    if (round == 0) CHECK(Arena(100).size() == page);
    const size_t bytes = random.between(1, 40 * page);
    const size_t kept = random.between(0, std::min(bytes, arena.size()));
    std::memset(arena.data(), 0xab, arena.size());
    for (size_t i = 0; i < kept; ++i) arena.data()[i] = static_cast<std::byte>(test::byte_at(i));
    arena.resize(bytes, kept);
    CHECK(arena.size() >= bytes && arena.size() < bytes + page);
    CHECK(reinterpret_cast<uintptr_t>(arena.data()) % page == 0);
    if (page == 4096) CHECK(pages_held(arena.data(), arena.size()) <= (kept + page - 1) / page);
    bool same = true, zero = true;
    for (size_t i = 0; i < arena.size(); ++i) {
      const bool inside = i < kept;
      (inside ? same : zero) &=
          arena.data()[i] == static_cast<std::byte>(inside ? test::byte_at(i) : 0);
    }
    CHECK_CASE(same && zero, "%zu bytes, %zu kept: kept part %d, rest zero %d", bytes, kept, same,
               zero);
  }
}

void test_sparse_arena() {
  const size_t huge = 2u << 20, sparse = 8 * huge + 12345, bytes = 16 * huge;
  Arena arena(bytes, sparse);
  for (const size_t size : {bytes, bytes + huge, 12 * huge}) {
    arena.resize(size, 0);
    for (size_t at = 0; at < sparse; at += huge / 2) arena.data()[at] = std::byte{1};
    CHECK(pages_held(arena.data(), sparse) == (sparse + huge / 2 - 1) / (huge / 2));
  }
}

std::vector<int32_t> random_tokens(Random& random, int n) {
  std::vector<int32_t> tokens(n);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random.between(0, kVocab - 1));
  return tokens;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void test_same_bits(int format) {
  Random random(10 + format);
  const TinyModel model(20 + format, format);
  const TempFile file(model.content);
  const std::vector<int32_t> tokens = random_tokens(random, 37);  // more than one attention tile
  const int n_prompt = 34;
  std::vector<float> truth[3];  // by KV format
  for (int kv_format : {kKvF16, kKvF32, kKvQ8_0}) {
    TinySetup plain;
    plain.residency = Residency::kAll;
    plain.chunk = 1;
    plain.kv_format = kv_format;
    TinyRuntime base(model, file.path(), plain);
    CHECK(base.load());
    truth[kv_format] = base.logits(tokens, n_prompt);
    CHECK(truth[kv_format].size() == tokens.size() * kVocab);
    CHECK(base.runtime().stats().block_misses == 0 && base.runtime().stats().block_hits > 0);
  }
  CHECK(!same_bits(truth[0], truth[1]) && !same_bits(truth[0], truth[2]));
  if (format == kF32) {
    const std::vector<double> expected = test::tiny_logits(model, tokens);
    for (size_t i = 0; i < expected.size(); ++i)
      CHECK_CASE(std::fabs(truth[kKvF32][i] - expected[i]) < 1e-3, "logit %zu: %g, not %g", i,
                 truth[kKvF32][i], expected[i]);
  }
  const auto check = [&](TinySetup setup) {
    setup.ring_units = static_cast<int>(random.between(1, 5));
    setup.kv_format = static_cast<int>(random.between(0, 2));
    setup.direct = random.chance(0.8);
    setup.salt = random.bits();
    TinyRuntime tiny(model, file.path(), setup);
    CHECK(tiny.load());
    const int n_repeats = 1 + random.chance(0.3);
    for (int repeat = 0; repeat < n_repeats; ++repeat)
      CHECK_CASE(same_bits(tiny.logits(tokens, n_prompt), truth[setup.kv_format]),
                 "%s format %d residency %d threads %d chunk %d KV %d", setup.kernels->name, format,
                 static_cast<int>(setup.residency), setup.n_threads, setup.chunk, setup.kv_format);
    const Stats stats = tiny.runtime().stats();
    CHECK((stats.block_misses == 0) == (setup.residency == Residency::kAll));
    CHECK((stats.block_hits == 0) == (setup.residency == Residency::kNone));
    CHECK(stats.tokens == n_repeats * tokens.size() && stats.flash_bytes > 0);
  };
  for (const char* isa : kKernelNames) {
    if (kernels_named(isa) == nullptr) continue;
    for (Residency residency : {Residency::kAll, Residency::kNone, Residency::kAlternating})
      for (int n_threads : {1, 2, 3})
        for (int chunk : {1, 4}) {
          TinySetup setup;
          setup.kernels = kernels_named(isa);
          setup.residency = residency;
          setup.n_threads = n_threads;
          setup.chunk = chunk;
          check(setup);
        }
  }
}

void test_cancel() {
  const TinyModel model(30, kF32);
  const TempFile file(model.content);
  Random random(31);
  const std::vector<int32_t> tokens = random_tokens(random, 8);
  TinySetup setup;
  setup.n_threads = 2;
  setup.residency = Residency::kAlternating;
  const std::vector<float> truth = [&] {
    TinyRuntime plain(model, file.path(), setup);
    CHECK(plain.load());
    return plain.logits(tokens, 8);
  }();
  setup.n_slow = 5000;
  TinyRuntime tiny(model, file.path(), setup);
  CHECK(tiny.load());
  Runtime& runtime = tiny.runtime();
  for (int round = 0; round < 3; ++round) {
    CHECK(runtime.plan({0, 1}, kNeverStop));
    const uint64_t passes = runtime.stats().passes;
    int polls = 0;
    CHECK(!runtime.run(tokens.data(), 4, 0, true, [&] { return ++polls >= 1; }));
    CHECK(polls >= 1 && runtime.stats().passes == passes);
  }
  CHECK(same_bits(tiny.logits(tokens, 8), truth));
}

void test_errors() {
  const TinyModel model(40, kQ4_0);
  TempFile file(model.content);
  Random random(41);
  const std::vector<int32_t> tokens = random_tokens(random, 12);
  for (int n_threads : {1, 3}) {
    for (bool direct : {true, false}) {
      TinySetup setup;
      setup.n_threads = n_threads;
      setup.direct = direct;
      setup.ring_units = 2;
      TinyRuntime tiny(model, file.path(), setup), doomed(model, file.path(), setup);
      Runtime& runtime = tiny.runtime();
      const auto faults = std::make_shared<Faults>();
      tiny.file().inject(faults);
      CHECK(tiny.load());
      const std::vector<float> truth = tiny.logits(tokens, 12);

      int32_t foreign[2] = {0, kVocab};
      CHECK_THROWS(std::invalid_argument, "vocabulary",
                   runtime.run(foreign, 2, 0, true, kNeverStop));
      foreign[1] = -1;
      CHECK_THROWS(std::invalid_argument, "vocabulary",
                   runtime.run(foreign, 2, 0, true, kNeverStop));
      for (int position : {kContext - 3, kContext, -1, INT_MAX - 2, INT_MAX})
        CHECK_THROWS(std::invalid_argument, "context",
                     runtime.run(tokens.data(), 4, position, true, kNeverStop));
      for (int n : {0, -1, 5})
        CHECK_THROWS(std::invalid_argument, "context",
                     runtime.run(tokens.data(), n, 0, true, kNeverStop));
      for (int first : {-1, 3, 4, INT_MAX})
        CHECK_THROWS(std::invalid_argument, "rows", runtime.run_head(first, 2, kNeverStop));
      CHECK(same_bits(tiny.logits(tokens, 12), truth));

      // A drive that fails for a while: what was read ahead may have failed, so the first pass
      // after it may, too; then all is as before.
      for (const auto& kind : {Faults::Kind::kError, Faults::Kind::kEnd}) {
        faults->add({kind, EIO, ""});
        for (int i = 0; i < 3; ++i)
          CHECK_THROWS(IoError, "reading", {
            CHECK(runtime.plan({0, 1, 0, 1}, kNeverStop));
            runtime.run(tokens.data(), 4, 0, true, kNeverStop);
            runtime.run(tokens.data(), 4, 0, true, kNeverStop);
          });
        faults->clear();
        try {
          CHECK(runtime.plan({0, 1}, kNeverStop));
          runtime.run(tokens.data(), 1, 0, true, kNeverStop);
        } catch (const IoError&) {
        }
        CHECK(same_bits(tiny.logits(tokens, 12), truth));
      }

      // The embedding is still there, the layers are not; then the embedding is gone as well.
      for (size_t left : {model.weights.at("0q").offset + 100, model.embedding_offset}) {
        file.truncate(left);
        for (TinyRuntime* each : {&tiny, &doomed}) {
          for (int i = 0; i < 2; ++i) {
            // Even if all of it was read ahead before the file shrank.
            CHECK_THROWS(IoError, "shorter", {
              CHECK(each->runtime().plan({0, 1}, kNeverStop));
              each->runtime().run(tokens.data(), 4, 0, true, kNeverStop);
            });
          }
        }
      }
      // Written anew it is another file, whatever it holds.
      file.write(model.content);
      for (int i = 0; i < 2; ++i) {
        try {
          CHECK(runtime.plan({0, 1}, kNeverStop));
          runtime.run(tokens.data(), 1, 0, true, kNeverStop);
          CHECK(false && "a file that changed is used");
        } catch (const IoError& problem) {
          if (i == 1) CHECK(problem.error() == ESTALE);  // the first may be of a read ahead
        }
      }
    }
  }
}

void test_descriptions() {
  const TinyModel model(60, kQ4_0);
  const TempFile file(model.content);
  const auto build = [&](const TinySetup& setup) { TinyRuntime tiny(model, file.path(), setup); };
  TinySetup setup;
  for (int rows : {32, kContext - 1, 31, 16}) {
    setup.ring_rows = rows;
    setup.chunk = test::kRing - test::kWindow + 1;  // the longest that the ring of 32 can hold
    if (rows == 32) {
      build(setup);
      setup.chunk += 1;
    }
    CHECK_THROWS(std::invalid_argument, "forgets", build(setup));
  }
  setup = TinySetup();
  setup.unpacked = true;
  CHECK_THROWS(std::invalid_argument, "wrong buffer", build(setup));
  setup = TinySetup();
  Kernels lacking = *kernels_ref();
  lacking.matmul = [](int format) -> MatmulKernel {
    return format == kQ4_0 ? nullptr : kernels_ref()->matmul(format);
  };
  setup.kernels = &lacking;
  CHECK_THROWS(std::invalid_argument, "no matmul", build(setup));
  TinyRuntime tiny(model, file.path(), TinySetup());
  for (int row : {-1, TinySetup().chunk, INT_MAX})
    CHECK_THROWS(std::invalid_argument, "row", tiny.runtime().logits(row));
}

// Every op is in one step, and what a traced pass did is there, or counted as lost.
void test_trace() {
  const TinyModel model(80, kQ4_0);
  const TempFile file(model.content);
  uint64_t weight_bytes = 0;
  for (const auto& [name, w] : model.weights)
    weight_bytes += static_cast<uint64_t>(w.n_rows) * row_bytes(kQ4_0, w.n_cols);
  const std::vector<int32_t> tokens = {5, 9, 3, 70, 8};
  for (int n_threads : {1, 3}) {
    TinySetup setup;
    setup.n_threads = n_threads;
    setup.residency = Residency::kAlternating;
    setup.trace_bytes = 1 << 17;
    TinyRuntime tiny(model, file.path(), setup), silent(model, file.path(), [&] {
      TinySetup same = setup;
      same.trace_bytes = 0;
      return same;
    }());
    CHECK(tiny.load() && silent.load());
    Runtime& runtime = tiny.runtime();
    size_t n_steps = 0;
    for (int segment : {0, 1}) {
      std::vector<int> ops;
      for (const std::vector<int>& step : runtime.steps(segment))
        ops.insert(ops.end(), step.begin(), step.end());
      n_steps += runtime.steps(segment).size();
      std::sort(ops.begin(), ops.end());
      for (size_t i = 0; i < ops.size(); ++i) CHECK(ops[i] == static_cast<int>(i));
      CHECK(ops.size() > runtime.steps(segment).size());
    }
    CHECK(runtime.take_trace().empty());
    CHECK(same_bits(tiny.logits(tokens, 0), silent.logits(tokens, 0)));
    CHECK(silent.runtime().take_trace().empty());
    const std::vector<TraceEvent> events = runtime.take_trace();
    CHECK(runtime.n_trace_lost() == 0 && runtime.take_trace().empty());
    uint64_t flash = 0, resident = 0;
    size_t n_passes = 0;
    for (const TraceEvent& e : events) {
      CHECK(e.start <= e.end && e.stall <= e.end - e.start && e.n_units > 0);
      CHECK(e.thread < n_threads);
      n_passes += e.step == TraceEvent::kPass;
      flash += e.flash_bytes;
      resident += e.resident_bytes;
    }
    CHECK(n_passes == tokens.size());
    CHECK(flash > 0 && resident > 0 && flash + resident == tokens.size() * weight_bytes);
    if (n_threads > 1) continue;
    const size_t n_events = events.size();
    CHECK(n_events >= tokens.size() * (n_steps + 2));
    setup.trace_bytes = 7 * sizeof(TraceEvent) + 5;
    TinyRuntime cramped(model, file.path(), setup);
    CHECK(cramped.load());
    CHECK(same_bits(cramped.logits(tokens, 0), silent.logits(tokens, 0)));
    CHECK(cramped.runtime().take_trace().size() == 7);
    CHECK(cramped.runtime().n_trace_lost() >= tokens.size() * (n_steps + 2) - 7);
  }
}

void test_load() {
  const TinyModel model(50, kF32);
  TempFile file(model.content);
  TinySetup setup;
  setup.residency = Residency::kAll;
  for (int i = 0; i < 10; ++i) {  // what progress does must not leave a read behind
    TinyRuntime tiny(model, file.path(), setup);
    bool asked = false;
    const bool loaded = tiny.load([&](uint64_t done, uint64_t total) {
      CHECK(done <= total);
      return asked = true;
    });
    CHECK(loaded == !asked);
    try {
      asked = false;
      tiny.load([&](uint64_t, uint64_t) -> bool {
        CHECK(!asked);  // it is not called again
        asked = true;
        throw std::runtime_error("interrupted");
      });
      CHECK(!asked);
    } catch (const std::runtime_error& problem) {
      CHECK(asked && std::string(problem.what()) == "interrupted");
    }
    CHECK(tiny.load());
  }
  TinyRuntime tiny(model, file.path(), setup);
  file.truncate(model.weights.at("1q").offset);
  CHECK_THROWS(IoError, "shorter", tiny.load());
}

}  // namespace
}  // namespace edge_rt

int main() {
  using namespace edge_rt;
  test::test_seed();
  test::section("thread pool", test_thread_pool);
  test::section("arena", test_arena);
  test::section("sparse arena", test_sparse_arena);
  test::section("sampler", test::test_sampler);
  test::section("same bits, F32", [] { test_same_bits(kF32); });
  test::section("same bits, Q4_0", [] { test_same_bits(kQ4_0); });
  test::section("cancel", test_cancel);
  test::section("errors", test_errors);
  test::section("descriptions", test_descriptions);
  test::section("trace", test_trace);
  test::section("load", test_load);
  return test::finish("runtime_test");
}
