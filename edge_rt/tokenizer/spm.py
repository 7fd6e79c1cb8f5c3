"""SentencePiece-style encoding (``tokenizer.ggml.model`` = "llama"), llama.cpp's algorithm.

Characters are joined while any two neighbours are a token together: the token of the highest
score first, the leftmost on a tie. Neither Hugging Face's Unigram nor its BPE with merges made
from the scores does that when scores are equal.
"""

from __future__ import annotations

import re
from array import array
from typing import Final

from edge_rt.errors import ModelError
from edge_rt.loaders.gguf_cursor import LazyArray
from edge_rt.tokenizer.special import INSIDE
from edge_rt.tokenizer.vocab import BYTE, INFINITE, NORMAL, Vocabulary, merge_symbols
from edge_rt.tokenizer.words import SPACE, Unspanned, WordCache

_BYTE_TOKEN: Final = re.compile(rb"<0x([0-9A-F]{2})>")


def byte_ids(vocabulary: Vocabulary) -> list[int]:
    """The byte token of each byte, -1 where there is none; raises `ModelError`."""
    index = -1
    while (index := vocabulary.types.find(BYTE, index + 1)) >= 0:
        if not _BYTE_TOKEN.fullmatch(vocabulary.piece(index)):
            raise ModelError(
                f"byte token {index} is {vocabulary.piece(index)[:40]!r}, not <0x00> to <0xFF>"
            )
    return [vocabulary.find(b"<0x%02X>" % byte) for byte in range(256)]


def bytes_of_piece(vocabulary: Vocabulary, index: int) -> bytes:
    """The bytes that a token stands for."""
    piece = vocabulary.piece(index)
    kind = vocabulary.types[index]
    if kind == BYTE:
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE.encode(), b" ") if kind == NORMAL else piece


class SentencePieceModel:
    """Ids of a text without special tokens, with fallback to byte tokens, then ``unknown_id``."""

    ends_at_line = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        scores: LazyArray | None,
        unknown_id: int | None,
        add_space_prefix: bool,
    ) -> None:
        n_tokens = len(vocabulary)
        self._vocabulary = vocabulary
        self._unknown_id = unknown_id
        self.add_space_prefix = add_space_prefix
        self._scores = array("f", bytes(4)) * n_tokens if scores is None else array("f")
        for part in scores.parts() if scores is not None else ():
            self._scores.extend(part if part.typecode == "f" else array("f", part))
        if len(self._scores) != n_tokens:
            raise ModelError(f"there are {n_tokens} tokens, but {len(self._scores)} scores")
        if any(score != score for score in self._scores):
            raise ModelError("a token's score is not a number")
        # A byte without a byte token is that byte's own token.
        own = (vocabulary.find(bytes([byte])) for byte in range(256))
        self._bytes = [i if i >= 0 else j for i, j in zip(byte_ids(vocabulary), own, strict=True)]
        self._unspanned = Unspanned(vocabulary)
        self._cache = WordCache()

    def _lookup(self, left: bytes, right: bytes) -> tuple[float, bytes]:
        joined = left + right
        index = self._vocabulary.find(joined)
        return (-self._scores[index], joined) if index >= 0 else (INFINITE, joined)

    def encode(self, text: str, place: int) -> list[int]:
        """Encode ``text``, which gets a space unless its ``place`` is INSIDE."""
        text = text.replace(" ", SPACE)
        if place != INSIDE and self.add_space_prefix:
            text = SPACE + text
        ids: list[int] = []
        known = self._cache.get
        for word in self._unspanned.words(text):
            ids.extend(known(word) or self._encode_word(word))
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
        return self._cache.keep(word, tuple(ids))

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token stands for, a special token's text included."""
        return bytes_of_piece(self._vocabulary, index)

    def may_cut(self, left: str, right: str) -> bool:
        """Whether a text may be cut between these two characters."""
        return self._unspanned.may_cut(left, right)
