// A vocabulary and its merges as flat arrays with hash tables: what Python would spend 0.7 s on for
// 150 000 tokens, and an object for each. Not thread safe while something is added.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <string_view>
#include <utility>
#include <vector>

namespace edge_rt {

// Two secret words: the pieces come from a file, which must not choose where they land.
struct HashKey {
  uint64_t k0 = 0, k1 = 0;
};

// Pieces by id, and ids by piece.
class PieceTable {
 public:
  // Room for `n_pieces` of `n_bytes` together is made at once, so that nothing grows by doubling.
  PieceTable(size_t n_pieces, size_t n_bytes, HashKey key);

  // -1: the piece has the next id. Otherwise the id of an equal piece, and nothing is added; -2: it
  // is one more than there is room for.
  int64_t add(std::string_view piece);

  int64_t find(std::string_view piece) const;  // -1: there is none
  std::string_view piece(size_t id) const;
  size_t size() const { return ends_.size(); }
  size_t n_bytes() const { return blob_.size(); }

  // The ids of pieces that hold `text` behind their first byte.
  std::vector<uint32_t> holding(std::string_view text) const;

 private:
  size_t slot_of(std::string_view piece) const;  // where it is, or the free slot where it would be
  HashKey key_;
  size_t capacity_;
  std::vector<char> blob_;
  std::vector<uint32_t> ends_;   // of each piece in the blob
  std::vector<uint32_t> slots_;  // id + 1, 0: free
};

// A vector whose growth needs no second copy of it: the C library moves large blocks by their
// pages.
template <typename T>
class Growing {
 public:
  Growing() = default;
  Growing(const Growing&) = delete;
  Growing& operator=(const Growing&) = delete;
  ~Growing() { std::free(data_); }

  void push_back(T value) {
    if (size_ == capacity_) grow();
    data_[size_++] = value;
  }
  const T& operator[](size_t i) const { return data_[i]; }
  size_t size() const { return size_; }

 private:
  void grow() {
    const size_t wanted = capacity_ + capacity_ / 8 + 64;
    void* moved = std::realloc(data_, wanted * sizeof(T));
    if (moved == nullptr) throw std::bad_alloc();
    data_ = static_cast<T*>(moved);
    capacity_ = wanted;
  }
  T* data_ = nullptr;
  size_t size_ = 0, capacity_ = 0;
};

// Pairs of ids and what they become, by rank. `table` must outlive it.
class MergeTable {
 public:
  MergeTable(const PieceTable& table, HashKey key) : table_(table), key_(key) {}

  // Adds a pair that joins two pieces into a third one, else returns false. `types` of the pieces:
  // those of type `byte_type` stand for a byte and join with nothing.
  bool add(std::string_view left, std::string_view right, const unsigned char* types,
           unsigned char byte_type);

  // Once, when all are added. Of equal pairs the first counts, or the last with `last_counts`.
  void finish(bool last_counts);

  // (rank + 1, joined id) of two ids; (0, -1) when they do not join.
  std::pair<uint32_t, int64_t> lookup(int64_t left, int64_t right) const;
  size_t size() const { return joined_.size(); }
  const PieceTable& table() const { return table_; }

 private:
  size_t slot_of(uint64_t pair) const;
  const PieceTable& table_;
  HashKey key_;
  std::vector<char> joint_;   // both pieces of the pair that is being added
  Growing<uint64_t> pairs_;   // by rank: left id << 32 | right id
  Growing<uint32_t> joined_;  // by rank
  std::vector<uint32_t> slots_;
};

// A string of a GGUF array (u64 length, then its bytes) at `at`, if `buffer` holds all of it; moves
// `at` behind it.
bool take_string(std::string_view buffer, size_t& at, std::string_view& found);

}  // namespace edge_rt
