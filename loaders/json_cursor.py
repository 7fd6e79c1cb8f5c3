"""Walking through JSON that may be large or hostile, holding one value of it at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from edge_rt.errors import ModelError
from edge_rt.loaders.gguf_cursor import CHUNK_BYTES, Cursor, clip

_MAX_DEPTH = 64
_MAX_VALUES = 1 << 18  # of one document; four to each tensor of the largest models
_MAX_SCALAR_BYTES = 64  # of a number or a literal

_SPACE = re.compile(rb"[ \t\n\r]*")
_FLAT = re.compile(rb'\{[^{}"]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^{}"]*)*\}', re.DOTALL)
_SCALAR = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")


class JsonCursor:
    """Takes values off a `Cursor` in the order in which they come; every call may raise
    `ModelError`. ``what`` names the document in messages."""

    def __init__(self, cursor: Cursor, what: str) -> None:
        self._cursor, self._what, self._values = cursor, what, 0

    def fail(self, message: str) -> ModelError:
        return ModelError(f"{self._cursor.path}: {self._what}: {message}")

    def _peek(self) -> bytes:
        """The next byte that is no white space; empty at the end."""
        cursor = self._cursor
        while True:
            space = _SPACE.match(cursor.buf, cursor.at)
            assert space
            cursor.at = space.end()
            if cursor.at < len(cursor.buf):
                return cursor.buf[cursor.at : cursor.at + 1]
            if not cursor.left:
                return b""
            cursor.fill(1, self._what)

    def _expect(self, wanted: bytes) -> bytes:
        """Take the next byte, which must be one of ``wanted``."""
        byte = self._peek()
        if not byte or byte not in wanted:
            found = clip(byte) if byte else "its end"
            choices = " or ".join(map(repr, wanted.decode()))
            raise self.fail(f"not JSON at {self._cursor.offset}: {found} instead of {choices}")
        self._cursor.at += 1
        return byte

    def _count(self) -> None:
        self._values += 1
        if self._values > _MAX_VALUES:
            raise self.fail(f"more than {_MAX_VALUES} values")

    def _take(self, pattern: re.Pattern[bytes], kind: str, limit: int) -> bytes:
        """Take what ``pattern`` matches in at most ``limit`` bytes."""
        self._count()
        cursor = self._cursor
        cursor.fill(min(limit, cursor.left), self._what)
        found = pattern.match(cursor.buf, cursor.at, cursor.at + limit)
        if not found:
            raise self.fail(f"no {kind} of at most {limit} bytes at {cursor.offset}")
        cursor.at = found.end()
        return found[0]

    def string(self, limit: int) -> str:
        """Take a string whose text in the file has at most ``limit`` bytes."""
        self._count()
        cursor = self._cursor
        if self._peek() != b'"':
            raise self.fail(f"not a string at {cursor.offset}")
        done = 1  # bytes of it that were looked at
        while True:
            start = cursor.at + done
            end = cursor.buf.find(b'"', start, cursor.at + limit + 2)
            if end < 0:
                done = len(cursor.buf) - cursor.at
                if done >= limit + 2 or not cursor.left - done:
                    raise self.fail(f"no string of at most {limit} bytes at {cursor.offset}")
                cursor.fill(min(done + CHUNK_BYTES, cursor.left), self._what)
                done = 1
                continue
            before = cursor.buf[start:end]
            done = end + 1 - cursor.at
            if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
                break
        raw = cursor.take(done, self._what)
        try:
            text = json.loads(raw.decode())
            assert isinstance(text, str)
            text.encode()  # half of a surrogate pair is no character
        except ValueError:
            raise self.fail(f"not a string of characters: {clip(raw)}") from None
        return text

    def flat_object(self, limit: int) -> str:
        """Take an object that holds no other object; its text, still to be parsed."""
        if self._peek() != b"{":
            raise self.fail(f"not an object at {self._cursor.offset}")
        raw = self._take(_FLAT, "flat object", limit)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.fail(f"not UTF-8: {clip(raw)}") from None

    def keys(self, limit: int) -> Iterator[str]:
        """Take an object: yield each key, after which the caller takes the value."""
        self._expect(b"{")
        if self._peek() == b"}":
            self._cursor.at += 1
            return
        while True:
            key = self.string(limit)
            self._expect(b":")
            yield key
            if self._expect(b",}") == b"}":
                return

    def skip(self, limit: int, depth: int = 0) -> None:
        """Take any value without keeping it; ``limit`` bounds the bytes of each string."""
        if depth > _MAX_DEPTH:
            raise self.fail(f"nested more than {_MAX_DEPTH} deep")
        self._count()
        match self._peek():
            case b"{":
                for _ in self.keys(limit):
                    self.skip(limit, depth + 1)
            case b"[":
                self._expect(b"[")
                if self._peek() == b"]":
                    self._cursor.at += 1
                    return
                while True:
                    self.skip(limit, depth + 1)
                    if self._expect(b",]") == b"]":
                        return
            case b'"':
                self.string(limit)
            case _:
                self._take(_SCALAR, "value", _MAX_SCALAR_BYTES)

    def end(self) -> None:
        """Nothing but white space may follow."""
        if self._peek():
            raise self.fail(f"something follows its end at {self._cursor.offset}")
