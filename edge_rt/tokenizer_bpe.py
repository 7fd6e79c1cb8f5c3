"""Byte-level byte-pair encoding (``tokenizer.ggml.model`` = "gpt2").

Hugging Face's tokenizers splits the text; the merges are made here, because its BPE model needs
74 MiB to be built for 151k tokens and 36 MiB to be kept, which a hard budget cannot spare.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from edge_rt.errors import ModelError
from edge_rt.tokenizer_vocab import INFINITE, Vocabulary, empty_slots, merge_symbols

_CACHED_WORDS: Final = 2048
_CACHED_LETTERS: Final = 32
_CACHED_IDS: Final = 16  # with the two above: about 2 MiB at the very worst


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


@dataclass(frozen=True)
class PreTokenizer:
    """How a text is cut into words before merging.

    ``build`` makes the Hugging Face pre-tokenizer. ``cuts_at_space``: whatever stands around it,
    a word always ends between a character that is no white space and a space or newline.
    """

    build: Callable[[], Any]
    cuts_at_space: bool
    add_bos: bool = False
    whole_words: bool = False  # a word that is a token is not built by merges (ignore_merges)


def _smollm() -> Any:
    from tokenizers import pre_tokenizers as pre

    return pre.Sequence(
        [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False, use_regex=True)]
    )


# tokenizer.ggml.pre -> how to split. A row is all that another pre-tokenizer needs.
PRE_TOKENIZERS: Final = {"smollm": PreTokenizer(_smollm, cuts_at_space=True)}


def bytes_of_piece(piece: bytes) -> bytes:
    """The text that a byte-level piece stands for; one outside of the alphabet is itself."""
    try:
        return bytes([BYTE_OF_LETTER[letter] for letter in piece.decode()])
    except (KeyError, UnicodeDecodeError):
        return piece


class BytePairModel:
    """Ids of a text without special tokens. ``merges`` are "left right" in order of rank."""

    def __init__(
        self, vocabulary: Vocabulary, merges: Iterable[bytes], n_merges: int, pre: PreTokenizer
    ) -> None:
        self._vocabulary = vocabulary
        self._pre = pre
        self._letters = {c: vocabulary.find(c.encode()) for c in LETTER_OF_BYTE}
        self._cache: dict[str, tuple[int, ...]] = {}
        self._slots = empty_slots(n_merges)
        self._pairs = array("Q")  # by rank: left id << 24 | right id
        self._joined = array("I")  # by rank
        # A secret factor, so that no file can be made whose pairs all share a slot.
        self._factor = int.from_bytes(os.urandom(8), "little") | 1
        find = vocabulary.find
        for rank, merge in enumerate(merges):
            # The left piece has at least one byte, and that may be a space.
            space = merge.find(b" ", 1)
            left, right = find(merge[:space]), find(merge[space + 1 :])
            joined = find(merge[:space] + merge[space + 1 :])
            if space < 0 or min(left, right, joined) < 0:
                raise ModelError(
                    f"merge {rank} {merge[:60]!r} does not join two tokens into a third one"
                )
            pair = left << 24 | right
            slot, other = self._slot(pair)
            if not other:  # the first of equal merges counts, as in llama.cpp
                self._slots[slot] = rank + 1
            self._pairs.append(pair)
            self._joined.append(joined)
        self._pre_tokenizer = pre.build()

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

    def _lookup(self, left: int, right: int) -> tuple[float, int]:
        rank = self._slot(left << 24 | right)[1]
        return (rank, self._joined[rank - 1]) if rank else (INFINITE, -1)

    def encode(self, text: str, first: bool) -> list[int]:
        """Encode ``text``; ``first`` (of the text, or after a special token) changes nothing."""
        ids: list[int] = []
        cache = self._cache
        for word, _ in self._pre_tokenizer.pre_tokenize_str(text):
            known = cache.get(word)
            if known is None:
                known = self._encode_word(word)
                if len(word) <= _CACHED_LETTERS and len(known) <= _CACHED_IDS:
                    if len(cache) >= _CACHED_WORDS:
                        cache.clear()
                    cache[word] = known
            ids.extend(known)
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if self._pre.whole_words and (whole := self._vocabulary.find(word.encode())) >= 0:
            return (whole,)
        letters = self._letters
        # A byte without a token is left out, as llama.cpp and Hugging Face do.
        symbols = [index for letter in word if (index := letters[letter]) >= 0]
        return tuple(merge_symbols(symbols, self._lookup))

    def token_bytes(self, index: int) -> bytes:
        """The bytes of an ordinary token."""
        return bytes_of_piece(self._vocabulary.piece(index))

    def cuts(self, right: str) -> set[str] | None:
        """Characters after which the text must not be cut before ``right``; None: after all."""
        return set() if self._pre.cuts_at_space else None
