"""Byte-pair encoding, as GGUF (``tokenizer.ggml.model`` = "gpt2" and "gemma4") and
``tokenizer.json`` have it: the merges are made here, because the tokenizers library needs 74 MiB
to build a model of 151k tokens and 36 MiB to keep it, which a hard budget cannot spare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from edge_rt.errors import ModelError
from edge_rt.loaders.gguf_cursor import U64, LazyArray
from edge_rt.tokenizer._tokenizer import MergeTable
from edge_rt.tokenizer.spm import byte_ids
from edge_rt.tokenizer.spm import bytes_of_piece as raw_bytes_of_piece
from edge_rt.tokenizer.unicode_classes import is_letter
from edge_rt.tokenizer.vocab import (
    BYTE,
    CONTROL,
    INFINITE,
    MAX_TOKENS,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    merge_symbols,
    secret,
)
from edge_rt.tokenizer.words import SPACE, Unspanned, WordCache


def _alphabet() -> list[str]:
    """The printable character that stands for each byte, as GPT-2 has it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in range(256)]
    others = (byte for byte in range(256) if byte not in plain)
    for place, byte in enumerate(others):
        letters[byte] = chr(256 + place)
    return letters


LETTER_OF_BYTE: Final = _alphabet()
_NOTHING: Final = (INFINITE, -1)
BYTE_OF_LETTER: Final = {letter: byte for byte, letter in enumerate(LETTER_OF_BYTE)}


class Splitter(Protocol):
    """Cuts a text into words; the properties are those of `PreTokenizer`."""

    @property
    def ends_at_space(self) -> bool: ...
    @property
    def ends_at_line(self) -> bool: ...
    def words(self, text: str) -> Iterator[str]: ...


def bytes_of_piece(piece: bytes) -> bytes:
    """The text that a byte-level piece stands for; one outside of the alphabet is itself."""
    try:
        return bytes([BYTE_OF_LETTER[letter] for letter in piece.decode()])
    except (KeyError, UnicodeDecodeError):
        return piece


class Merges:
    """Pairs of tokens and what they become, by rank.

    ``pairs``: a GGUF's array of "left right", or (left, right) pieces. Of equal pairs the first
    counts, as in llama.cpp, or with ``last_counts`` the last.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        pairs: LazyArray | Iterable[tuple[bytes, bytes]],
        last_counts: bool = False,
    ) -> None:
        self._vocabulary = vocabulary
        self._table = table = MergeTable(vocabulary.table, secret())
        if isinstance(pairs, LazyArray):
            self._check_count(len(pairs))
            pairs.feed(self._take)
        else:
            for one, two in pairs:
                if not table.add(vocabulary.types, BYTE, one, two):
                    raise self._wrong(one + b" " + two)
                self._check_count(len(table))
        table.finish(last_counts)

    @staticmethod
    def _check_count(n_merges: int) -> None:
        if n_merges > MAX_TOKENS:
            raise ModelError(f"more than {MAX_TOKENS} merges are not supported")

    def _take(self, buffer: bytes, at: int, count: int) -> tuple[int, int]:
        types = self._vocabulary.types
        at, left, good = self._table.add_merges(types, BYTE, buffer, at, count)
        if not good:
            raise self._wrong(buffer[at + 8 : at + 8 + U64.unpack_from(buffer, at)[0]])
        return at, left

    def _wrong(self, merge: bytes) -> ModelError:
        return ModelError(
            f"merge {len(self._table)} {merge[:60]!r} does not join two tokens into a third one"
        )

    def __len__(self) -> int:
        return len(self._table)

    def lookup(self, left: int, right: int) -> tuple[float, int]:
        """(rank + 1, joined) of two ids; a negative one joins with nothing."""
        found = self._table.lookup(left, right)
        return found if found[0] else _NOTHING


class BytePairModel:
    """Ids of a text without special tokens; pieces are in the byte-level alphabet.

    ``whole_words``: a word that is a token is not built by merges. ``in_letters``: the words of
    ``splitter`` are in that alphabet too. ``outside``: added tokens that no text becomes by itself.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        merges: Merges,
        splitter: Splitter,
        whole_words: bool,
        in_letters: bool = False,
        outside: frozenset[int] = frozenset(),
    ) -> None:
        self._vocabulary, self._merges, self._splitter = vocabulary, merges, splitter
        self._whole_words, self._in_letters, self._outside = whole_words, in_letters, outside
        self._letters = [vocabulary.find(letter.encode()) for letter in LETTER_OF_BYTE]
        self._cache = WordCache()
        self.ends_at_line = splitter.ends_at_line

    def encode(self, text: str, place: int) -> list[int]:
        """Encode ``text``; its ``place`` changes nothing."""
        ids: list[int] = []
        known = self._cache.get
        for word in self._splitter.words(text):
            ids.extend(known(word) or self._encode_word(word))
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        raw = bytes_of_piece(word.encode()) if self._in_letters else word.encode()
        if self._whole_words:
            piece = "".join(map(LETTER_OF_BYTE.__getitem__, raw)).encode()
            whole = self._vocabulary.find(piece)
            if whole >= 0 and whole not in self._outside:
                return self._cache.keep(word, (whole,))
        # A byte without a token is left out, as llama.cpp and Hugging Face do.
        symbols = [index for byte in raw if (index := self._letters[byte]) >= 0]
        return self._cache.keep(word, tuple(merge_symbols(symbols, self._merges.lookup)))

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token stands for, a special token's text included."""
        piece = self._vocabulary.piece(index)
        special = self._vocabulary.types[index] in (UNKNOWN, CONTROL, USER_DEFINED)
        return piece if special else bytes_of_piece(piece)

    def may_cut(self, left: str, right: str) -> bool:
        """Whether a text may be cut between two characters, the right one a space or newline."""
        return self._splitter.ends_at_space and is_letter(left)


def _escape_spaces(text: str, place: int) -> str:
    return text.replace(" ", SPACE)


class RawPairModel:
    """The same for pieces in UTF-8 with "▁" for spaces, and byte tokens for what has no token.

    ``newline_runs``: a run of newlines that is a token is one. ``prepare`` makes a text's spaces to
    "▁" and may put one before it. ``all_escaped``: a "▁" is a space in special tokens too.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        merges: Merges,
        splitter: Splitter,
        *,
        newline_runs: bool = False,
        prepare: Callable[[str, int], str] = _escape_spaces,
        outside: frozenset[int] = frozenset(),
        all_escaped: bool = False,
    ) -> None:
        self._all_escaped = all_escaped
        self._vocabulary, self._merges, self._splitter = vocabulary, merges, splitter
        self._newline_runs, self._prepare, self._outside = newline_runs, prepare, outside
        self._bytes = byte_ids(vocabulary)
        self._unspanned = Unspanned(vocabulary)
        self._cache = WordCache()
        self.ends_at_line = splitter.ends_at_line

    def encode(self, text: str, place: int) -> list[int]:
        """Encode ``text``, prepared for its ``place``."""
        ids: list[int] = []
        known = self._cache.get
        for line in self._splitter.words(self._prepare(text, place)):
            for word in self._unspanned.words(line):
                ids.extend(known(word) or self._encode_word(word))
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        find = self._vocabulary.find
        if self._newline_runs and not word.strip("\n") and (whole := find(word.encode())) >= 0:
            return self._cache.keep(word, (whole,))
        symbols: list[int] = []
        for letter in word:
            raw = letter.encode()
            index = find(raw)
            if index in self._outside:
                index = -1
            # Negative: a byte, which joins with nothing.
            symbols.extend([index] if index >= 0 else [-1 - byte for byte in raw])
        ids = (
            index if index >= 0 else self._bytes[-1 - index]
            for index in merge_symbols(symbols, self._merges.lookup)
        )
        return self._cache.keep(word, tuple(index for index in ids if index >= 0))

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token stands for, a special token's text included."""
        raw = raw_bytes_of_piece(self._vocabulary, index)
        return raw.replace(SPACE.encode(), b" ") if self._all_escaped else raw

    def may_cut(self, left: str, right: str) -> bool:
        """Whether a text may be cut between these two characters."""
        return self._splitter.ends_at_space and self._unspanned.may_cut(left, right)
