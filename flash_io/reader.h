// Asynchronous reads of one file. Backends share this interface and are tested against each other;
// what a read is (retries, errors) all of them have from transfer.h.
#pragma once

#include <memory>
#include <string>

#include "flash_io/file.h"

namespace edge_rt {

struct ReadRequest {
  uint64_t offset;         // aligned
  size_t length;           // aligned
  size_t needed;           // bytes that must arrive
  std::byte* destination;  // aligned; owned by the caller until `done` ran
  // Called once from any thread; error is 0 or an errno value, reason is empty or a sentence.
  void (*done)(void* context, uint64_t tag, int error, const char* reason);
  void* context;
  uint64_t tag;
};

class Reader {
 public:
  virtual ~Reader() = default;  // waits for what is in flight
  // Queues a read. Urgent reads go before everything that is queued and not yet begun. Any thread.
  virtual void submit(const ReadRequest& request, bool urgent) = 0;
  // Returns when nothing is queued or in flight. Nobody may submit meanwhile.
  virtual void drain() = 0;
  virtual const char* name() const = 0;
};

// Reads in flight at one time where nobody says otherwise.
constexpr int kPreadThreads = 4, kUringDepth = 32;

// A small pool of threads that call pread. `file` must outlive the reader.
std::unique_ptr<Reader> make_pread_reader(const File& file, int n_threads);

// One thread and an io_uring. `memory`: where most reads will go, registered with the kernel if it
// lets us (it pins the pages, so `bytes` of it must be needed anyway). Null where the kernel, its
// settings or this build have no io_uring; `why` then says so.
std::unique_ptr<Reader> make_uring_reader(const File& file, int depth, std::byte* memory,
                                          size_t bytes, std::string* why);

// `io`: "pread", or "uring" or "auto": io_uring where there is one, else the pool, and `why` says
// what is missing. Throws std::invalid_argument for another `io`. Where the file's Faults ask for
// it, completions are reordered.
std::unique_ptr<Reader> make_reader(const File& file, const std::string& io, std::byte* memory,
                                    size_t bytes, std::string* why);

}  // namespace edge_rt
