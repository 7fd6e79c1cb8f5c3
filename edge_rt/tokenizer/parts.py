"""What a `Tokenizer` is made of, wherever it was read from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from edge_rt.tokenizer.vocab import Vocabulary


class Model(Protocol):
    """Turns a piece of text without special tokens into ids."""

    ends_at_line: bool

    def encode(self, text: str, place: int) -> list[int]:
        """Ids of ``text``; ``place`` is INSIDE, AFTER_TOKEN or AT_START."""

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token stands for, a special token's text included."""

    def may_cut(self, left: str, right: str) -> bool:
        """Whether a text may be cut between two characters, the right one a space or newline."""


class Matcher(Protocol):
    """Finds special tokens in a text.

    ``texts``: of all tokens; ``rstrip_ends``: last characters of tokens that take the white space
    after them; ``any_lstrip``: whether one takes the white space before it.
    """

    texts: list[str]
    rstrip_ends: set[str]
    any_lstrip: bool

    def fragments(self, text: str, special: bool, place: int) -> Iterator[int | tuple[str, int]]:
        """Cut ``text`` at its special tokens: ids, and texts with their places."""


@dataclass(frozen=True)
class Parts:
    """Everything that `Tokenizer` needs to know."""

    vocabulary: Vocabulary
    model: Model
    matcher: Matcher
    bos_id: int | None
    eos_ids: frozenset[int]
    add_bos: bool
    add_eos: bool
    strips_space: bool
