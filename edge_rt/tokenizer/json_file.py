"""Reading Hugging Face's ``tokenizer.json`` as a stream.

The vocabulary and the merges go into flat buffers on the way: the tokenizers library would need
several times the memory of the file for them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edge_rt.errors import ModelError
from edge_rt.loaders.json_stream import JsonStream
from edge_rt.tokenizer.added import AddedToken
from edge_rt.tokenizer.special import MAX_SPECIALS
from edge_rt.tokenizer.vocab import (
    CONTROL,
    MAX_BLOB_BYTES,
    MAX_TOKENS,
    NORMAL,
    USER_DEFINED,
    Vocabulary,
)

_KEPT: Final = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
# Settings of the model that change what it does, and the values that are supported.
_PLAIN: Final = {
    "dropout": (None, 0, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
}


@dataclass
class Layout:
    """What a tokenizer.json says beside its vocabulary and merges."""

    parts: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    added: list[AddedToken] = field(default_factory=list)
    entries: int = 0
    merges: int = 0
    merges_at: int | None = None  # offset of merges that are still to be read

    def kinds(self, part: str) -> set[str]:
        """The types of a component and of all that it consists of."""
        found: set[str] = set()
        pending = [self.parts.get(part)]
        while pending:
            one = pending.pop()
            if isinstance(one, dict):
                found.add(str(one.get("type")))
                pending.extend(one.values())
            elif isinstance(one, list):
                pending.extend(one)
        return found

    @property
    def byte_level(self) -> bool:
        """Whether the pieces are in the byte-level alphabet."""
        return "ByteLevel" in self.kinds("decoder")


TakeVocab = Callable[[JsonStream, Iterator[tuple[bytes, int]]], int]
TakeMerges = Callable[[JsonStream, Layout, Iterator[tuple[bytes, bytes | None]]], int]


def walk(path: Path, take_vocab: TakeVocab, take_merges: TakeMerges) -> Layout:
    """Read a tokenizer.json; vocabulary and merges are handed on as streams, the merges last.

    Raises `ModelError` for what is not one, or of a kind that cannot be run exactly.
    """
    layout = Layout()
    seen = set()
    with JsonStream.open(path) as stream:
        for key in stream.members():
            if key in seen:
                raise stream.fail(f"{key[:40]!r} occurs twice")
            seen.add(key)
            if key == "added_tokens" and stream.peek() == b"[":
                for _ in stream.items():
                    layout.added.append(added_token(stream, stream.value()))
                    if len(layout.added) > MAX_SPECIALS:
                        raise stream.fail(f"more than {MAX_SPECIALS} added tokens")
            elif key == "model":
                early = {"added_tokens", *_KEPT} <= seen
                _walk_model(stream, layout, take_vocab, take_merges if early else None)
            elif key in _KEPT:
                layout.parts[key] = stream.value()
            else:
                stream.skip()
        stream.end()
        if "model" not in seen:
            raise stream.fail("it has no model, so it is not a tokenizer")
        if layout.merges_at is not None:
            stream.seek(layout.merges_at)
            layout.merges = take_merges(stream, layout, stream.pairs())
    return layout


def _walk_model(
    stream: JsonStream, layout: Layout, take_vocab: TakeVocab, take_merges: TakeMerges | None
) -> None:
    """Merges that come before what they need are left for later (``take_merges`` None: all)."""
    model = layout.model
    if stream.peek() != b"{":
        raise stream.fail("its model is not an object, so it is not a tokenizer")
    done = False
    for key in stream.members():
        if key in model:
            raise stream.fail(f"{key[:40]!r} occurs twice")
        if key == "vocab":
            if model.get("type", "BPE") != "BPE" or stream.peek() != b"{":
                kind = str(model.get("type", "Unigram"))[:40]
                raise stream.fail(f"its model {kind!r} is not supported (supported: BPE)")
            layout.entries = take_vocab(stream, stream.numbers())
            done = True
            model[key] = None
        elif key == "merges":
            if done and take_merges:
                layout.merges = take_merges(stream, layout, stream.pairs())
            else:
                layout.merges_at = stream.tell()
                for _ in stream.pairs():
                    pass
            model[key] = None
        else:
            model[key] = stream.value()
            if key == "type" and model[key] != "BPE":
                raise stream.fail(
                    f"its model {str(model[key])[:40]!r} is not supported (supported: BPE)"
                )
    if not done or "merges" not in model:
        raise stream.fail("its model has no vocab or no merges, so it is not byte-pair encoding")
    for key, supported in _PLAIN.items():
        if model.get(key) not in supported:
            raise stream.fail(f"{key} {str(model[key])[:40]!r} of its model is not supported")


def added_token(stream: JsonStream, value: Any) -> AddedToken:
    """An entry of added_tokens; raises `ModelError` for what is none."""
    flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("content"), str)
        or not isinstance(value.get("id"), int)
        or not 0 <= value["id"] < MAX_TOKENS
        or not all(isinstance(value.get(flag, False), bool) for flag in flags)
    ):
        raise stream.fail(f"{str(value)[:60]!r} is not an added token")
    content = value["content"]
    try:
        content.encode()
    except UnicodeEncodeError:
        raise stream.fail("a string is not Unicode") from None
    return AddedToken(content, value["id"], *(bool(value.get(flag, False)) for flag in flags))


class Pieces:
    """The pieces of a JSON object in its own order, without an object for each."""

    def __init__(self) -> None:
        self._blob, self._ends, self._ids = bytearray(), array("I"), array("I")

    def take(self, stream: JsonStream, entries: Iterator[tuple[bytes, int]]) -> int:
        for raw, index in entries:
            if index >= MAX_TOKENS or len(self._blob) > MAX_BLOB_BYTES:
                raise stream.fail(f"a vocabulary with id {index} or so many bytes is too large")
            if b"\\" in raw or not raw.isascii():
                raw = stream.text(raw).encode()
            self.add(raw, index)
        return len(self._ids)

    def add(self, piece: bytes, index: int) -> None:
        self._blob += piece
        self._ends.append(len(self._blob))
        self._ids.append(index)

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        start = 0
        for end, index in zip(self._ends, self._ids, strict=True):
            yield bytes(self._blob[start:end]), index
            start = end

    def vocabulary(self, path: Path, added: list[AddedToken]) -> Vocabulary:
        """In the order of the ids, placeholders for ids that have no piece."""
        n_entries = len(self._ids)
        n_tokens = 1 + max([max(self._ids, default=-1), *(token.token_id for token in added)])
        if n_tokens > 2 * n_entries + 65536:
            raise ModelError(f"{path}: {n_entries} tokens have ids up to {n_tokens - 1}")
        place = array("I", bytes(4)) * n_tokens  # of an id in the order of the file, + 1
        for number, index in enumerate(self._ids):
            if place[index]:
                raise ModelError(f"{path}: two tokens have the id {index}")
            place[index] = number + 1
        contents = {token.token_id: token.content.encode() for token in added}
        types = bytearray([NORMAL]) * n_tokens
        for token in added:
            types[token.token_id] = CONTROL if token.special else USER_DEFINED

        def pieces() -> Iterator[bytes]:
            for index in range(n_tokens):
                number = place[index]
                if number:
                    start = self._ends[number - 2] if number > 1 else 0
                    yield bytes(self._blob[start : self._ends[number - 1]])
                elif index in contents:
                    yield contents[index]
                else:
                    types[index] = CONTROL
                    yield b"[unused %d]" % index

        # Names of ids without a piece may be more bytes than there are now.
        n_bytes = len(self._blob) + sum(map(len, contents.values()))
        return Vocabulary(pieces(), n_tokens, types, n_bytes)


def pair(stream: JsonStream, one: bytes, two: bytes | None) -> tuple[bytes, bytes]:
    """The two pieces of a merge, which is "left right" or an array of both."""
    if two is None:
        parts = (one if b"\\" not in one else stream.text(one).encode()).split(b" ")
        if len(parts) != 2:
            raise stream.fail(f"{one[:60]!r} is not a merge")
        return parts[0], parts[1]
    return stream.text(one).encode(), stream.text(two).encode()


@dataclass(frozen=True)
class Counts:
    """What decides how much memory the tokenizer of a tokenizer.json needs."""

    tokens: int
    merges: int
    token_bytes: int
    specials: int
    with_library: bool


def scan(path: Path) -> Counts:
    """Count without building: the whole file is read, nothing of it is kept."""
    n_bytes = 0

    def take_vocab(stream: JsonStream, entries: Iterator[tuple[bytes, int]]) -> int:
        nonlocal n_bytes
        count = 0
        for raw, _ in entries:
            n_bytes += len(raw) if b"\\" not in raw else len(stream.text(raw).encode())
            count += 1
        return count

    def take_merges(_: JsonStream, __: Layout, pairs: Iterator[tuple[bytes, bytes | None]]) -> int:
        return sum(1 for _ in pairs)

    layout = walk(path, take_vocab, take_merges)
    n_added = len(layout.added)
    n_bytes += sum(len(token.content.encode()) for token in layout.added)
    return Counts(layout.entries + n_added, layout.merges, n_bytes, n_added, layout.byte_level)
