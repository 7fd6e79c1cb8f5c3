// The open weight files of one model, read past the page cache where the file systems let us.
#pragma once

#include <time.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace edge_rt {

class Faults;

// An error number with the sentence that says what was being done and what went wrong. Threads hand
// the two over and throw them again: nothing is added then.
class IoError : public std::runtime_error {
 public:
  IoError(int error, const std::string& sentence) : std::runtime_error(sentence), error_(error) {}
  // `doing`: what failed with `error`, whose own text is added.
  static IoError of(int error, const std::string& doing) {
    return IoError(error, doing + ": " + std::generic_category().message(error));
  }
  int error() const { return error_; }

 private:
  int error_;
};

// Each part of a `File` begins at a multiple of this: of the alignment of every drive, too.
constexpr uint64_t kPartAlignment = 1 << 20;

// A read of whole alignment units that covers [offset, offset + length).
struct AlignedExtent {
  uint64_t offset;  // multiple of the file's alignment
  size_t length;    // multiple of the file's alignment; may reach past the end of its part
  size_t lead;      // the payload starts this many bytes in
};

// One open file. Its size and time of modification are those of the moment of opening.
class Part {
 public:
  // Opens read-only; throws IoError. `direct`: try O_DIRECT, fall back to buffered reads.
  Part(const std::string& path, bool direct);
  ~Part();
  Part(const Part&) = delete;
  Part& operator=(const Part&) = delete;

  const std::string& path() const { return path_; }
  int fd() const { return fd_; }
  size_t alignment() const { return alignment_; }  // power of two
  uint64_t size() const { return size_; }
  bool direct() const { return direct_.load(std::memory_order_relaxed); }

  uint64_t size_now() const;  // throws IoError
  // Throws IoError if somebody wrote to the file since it was opened.
  void check_unchanged() const;
  // Goes on with buffered reads: for file systems that take O_DIRECT and then refuse to read.
  void give_up_direct();

 private:
  std::string path_;
  int fd_ = -1;
  std::atomic<bool> direct_{false};
  size_t alignment_ = 4096;
  uint64_t size_ = 0;
  timespec modified_{};
};

// Parts laid one after the other: offsets count through them as if they were one file, part k
// beginning at the first multiple of kPartAlignment that no earlier part reaches.
class File {
 public:
  // Opens all `paths`; direct reads where each file system has them.
  File(const std::vector<std::string>& paths, bool direct);
  File(const std::string& path, bool direct) : File(std::vector<std::string>{path}, direct) {}
  // The parts of several files, which stay open as long as one File has them.
  explicit File(const std::vector<const File*>& files);
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return parts_.front().part->path(); }  // of the first part
  bool direct() const;  // all parts are read past the page cache
  // Of offsets, lengths and memory; power of two; the largest that a part needs.
  size_t alignment() const { return alignment_; }
  uint64_t size() const { return parts_.back().start + parts_.back().part->size(); }  // with gaps

  // Throws IoError for a payload that lies in two parts: no tensor does.
  AlignedExtent cover(uint64_t offset, size_t length) const;

  // Reads until `needed` bytes are there or throws IoError; the rest up to `length` is best effort,
  // and past the end of a part there is nothing.
  // REQUIRES: offset, length and destination are aligned; needed <= length. Any thread.
  void read(uint64_t offset, size_t length, size_t needed, std::byte* destination) const;

  // Throws IoError if a part was written to since it was opened: what has been read since then may
  // be of two files. Called before anything is made of what was read.
  void check_unchanged() const;

  // Every read of this file asks `faults` first. For tests; not while somebody reads.
  void inject(std::shared_ptr<Faults> faults) { faults_ = std::move(faults); }
  const std::shared_ptr<Faults>& faults() const { return faults_; }

 private:
  friend class Transfer;
  struct Placed {
    std::shared_ptr<Part> part;
    uint64_t start;
  };

  void append(std::shared_ptr<Part> part);
  size_t part_at(uint64_t offset) const;  // the last one that begins at or before `offset`

  std::vector<Placed> parts_;  // at least one
  size_t alignment_ = 0;
  std::shared_ptr<Faults> faults_;
};

}  // namespace edge_rt
