"""Walking through JSON that may be large or hostile, holding a chunk of it at a time.

The grammar is RFC 8259's, with the three constants that Python's ``json`` writes besides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from edge_rt.errors import ModelError
from edge_rt.flash_io.files import File, open_file, storage_errors
from edge_rt.loaders.gguf_cursor import Cursor, clip, kind_of
from edge_rt.sizes import MIB

_MAX_VALUE_BYTES: Final = 1 * MIB  # of a string, an element or a value as they are written
_MAX_DEPTH: Final = 64
_MAX_SKIPPED: Final = 1 << 17  # values of one document; the most known are about 50 000
_MAX_SCALAR_BYTES: Final = 64  # of a number or a literal
_MAX_FLAT_BYTES: Final = 4096  # of an object that is parsed at once only to be skipped
_JSON: Final = json.JSONDecoder()

_WS: Final = rb"[ \t\r\n]*"
_TEXT: Final = rb'"([^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"'  # unrolled: linear on any input
_SPACE: Final = re.compile(_WS)
_STRING: Final = re.compile(_TEXT)
_SCALAR: Final = re.compile(
    rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null|NaN|-?Infinity"
)
_FLAT: Final = re.compile(rb'\{[^{}"]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^{}"]*)*\}', re.DOTALL)
_ENTRY: Final = re.compile(
    _WS + _TEXT + _WS + b":" + _WS + rb"(0|[1-9][0-9]{0,9})" + _WS + b"(?P<next>[,}])"
)
_TEXT_OR_PAIR: Final = re.compile(
    _WS + rb"(?:" + _TEXT + rb"|\[" + _WS + _TEXT + _WS + b"," + _WS + _TEXT + _WS + rb"\])"
    + _WS + rb"(?P<next>[,\]])"
)  # fmt: skip


class JsonStream:
    """A position in the JSON document that a `Cursor` reads, or a file that `open` opens.

    Values are taken in the order in which they come. Every call may raise `ModelError` for what is
    not JSON or too large, and `StorageError` when the drive fails.
    """

    def __init__(self, cursor: Cursor) -> None:
        self._cursor, self._skipped = cursor, 0

    @classmethod
    @contextmanager
    def open(cls, path: Path | File) -> Iterator[JsonStream]:
        """A whole file; raises `UsageError` when it cannot be opened."""
        file = path if isinstance(path, File) else open_file(path)
        yield cls(Cursor(file, 0, file.size))
        with storage_errors():
            file.check_unchanged()

    def fail(self, reason: str) -> ModelError:
        """The error for what is wrong here."""
        return ModelError(f"{self._cursor.path}: {reason} (near byte {self.tell()})")

    def tell(self) -> int:
        """The offset in the file of what is read next."""
        return self._cursor.offset

    def seek(self, offset: int) -> None:
        """Go on at another offset."""
        cursor = self._cursor
        if 0 <= offset - cursor.base <= len(cursor.buf):
            cursor.at = offset - cursor.base
        else:
            cursor.base, cursor.buf, cursor.at = offset, b"", 0

    def _read_on(self) -> bool:
        """Read one chunk more; False at the end."""
        have = len(self._cursor.buf) - self._cursor.at
        if self._cursor.left == have:
            return False
        self._cursor.fill(have + 1, "JSON")
        return True

    def _match(
        self, pattern: re.Pattern[bytes], what: str, limit: int = _MAX_VALUE_BYTES
    ) -> re.Match[bytes]:
        """Take what ``pattern`` matches in at most ``limit`` bytes."""
        cursor = self._cursor
        while not (match := pattern.match(cursor.buf, cursor.at, cursor.at + limit)):
            if len(cursor.buf) - cursor.at >= limit or not self._read_on():
                raise self.fail(f"this is not {what} of at most {limit} bytes")
        cursor.at = match.end()
        return match

    def peek(self) -> bytes:
        """The next character that is no white space, b"" at the end."""
        cursor = self._cursor
        while True:
            byte = cursor.buf[cursor.at : cursor.at + 1]
            if byte and byte not in b" \t\r\n":
                return byte
            space = _SPACE.match(cursor.buf, cursor.at)
            assert space
            cursor.at = space.end()
            if cursor.at == len(cursor.buf) and not self._read_on():
                return b""

    def _take(self, wanted: bytes) -> bytes:
        """Take the next character, which must be one of ``wanted``."""
        byte = self.peek()
        if not byte or byte not in wanted:
            if not self.tell():  # another kind of file under this name
                kind = kind_of(self._cursor.buf[:64])
                raise ModelError(f"{self._cursor.path}: not a JSON object ({kind})")
            found = repr(byte.decode("latin-1")) if byte else "its end"
            choices = " or ".join(map(repr, wanted.decode()))
            raise self.fail(f"not JSON of this kind: {found} instead of {choices}")
        self._cursor.at += 1
        return byte

    def _is_empty(self, opening: bytes, closing: bytes) -> bool:
        """Go into an object or array, or behind it when there is nothing in it."""
        self._take(opening)
        empty = self.peek() == closing
        self._cursor.at += empty
        return empty

    def members(self, limit: int = _MAX_VALUE_BYTES) -> Iterator[str]:
        """The keys of the object here; take or skip the value before asking for the next."""
        more = not self._is_empty(b"{", b"}")
        while more:
            key = self.string(limit)
            self._take(b":")
            yield key
            more = self._take(b",}") == b","

    def items(self) -> Iterator[None]:
        """One None for each element of the array here; take or skip it before the next."""
        more = not self._is_empty(b"[", b"]")
        while more:
            yield None
            more = self._take(b",]") == b","

    def numbers(self) -> Iterator[tuple[bytes, int]]:
        """The entries of the object here, whose values are integers; keys as they are written."""
        if not self._is_empty(b"{", b"}"):
            for match in self._elements(_ENTRY, "a string and its number"):
                yield match[1], int(match[2])

    def pairs(self) -> Iterator[tuple[bytes, bytes | None]]:
        """The elements of the array here: (string, None), or the two strings of an array."""
        if not self._is_empty(b"[", b"]"):
            for match in self._elements(_TEXT_OR_PAIR, "a string or a pair of strings"):
                text = match[1]
                yield (text, None) if text is not None else (match[2], match[3])

    def _elements(self, pattern: re.Pattern[bytes], what: str) -> Iterator[re.Match[bytes]]:
        """Each element with the character that follows it, which ``pattern`` names ``next``."""
        cursor, more = self._cursor, True
        while more:
            # Half a million times for a large vocabulary, so without the call where it can be.
            match = pattern.match(cursor.buf, cursor.at) or self._match(pattern, what)
            cursor.at = match.end()
            more = match["next"] == b","
            yield match

    def text(self, raw: bytes) -> str:
        """The text of a string from its bytes between the quotes; raises for what is none."""
        try:
            if b"\\" not in raw:
                return raw.decode()
            text: str = json.loads(b'"' + raw + b'"')
            text.encode()  # half of a surrogate pair is no character
        except ValueError:
            raise self.fail(f"not a string of characters: {clip(raw)}") from None
        return text

    def string(self, limit: int = _MAX_VALUE_BYTES) -> str:
        """Take a string that is written in at most ``limit`` bytes, its quotes included."""
        if self.peek() != b'"':
            raise self.fail("not a string")
        return self.text(self._match(_STRING, "a string", limit)[1])

    def value(self, limit: int = _MAX_VALUE_BYTES, decoder: json.JSONDecoder = _JSON) -> Any:
        """Take a value that is written in at most ``limit`` bytes."""
        self.peek()
        if (found := self._flat(limit, decoder)) is not None:
            return found
        start = self.tell()
        self.skip()
        n_bytes = self.tell() - start
        if n_bytes > limit:
            raise self.fail(f"a value has more than {limit} bytes")
        self.seek(start)
        return self._decode(self._cursor.take(n_bytes, "JSON"), decoder)

    def _flat(self, limit: int, decoder: json.JSONDecoder) -> Any | None:
        """Take an object without another in it; None where there is none, or part of it only."""
        cursor = self._cursor
        match = _FLAT.match(cursor.buf, cursor.at, cursor.at + limit)
        if not match or match[0].count(b"[") >= _MAX_DEPTH:  # the walk finds how deep it is
            return None
        cursor.at = match.end()
        return self._decode(match[0], decoder)

    def _decode(self, raw: bytes, decoder: json.JSONDecoder) -> Any:
        try:
            value = decoder.decode(raw.decode())
            if b"\\u" in raw:  # half of a surrogate pair is no character
                json.dumps(value, ensure_ascii=False).encode()
            return value
        except (ValueError, RecursionError) as error:
            raise self.fail(f"this is not JSON: {clip(str(error))}") from None

    def skip(self, depth: int = 0) -> None:
        """Take any value without keeping it."""
        if depth > _MAX_DEPTH:
            raise self.fail(f"nested more than {_MAX_DEPTH} deep")
        self._skipped += 1
        if self._skipped > _MAX_SKIPPED:
            raise self.fail(f"more than {_MAX_SKIPPED} values")
        match self.peek():
            case b"{":
                if self._flat(_MAX_FLAT_BYTES, _JSON) is None:
                    for _ in self.members():
                        self.skip(depth + 1)
            case b"[":
                for _ in self.items():
                    self.skip(depth + 1)
            case b'"':
                self.string()
            case _:
                cursor = self._cursor  # half of a number would match too
                room = _MAX_SCALAR_BYTES + 1
                cursor.fill(min(room, cursor.left), "JSON")
                if len(self._match(_SCALAR, "a value", room)[0]) == room:  # it may go on
                    raise self.fail(f"a number of more than {_MAX_SCALAR_BYTES} characters")

    def end(self) -> None:
        """Nothing but white space may follow."""
        if self.peek():
            raise self.fail("something follows the end")
