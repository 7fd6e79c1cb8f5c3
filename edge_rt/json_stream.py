"""A reader of large JSON files that holds a chunk of them, for values too large for ``json.loads``.

It checks what it walks through by the grammar of what it is asked for; a value that is skipped
needs balanced brackets only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from edge_rt.errors import ModelError, StorageError, UsageError
from edge_rt.loaders.gguf_cursor import kind_of
from edge_rt.sizes import KIB, MIB

_CHUNK_BYTES: Final = 256 * KIB
_MAX_VALUE_BYTES: Final = 1 * MIB  # of one string or one small value
_MAX_DEPTH: Final = 64
_WS: Final = rb"[ \t\r\n]*"
_STRING: Final = rb'"([^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"'  # unrolled: linear on any input
_SPACE: Final = re.compile(_WS)
_KEY: Final = re.compile(_WS + _STRING + _WS + b":")
_ENTRY: Final = re.compile(_WS + _STRING + _WS + b":" + _WS + rb"(\d{1,10})" + _WS + b"([,}])")
_TEXT_OR_PAIR: Final = re.compile(
    _WS + rb"(?:" + _STRING + rb"|\[" + _WS + _STRING + _WS + b"," + _WS + _STRING + _WS + rb"\])"
    + _WS + rb"([,\]])"
)  # fmt: skip
_TOKEN: Final = re.compile(
    rb'"[^"\\]*(?:\\.[^"\\]*)*"|([{\[])|([}\]])|([,:\s]+)|[^"{}\[\],:\s]+', re.DOTALL
)


class JsonStream:
    """A position in a JSON file. Close it, or use it as a context."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data, self._at, self._ended = b"", 0, False
        try:
            if not path.is_file():
                raise UsageError(f"no such file: {path}")
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        except PermissionError as error:
            raise UsageError(f"cannot read {path}: {error}") from None
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error}") from error

    def __enter__(self) -> JsonStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fail(self, reason: str) -> ModelError:
        """The error for what is wrong here."""
        return ModelError(f"{self.path}: {reason} (near byte {self.tell()})")

    def tell(self) -> int:
        """The offset of what is read next."""
        return os.lseek(self._file.fileno(), 0, os.SEEK_CUR) - len(self._data) + self._at

    def seek(self, offset: int) -> None:
        """Go on at another offset."""
        self._file.seek(offset)
        self._data, self._at, self._ended = b"", 0, False

    def _fill(self) -> bool:
        """Read on; False at the end of the file."""
        if self._ended:
            return False
        if len(self._data) - self._at > _MAX_VALUE_BYTES:
            raise self.fail(f"a value has more than {_MAX_VALUE_BYTES} bytes, or it is not JSON")
        try:
            more = self._file.read(_CHUNK_BYTES)
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error}") from error
        self._data, self._at = self._data[self._at :] + more, 0
        self._ended = not more
        return not self._ended

    def _match(self, pattern: re.Pattern[bytes], what: str) -> re.Match[bytes]:
        while not (match := pattern.match(self._data, self._at)):
            if not self._fill():
                raise self.fail(f"this is not {what}")
        self._at = match.end()
        return match

    def peek(self) -> bytes:
        """The next character that is no white space, b"" at the end."""
        while True:
            self._at = self._space_end()
            if self._at < len(self._data):
                return self._data[self._at : self._at + 1]
            if not self._fill():
                return b""

    def _space_end(self) -> int:
        match = _SPACE.match(self._data, self._at)
        assert match
        return match.end()

    def _take(self, wanted: bytes) -> None:
        found = self.peek()
        if found != wanted:
            if not self.tell():
                raise ModelError(f"{self.path}: not a JSON object ({kind_of(self._data[:64])})")
            raise self.fail(f"{wanted.decode()!r} is missing")
        self._at += 1

    def members(self) -> Iterator[str]:
        """The keys of the object here; read or skip the value before asking for the next."""
        self._take(b"{")
        if self.peek() != b"}":
            while True:
                yield self.text(self._match(_KEY, "a key")[1])
                if self.peek() != b",":
                    break
                self._at += 1
        self._take(b"}")

    def items(self) -> Iterator[None]:
        """One None for each element of the array here; read or skip it before the next."""
        self._take(b"[")
        if self.peek() != b"]":
            while True:
                yield None
                if self.peek() != b",":
                    break
                self._at += 1
        self._take(b"]")

    def numbers(self) -> Iterator[tuple[bytes, int]]:
        """The entries of the object here, whose values are integers; keys as they are written."""
        self._take(b"{")
        if self.peek() == b"}":
            self._at += 1
            return
        end = b","
        while end == b",":
            match = self._match(_ENTRY, "a string and its number")
            end = match[3]
            yield match[1], int(match[2])

    def pairs(self) -> Iterator[tuple[bytes, bytes | None]]:
        """The elements of the array here: (string, None), or the two strings of an array."""
        self._take(b"[")
        if self.peek() == b"]":
            self._at += 1
            return
        end = b","
        while end == b",":
            match = self._match(_TEXT_OR_PAIR, "a string or a pair of strings")
            end = match[4]
            yield (match[1], None) if match[1] is not None else (match[2], match[3])

    def text(self, raw: bytes) -> str:
        """The text of a string from its bytes between the quotes; raises for what is none."""
        try:
            if b"\\" not in raw:
                return raw.decode()
            text: str = json.loads(b'"' + raw + b'"')
            text.encode()
        except (ValueError, RecursionError):
            raise self.fail("a string is not Unicode") from None
        return text

    def skip(self) -> None:
        """Go behind the value here."""
        for _ in self._tokens():
            pass

    def value(self) -> Any:
        """The value here, a small one."""
        self.peek()
        parts, length = [], 0
        for part in self._tokens():
            parts.append(part)
            length += len(part)
            if length > _MAX_VALUE_BYTES:
                raise self.fail(f"a value has more than {_MAX_VALUE_BYTES} bytes")
        try:
            return json.loads(b"".join(parts))
        except (ValueError, RecursionError) as error:
            raise self.fail(f"this is not JSON: {str(error)[:60]}") from None

    def _tokens(self) -> Iterator[bytes]:
        depth, done = 0, False
        while not done:
            match = _TOKEN.match(self._data, self._at)
            if (not match or match.end() == len(self._data)) and self._fill():
                continue
            if not match:
                raise self.fail("the file ends within a value, or it is not JSON")
            depth += bool(match[1]) - bool(match[2])
            if not 0 <= depth <= _MAX_DEPTH:
                raise self.fail("brackets do not match" if depth < 0 else "it is nested too deep")
            self._at = match.end()
            yield match[0]
            done = not depth and not match[3]
