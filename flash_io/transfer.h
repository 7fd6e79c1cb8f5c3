// One read on its way: what to ask the kernel for next, and what each of its answers means. Every
// backend reads through it, so all of them give the same bytes and the same errors.
//
// What is retried, what is an error, and why: docs/faults.md.
#pragma once

#include <sys/types.h>

#include <optional>

#include "flash_io/file.h"

namespace edge_rt {

class Transfer {
 public:
  // As File::read. The file must outlive the transfer.
  Transfer(const File& file, uint64_t offset, size_t length, size_t needed, std::byte* destination);

  struct Ask {
    int fd;
    uint64_t offset;  // in the part
    size_t length;
    std::byte* to;
    // Set by a test's Faults: take this instead of asking the kernel.
    std::optional<ssize_t> answer;
  };

  // The next thing to ask for; nothing once all that is needed is there. May sleep for a moment
  // where the last answer was "try again".
  std::optional<Ask> next();

  // `result`: bytes that were read, or a negative errno value. Throws IoError where reading must
  // end; the transfer is over then.
  void take(ssize_t result);

 private:
  void no_progress(int error);
  std::string doing() const;

  Part* part_;
  Faults* faults_;
  uint64_t at_;  // in the part
  size_t length_, needed_, done_ = 0;
  std::byte* destination_;
  int tries_ = 0;  // answers since the last that brought bytes
  bool wait_ = false, asked_direct_ = false;
};

}  // namespace edge_rt
