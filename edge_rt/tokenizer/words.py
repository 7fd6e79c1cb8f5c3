"""Where a text can be cut although nothing splits it: places that no token spans.

Merging joins two neighbours only into a token of the vocabulary. Where no token has the two
characters around a place as neighbours, no merge ever crosses it, and merges on the two sides do
not affect each other. So words can be merged, and remembered, on their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from edge_rt.tokenizer.vocab import Vocabulary

SPACE: Final = "▁"
_CACHED_WORDS: Final = 2048
_CACHED_LETTERS: Final = 32
_CACHED_IDS: Final = 16  # with the two above: about 2 MiB at the very worst


class WordCache:
    """Ids of the words met last."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, ...]] = {}
        self.get = self._known.get

    def keep(self, word: str, ids: tuple[int, ...]) -> tuple[int, ...]:
        """``ids``, remembered when word and ids are short."""
        if len(word) <= _CACHED_LETTERS and len(ids) <= _CACHED_IDS:
            if len(self._known) >= _CACHED_WORDS:
                self._known.clear()
            self._known[word] = ids
        return ids


def left_neighbours(texts: Iterable[str], right: str) -> set[str]:
    """The characters that stand directly before ``right`` inside any of ``texts``."""
    found = set()
    for text in texts:
        at = text.find(right, 1)
        while at > 0:
            found.add(text[at - 1])
            at = text.find(right, at + 1)
    return found


def _texts_with(vocabulary: Vocabulary, letter: str) -> Iterator[str]:
    for index in vocabulary.table.holding(letter.encode()):
        yield vocabulary.piece(index).decode(errors="replace")


class Unspanned:
    """The places of a vocabulary of "▁" for spaces: before a "▁" or a newline."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        before_space, before_newline = (
            left_neighbours(_texts_with(vocabulary, letter), letter) for letter in (SPACE, "\n")
        )
        self._inner = {" ": before_space | {" ", SPACE}, "\n": before_newline | {"\n"}}
        inner = "".join(map(re.escape, sorted(self._inner[" "])))
        self._words = re.compile(f"(?<=[^{inner}])(?={SPACE})")

    def words(self, text: str) -> Iterator[str]:
        """``text``, with "▁" for its spaces, cut at such places."""
        start = 0
        for match in self._words.finditer(text):
            yield text[start : match.start()]
            start = match.start()
        yield text[start:]

    def may_cut(self, left: str, right: str) -> bool:
        """Whether a text may be cut between two characters, the right one a space or newline."""
        return right in self._inner and left not in self._inner[right]
