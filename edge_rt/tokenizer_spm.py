"""SentencePiece-style encoding (``tokenizer.ggml.model`` = "llama"), llama.cpp's algorithm.

Characters are joined while any two neighbours are a token together: the token of the highest
score first, the leftmost on a tie. Neither Hugging Face's Unigram nor its BPE with merges made
from the scores does that when scores are equal.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from typing import Final

from edge_rt.errors import ModelError
from edge_rt.tokenizer_vocab import (
    BYTE,
    INFINITE,
    NORMAL,
    Vocabulary,
    left_neighbours,
    merge_symbols,
)

SPACE: Final = "▁"
_BYTE_TOKEN = re.compile(rb"<0x([0-9A-F]{2})>")
_CACHED_WORDS: Final = 2048
_CACHED_LETTERS: Final = 32
_CACHED_IDS: Final = 16


class SentencePieceModel:
    """Ids of a text without special tokens, with fallback to byte tokens, then ``unknown_id``."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        scores: Iterable[float] | None,
        unknown_id: int | None,
        add_space_prefix: bool,
    ) -> None:
        n_tokens = len(vocabulary)
        self._vocabulary = vocabulary
        self._unknown_id = unknown_id
        self.add_space_prefix = add_space_prefix
        self._scores = array("f", bytes(4)) * n_tokens if scores is None else array("f", scores)
        if len(self._scores) != n_tokens:
            raise ModelError(f"there are {n_tokens} tokens, but {len(self._scores)} scores")
        if any(score != score for score in self._scores):
            raise ModelError("a token's score is not a number")
        self._bytes = self._byte_ids(vocabulary)
        self._inner: dict[str, set[str]] = {}
        for letter in (SPACE, "\n"):
            raw = letter.encode()
            within = (p for p in map(vocabulary.piece, range(n_tokens)) if p.find(raw, 1) > 0)
            texts = (p.decode(errors="replace") for p in within)
            self._inner[letter] = left_neighbours(texts, letter)
        inner = "".join(map(re.escape, sorted(self._inner[SPACE] | {SPACE})))
        # Never a token spans these places, so what is on either side is merged on its own.
        self._words = re.compile(f"(?<=[^{inner}])(?={SPACE})")
        self._cache: dict[str, tuple[int, ...]] = {}

    def _byte_ids(self, vocabulary: Vocabulary) -> list[int]:
        """The id for each byte that is no token's: its byte token, else that byte, else -1."""
        for index, kind in enumerate(vocabulary.types):
            if kind == BYTE and not _BYTE_TOKEN.fullmatch(vocabulary.piece(index)):
                raise ModelError(
                    f"byte token {index} is {vocabulary.piece(index)[:40]!r}, not <0x00> to <0xFF>"
                )
        found = (vocabulary.find(b"<0x%02X>" % byte) for byte in range(256))
        return [i if i >= 0 else vocabulary.find(bytes([b])) for b, i in enumerate(found)]

    def _lookup(self, left: bytes, right: bytes) -> tuple[float, bytes]:
        joined = left + right
        index = self._vocabulary.find(joined)
        return (-self._scores[index], joined) if index >= 0 else (INFINITE, joined)

    def encode(self, text: str, first: bool) -> list[int]:
        """Encode ``text``; ``first``: it starts the whole text or follows a special token."""
        text = text.replace(" ", SPACE)
        if first and self.add_space_prefix:
            text = SPACE + text
        ids: list[int] = []
        cache = self._cache
        for word in self._words.split(text):
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
        ids: list[int] = []
        for symbol in merge_symbols([letter.encode() for letter in word], self._lookup):
            index = self._vocabulary.find(symbol)
            fallback = [index] if index >= 0 else [self._bytes[byte] for byte in symbol]
            if min(fallback) < 0:
                if self._unknown_id is None:
                    raise ModelError(f"the vocabulary has no token for {symbol.decode()!r}")
                fallback = [self._unknown_id]
            ids.extend(fallback)
        return tuple(ids)

    def token_bytes(self, index: int) -> bytes:
        """The bytes of an ordinary or byte token."""
        piece = self._vocabulary.piece(index)
        kind = self._vocabulary.types[index]
        if kind == BYTE:
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE.encode(), b" ") if kind == NORMAL else piece

    def cuts(self, right: str) -> set[str] | None:
        """Characters after which the text must not be cut before ``right``."""
        return self._inner[SPACE if right == " " else right]
