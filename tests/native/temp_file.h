// A file in $TMPDIR (or /tmp) that is gone when the test ends. scripts/native_tests.sh gives each
// run a folder of its own and deletes it, because a test that is ended by a signal deletes nothing.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace edge_rt::test {

class TempFile {
 public:
  explicit TempFile(const std::vector<uint8_t>& content, const char* folder = nullptr) {
    if (folder == nullptr) folder = std::getenv("TMPDIR");
    path_ = std::string(folder && *folder ? folder : "/tmp") + "/edge_rt_test_XXXXXX";
    fd_ = mkstemp(path_.data());
    if (fd_ < 0) throw std::runtime_error("cannot create " + path_);
    write(content);
  }
  ~TempFile() {
    close(fd_);
    unlink(path_.c_str());
  }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;

  const std::string& path() const { return path_; }

  void write(const std::vector<uint8_t>& content) {
    size_t done = 0;
    while (done < content.size()) {
      const ssize_t n =
          pwrite(fd_, content.data() + done, content.size() - done, static_cast<off_t>(done));
      if (n <= 0) throw std::runtime_error("cannot write " + path_);
      done += static_cast<size_t>(n);
    }
    truncate(content.size());
    fsync(fd_);
  }
  void truncate(size_t bytes) {
    if (ftruncate(fd_, static_cast<off_t>(bytes)) != 0)
      throw std::runtime_error("cannot truncate " + path_);
  }

 private:
  std::string path_;
  int fd_ = -1;
};

// The byte that test files have at position i: neighbours, pages and files' halves all differ.
inline uint8_t byte_at(uint64_t i) {
  return static_cast<uint8_t>(((i + 1) * 0x9e3779b97f4a7c15u) >> 56);
}

inline std::vector<uint8_t> test_content(size_t bytes, uint64_t first = 0) {
  std::vector<uint8_t> content(bytes);
  for (size_t i = 0; i < bytes; ++i) content[i] = byte_at(first + i);
  return content;
}

}  // namespace edge_rt::test
