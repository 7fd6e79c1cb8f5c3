// File and pread reader against the written content, direct and buffered.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "flash_io/faults.h"
#include "flash_io/reader.h"
#include "tests/native/check.h"
#include "tests/native/temp_file.h"

namespace edge_rt {
namespace {

using test::Aligned;
using test::aligned_memory;
using test::byte_at;
using test::Random;
using test::TempFile;
using test::test_content;

constexpr size_t kFileBytes = 3 * 1024 * 1024 + 1234;  // ends inside a page and inside a sector

void test_cover(const File& file) {
  Random random(1);
  const uint64_t unit = file.alignment();
  CHECK(unit >= 1 && (unit & (unit - 1)) == 0);
  for (int i = 0; i < 20000; ++i) {
    const uint64_t offset = random.bits() >> random.between(24, 63);
    const size_t length = random.bits() >> random.between(40, 63);
    const AlignedExtent extent = file.cover(offset, length);
    CHECK(extent.offset % unit == 0 && extent.length % unit == 0);
    CHECK(extent.offset + extent.lead == offset && extent.lead < unit);
    CHECK(extent.lead + length <= extent.length);
    // No unit more than needed on either side.
    CHECK(extent.length < extent.lead + length + unit);
  }
}

bool holds_content(const std::byte* p, uint64_t offset, size_t length) {
  for (size_t i = 0; i < length; ++i)
    if (p[i] != static_cast<std::byte>(byte_at(offset + i))) return false;
  return true;
}

void check_read(const File& file, uint64_t offset, size_t length) {
  const AlignedExtent extent = file.cover(offset, length);
  const Aligned<> memory = aligned_memory(extent.length, file.alignment());
  file.read(extent.offset, extent.length, extent.lead + length, memory.get());
  CHECK_CASE(holds_content(memory.get() + extent.lead, offset, length), "%zu bytes at %llu", length,
             static_cast<unsigned long long>(offset));
}

void test_read(const File& file) {
  Random random(2);
  CHECK(file.size() == kFileBytes);
  for (int i = 0; i < 300; ++i) {
    const size_t length = random.between(1, i % 10 ? 20000 : 1000000);
    check_read(file, random.between(0, kFileBytes - length), length);
  }
  for (size_t length : {1, 2, 511, 512, 513, 1234, 1235, 4096, 4097, 100000})
    check_read(file, kFileBytes - length, length);
  check_read(file, 0, kFileBytes);

  const Aligned<> memory = aligned_memory(1 << 20);
  const AlignedExtent last = file.cover(kFileBytes - 1, 1);
  for (size_t more : {1, 100, 5000, 100000}) {
    const AlignedExtent beyond = file.cover(last.offset, last.lead + 1 + more);
    CHECK_THROWS(IoError, "shorter",
                 file.read(beyond.offset, beyond.length, last.lead + 1 + more, memory.get()));
  }
  CHECK_THROWS(IoError, "shorter", file.read(1 << 24, 4096, 1, memory.get()));
  file.read(1 << 24, 4096, 0, memory.get());  // nothing is needed there
}

void test_errors(bool direct) {
  const std::string missing = "no_such_folder/no_such_file";
  try {
    const File file(missing, direct);
    CHECK(false && "a missing file opens");
  } catch (const IoError& problem) {
    CHECK(problem.error() == ENOENT);
    CHECK(std::strstr(problem.what(), missing.c_str()) != nullptr);
  }
  CHECK_THROWS(IoError, "not a regular file", File("/dev/null", direct));
  CHECK_THROWS(IoError, "is a folder", File(".", direct));
  TempFile temp(test_content(100000));
  const File file(temp.path(), direct);
  const Aligned<> memory = aligned_memory(131072);
  file.read(0, 131072, 100000, memory.get());
  temp.truncate(50001);
  CHECK_THROWS(IoError, "shorter", file.read(0, 131072, 100000, memory.get()));
  CHECK_THROWS(IoError, "shorter", file.read(49152, 4096, 4096, memory.get()));
  CHECK_THROWS(IoError, "shorter", file.read(65536, 4096, 4096, memory.get()));
  file.read(0, 131072, 50001, memory.get());  // what is left can still be read
  CHECK(holds_content(memory.get(), 0, 50001));
}

// Requests of one submitting thread, and what became of each.
struct Batch {
  struct Item {
    AlignedExtent extent;
    uint64_t offset;
    size_t length;
    bool fails;
    Aligned<> memory;
    std::atomic<int> calls{0};
    int error = -1;
    std::string reason;
  };
  std::vector<Item> items;

  Batch(const File& file, uint64_t salt, int n) : Batch(file, salt, n, 0, file.size()) {}

  // Reads in [start, start + size), one part of `file`, and some that fail behind it.
  Batch(const File& file, uint64_t salt, int n, uint64_t start, uint64_t size) : items(n) {
    Random random(salt);
    for (Item& item : items) {
      item.fails = random.chance(0.05);
      item.length = std::min<uint64_t>(size, random.between(1, random.chance(0.1) ? 300000 : 9000));
      item.offset = item.fails ? file.size() : start + random.between(0, size - item.length);
      item.extent = file.cover(item.offset, item.length);
      item.memory = aligned_memory(item.extent.length, file.alignment());
    }
  }
  void submit(Reader& reader, uint64_t salt) {
    Random random(salt);
    for (size_t i = 0; i < items.size(); ++i) {
      const Item& item = items[i];
      reader.submit({item.extent.offset, item.extent.length, item.extent.lead + item.length,
                     item.memory.get(), &Batch::done, this, i},
                    random.chance(0.2));
      if (random.chance(0.02)) std::this_thread::sleep_for(std::chrono::microseconds(300));
    }
  }
  static void done(void* context, uint64_t tag, int error, const char* reason) {
    Item& item = static_cast<Batch*>(context)->items.at(tag);
    item.error = error;
    item.reason = reason;
    item.calls.fetch_add(1);
  }
  void check_all() const {
    for (const Item& item : items) {
      CHECK(item.calls.load() == 1);
      CHECK((item.error != 0) == item.fails && item.reason.empty() == !item.fails);
      if (!item.fails)
        CHECK(holds_content(item.memory.get() + item.extent.lead, item.offset, item.length));
    }
  }
};

struct Backend {
  const char* name;
  std::unique_ptr<Reader> (*make)(const File& file, int depth, std::byte* memory, size_t bytes);
};

std::unique_ptr<Reader> make_pread(const File& file, int depth, std::byte*, size_t) {
  return make_pread_reader(file, depth);
}

std::unique_ptr<Reader> make_uring(const File& file, int depth, std::byte* memory, size_t bytes) {
  std::string why;
  auto reader = make_uring_reader(file, depth, memory, bytes, &why);
  if (!reader) throw std::runtime_error(why);
  return reader;
}

// What this machine has.
std::vector<Backend> backends(const File& file) {
  std::vector<Backend> found = {{"pread", make_pread}};
  std::string why;
  if (make_uring_reader(file, 1, nullptr, 0, &why)) {
    found.push_back({"uring", make_uring});
  } else {
    std::fprintf(stderr, "uring is not tested: %s\n", why.c_str());
  }
  return found;
}

void run_batches(const File& file, const std::vector<std::unique_ptr<Batch>>& batches,
                 const Backend& backend, int depth) {
  // The first batch lies in registered memory.
  std::byte* first = batches[0]->items[0].memory.get();
  const auto reader = backend.make(file, depth, first, batches[0]->items[0].extent.length);
  reader->drain();  // nothing to wait for
  std::vector<std::thread> threads;
  for (size_t i = 0; i < batches.size(); ++i)
    threads.emplace_back([&, i] { batches[i]->submit(*reader, 20 + i); });
  for (std::thread& thread : threads) thread.join();
  reader->drain();
  for (const auto& batch : batches) batch->check_all();
}

void test_reader(const File& file, const Backend& backend) {
  for (int depth : {1, 2, 5}) {
    std::vector<std::unique_ptr<Batch>> batches;
    for (int i = 0; i < 4; ++i) batches.push_back(std::make_unique<Batch>(file, 10 + i, 250));
    run_batches(file, batches, backend, depth);
  }
  // Destruction runs what is queued.
  Batch batch(file, 30, 400);
  {
    const auto reader = backend.make(file, 3, nullptr, 0);
    batch.submit(*reader, 31);
  }
  batch.check_all();
}

// A drive that interrupts, hesitates and gives less than was asked for gives the same bytes.
void test_chaos(const std::string& path, bool direct, const Backend& backend) {
  File file(path, direct);
  const auto faults = std::make_shared<Faults>();
  file.inject(faults);
  faults->set_chaos(0.3, 7);
  std::vector<std::unique_ptr<Batch>> batches;
  for (int i = 0; i < 2; ++i) batches.push_back(std::make_unique<Batch>(file, 60 + i, 150));
  run_batches(file, batches, backend, 4);
  CHECK(faults->hits() > 50);
  test_read(file);
}

// Errors, and what they say, are the same whatever the backend.
void test_faults(const std::string& path, bool direct, const Backend& backend) {
  const bool is_direct = File(path, direct).direct();
  const auto outcome = [&](const Faults::Rule& rule, std::string* reason) {
    File file(path, direct);
    const auto faults = std::make_shared<Faults>();
    file.inject(faults);
    faults->add(rule);
    struct Done {
      int error = -1;
      std::string reason;
    } done;
    const Aligned<> memory = aligned_memory(65536, file.alignment());
    backend.make(file, 2, memory.get(), 65536)
        ->submit({65536, 65536, 65536, memory.get(),
                  [](void* context, uint64_t, int error, const char* text) {
                    static_cast<Done*>(context)->error = error;
                    static_cast<Done*>(context)->reason = text;
                  },
                  &done, 0},
                 false);
    *reason = done.reason;
    if (done.error == 0) CHECK(holds_content(memory.get(), 65536, 65536));
    return done.error;
  };
  using Kind = Faults::Kind;
  std::string reason;
  for (const int error : {EIO, ENXIO, ENODEV, ENOTCONN}) {
    CHECK(outcome({Kind::kError, error, ""}, &reason) == error);
    CHECK(reason.find("at 65536 of " + path) != std::string::npos);
    // On the second ask, too: behind what a short read has brought.
    CHECK(outcome({Kind::kError, error, "", 69632}, &reason) == error);
    CHECK(outcome({Kind::kError, error, "", 0, 65536}, &reason) == 0);
  }
  CHECK(outcome({Kind::kError, EINTR, "", 0, UINT64_MAX, 0, 10}, &reason) == 0);
  CHECK(outcome({Kind::kError, EAGAIN, "", 0, UINT64_MAX, 0, 10}, &reason) == 0);
  CHECK(outcome({Kind::kError, EINTR, ""}, &reason) == EINTR);
  CHECK(outcome({Kind::kError, EAGAIN, ""}, &reason) == EAGAIN);
  CHECK(reason.find("brought nothing") != std::string::npos);
  CHECK(outcome({Kind::kEnd, 0, ""}, &reason) == EIO);
  CHECK(outcome({Kind::kEnd, 0, "", 0, UINT64_MAX, 0, 3}, &reason) == 0);
  CHECK(outcome({Kind::kDelay, 30, ""}, &reason) == 0);
  for (const int most : {1, 100, 511, 512, 4095, 4096, 5000, 65535})
    CHECK_CASE(outcome({Kind::kShort, most, "", 0, UINT64_MAX, 0, 6}, &reason) == 0, "%d", most);
  CHECK(outcome({Kind::kShort, 5000, ""}, &reason) == 0);
  CHECK(outcome({Kind::kShort, 777, ""}, &reason) == 0);  // no direct read can be that short
  CHECK(outcome({Kind::kError, EINVAL, "", 0, UINT64_MAX, 0, 1}, &reason) ==
        (is_direct ? 0 : EINVAL));
}

void test_unchanged() {
  TempFile temp(test_content(10000));
  const auto fresh = [&] { return std::make_unique<File>(temp.path(), true); };
  auto file = fresh();
  file->check_unchanged();
  chmod(temp.path().c_str(), 0640);  // not the content
  file->check_unchanged();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // clocks of file systems tick slowly
  temp.write(test_content(10000, 5));
  CHECK_THROWS(IoError, "changed while in use", file->check_unchanged());
  file = fresh();
  temp.truncate(9000);
  CHECK_THROWS(IoError, "became shorter", file->check_unchanged());
  file = fresh();
  temp.truncate(10001);
  CHECK_THROWS(IoError, "changed while in use", file->check_unchanged());
  const File other(fresh()->path(), true);
  const File joined({&other, file.get()});
  CHECK_THROWS(IoError, "changed while in use", joined.check_unchanged());
}

// Completions come in another order, each once.
void test_reorder(const File& file, const Backend& backend) {
  Batch batch(file, 80, 60);
  const auto reader = make_reordering_reader(backend.make(file, 4, nullptr, 0), 3);
  batch.submit(*reader, 81);
  reader->drain();
  batch.check_all();
}

// One read thread is held in the first request's `done`, so the order of the rest is the queue's.
void test_urgent(const File& file) {
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    bool entered = false, open = false;
    std::vector<uint64_t> order;
  } state;
  const auto done = [](void* context, uint64_t tag, int, const char*) {
    auto* s = static_cast<State*>(context);
    std::unique_lock<std::mutex> lock(s->mutex);
    s->entered = true;
    s->changed.notify_all();
    s->changed.wait(lock, [&] { return s->open; });
    s->order.push_back(tag);
  };
  const Aligned<> memory = aligned_memory(65536);
  const auto reader = make_pread_reader(file, 1);
  const auto submit = [&](uint64_t tag, bool urgent) {
    reader->submit({0, 4096, 4096, memory.get(), done, &state, tag}, urgent);
  };
  // Twice, so that the first round's count of urgent ones must have gone back to zero.
  for (int round = 0; round < 2; ++round) {
    {
      std::lock_guard<std::mutex> lock(state.mutex);
      state.entered = state.open = false;
      state.order.clear();
    }
    submit(0, false);
    {
      std::unique_lock<std::mutex> lock(state.mutex);
      state.changed.wait(lock, [&] { return state.entered; });
    }
    for (uint64_t tag : {10, 11, 12}) submit(tag, false);
    for (uint64_t tag : {1, 2}) submit(tag, true);
    submit(13, false);
    submit(3, true);
    {
      std::lock_guard<std::mutex> lock(state.mutex);
      state.open = true;
    }
    state.changed.notify_all();
    reader->drain();
    CHECK((state.order == std::vector<uint64_t>{0, 1, 2, 3, 10, 11, 12, 13}));
  }
}

// Several parts whose bytes go on counting where `File` says that the next part begins.
struct Parts {
  std::vector<std::unique_ptr<TempFile>> files;
  std::vector<std::string> paths;
  std::vector<uint64_t> starts, sizes;

  // `other`: the folder of every second part.
  Parts(const std::vector<uint64_t>& of_sizes, const char* other) : sizes(of_sizes) {
    uint64_t start = 0;
    for (const uint64_t size : sizes) {
      files.push_back(std::make_unique<TempFile>(test_content(size, start),
                                                 files.size() % 2 ? other : nullptr));
      paths.push_back(files.back()->path());
      starts.push_back(start);
      start = (start + size + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
    }
  }
};

void test_parts(bool direct, const char* other) {
  constexpr uint64_t kUnit = kPartAlignment;
  // Ends inside a sector, on a part boundary, in one byte, with nothing, on a page.
  const Parts parts({kUnit + 1234, 2 * kUnit, 1, 0, 700001, kUnit + 4096, 555}, other);
  const File file(parts.paths, direct);
  const uint64_t unit = file.alignment();
  CHECK(unit >= 512 && kUnit % unit == 0 && (unit & (unit - 1)) == 0);
  CHECK(file.size() == parts.starts.back() + parts.sizes.back());
  for (const std::string& path : parts.paths) CHECK(File(path, direct).alignment() <= unit);
  CHECK(direct || !file.direct());
  Random random(3);
  const size_t last = parts.sizes.size() - 1;
  for (size_t i = 0; i <= last; ++i) {
    const uint64_t start = parts.starts[i], size = parts.sizes[i];
    for (int round = 0; size != 0 && round < 60; ++round) {
      const size_t length = random.between(1, std::min<uint64_t>(size, round % 5 ? 9000 : size));
      const uint64_t offset = start + random.between(0, size - length);
      check_read(file, offset, length);
      const AlignedExtent extent = file.cover(offset, length);
      CHECK(extent.offset >= start && extent.lead + length <= extent.length);
      if (i < last) CHECK(extent.offset + extent.length <= parts.starts[i + 1]);
    }
    if (size != 0) check_read(file, start, size);  // as a whole, with its tail
    for (size_t length : {1, 511, 4097})
      if (length <= size) check_read(file, start + size - length, length);
    const Aligned<> memory = aligned_memory(1 << 16, unit);
    const AlignedExtent beyond = file.cover(start + size - (size != 0), 1);
    if (size != 0 &&
        beyond.offset + beyond.length - start > size)  // else its end is the next part's start
      CHECK_THROWS(IoError, parts.paths[i].c_str(),
                   file.read(beyond.offset, beyond.length,
                             static_cast<size_t>(start + size - beyond.offset) + 1, memory.get()));
    if (i == last) continue;
    const uint64_t next = parts.starts[i + 1];
    if (next == start) continue;
    CHECK_THROWS(IoError, "in the part after it", file.cover(next - 1, 2));
    CHECK_THROWS(IoError, "in the part after it", file.cover(start, next - start + 1));
    CHECK_THROWS(IoError, "leaves", file.read(next - unit, 2 * unit, 1, memory.get()));
    file.cover(next - 1, 1);
  }
  for (const Backend& backend : backends(file)) {
    for (int depth : {1, 3}) {
      std::vector<std::unique_ptr<Batch>> batches;
      for (size_t i = 0; i <= last; ++i)
        if (parts.sizes[i] != 0)
          batches.push_back(
              std::make_unique<Batch>(file, 40 + i, 100, parts.starts[i], parts.sizes[i]));
      run_batches(file, batches, backend, depth);
    }
  }
  const Aligned<> memory = aligned_memory(kUnit, unit);
  parts.files[0]->truncate(5000);  // an inner part that becomes shorter
  CHECK_THROWS(IoError, "shorter", file.read(0, 65536, 65536, memory.get()));
  check_read(file, 0, 5000);
  check_read(file, parts.starts[1] + 5000, 5000);
}

// A file of the kernel's, which cannot be read past the page cache, between two that can.
void test_buffered_part() {
  const char* path = "/sys/kernel/mm/transparent_hugepage/enabled";
  std::FILE* plain = std::fopen(path, "r");
  if (plain == nullptr) {
    std::fprintf(stderr, "no %s: a buffered part between direct ones is not tested\n", path);
    return;
  }
  char content[4096];
  const size_t length = std::fread(content, 1, sizeof content, plain);
  std::fclose(plain);
  CHECK(length > 0);
  constexpr uint64_t kSize = 10000;
  const TempFile first(test_content(kSize)), last(test_content(kSize, 2 * kPartAlignment));
  const File file({first.path(), path, last.path()}, true);
  CHECK(!File(path, true).direct() && !file.direct());
  CHECK(file.alignment() == std::max(File(first.path(), true).alignment(), size_t{4096}));
  check_read(file, kSize - 5001, 5001);
  check_read(file, 2 * kPartAlignment + 3, 9000);
  const Aligned<> memory = aligned_memory(file.alignment(), file.alignment());
  file.read(kPartAlignment, file.alignment(), length, memory.get());
  CHECK(std::memcmp(memory.get(), content, length) == 0);
}

void test_part_errors(bool direct) {
  const TempFile temp(test_content(5000));
  const auto next_descriptor = [] {
    const int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    close(fd);
    return fd;
  };
  const int before = next_descriptor();
  CHECK_THROWS(IoError, "at least one file", File(std::vector<std::string>(), direct));
  CHECK_THROWS(IoError, "no_such_file", File({temp.path(), "no_such_file"}, direct));
  CHECK_THROWS(IoError, "is a folder", File({temp.path(), ".", temp.path()}, direct));
  CHECK(next_descriptor() == before);  // what was open when it failed is closed
}

}  // namespace
}  // namespace edge_rt

int main() {
  using namespace edge_rt;
  test::test_seed();
  const TempFile temp(test_content(kFileBytes));
  for (bool direct : {true, false}) {
    const File file(temp.path(), direct);
    if (direct && !file.direct()) std::fprintf(stderr, "no direct reads in this folder\n");
    CHECK(direct || !file.direct());
    test::section("cover", [&] { test_cover(file); });
    test::section("read", [&] { test_read(file); });
    test::section("errors", [&] { test_errors(direct); });
    for (const Backend& backend : backends(file)) {
      test::section("reader", [&] { test_reader(file, backend); });
      test::section("chaos", [&] { test_chaos(temp.path(), direct, backend); });
      test::section("faults", [&] { test_faults(temp.path(), direct, backend); });
      test::section("reorder", [&] { test_reorder(file, backend); });
    }
    test::section("urgent", [&] { test_urgent(file); });
    test::section("part errors", [&] { test_part_errors(direct); });
    test::section("parts", [&] { test_parts(direct, nullptr); });
    // Memory file systems have other alignments than drives, or no direct reads at all.
    if (access("/dev/shm", W_OK) == 0)
      test::section("mixed parts", [&] { test_parts(direct, "/dev/shm"); });
  }
  test::section("unchanged", test_unchanged);
  test::section("buffered part", test_buffered_part);
  return test::finish("flash_io_test");
}
