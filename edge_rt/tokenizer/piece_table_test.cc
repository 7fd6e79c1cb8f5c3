// The piece table and the merges against std::map, on random pieces that often meet.
#include "edge_rt/tokenizer/piece_table.h"

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/native/check.h"

namespace edge_rt {
namespace {

constexpr unsigned char kNormal = 1, kByte = 6;

std::string random_piece(test::Random& rng) {
  std::string piece(rng.bits() % 6, ' ');
  for (char& c : piece) c = "abc \n\0\xff"[rng.bits() % 7];
  return piece;
}

size_t bytes_of(const std::vector<std::string>& pieces) {
  size_t n = 0;
  for (const std::string& piece : pieces) n += piece.size();
  return n;
}

void test_pieces(test::Random& rng) {
  for (const size_t n : {0, 1, 7, 64, 3000}) {
    std::vector<std::string> pieces(n);
    for (std::string& piece : pieces) piece = random_piece(rng);
    PieceTable table(n, bytes_of(pieces), HashKey{rng.bits(), rng.bits()});
    std::map<std::string, int64_t> known;
    for (const std::string& piece : pieces) {
      const auto found = known.find(piece);
      CHECK(table.add(piece) == (found == known.end() ? -1 : found->second));
      if (found == known.end()) known.emplace(piece, static_cast<int64_t>(known.size()));
    }
    CHECK(table.size() == known.size());
    for (const auto& [piece, id] : known) {
      CHECK(table.find(piece) == id);
      CHECK(table.piece(static_cast<size_t>(id)) == piece);
    }
    for (int i = 0; i < 300; ++i) {
      const std::string piece = random_piece(rng) + random_piece(rng);
      CHECK(table.find(piece) == (known.count(piece) != 0 ? known[piece] : -1));
    }
    for (const char* text : {" ", "a", "ab", "\n"}) {
      size_t expected = 0;
      for (const auto& one : known) expected += one.first.find(text, 1) != std::string::npos;
      const std::vector<uint32_t> ids = table.holding(text);
      CHECK(ids.size() == expected);
      for (const uint32_t id : ids) CHECK(table.piece(id).find(text, 1) != std::string_view::npos);
    }
  }
}

void test_there_is_no_more_room() {
  PieceTable table(2, 3, HashKey{1, 2});
  CHECK(table.add("a") == -1 && table.add("bc") == -1);
  CHECK(table.add("d") == -2 && table.add("a") == 0 && table.size() == 2);
  CHECK(table.find("d") == -1);
}

// One secret key or another: the same answers.
void test_merges(test::Random& rng) {
  for (const bool last_counts : {false, true}) {
    std::vector<std::string> pieces;
    for (const char* left : {"a", "b", "c", "", "ab", "bc", "abc", "aa", "aab", "ca", "<0x0A>"})
      pieces.emplace_back(left);
    const HashKey key{rng.bits(), rng.bits()};
    PieceTable table(pieces.size(), bytes_of(pieces), key);
    for (const std::string& piece : pieces) CHECK(table.add(piece) == -1);
    std::vector<unsigned char> types(pieces.size(), kNormal);
    types[0] = rng.bits() % 2 != 0 ? kByte : kNormal;
    MergeTable merges(table, key);
    std::map<std::pair<int64_t, int64_t>, std::pair<uint32_t, int64_t>> expected;
    for (int i = 0; i < 500; ++i) {
      const size_t left = rng.bits() % pieces.size(), right = rng.bits() % pieces.size();
      const int64_t joined = table.find(pieces[left] + pieces[right]);
      const bool joins = joined >= 0 && types[left] != kByte && types[right] != kByte &&
                         types[static_cast<size_t>(joined)] != kByte;
      const std::pair<int64_t, int64_t> pair(left, right);
      const auto rank = static_cast<uint32_t>(merges.size() + 1);
      const bool added = merges.add(pieces[left], pieces[right], types.data(), kByte);
      CHECK(added == joins);
      if (joins && (last_counts || expected.count(pair) == 0)) expected[pair] = {rank, joined};
    }
    CHECK(!merges.add("a", "zz", types.data(), kByte));
    merges.finish(last_counts);
    CHECK(!expected.empty());
    const auto n = static_cast<int64_t>(pieces.size());
    for (int64_t a = -1; a <= n; ++a) {
      for (int64_t b = -1; b <= n; ++b) {
        const auto found = expected.find({a, b});
        const std::pair<uint32_t, int64_t> none(0, -1);
        CHECK(merges.lookup(a, b) == (found == expected.end() ? none : found->second));
      }
    }
    CHECK(merges.lookup(int64_t{1} << 32, 0).first == 0);
  }
}

void test_strings_of_an_array() {
  std::string buffer;
  for (const std::string& text : {std::string("ab"), std::string(), std::string("\0c", 2)}) {
    const uint64_t length = text.size();
    buffer.append(reinterpret_cast<const char*>(&length), sizeof length).append(text);
  }
  for (size_t cut = 0; cut <= buffer.size(); ++cut) {
    // An allocation of its own size, so that a sanitizer sees a read behind it.
    const std::unique_ptr<char[]> exact(new char[cut]);
    std::memcpy(exact.get(), buffer.data(), cut);
    const std::string_view all(exact.get(), cut);
    std::string_view found;
    size_t at = 0, n = 0;
    while (take_string(all, at, found)) ++n;
    CHECK(n == (cut >= buffer.size() ? 3u : cut >= 18 ? 2u : cut >= 10 ? 1u : 0u));
    CHECK(at <= cut);
  }
  for (const uint64_t length : {uint64_t{1}, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{7}}) {
    const std::string wrong(reinterpret_cast<const char*>(&length), sizeof length);
    std::string_view found;
    size_t at = 0;
    CHECK(!take_string(wrong, at, found) && at == 0);
  }
  std::string_view found;
  size_t beyond = ~size_t{0} - 3;
  CHECK(!take_string(buffer, beyond, found));
}

}  // namespace
}  // namespace edge_rt

int main() {
  using namespace edge_rt;
  test::test_seed();
  test::Random rng;
  test::section("pieces", [&] { test_pieces(rng); });
  test::section("no more room", test_there_is_no_more_room);
  test::section("merges", [&] { test_merges(rng); });
  test::section("strings of an array", test_strings_of_an_array);
  return test::finish("piece_table_test");
}
