// Asynchronous reads of one file. Backends share this interface and are tested against each other.
#pragma once

#include <memory>

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

// A small pool of threads that call pread. `file` must outlive the reader.
std::unique_ptr<Reader> make_pread_reader(const File& file, int n_threads);

}  // namespace edge_rt
