// The open weight files of one model, read past the page cache where the file systems let us.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace edge_rt {

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

// Parts laid one after the other: offsets count through them as if they were one file, part k
// beginning at the first multiple of kPartAlignment that no earlier part reaches.
class File {
 public:
  // Opens read-only. `direct`: try O_DIRECT, fall back to buffered reads whose pages are dropped;
  // each part for itself.
  File(const std::vector<std::string>& paths, bool direct);
  File(const std::string& path, bool direct) : File(std::vector<std::string>{path}, direct) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  bool direct() const;  // all parts are read past the page cache
  // Of offsets, lengths and memory; power of two; the largest that a part needs.
  size_t alignment() const { return alignment_; }
  uint64_t size() const { return parts_.back().start + parts_.back().size; }  // gaps included

  // Throws IoError for a payload that lies in two parts: no tensor does.
  AlignedExtent cover(uint64_t offset, size_t length) const;

  // Reads until `needed` bytes are there or throws IoError; the rest up to `length` is best effort,
  // and past the end of a part there is nothing.
  // REQUIRES: offset, length and destination are aligned; needed <= length. Any thread.
  void read(uint64_t offset, size_t length, size_t needed, std::byte* destination) const;

 private:
  class Descriptor {
   public:
    explicit Descriptor(int fd) : fd_(fd) {}
    Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
      std::swap(fd_, other.fd_);
      return *this;
    }
    ~Descriptor();
    int get() const { return fd_; }

   private:
    int fd_;
  };
  struct Part {
    std::string path;
    Descriptor fd;
    bool direct;
    size_t alignment;
    uint64_t start, size;
  };

  static Part open_part(const std::string& path, bool direct);
  size_t part_at(uint64_t offset) const;  // the last one that begins at or before `offset`

  std::vector<Part> parts_;  // at least one
  size_t alignment_ = 0;
};

}  // namespace edge_rt
