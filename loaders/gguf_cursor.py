"""Reading parts of a model file in small chunks that leave nothing in the page cache."""

from __future__ import annotations

import os
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from typing import Any, Final

from edge_rt.errors import ModelError, UsageError
from edge_rt.flash_io._flash_io import File, skip_strings
from edge_rt.flash_io.files import open_file, storage_errors
from edge_rt.sizes import KIB, MIB, PAGE

CHUNK_BYTES: Final = 256 * KIB  # of one read

_MAX_LISTED: Final = 16384  # entries of a folder
MAX_ELEMENT_BYTES: Final = 1 * MIB  # the longest known vocabulary entry has about 1 KiB

# Takes strings from (buffer, offset) on; returns where it stopped and how many of a count are left.
Take = Callable[[bytes, int, int], tuple[int, int]]

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
# name of a number type -> struct code, also array.array's
CODES = {
    "uint8": "B", "int8": "b", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i",
    "float32": "f", "bool": "B", "uint64": "Q", "int64": "q", "float64": "d",
}  # fmt: skip


def clip(value: object, limit: int = 80) -> str:
    """Represent ``value`` in at most about ``limit`` characters, whatever it holds."""
    if isinstance(value, str | bytes):
        value = value[: limit + 1]
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def kind_of(head: bytes) -> str:
    """What a file is that begins with ``head`` and was expected to be something else."""
    if not head:
        return "it is empty"
    if head.startswith(b"version "):  # https://git-lfs.com/spec/v1
        return "it is a pointer of Git LFS: `git lfs pull` fetches the file itself"
    if head.lstrip()[:1] == b"<":
        return "it is a web page: the download went wrong"
    return f"it starts with {clip(head[:4])}"


def list_folder(path: str) -> set[str]:
    """The names in a folder; raises `UsageError` where it cannot be listed."""
    names = set()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                names.add(entry.name)
                if len(names) > _MAX_LISTED:
                    raise ModelError(f"{path}: more than {_MAX_LISTED} files")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"no such folder: {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, ModelError):
            raise
        raise UsageError(f"cannot list {clip(path, 300)}: {error}") from None
    return names


def read_whole(path: str | os.PathLike[str], limit: int) -> bytes:
    """All of a small file. Raises `UsageError` where it cannot be opened, `ModelError` where it has
    more than ``limit`` bytes, `StorageError` when the drive fails."""
    file = open_file(path)
    if file.size > limit:
        raise ModelError(f"{file.path} has {file.size} bytes: {limit} at most")
    content = Cursor(file, 0, file.size).take(file.size, "it")
    with storage_errors():
        file.check_unchanged()
    return content


class Cursor:
    """Reads ``[start, end)`` of a file forwards in chunks, leaving nothing in the page cache.

    ``buf[at:]`` is what was read ahead; ``base`` is the file offset of ``buf[0]``.
    """

    def __init__(self, file: File, start: int, end: int) -> None:
        self.file, self.path, self.end = file, file.path, end
        self.buf, self.at, self.base = b"", 0, start

    @property
    def offset(self) -> int:
        """The file offset of the next byte."""
        return self.base + self.at

    @property
    def left(self) -> int:
        """How many bytes follow."""
        return self.end - self.base - self.at

    def fill(self, n_bytes: int, what: str) -> None:
        """Make ``buf[at : at + n_bytes]`` valid."""
        have = len(self.buf) - self.at
        if have >= n_bytes:
            return
        if n_bytes > self.left:
            raise ModelError(
                f"{self.path}: {what} needs {n_bytes} bytes at offset {self.offset}, "
                f"but only {self.left} are left"
            )
        parts, start = [self.buf[self.at :]] if have else [], self.base + len(self.buf)
        while have < n_bytes:
            # Ending on a page boundary leaves no page that the next read needs again.
            stop = min((start + CHUNK_BYTES) // PAGE * PAGE, self.end)
            with storage_errors():
                part = self.file.read(start, stop - start)
            parts.append(part)
            have += len(part)
            start += len(part)
        self.base += self.at
        self.buf, self.at = parts[0] if len(parts) == 1 else b"".join(parts), 0

    def take(self, n_bytes: int, what: str) -> bytes:
        """Read ``n_bytes``."""
        self.fill(n_bytes, what)
        self.at += n_bytes
        return self.buf[self.at - n_bytes : self.at]

    def skip(self, n_bytes: int, what: str) -> None:
        """Step over ``n_bytes`` without reading them."""
        if n_bytes > self.left:
            raise ModelError(
                f"{self.path}: {what} has {clip(n_bytes)} bytes at offset {self.offset}, "
                f"but only {self.left} are left"
            )
        self.at += n_bytes
        if self.at > len(self.buf):
            self.base, self.buf, self.at = self.offset, b"", 0

    def number(self, code: struct.Struct, what: str) -> Any:
        """Read one number."""
        self.fill(code.size, what)
        self.at += code.size
        return code.unpack_from(self.buf, self.at - code.size)[0]

    def text(self, max_bytes: int, what: str) -> str:
        """Read a string of at most ``max_bytes``."""
        size = self.number(U64, what)
        if size > max_bytes:
            raise ModelError(f"{self.path}: {what} has {size} bytes, the limit is {max_bytes}")
        raw = self.take(size, what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise ModelError(f"{self.path}: {what} is not UTF-8: {clip(raw)}") from None

    def skip_strings(self, count: int, what: str) -> None:
        """Walk over ``count`` strings, checking that each lies inside the file."""
        while count:
            self.fill(8, what)
            at, count = skip_strings(self.buf, self.at, count)
            if at - len(self.buf) > MAX_ELEMENT_BYTES:
                raise ModelError(
                    f"{self.path}: {what} has an element that ends at {clip(self.base + at)}; "
                    f"the file has {self.end} bytes, an element at most {MAX_ELEMENT_BYTES}"
                )
            self.skip(at - self.at, what)

    def strings(self, count: int, what: str) -> Iterator[bytes]:
        """Yield ``count`` strings."""
        unpack = U64.unpack_from
        for _ in range(count):
            at = self.at
            if at + 8 > len(self.buf):
                self.fill(8, what)
                at = self.at
            size = unpack(self.buf, at)[0]
            if at + 8 + size > len(self.buf):
                if size > MAX_ELEMENT_BYTES:
                    raise ModelError(f"{self.path}: {what} has an element of {size} bytes")
                self.fill(8 + size, what)
                at = self.at
            self.at = at + 8 + size
            yield self.buf[at + 8 : self.at]

    def feed(self, count: int, what: str, take: Take) -> None:
        """Hand ``count`` strings to ``take``, as many at a time as a chunk holds whole."""
        while count:
            self.fill(8, what)
            self.at, left = take(self.buf, self.at, count)
            if left == count:  # not even one
                size = U64.unpack_from(self.buf, self.at)[0]
                if size > MAX_ELEMENT_BYTES:
                    raise ModelError(f"{self.path}: {what} has an element of {size} bytes")
                self.fill(8 + size, what)
            count = left


class LazyArray:
    """An array that stays in its file: each iteration reads it again, a chunk at a time.

    ``kind`` is the element type's name (``string``, ``int32``, ``bool`` …); ``offset`` and
    ``n_bytes`` are the extent of its elements in the file.
    """

    __slots__ = ("_file", "kind", "length", "n_bytes", "name", "offset")

    def __init__(
        self, file: File, name: str, kind: str, length: int, offset: int, n_bytes: int
    ) -> None:
        self._file, self.name, self.kind = file, name, kind
        self.length, self.offset, self.n_bytes = length, offset, n_bytes

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"<{self.length} x {self.kind} at {self.offset}>"

    def _chunks(self) -> Iterator[Cursor]:
        yield Cursor(self._file, self.offset, self.offset + self.n_bytes)
        with storage_errors():
            self._file.check_unchanged()

    def feed(self, take: Take) -> None:
        """Hand all strings to ``take``, chunk by chunk."""
        for cursor in self._chunks():
            cursor.feed(self.length, self.name, take)

    def parts(self) -> Iterator[array[Any]]:
        """The numbers, a chunk at a time."""
        for cursor in self._chunks():
            yield from self._numbers(cursor)

    def raw(self) -> Iterator[Any]:
        """Yield the elements, strings as bytes (which need not be UTF-8)."""
        for cursor in self._chunks():
            if self.kind == "string":
                yield from cursor.strings(self.length, self.name)
                continue
            for part in self._numbers(cursor):
                yield from (map(bool, part) if self.kind == "bool" else part)

    def _numbers(self, cursor: Cursor) -> Iterator[array[Any]]:
        code = CODES[self.kind]
        while cursor.left:
            part = array(code)
            part.frombytes(cursor.take(min(cursor.left, CHUNK_BYTES), self.name))
            if sys.byteorder == "big":
                part.byteswap()
            yield part

    def numbers(self) -> array[Any]:
        """All elements of a numeric array as an ``array.array``: the caller bounds its length."""
        if self.kind not in CODES:
            raise ModelError(f"{self._file.path}: {self.name} holds {self.kind}, not numbers")
        values = array(CODES[self.kind])
        for cursor in self._chunks():
            for part in self._numbers(cursor):
                values.extend(part)
        return values

    def __iter__(self) -> Iterator[Any]:
        if self.kind != "string":
            yield from self.raw()
            return
        for index, raw in enumerate(self.raw()):
            try:
                yield raw.decode()
            except UnicodeDecodeError:
                raise ModelError(
                    f"{self._file.path}: {self.name}[{index}] is not UTF-8: {clip(raw)}"
                ) from None
