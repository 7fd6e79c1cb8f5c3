#include "edge_rt/tokenizer/piece_table.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace edge_rt {
namespace {

uint64_t load64(const char* p) {
  uint64_t value;
  std::memcpy(&value, p, sizeof value);
  if constexpr (std::endian::native == std::endian::big) value = __builtin_bswap64(value);
  return value;
}

// SipHash-1-3 (Aumasson and Bernstein 2012, with the rounds that Python and Rust use).
uint64_t sip_hash(std::string_view text, HashKey key) {
  uint64_t v0 = key.k0 ^ 0x736f6d6570736575u, v1 = key.k1 ^ 0x646f72616e646f6du;
  uint64_t v2 = key.k0 ^ 0x6c7967656e657261u, v3 = key.k1 ^ 0x7465646279746573u;
  const auto round = [&] {
    v0 += v1, v1 = std::rotl(v1, 13), v1 ^= v0, v0 = std::rotl(v0, 32);
    v2 += v3, v3 = std::rotl(v3, 16), v3 ^= v2;
    v0 += v3, v3 = std::rotl(v3, 21), v3 ^= v0;
    v2 += v1, v1 = std::rotl(v1, 17), v1 ^= v2, v2 = std::rotl(v2, 32);
  };
  const size_t n = text.size();
  size_t at = 0;
  for (; at + 8 <= n; at += 8) {
    const uint64_t word = load64(text.data() + at);
    v3 ^= word;
    round();
    v0 ^= word;
  }
  uint64_t last = static_cast<uint64_t>(n) << 56;
  for (size_t i = 0; at + i < n; ++i)
    last |= static_cast<uint64_t>(static_cast<unsigned char>(text[at + i])) << (8 * i);
  v3 ^= last;
  round();
  v0 ^= last;
  v2 ^= 0xff;
  for (int i = 0; i < 3; ++i) round();
  return v0 ^ v1 ^ v2 ^ v3;
}

// As cost.py counts them: a power of two, 1.5 to 3 for each entry.
size_t slot_count(size_t n_entries) {
  return size_t{1} << std::max<size_t>(3, std::bit_width(n_entries * 3 / 2));
}

}  // namespace

PieceTable::PieceTable(size_t n_pieces, size_t n_bytes, HashKey key)
    : key_(key), capacity_(n_pieces), slots_(slot_count(n_pieces)) {
  blob_.reserve(n_bytes);
  ends_.reserve(n_pieces);
}

std::string_view PieceTable::piece(size_t id) const {
  const size_t start = id ? ends_[id - 1] : 0;
  return {blob_.data() + start, ends_[id] - start};
}

size_t PieceTable::slot_of(std::string_view text) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = sip_hash(text, key_) & mask;
  while (slots_[slot] != 0 && piece(slots_[slot] - 1) != text) slot = (slot + 1) & mask;
  return slot;
}

int64_t PieceTable::add(std::string_view text) {
  const size_t slot = slot_of(text);
  if (slots_[slot] != 0) return slots_[slot] - 1;
  if (ends_.size() >= capacity_ || blob_.size() + text.size() > UINT32_MAX) return -2;
  blob_.insert(blob_.end(), text.begin(), text.end());
  ends_.push_back(static_cast<uint32_t>(blob_.size()));
  slots_[slot] = static_cast<uint32_t>(ends_.size());
  return -1;
}

int64_t PieceTable::find(std::string_view text) const {
  return static_cast<int64_t>(slots_[slot_of(text)]) - 1;
}

std::vector<uint32_t> PieceTable::holding(std::string_view text) const {
  std::vector<uint32_t> found;
  for (size_t id = 0; id < ends_.size(); ++id)
    if (piece(id).find(text, 1) != std::string_view::npos)
      found.push_back(static_cast<uint32_t>(id));
  return found;
}

size_t MergeTable::slot_of(uint64_t pair) const {
  const size_t mask = slots_.size() - 1;
  char bytes[sizeof pair];
  std::memcpy(bytes, &pair, sizeof pair);
  size_t slot = sip_hash({bytes, sizeof bytes}, key_) & mask;
  while (slots_[slot] != 0 && pairs_[slots_[slot] - 1] != pair) slot = (slot + 1) & mask;
  return slot;
}

bool MergeTable::add(std::string_view left, std::string_view right, const unsigned char* types,
                     unsigned char byte_type) {
  const int64_t a = table_.find(left), b = table_.find(right);
  if (a < 0 || b < 0 || types[a] == byte_type || types[b] == byte_type) return false;
  joint_.assign(left.begin(), left.end());
  joint_.insert(joint_.end(), right.begin(), right.end());
  const int64_t joined = table_.find({joint_.data(), joint_.size()});
  if (joined < 0) return false;
  pairs_.push_back(static_cast<uint64_t>(a) << 32 | static_cast<uint64_t>(b));
  joined_.push_back(static_cast<uint32_t>(joined));
  return true;
}

void MergeTable::finish(bool last_counts) {
  slots_.assign(slot_count(pairs_.size()), 0);
  for (size_t rank = 0; rank < pairs_.size(); ++rank) {
    const size_t slot = slot_of(pairs_[rank]);
    if (slots_[slot] == 0 || last_counts) slots_[slot] = static_cast<uint32_t>(rank + 1);
  }
}

std::pair<uint32_t, int64_t> MergeTable::lookup(int64_t left, int64_t right) const {
  constexpr int64_t kIds = int64_t{1} << 32;
  if (slots_.empty()) return {0, -1};
  if (left < 0 || right < 0 || left >= kIds || right >= kIds) return {0, -1};
  const uint32_t rank = slots_[slot_of(static_cast<uint64_t>(left) << 32 | right)];
  return rank ? std::pair<uint32_t, int64_t>(rank, joined_[rank - 1]) : std::pair(0u, int64_t{-1});
}

bool take_string(std::string_view buffer, size_t& at, std::string_view& found) {
  if (at > buffer.size() || buffer.size() - at < sizeof(uint64_t)) return false;
  const uint64_t length = load64(buffer.data() + at);
  const size_t start = at + sizeof(uint64_t);
  if (length > buffer.size() - start) return false;
  found = buffer.substr(start, length);
  at = start + length;
  return true;
}

}  // namespace edge_rt
