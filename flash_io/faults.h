// What a worse drive would answer. Tests attach one to a File, and every read of it, whatever the
// backend, asks here before it asks the kernel.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "flash_io/reader.h"
#include "flash_io/transfer.h"

namespace edge_rt {

class Faults {
 public:
  enum class Kind {
    kError,  // value: the errno that is answered
    kShort,  // value: at most so many bytes are read
    kEnd,    // 0 bytes, as at the end of a file
    kDelay   // value: milliseconds before the kernel is asked
  };

  // Which reads are hit: those of bytes [begin, end) of a part whose path ends in `path`. The first
  // `skip` of them pass, the next `count` are hit.
  struct Rule {
    Kind kind;
    int64_t value;
    std::string path;
    uint64_t begin = 0, end = UINT64_MAX, skip = 0, count = UINT64_MAX;
  };

  void add(Rule rule);
  // Every read is hit with this probability by something that a reader must bear: EINTR, EAGAIN, a
  // short read, a delay of up to 2 ms.
  void set_chaos(double probability, uint64_t seed);
  // Completions of readers made from now on come in another order than the reads end.
  void set_reorder(uint64_t seed);
  void clear();
  // How many reads were asked about, and how many hit.
  uint64_t reads() const;
  uint64_t hits() const;
  // Of all reads so far: bytes that were asked for, and the end of the farthest.
  uint64_t bytes() const;
  uint64_t farthest() const;

  bool reorders(uint64_t* seed) const;

  // Changes `ask` as the rules say; may sleep. Any thread.
  void meet(const std::string& path, Transfer::Ask* ask);

 private:
  mutable std::mutex mutex_;
  std::vector<Rule> rules_;
  double chaos_ = 0;
  bool reorder_ = false;
  uint64_t state_ = 0, order_seed_ = 0, reads_ = 0, hits_ = 0, bytes_ = 0, farthest_ = 0;
};

// Hands completions of `inner` on in random order, none later than a few ms after its time.
std::unique_ptr<Reader> make_reordering_reader(std::unique_ptr<Reader> inner, uint64_t seed);

}  // namespace edge_rt
