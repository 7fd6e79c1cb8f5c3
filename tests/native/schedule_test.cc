// Ring, pool, both readers and Runtime under thousands of schedules (tests/native/schedule.h), and
// the same with a defect put in, which must be found.
//
// schedule_test [SCENARIO SEED] runs everything, or one schedule again.
#include <sys/wait.h>
#include <unistd.h>

#include <cinttypes>
#include <memory>
#include <optional>
#include <string>

#include "flash_io/uring.h"
#include "loaders/stream.h"
#include "tests/native/check.h"
#include "tests/native/scheduled_reader.h"
#include "tests/native/temp_file.h"
#include "tests/native/tiny_model.h"

namespace edge_rt {
namespace {

using sync::chance;
using sync::choose;
using test::Aligned;
using test::aligned_memory;
using test::ScheduledDrive;
using test::ScheduledReader;
using test::TempFile;
using test::TinyModel;
using test::TinyRuntime;
using test::TinySetup;

constexpr size_t kPage = 4096;
const std::function<bool()> kNeverStop = [] { return false; };

int between(int low, int high) { return low + static_cast<int>(choose(high - low + 1)); }

// What runs once in a while, at the k-th call: any place where somebody waits will be it.
struct Counted {
  int left;
  bool met = false;
  bool operator()() {
    if (left-- > 0) return false;
    return met = true;
  }
};

// --- the team of threads --------------------------------------------------------------------

// Some steps need every thread: each of their units waits until all have begun. A thread that
// sleeps where it should have been woken then stops everything.
struct SomeWork final : Work {
  struct Step {
    Units units;
    bool needs_all = false;
    int begun = 0, ended = 0;
    std::vector<int> n_runs{};  // by unit
  };
  std::vector<Step> steps;
  sync::Mutex mutex;
  sync::CondVar changed;
  std::vector<int> ran;      // by thread: the step that it has to leave, or -1
  std::vector<int> touched;  // by step: plain integers, ordered by the pool alone

  explicit SomeWork(int n_threads) {
    for (int n = between(1, 5); n > 0; --n) {
      Step step;
      step.needs_all = chance(0.3);
      step.units.waiting = between(0, 2);
      step.units.free = between(0, 3);
      if (step.needs_all) step.units = {0, n_threads};
      if (step.units.total() == 0) step.units.free = 1;
      step.n_runs.resize(step.units.total());
      steps.push_back(step);
    }
    touched.resize(steps.size());
    ran.assign(n_threads, -1);
  }
  int n_steps() const override { return static_cast<int>(steps.size()); }
  Units units(int step) const override { return steps[step].units; }
  bool is_ready(int, int) const override { return chance(0.5); }
  void run_unit(int index, int unit, int thread) override {
    Step& step = steps[index];
    CHECK(ran[thread] == -1 || ran[thread] == index);
    ran[thread] = index;
    if (index > 0) CHECK(touched[index - 1] == steps[index - 1].units.total());
    sync::Lock lock(mutex);
    CHECK(step.n_runs[unit]++ == 0);
    ++step.begun;
    changed.notify_all();
    if (step.needs_all) changed.wait(lock, [&] { return step.begun == step.units.total(); });
    lock.unlock();
    if (chance(0.2)) sync::step();
    lock.lock();
    ++step.ended;
    ++touched[index];
  }
  void leave_step(int thread) override { CHECK(ran[thread] >= 0), ran[thread] = -1; }
  void meanwhile() override {
    for (const Step& step : steps) CHECK(step.begun <= step.units.total());
  }
};

void scenario_pool() {
  const int n = between(1, 4);
  if (chance(0.1)) sync::limit_threads(between(0, 3));
  std::unique_ptr<ThreadPool> pool;
  try {
    pool = std::make_unique<ThreadPool>(n);
  } catch (const std::system_error&) {
    return;  // those that had started have ended
  }
  sync::limit_threads(-1);
  for (int round = between(0, 3); round > 0; --round) {
    SomeWork work(n);
    pool->run(work);
    for (const SomeWork::Step& step : work.steps) CHECK(step.ended == step.units.total());
    for (const int step : work.ran) CHECK(step == -1);
    if (chance(0.2)) sync::step();
  }
}

// --- the ring -------------------------------------------------------------------------------

const File& any_file() {
  static const TempFile temp(test::test_content(1));
  static const File file(temp.path(), /*direct=*/false);
  return file;
}
const std::vector<uint8_t>& content() {
  static const std::vector<uint8_t> bytes = test::test_content(64 * kPage);
  return bytes;
}

using Blocks = std::vector<StreamBlock>;

struct RingBench {
  std::vector<Blocks> segments{2};
  size_t bytes = 0;
  Aligned<> memory;
  ScheduledDrive drive{content()};
  std::unique_ptr<ScheduledReader> reader;
  std::unique_ptr<StreamRing> ring;

  RingBench() {
    size_t largest = kPage;
    uint64_t at = choose(kPage);
    for (Blocks& blocks : segments) {
      for (int n = between(0, 5); n > 0; --n) {
        const size_t length = 1 + choose(3 * kPage);
        blocks.push_back({at, length});
        largest = std::max(largest, any_file().cover(at, length).length);
        at += length + choose(100);
      }
    }
    bytes = largest * between(1, 4);
    memory = aligned_memory(bytes);
    reader = std::make_unique<ScheduledReader>(drive, between(1, 3));
    ring = std::make_unique<StreamRing>(*reader, any_file(), memory.get(), bytes);
    ring->set_segments(segments);
  }
  ~RingBench() {
    ring.reset();  // with whatever is in flight
    reader.reset();
  }

  bool holds_content(const std::byte* p, const StreamBlock& block) const {
    return std::memcmp(p, content().data() + block.offset, block.length) == 0;
  }

  // As the compute threads do: blocks in order, each by one or two threads, released by the last.
  bool consume(int segment, int n_threads, Counted* poll) {
    const Blocks& blocks = segments[segment];
    const uint64_t first = ring->begin(segment);
    const int uses = between(1, 2);
    sync::Atomic<int> next{0};
    sync::Atomic<bool> stop{false};
    std::vector<int> left(blocks.size(), uses), held(blocks.size(), 0);
    const auto work = [&] {
      const std::function<bool()> give_up = [&] { return stop.load() || (*poll)(); };
      for (int u; (u = next.fetch_add(1)) < static_cast<int>(blocks.size()) * uses;) {
        if (stop.load()) return;
        const size_t b = u / uses;
        const std::byte* p = nullptr;
        try {
          p = ring->wait(first + b, give_up);
        } catch (const IoError& problem) {
          CHECK(problem.error() == EIO);
        }
        if (p == nullptr) return stop.store(true);
        if (held[b]++ == 0) reader->claim(p, blocks[b].length);
        CHECK(holds_content(p, blocks[b]));
        sync::step();
        CHECK(holds_content(p, blocks[b]));
        if (--left[b] == 0) {
          reader->give_back(p);
          held[b] = 0;
          ring->release(first + b);
        }
      }
    };
    std::vector<sync::Thread> threads;
    for (int i = 1; i < n_threads; ++i) threads.emplace_back(0, work);
    work();
    for (sync::Thread& thread : threads) thread.join();
    if (!stop.load()) return true;
    for (size_t b = 0; b < blocks.size(); ++b)  // given up: nobody uses them any more
      if (held[b] > 0) reader->give_back(ring->wait(first + b, kNeverStop));
    return false;
  }
};

std::vector<int> some_plan() {
  const std::vector<std::vector<int>> usual = {{0, 1}, {0, 0, 1}, {0, 1, 0, 1}, {1}};
  const size_t i = choose(usual.size() + 1);
  if (i < usual.size()) return usual[i];
  std::vector<int> wanted(choose(4));
  for (int& segment : wanted) segment = static_cast<int>(choose(2));
  return wanted;
}

void scenario_ring() {
  RingBench bench;
  StreamRing& ring = *bench.ring;
  for (int pass = between(0, 4); pass > 0; --pass) {
    if (chance(0.2)) bench.drive.fail_next(between(0, 5), between(1, 3));
    const bool hangs = chance(0.1);
    if (hangs) bench.drive.hold(true);
    Counted poll{hangs || chance(0.2) ? between(0, 3) : 1 << 30};
    const std::vector<int> wanted = some_plan();
    if (chance(0.2) && !hangs) CHECK(ring.plan(some_plan(), kNeverStop));  // abandoned at once
    bool going = ring.plan(wanted, std::ref(poll));
    CHECK(going || poll.met);
    const size_t n_run = chance(0.3) ? choose(wanted.size() + 1) : wanted.size();
    for (size_t i = 0; going && i < n_run; ++i) {
      going = bench.consume(wanted[i], between(1, 3), &poll);
      if (!going) ring.reset();
    }
    bench.drive.fail_next(0, 0);
    if (hangs && chance(0.5)) {  // the next plan is what waits for it
      Counted soon{2};
      if (!going && !ring.plan({0}, std::ref(soon))) CHECK(soon.met);
    }
    if (hangs) bench.drive.hold(false);
    if (chance(0.1)) ring.reset();
    if (chance(0.1)) {
      ring.reset();
      CHECK(ring.drain(kNeverStop));
    }
  }
  if (chance(0.5)) {  // whatever was before: now it works
    ring.reset();
    Counted never{1 << 30};
    CHECK(ring.plan({0, 1}, kNeverStop));
    CHECK(bench.consume(0, between(1, 3), &never) && bench.consume(1, 1, &never));
  } else if (chance(0.3)) {  // it ends while nothing is answered
    bench.drive.hold(true);
    ring.plan({0, 1}, [] { return true; });
    sync::Thread answers(0, [&, wait = between(0, 30)] {
      for (int i = 0; i < wait; ++i) sync::step();
      bench.drive.hold(false);
    });
    bench.ring.reset();
    answers.join();
  }
}

// After a wrong guess the same numbers are given to other blocks.
void scenario_guess() {
  RingBench bench;
  Counted never{1 << 30};
  for (int i = 0; i < 3; ++i) {
    CHECK(bench.ring->plan({1}, kNeverStop));
    if (chance(0.5)) sync::step();
    CHECK(bench.ring->plan({0}, kNeverStop));
    CHECK(bench.consume(0, between(1, 3), &never));
  }
}

// --- what reads files ---------------------------------------------------------------------------

// `make` throws IoError or gives nullptr where no thread can be started; `breaks`: then any read
// may fail.
void use_reader(const std::function<std::unique_ptr<Reader>(const File&)>& make, bool breaks) {
  static const TempFile temp(content());
  static const File file(temp.path(), /*direct=*/false);
  struct Read {
    AlignedExtent extent;
    Aligned<> memory;
    int done = 0;
  };
  std::vector<Read> reads(choose(8));
  int left = 0;
  const bool fails = chance(0.2);
  if (chance(0.1)) sync::limit_threads(between(0, 2));
  std::unique_ptr<Reader> reader;
  try {
    reader = make(file);
  } catch (const IoError&) {
    return;
  }
  if (reader == nullptr) return;
  sync::limit_threads(-1);
  struct State {
    std::vector<Read>* reads;
    int* left;
    bool breaks;
  } state = {&reads, &left, breaks};
  const auto submit = [&](size_t i) {
    Read& read = reads[i];
    const bool beyond = fails && i == 0;
    const uint64_t at = beyond ? content().size() : choose(content().size());
    const uint64_t most = std::min<uint64_t>(3 * kPage, content().size() - at);
    read.extent = file.cover(at, beyond ? 1 : 1 + choose(most));
    read.memory = aligned_memory(read.extent.length);
    ++left;
    reader->submit({read.extent.offset, read.extent.length, read.extent.lead + 1, read.memory.get(),
                    [](void* context, uint64_t tag, int error, const char* reason) {
                      auto* s = static_cast<State*>(context);
                      Read& mine = (*s->reads)[tag];
                      ++mine.done;
                      --*s->left;
                      CHECK((error != 0) == (mine.extent.offset >= content().size()) ||
                            (s->breaks && error == EBADF));
                      CHECK((error != 0) == (*reason != 0));
                      if (error != 0) return;
                      CHECK(std::memcmp(mine.memory.get(), content().data() + mine.extent.offset,
                                        mine.extent.lead + 1) == 0);
                    },
                    &state, i},
                   chance(0.5));
  };
  const size_t half = reads.size() / 2;
  {
    std::optional<sync::Thread> other;
    if (chance(0.5))
      other.emplace(0, [&] {
        for (size_t i = half; i < reads.size(); ++i) submit(i);
      });
    for (size_t i = 0; i < half; ++i) submit(i);
    if (other)
      other->join();
    else
      for (size_t i = half; i < reads.size(); ++i) submit(i);
  }
  if (chance(0.5)) {
    reader->drain();
    CHECK(left == 0);
  }
  reader.reset();  // what was queued is still read
  CHECK(left == 0);
  for (const Read& read : reads) CHECK(read.done == 1);
}

void scenario_pread() {
  use_reader([](const File& file) { return make_pread_reader(file, between(1, 4)); }, false);
}

void scenario_uring() {
  const bool breaks = chance(0.1);
  Uring::reads_until_broken = breaks ? between(0, 6) : -1;
  Uring::setup_error = chance(0.02) ? ENOMEM : 0;
  const auto make = [](const File& file) {
    std::string why;
    auto reader = make_uring_reader(file, between(1, 3), nullptr, 0, &why);
    CHECK((reader == nullptr) == !why.empty());
    return reader;
  };
  use_reader(make, breaks);
}

// --- the Runtime ------------------------------------------------------------------------------

const TinyModel& model() {
  static const TinyModel tiny(70, kQ4_0);
  return tiny;
}
const std::string& model_path() {
  static const TempFile temp(model().content);
  return temp.path();
}

ScheduledDrive* drive = nullptr;  // of the Runtime that is made next
const std::vector<int32_t> kTokens = {3, 77, 150, 8, 9, 31};
std::vector<float> truth;

TinySetup some_setup() {
  TinySetup setup;
  setup.n_threads = between(1, 3);
  setup.chunk = between(1, 2);
  setup.ring_units = between(1, 3);
  setup.residency = choose(2) ? test::Residency::kNone : test::Residency::kAlternating;
  setup.direct = false;
  setup.salt = choose(4);
  return setup;
}

// All logits: the right bits, unless something of what may happen did. Says whether they came.
bool all_logits(TinyRuntime& tiny, int chunk, const std::function<bool()>& poll) {
  Runtime& runtime = tiny.runtime();
  const int n = static_cast<int>(kTokens.size());
  for (int at = 0; at < n; at += chunk) {
    const int rows = std::min(chunk, n - at);
    const bool last_only = rows == 1 || chance(0.5);
    if (!runtime.plan({0, 1}, poll)) return false;
    if (!runtime.run(kTokens.data() + at, rows, at, last_only, poll)) return false;
    if (!last_only && !runtime.run_head(0, rows, poll)) return false;
    const int first = last_only ? rows - 1 : 0;
    CHECK(std::memcmp(runtime.logits(0), truth.data() + (at + first) * test::kVocab,
                      (rows - first) * test::kVocab * sizeof(float)) == 0);
  }
  return true;
}

void scenario_runtime() {
  const TinySetup setup = some_setup();
  ScheduledDrive here{model().content};
  drive = &here;
  TinyRuntime tiny(model(), model_path(), setup);
  Runtime& runtime = tiny.runtime();
  bool closing = false;
  std::vector<sync::Thread> closers;
  for (int n = chance(0.3) ? between(1, 2) : 0; n > 0; --n) {
    closers.emplace_back(0, [&, patience = between(0, 3), wait = between(0, 400)] {
      for (int i = 0; i < wait; ++i) sync::step();
      closing = true;
      if (chance(0.2)) return runtime.cancel();
      Counted poll{patience};
      if (!runtime.close(std::ref(poll))) CHECK(poll.met);
    });
  }
  for (int attempt = 0; attempt < 3; ++attempt) {
    const bool fails = chance(0.3), throws = chance(0.1);
    if (fails) drive->fail_next(between(0, 40), between(1, 3));
    const bool holds = chance(0.15), holds_later = !holds && chance(0.2);
    if (holds) drive->hold(true);
    if (holds_later) drive->hold_after(between(0, 60));
    const bool hangs = here.held, stops = hangs || holds_later || chance(0.4);
    Counted poll{stops || throws ? between(0, 12) : 1 << 30};
    bool ended = false;
    try {
      const auto progress = [&](uint64_t done, uint64_t total) {
        CHECK(done <= total);
        const bool now = poll();
        if (now && throws) throw std::runtime_error("by progress");
        return now;
      };
      ended = tiny.load(progress) && all_logits(tiny, setup.chunk, std::ref(poll));
      CHECK(ended || poll.met);
      CHECK(!ended || !hangs);
    } catch (const IoError& problem) {
      CHECK(fails || attempt > 0);  // or what was read ahead when it failed
    } catch (const UseError& problem) {
      CHECK(closing && std::strstr(problem.what(), "closed") != nullptr);
    } catch (const std::runtime_error& problem) {
      CHECK(throws && poll.met);
    }
    drive->fail_next(0, 0);
    if (!closing && chance(0.1)) {  // a callback may close
      try {
        bool asked = false;
        const bool done = tiny.load([&](uint64_t, uint64_t) {
          asked = closing = true;
          CHECK(runtime.close(kNeverStop));
          return false;
        });
        CHECK(done && !asked);
      } catch (const UseError&) {
        CHECK(closing);
      } catch (const IoError&) {
      }
    }
    drive->hold_after(-1);
    if (chance(0.7)) drive->hold(false);
  }
  if (!closing) {
    drive->hold(false);
    try {
      CHECK(tiny.load([](uint64_t, uint64_t) { return false; }));
      for (int i = 0; i < 2; ++i) {  // the first may meet what failed before
        try {
          CHECK(all_logits(tiny, setup.chunk, kNeverStop));
        } catch (const IoError&) {
          CHECK(i == 0);
        }
      }
    } catch (const UseError&) {
      CHECK(closing);
    }
  }
  drive->hold(false);
  for (sync::Thread& closer : closers) closer.join();
}

// --- all of it ----------------------------------------------------------------------------------

struct Scenario {
  const char* name;
  void (*body)();
  int n_schedules;
};

constexpr Scenario kScenarios[] = {
    {"pool", scenario_pool, 8000},   {"ring", scenario_ring, 8000},
    {"guess", scenario_guess, 2000}, {"pread", scenario_pread, 4000},
    {"uring", scenario_uring, 4000}, {"runtime", scenario_runtime, 1500}};

// Defects that the scenario of the same place must find.
struct Planted {
  const char* scenario;
  sync::Mutant mutant;
};
using sync::Operation;
constexpr Planted kPlanted[] = {
    {"pool", {"rounds are begun silently", "thread_pool.cc", "::run(", Operation::kNotify}},
    {"pool", {"the end of a step is silent", "thread_pool.cc", "::end_step(", Operation::kNotify}},
    {"pool", {"sleepers are not known", "thread_pool.cc", "::attend(", Operation::kStore}},
    {"pool", {"the last to leave is silent", "thread_pool.cc", "::attend(", Operation::kNotify}},
    {"pool", {"a look, then a wait", "thread_pool.cc", "::attend(", Operation::kWait}},
    {"pool", {"work ends too early", "thread_pool.cc", "::run(", Operation::kWait}},
    {"pool", {"units are taken twice", "thread_pool.cc", "::take_units(", Operation::kChange}},
    {"pool", {"the end is told nobody", "thread_pool.cc", "::stop(", Operation::kNotify}},
    {"ring", {"arrivals are told nobody", "stream.cc", "::on_done(", Operation::kNotify}},
    {"ring", {"arrivals without the lock", "stream.cc", "::on_done(", Operation::kLock}},
    {"guess", {"a wrong guess stays ready", "stream.cc", "::plan(", Operation::kStore}},
    {"pread", {"reads are queued silently", "reader_pread.cc", "::submit(", Operation::kNotify}},
    {"pread", {"a look, then a wait", "reader_pread.cc", "::work(", Operation::kWait}},
    {"uring", {"the ring is not woken", "scheduled_uring.h", "::wake(", Operation::kNotify}},
    {"uring", {"the start is told nobody", "reader_uring.cc", "::work(", Operation::kNotify}},
    {"uring", {"the last is told nobody", "reader_uring.cc", "::step(", Operation::kNotify}},
    {"uring", {"nobody is woken without a ring", "reader_uring.cc", "::wake(", Operation::kNotify}},
    {"runtime", {"tiles are never done with", "execute.cc", "::run_chunk(", Operation::kChange}},
    {"runtime", {"a pass does not stop", "execute.cc", "::should_stop(", Operation::kStore}},
};

const Scenario& scenario_named(const std::string& name) {
  for (const Scenario& scenario : kScenarios)
    if (name == scenario.name) return scenario;
  std::fprintf(stderr, "no scenario %s\n", name.c_str());
  std::exit(2);
}

void run_one(const Scenario& scenario, uint64_t seed) {
  char repeat[200];
  std::snprintf(repeat, sizeof repeat, "EDGE_RT_TEST_SEED=%" PRIu64 " schedule_test %s %" PRIu64,
                test::test_seed(), scenario.name, seed);
  const int before = test::failures.load();
  sync::run_schedule(seed, repeat, [&] {
    scenario.body();
    if (test::failures.load() != before) sync::fail_schedule("a check failed");
  });
}

void run_all(const Scenario& scenario, int n) {
  for (int i = 0; i < n; ++i) run_one(scenario, test::test_seed() * 1000003 + i);
}

bool is_found(const Planted& planted, int n) {
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(3);
    sync::set_mutant(&planted.mutant);
    run_all(scenario_named(planted.scenario), n);
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  return !(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3));
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(EDGE_RT_EMULATED)
constexpr int kSlower = 10;
#else
constexpr int kSlower = 1;
#endif

}  // namespace

// Instead of reader.cc's: what a Runtime reads with here.
std::unique_ptr<Reader> make_reader(const File&, const std::string&, std::byte*, size_t,
                                    std::string*) {
  return std::make_unique<ScheduledReader>(*drive, between(1, 2));
}

}  // namespace edge_rt

int main(int argc, char** argv) {
  using namespace edge_rt;
  test::test_seed();
  test::watchdog(test::kLongestSection);
  sync::run_schedule(1, "the truth", [] {
    TinySetup setup;
    setup.direct = false;
    setup.chunk = 1;
    test::ScheduledDrive here{model().content};
    drive = &here;
    TinyRuntime tiny(model(), model_path(), setup);
    CHECK(tiny.load());
    truth = tiny.logits(kTokens, 0);
  });
  if (argc == 3) {
    run_one(scenario_named(argv[1]), std::strtoull(argv[2], nullptr, 10));
    return test::finish("schedule_test");
  }
  for (const Scenario& scenario : kScenarios)
    test::section(scenario.name, [&] { run_all(scenario, scenario.n_schedules / kSlower); });
  std::fprintf(stderr, "  %.1f million steps\n", static_cast<double>(sync::steps_taken()) / 1e6);
  if (kSlower > 1) return test::finish("schedule_test");  // finding is no matter of these
  test::section("defects", [] {
    for (const Planted& planted : kPlanted) {
      test::watchdog(test::kLongestSection);
      CHECK_CASE(is_found(planted, 3000), "%s: %s is not found", planted.scenario,
                 planted.mutant.name);
    }
  });
  return test::finish("schedule_test");
}
