"""Byte-pair encoding, as GGUF (``tokenizer.ggml.model`` = "gpt2" and "gemma4") and
``tokenizer.json`` have it: the merges are made here, because the tokenizers library needs 74 MiB
to build a model of 151k tokens and 36 MiB to keep it, which a hard budget cannot spare.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from edge_rt.errors import ModelError
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
    empty_slots,
    merge_symbols,
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
    """Pairs of tokens and what they become, by rank; ``pairs`` are (left, right) pieces.

    Of equal pairs the first counts, as in llama.cpp, or with ``last_counts`` the last.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        pairs: Iterable[tuple[bytes, bytes]],
        last_counts: bool = False,
    ) -> None:
        self._pairs = array("Q")  # by rank: left id << 24 | right id
        self._joined = array("I")  # by rank
        # A secret factor, so that no file can be made whose pairs all share a slot.
        self._factor = int.from_bytes(os.urandom(8), "little") | 1
        find, types = vocabulary.find, vocabulary.types
        for rank, (one, two) in enumerate(pairs):
            left, right, joined = find(one), find(two), find(one + two)
            if min(left, right, joined) < 0 or BYTE in (types[left], types[right]):
                raise ModelError(
                    f"merge {rank} {(one + b' ' + two)[:60]!r} does not join two tokens into a "
                    "third one"
                )
            if rank >= MAX_TOKENS:
                raise ModelError(f"more than {MAX_TOKENS} merges are not supported")
            self._pairs.append(left << 24 | right)
            self._joined.append(joined)
        self._slots = empty_slots(len(self._pairs))
        for rank, pair in enumerate(self._pairs):
            slot, other = self._slot(pair)
            if not other or last_counts:
                self._slots[slot] = rank + 1

    def _slot(self, pair: int) -> tuple[int, int]:
        """The slot of ``pair`` and its rank + 1, which is 0 when the slot is free."""
        slots, pairs = self._slots, self._pairs
        mask = len(slots) - 1
        slot = (pair * self._factor >> 40) & mask
        while other := slots[slot]:
            if pairs[other - 1] == pair:
                break
            slot = (slot + 1) & mask
        return slot, other

    def __len__(self) -> int:
        return len(self._pairs)

    def lookup(self, left: int, right: int) -> tuple[float, int]:
        """(rank + 1, joined) of two ids; a negative one joins with nothing."""
        rank = self._slot(left << 24 | right)[1]
        return (rank, self._joined[rank - 1]) if rank else (INFINITE, -1)


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
