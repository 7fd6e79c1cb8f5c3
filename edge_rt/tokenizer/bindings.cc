// Python's view of the tables. What is wrong with a piece or a merge is said in Python, which knows
// what the file is called.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdio>

#include "edge_rt/tokenizer/piece_table.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace edge_rt {
namespace {

std::string_view view(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

nb::bytes to_bytes(std::string_view text) { return nb::bytes(text.data(), text.size()); }

// One byte for each piece; a merge looks at two of them.
const unsigned char* types_of(const nb::bytearray& types, const PieceTable& table) {
  if (types.size() != table.size()) throw nb::value_error("there must be one type for each piece");
  return reinterpret_cast<const unsigned char*>(types.c_str());
}

// Adds strings of a GGUF array from `at` on, while `buffer` holds them whole. An empty one becomes
// a name that no other has. Returns where it stopped, how many of `count` are left, and what `add`
// said of the last one.
std::tuple<size_t, size_t, int64_t> add_strings(PieceTable& table, const nb::bytes& buffer,
                                                size_t at, size_t count) {
  const std::string_view all = view(buffer);
  std::string_view piece;
  for (size_t next = at; count != 0 && take_string(all, next, piece); at = next, --count) {
    char name[32];
    if (piece.empty())
      piece = {name,
               static_cast<size_t>(std::snprintf(name, sizeof name, "[EMPTY_%zu]", table.size()))};
    if (const int64_t other = table.add(piece); other != -1) return {at, count, other};
  }
  return {at, count, -1};
}

// The same for merges: "left right", where the left piece has at least one byte, and that may be a
// space. Returns false as the last if one does not join two pieces into a third.
std::tuple<size_t, size_t, bool> add_merges(MergeTable& merges, const nb::bytearray& types,
                                            int byte_type, const nb::bytes& buffer, size_t at,
                                            size_t count) {
  const std::string_view all = view(buffer);
  const unsigned char* kinds = types_of(types, merges.table());
  std::string_view merge;
  for (size_t next = at; count != 0 && take_string(all, next, merge); at = next, --count) {
    const size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos ||
        !merges.add(merge.substr(0, space), merge.substr(space + 1), kinds,
                    static_cast<unsigned char>(byte_type)))
      return {at, count, false};
  }
  return {at, count, true};
}

}  // namespace

NB_MODULE(_tokenizer, m) {
  m.doc() = "Vocabularies and merges as flat arrays.";
  nb::class_<PieceTable>(m, "PieceTable")
      .def(
          "__init__",
          [](PieceTable* self, size_t n_pieces, size_t n_bytes, std::pair<uint64_t, uint64_t> key) {
            new (self) PieceTable(n_pieces, n_bytes, {key.first, key.second});
          },
          "n_pieces"_a, "n_bytes"_a, "key"_a)
      .def("__len__", &PieceTable::size)
      .def_prop_ro("n_bytes", &PieceTable::n_bytes)
      .def(
          "add", [](PieceTable& t, const nb::bytes& piece) { return t.add(view(piece)); },
          "piece"_a)
      .def("add_strings", &add_strings, "buffer"_a, "at"_a, "count"_a)
      .def(
          "find", [](const PieceTable& t, const nb::bytes& piece) { return t.find(view(piece)); },
          "piece"_a)
      .def(
          "piece",
          [](const PieceTable& t, size_t id) {
            if (id >= t.size()) throw nb::index_error("no such piece");
            return to_bytes(t.piece(id));
          },
          "id"_a)
      .def(
          "holding",
          [](const PieceTable& t, const nb::bytes& text) { return t.holding(view(text)); },
          "text"_a);
  nb::class_<MergeTable>(m, "MergeTable")
      .def(
          "__init__",
          [](MergeTable* self, const PieceTable& table, std::pair<uint64_t, uint64_t> key) {
            new (self) MergeTable(table, {key.first, key.second});
          },
          "table"_a, "key"_a, nb::keep_alive<1, 2>())
      .def("__len__", &MergeTable::size)
      .def(
          "add",
          [](MergeTable& merges, const nb::bytearray& types, int byte_type, const nb::bytes& left,
             const nb::bytes& right) {
            return merges.add(view(left), view(right), types_of(types, merges.table()),
                              static_cast<unsigned char>(byte_type));
          },
          "types"_a, "byte_type"_a, "left"_a, "right"_a)
      .def("add_merges", &add_merges, "types"_a, "byte_type"_a, "buffer"_a, "at"_a, "count"_a)
      .def("finish", &MergeTable::finish, "last_counts"_a)
      .def("lookup", &MergeTable::lookup, "left"_a, "right"_a);
}

}  // namespace edge_rt
