// A vocabulary and its merges from arbitrary strings of a GGUF array: the
// tables say what a map would, read nothing outside of the buffer, and are not
// slowed down by what they hold.
#include "edge_rt/tokenizer/piece_table.h"

#include <map>
#include <memory>
#include <string>

#include "tests/fuzz/native/input.h"

namespace edge_rt {
namespace {

using fuzz::Input;

// Few letters, so that pieces meet; the input decides where lengths lie.
std::string some_strings(Input& in) {
  std::string buffer;
  for (int n = static_cast<int>(in.between(0, 40)); n > 0; --n) {
    uint64_t length = in.between(0, 31) == 0 ? in.take<uint64_t>() : in.between(0, 6);
    buffer.append(reinterpret_cast<const char*>(&length), sizeof length);
    for (uint64_t i = 0; i < length && i < 7; ++i) buffer += "abc \n\0"[in.between(0, 5)];
  }
  return buffer;
}

void run(Input& in) {
  const HashKey key = {in.take<uint64_t>(), in.take<uint64_t>()};
  const size_t room = static_cast<size_t>(in.between(0, 40));
  PieceTable table(room, static_cast<size_t>(in.between(0, 200)), key);
  const std::string strings = some_strings(in);
  const std::unique_ptr<char[]> exact(new char[strings.size()]);
  std::memcpy(exact.get(), strings.data(), strings.size());
  const std::string_view all(exact.get(), strings.size());

  std::map<std::string, int64_t> known;
  std::string_view piece;
  size_t at = in.between(0, 15) == 0 ? in.take<size_t>() : 0;
  for (size_t before = at; take_string(all, at, piece); before = at) {
    REQUIRE(at > before && at <= all.size());
    const std::string text(piece);
    const int64_t said = table.add(piece);
    if (known.count(text) != 0) {
      REQUIRE(said == known[text]);
    } else if (known.size() == room) {
      REQUIRE(said == -2);
    } else {
      REQUIRE(said == -1);
      known.emplace(text, static_cast<int64_t>(known.size()));
    }
  }
  REQUIRE(table.size() == known.size());
  for (const auto& [text, id] : known)
    REQUIRE(table.find(text) == id && table.piece(static_cast<size_t>(id)) == text);
  for (const char* text : {"", "a", "ab", "a b", "\n"}) {
    REQUIRE(table.find(text) == (known.count(text) != 0 ? known[text] : -1));
    size_t expected = 0;
    for (const auto& one : known) expected += one.first.find(text, 1) != std::string::npos;
    REQUIRE(table.holding(text).size() == expected);
  }

  std::string types(table.size(), '\1');
  for (char& type : types) type = static_cast<char>(in.between(1, 6));
  const auto* kinds = reinterpret_cast<const unsigned char*>(types.data());
  MergeTable merges(table, key);
  std::map<std::pair<int64_t, int64_t>, std::pair<uint32_t, int64_t>> joined;
  const bool last_counts = in.flag();
  for (int n = static_cast<int>(in.between(0, 60)); n > 0 && table.size() > 0; --n) {
    const auto one = [&] {
      return table.piece(
          static_cast<size_t>(in.between(0, static_cast<int64_t>(table.size()) - 1)));
    };
    const std::string left(one()), right = in.flag() ? std::string(one()) : "zz";
    const int64_t a = table.find(left), b = table.find(right), c = table.find(left + right);
    const bool joins = a >= 0 && b >= 0 && c >= 0 && types[a] != 6 && types[b] != 6;
    const auto rank = static_cast<uint32_t>(merges.size() + 1);
    REQUIRE(merges.add(left, right, kinds, 6) == joins);
    if (joins && (last_counts || joined.count({a, b}) == 0)) joined[{a, b}] = {rank, c};
  }
  merges.finish(last_counts);
  const auto n = static_cast<int64_t>(table.size());
  for (int64_t a = -1; a <= n; ++a) {
    for (int64_t b = -1; b <= n; ++b) {
      const auto found = joined.find({a, b});
      const auto [rank, id] = merges.lookup(a, b);
      REQUIRE(found == joined.end() ? rank == 0 && id == -1
                                    : rank == found->second.first && id == found->second.second);
    }
  }
  REQUIRE(merges.lookup(in.take<int64_t>() | (int64_t{1} << 40), 0).first == 0);
}

}  // namespace
}  // namespace edge_rt

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  edge_rt::fuzz::Input in(data, size);
  edge_rt::run(in);
  return 0;
}
