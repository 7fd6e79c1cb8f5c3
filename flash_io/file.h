// One open model file, read past the page cache where the file system lets us.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <system_error>

namespace edge_rt {

// An error number with the sentence that says what was being done.
class IoError : public std::system_error {
 public:
  IoError(int error, const std::string& what)
      : std::system_error(error, std::generic_category(), what) {}
};

// A read of whole alignment units that covers [offset, offset + length) of the file.
struct AlignedExtent {
  uint64_t offset;  // multiple of the file's alignment
  size_t length;    // multiple of the file's alignment; may reach past the end of the file
  size_t lead;      // the payload starts this many bytes in
};

class File {
 public:
  // Opens read-only. `direct`: try O_DIRECT, fall back to buffered reads whose pages are dropped.
  File(const std::string& path, bool direct);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int descriptor() const { return fd_; }
  bool direct() const { return direct_; }
  size_t alignment() const { return alignment_; }  // of offsets, lengths and memory; power of two
  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  AlignedExtent cover(uint64_t offset, size_t length) const;

  // Reads until `needed` bytes are there or throws IoError; the rest up to `length` is best effort.
  // REQUIRES: offset, length and destination are aligned; needed <= length. Any thread.
  void read(uint64_t offset, size_t length, size_t needed, std::byte* destination) const;

 private:
  std::string path_;
  int fd_ = -1;
  bool direct_ = false;
  size_t alignment_ = 4096;
  uint64_t size_ = 0;
};

}  // namespace edge_rt
