"""Reader of GGUF files, versions 2 and 3, little-endian.

Layout: magic ``GGUF`` · u32 version · u64 tensor count · u64 key count · keys (string, u32 type,
value) · tensor entries (string, u32 n_dims, u64 dims, u32 format, u64 offset) · padding to
``general.alignment`` · data. A string is a u64 length and its bytes; an array is a u32 element
type, a u64 length and its elements. Every length and offset is checked against the file's size,
and no byte of the data section is read.

A large model may be split: ``NAME-00002-of-00003.gguf`` is a GGUF with part of the tensors,
``split.no`` (from 0), ``split.count`` and ``split.tensors.count`` (of all parts); all other keys
that matter are in the first part (llama.cpp, ``tools/gguf-split``).
"""

from __future__ import annotations

import math
import os
import re
import struct
import sys
from dataclasses import replace

from edge_rt.errors import ModelError, UsageError
from edge_rt.flash_io.files import File, open_file, storage_errors
from edge_rt.loaders.gguf_cursor import (
    CHUNK_BYTES,
    CODES,
    U32,
    U64,
    Cursor,
    LazyArray,
    clip,
    kind_of,
)
from edge_rt.loaders.source import PART_ALIGNMENT, TensorInfo, WeightSource
from edge_rt.quant.blocks import FORMATS, UNSUPPORTED
from edge_rt.sizes import MIB, align_up

# The limits below exist so that a hostile file costs little; real files are far from each.
_MAX_KEYS = 65536  # the spec's largest models use about 60
_MAX_TENSORS = 65536  # 61 layers x 256 experts x 3 unmerged matrices are 46848
_MAX_NAME_BYTES = 64  # ggml's GGML_MAX_NAME
_MAX_KEY_BYTES = 65535  # the spec
_MAX_STRING_BYTES = 1 * MIB  # the longest known value, a chat template, has about 20 KiB
_MAX_WALKED = 1 << 22  # strings and bools of all arrays, 0.5 s; the largest vocabulary has 0.8 M
_MAX_HELD_BYTES = 32 * MIB  # Python objects made of keys, values and tensor entries
_HELD_PER_KEY = 160  # dict slot and value object
_HELD_PER_TENSOR = 420  # dict slot, TensorInfo, its shape and its integers
_MAX_ALIGNMENT = 1 * MIB
_MAX_PARTS = 1024  # the largest models are split into about 30

SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)

_HEADER = struct.Struct("<4sIQQ")
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "uint8", 1: "int8", 2: "uint16", 3: "int16", 4: "uint32", 5: "int32", 6: "float32",
    7: "bool", 10: "uint64", 11: "int64", 12: "float64",
}  # fmt: skip
_STRUCTS = {kind: struct.Struct("<" + CODES[name]) for kind, name in _SCALARS.items()}


class GGUFFile(WeightSource):
    """The checked header of a GGUF file, or of all files of a split one.

    ``metadata`` is the first file's and keeps arrays as `LazyArray`, ``version``, ``alignment`` and
    ``data_offset`` are the first file's, too.
    """

    def __init__(self, file: File) -> None:
        super().__init__(file.path, (file.path,), file.size)
        self.file = self._header = file  # arrays stay in the first part
        self._files = [file]
        self.version = 0
        self.alignment = 32
        self.data_offset = 0
        self._held = 0
        self._walked = 0
        self.starts = [0]  # of the parts, as offsets count
        self._last_size = file.size  # of the last part

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, allow_unsupported: bool = False) -> GGUFFile:
        """Read and check the header of ``path``, and of the parts beside it if it is one of a split
        model; the files stay open in ``file``.

        ``allow_unsupported`` admits tensor formats that cannot be computed with. Raises
        `UsageError` when there is no such file, `ModelError` when it is damaged, hostile or
        unsupported, `StorageError` when the drive fails.
        """
        file = cls._open_one(os.fspath(path))
        count = file.get_int("split.count", 1, minimum=0, maximum=_MAX_PARTS)
        if count > 1:
            file = file._join(count)
        if not allow_unsupported:
            file.refuse_unsupported()
        return file

    @classmethod
    def _open_one(cls, path: str) -> GGUFFile:
        opened = open_file(path)
        file = cls(opened)
        file._read(Cursor(opened, 0, opened.size))
        with storage_errors():
            opened.check_unchanged()
        return file

    def refuse_unsupported(self) -> None:
        """Raise `ModelError` if a tensor has a format that cannot be computed with."""
        for t in self.tensors.values():
            if t.format is None:
                known = ", ".join(f.name for f in FORMATS.values())
                raise self.fail(
                    f"tensor {clip(t.name)} is stored as {t.format_name}, which is not supported "
                    f"(supported: {known})"
                )

    # -- split models ---------------------------------------------------------------------------

    def _join(self, count: int) -> GGUFFile:
        """Open all ``count`` parts, of which this is one; returns the first with all tensors."""
        named = SPLIT_NAME.fullmatch(self.path)
        number = self.get_int("split.no", minimum=0, maximum=count - 1)
        if not named or int(named[3]) != count:
            raise self.fail(
                f"part {number + 1} of {count} of a split model: its name must end in "
                f"-{number + 1:05}-of-{count:05}.gguf, and those of the other parts likewise"
            )
        first = self
        for k in range(count):
            path = f"{named[1]}-{k + 1:05}-of-{count:05}.gguf"
            try:
                part = self if path == self.path else self._open_one(path)
            except UsageError as error:
                raise ModelError(f"part {k + 1} of {count} is missing: {error}") from None
            said = tuple(part.get_int(f"split.{key}", None) for key in ("no", "count"))
            if said != (k, count):
                raise part.fail(
                    f"it is named as part {k + 1} of {count}, but its split.no and split.count "
                    f"are {said[0]} (from 0) and {said[1]}"
                )
            if k == 0:
                first = part
            else:
                first._append(part)
        first.file = File.join(first._files)
        total = first.get_int("split.tensors.count", len(first.tensors))
        if total != len(first.tensors):
            raise first.fail(f"its {count} parts have {len(first.tensors)} tensors, not {total}")
        return first

    def _append(self, part: GGUFFile) -> None:
        self._hold(part._held)
        self._walk(part._walked, "its parts")
        start = align_up(self.starts[-1] + self._last_size, PART_ALIGNMENT)
        for t in part.tensors.values():
            if t.name in self.tensors:
                raise self.fail(f"tensor {clip(t.name)} is in {clip(part.path)} again")
            self.tensors[t.name] = replace(t, offset=start + t.offset)
        self.starts.append(start)
        self._last_size = part.file_size
        self.parts += part.parts
        self.file_size += part.file_size
        self._files.append(part._header)

    # -- one file -------------------------------------------------------------------------------

    def _hold(self, n_bytes: int) -> None:
        self._held += n_bytes
        if self._held > _MAX_HELD_BYTES:
            raise self.fail(f"keys and tensor entries need more than {_MAX_HELD_BYTES} bytes")

    def _walk(self, count: int, what: str) -> None:
        self._walked += count
        if self._walked > _MAX_WALKED:
            raise self.fail(f"{what}: more than {_MAX_WALKED} strings and bools in arrays")

    def _read(self, cursor: Cursor) -> None:
        head = cursor.take(min(_HEADER.size, cursor.left), "the header")
        if head[:4] != b"GGUF":
            if head[:4] == b"FUGG":
                raise self.fail("big-endian GGUF is not supported")
            raise self.fail(f"not a GGUF file ({kind_of(head)})")
        if len(head) < _HEADER.size:
            raise self.fail(f"truncated: a GGUF header has {_HEADER.size} bytes, not {len(head)}")
        _, self.version, n_tensors, n_keys = _HEADER.unpack(head)
        if self.version == 1:
            raise self.fail("GGUF version 1 is not supported, versions 2 and 3 are")
        if self.version not in (2, 3):
            if int.from_bytes(self.version.to_bytes(4, "little"), "big") in (1, 2, 3):
                raise self.fail("big-endian GGUF is not supported")
            raise self.fail(f"GGUF version {self.version} is unknown, 2 and 3 are supported")
        # A key has 8 (length) + 4 (type) + 1 (value) bytes or more, a tensor 8 + 4 + 8 + 4 + 8.
        for what, count, limit, smallest in (
            ("keys", n_keys, _MAX_KEYS, 13),
            ("tensors", n_tensors, _MAX_TENSORS, 32),
        ):
            if count > limit or count * smallest > cursor.left:
                raise self.fail(
                    f"{count} {what} cannot be in {cursor.left} bytes (and the limit is {limit})"
                )
        for _ in range(n_keys):
            self._read_key(cursor)
        self.alignment = self.get_int("general.alignment", 32, minimum=8, maximum=_MAX_ALIGNMENT)
        if self.alignment & (self.alignment - 1):
            raise self.fail(f"general.alignment is {self.alignment}, not a power of two")
        entries = [self._read_tensor(cursor) for _ in range(n_tensors)]
        self.data_offset = align_up(cursor.offset, self.alignment)
        self._place(entries)

    def _read_key(self, cursor: Cursor) -> None:
        key = cursor.text(_MAX_KEY_BYTES, "a key")
        if key in self.metadata:
            raise self.fail(f"key {clip(key)} occurs twice")
        value = self._read_value(cursor, key)
        # By memory, not by length: one astral character makes a string four bytes a character.
        self._hold(_HELD_PER_KEY + sys.getsizeof(key) + sys.getsizeof(value))
        self.metadata[key] = value

    def _read_value(self, cursor: Cursor, key: str) -> object:
        what = f"key {clip(key)}"
        kind = cursor.number(U32, what)
        if kind == _STRING:
            return cursor.text(_MAX_STRING_BYTES, what)
        if kind == _ARRAY:
            return self._read_array(cursor, key, what)
        if kind not in _SCALARS:
            raise self.fail(f"{what} has unknown value type {kind}")
        value = cursor.number(_STRUCTS[kind], what)
        if kind != _BOOL:
            return value
        if value > 1:
            raise self.fail(f"{what} is a bool of value {value}")
        return bool(value)

    def _read_array(self, cursor: Cursor, key: str, what: str) -> LazyArray:
        kind, length = cursor.number(U32, what), cursor.number(U64, what)
        if kind == _ARRAY:
            raise self.fail(f"{what} is an array of arrays, which is not supported")
        if kind != _STRING and kind not in _SCALARS:
            raise self.fail(f"{what} is an array of unknown element type {kind}")
        name = _SCALARS.get(kind, "string")
        n_bytes = length * _STRUCTS.get(kind, U64).size  # of strings: their lengths alone
        if n_bytes > cursor.left:
            raise self.fail(f"{what} has {length} elements, but {cursor.left} bytes are left")
        start = cursor.offset
        if kind == _STRING:
            self._walk(length, what)
            cursor.skip_strings(length, what)
        elif kind == _BOOL:
            self._walk(length, what)
            for done in range(0, length, CHUNK_BYTES):
                part = cursor.take(min(length - done, CHUNK_BYTES), what)
                if wrong := part.translate(None, b"\0\1"):
                    raise self.fail(f"{what} holds a bool of value {wrong[0]}")
        else:
            cursor.skip(n_bytes, what)
        return LazyArray(self._header, clip(key), name, length, start, cursor.offset - start)

    def _read_tensor(self, cursor: Cursor) -> TensorInfo:
        """Read one entry; its offset is still relative to the data section."""
        name = cursor.text(_MAX_NAME_BYTES, "a tensor's name")
        what = f"tensor {clip(name)}"
        n_dims = cursor.number(U32, what)
        if not 1 <= n_dims <= 4:
            raise self.fail(f"{what} has {n_dims} dimensions, not 1 to 4")
        dims = struct.unpack(f"<{n_dims}Q", cursor.take(8 * n_dims, what))
        ggml_id, offset = cursor.number(U32, what), cursor.number(U64, what)
        self._hold(_HELD_PER_TENSOR + sys.getsizeof(name))
        if min(dims) < 1:
            raise self.fail(f"{what} has shape {dims[::-1]}")
        block = FORMATS.get(ggml_id)
        format_name = block.name if block else UNSUPPORTED.get(ggml_id, f"unknown type {ggml_id}")
        n_bytes = 0
        if block:
            if dims[0] % block.block_elements:
                raise self.fail(
                    f"{what} has rows of {dims[0]}, not whole {block.name} blocks "
                    f"of {block.block_elements}"
                )
            n_bytes = block.row_bytes(math.prod(dims))
            if n_bytes > self.file_size:
                raise self.fail(
                    f"{what} of shape {dims[::-1]} needs {n_bytes} bytes, "
                    f"the file has {self.file_size}"
                )
        if offset % self.alignment:
            raise self.fail(f"{what} is at offset {offset}, not a multiple of {self.alignment}")
        return TensorInfo(name, dims[::-1], block, format_name, offset, n_bytes)

    def _place(self, entries: list[TensorInfo]) -> None:
        """Make offsets absolute; refuse extents outside of the file or over one another."""
        order = sorted(range(len(entries)), key=lambda i: entries[i].offset)
        end, previous = 0, ""
        for place, i in enumerate(order):
            t = entries[i]
            start = self.data_offset + t.offset
            following = (
                self.data_offset + entries[order[place + 1]].offset
                if place + 1 < len(order)
                else self.file_size
            )
            n_bytes = t.n_bytes if t.format else min(following, self.file_size) - start
            if start + n_bytes > self.file_size or start >= self.file_size:
                raise self.fail(
                    f"tensor {clip(t.name)} lies at {start} to {start + n_bytes}, "
                    f"the file ends at {self.file_size}"
                )
            if start < end or (place and not n_bytes):
                raise self.fail(f"tensors {clip(previous)} and {clip(t.name)} overlap")
            end, previous = start + n_bytes, t.name
            entries[i] = TensorInfo(t.name, t.shape, t.format, t.format_name, start, n_bytes)
        for t in entries:
            if t.name in self.tensors:
                raise self.fail(f"tensor {clip(t.name)} occurs twice")
            self.tensors[t.name] = t
