"""A vocabulary in flat buffers instead of a Python object for each token.

A dict of 151936 tokens with its strings needs 22 MiB; this needs 4 MiB, at build time too, and C++
builds it (`piece_table.h`): a tenth of the time.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any, Final

from edge_rt.errors import ModelError
from edge_rt.loaders.gguf_cursor import LazyArray
from edge_rt.tokenizer._tokenizer import PieceTable

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MAX_TOKENS: Final = 1 << 22  # the largest known vocabularies have 2^18
MAX_BLOB_BYTES: Final = 1 << 25  # of all tokens; 262144 tokens of gemma have 2 MiB
INFINITE: Final = float("inf")
_EMPTY_BYTES: Final = 1 << 20  # of the names that empty tokens get; nobody has planned for them


def secret() -> tuple[int, int]:
    """A key for a hash table: no file can be made whose pieces all share a slot."""
    key = os.urandom(16)
    return int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")


class Vocabulary:
    """Pieces, types and an index from a piece's bytes to its id.

    ``pieces``: a GGUF's array of strings, or any of ``n_bytes`` together. Raises `ModelError` for
    an empty or too large vocabulary, a duplicate piece and a wrong type.
    """

    __slots__ = ("_room", "find", "piece", "table", "types")

    def __init__(
        self,
        pieces: LazyArray | Iterable[bytes],
        n_tokens: int,
        types: LazyArray | bytearray | None,
        n_bytes: int = 0,
    ) -> None:
        if not 0 < n_tokens < MAX_TOKENS:
            raise ModelError(f"a vocabulary of {n_tokens} tokens is not supported")
        if isinstance(pieces, LazyArray):
            n_bytes = pieces.n_bytes - 8 * n_tokens
        _check_bytes(n_bytes)
        self._room = n_bytes + _EMPTY_BYTES
        self.table = table = PieceTable(n_tokens, n_bytes, secret())
        self.piece, self.find = table.piece, table.find
        if isinstance(pieces, LazyArray):
            pieces.feed(self._take)
        else:
            for piece in pieces:
                if (other := table.add(piece or b"[EMPTY_%d]" % len(table))) != -1:
                    raise _twice(len(table), piece, other)
                self._check_room()
        # Without types every token is an ordinary one.
        self.types = _types(types, n_tokens) if types else bytearray([NORMAL]) * n_tokens

    def _take(self, buffer: bytes, at: int, count: int) -> tuple[int, int]:
        at, left, other = self.table.add_strings(buffer, at, count)
        if other != -1:
            raise _twice(len(self.table), self.piece(other), other)
        self._check_room()
        return at, left

    def _check_room(self) -> None:
        if self.table.n_bytes > self._room:
            raise ModelError("too many of the vocabulary's tokens are empty")

    def __len__(self) -> int:
        return len(self.table)

    @property
    def n_bytes(self) -> int:
        """Bytes of all pieces together."""
        return self.table.n_bytes


def _check_bytes(n_bytes: int) -> None:
    if n_bytes > MAX_BLOB_BYTES:
        raise ModelError(f"the vocabulary's tokens have more than {MAX_BLOB_BYTES} bytes")


def _twice(index: int, piece: bytes, other: int) -> ModelError:
    return ModelError(f"token {index} {piece[:40]!r} occurs twice: it is token {other} too")


def _types(types: LazyArray | bytearray, n_tokens: int) -> bytearray:
    try:
        packed = types if isinstance(types, bytearray) else bytearray()
        if isinstance(types, LazyArray):
            for part in types.parts():
                packed += bytes(part.tolist())
    except ModelError:
        raise
    except ValueError:  # below 0 or above 255
        packed = bytearray(b"\xff")
    if packed.strip(bytes(range(NORMAL, BYTE + 1))):
        raise ModelError("a token's type is not one of 1 to 6")
    if len(packed) != n_tokens:
        raise ModelError(f"there are {n_tokens} tokens, but {len(packed)} token types")
    return packed


def merge_symbols(symbols: list[Any], lookup: Any) -> list[Any]:
    """Join neighbours until none can be: always the pair of least cost, the leftmost on a tie.

    ``lookup(left, right)`` returns (cost, joined), cost infinite when the two cannot be joined.
    """
    if len(symbols) > 128:
        return _merge_by_heap(symbols, lookup)
    pairs = [lookup(a, b) for a, b in pairwise(symbols)]
    costs = [pair[0] for pair in pairs]
    joined = [pair[1] for pair in pairs]
    while costs:
        least = min(costs)
        if least == INFINITE:
            break
        at = costs.index(least)
        symbols[at : at + 2] = [joined[at]]
        del costs[at], joined[at]
        if at:
            costs[at - 1], joined[at - 1] = lookup(symbols[at - 1], symbols[at])
        if at < len(costs):
            costs[at], joined[at] = lookup(symbols[at], symbols[at + 1])
    return symbols


def _merge_by_heap(symbols: list[Any], lookup: Any) -> list[Any]:
    """The same in O(n log n) for texts without any boundary; an entry is stale when
    one of its two symbols has been joined since."""
    n = len(symbols)
    after = array("q", range(1, n + 1))
    before = array("q", range(-1, n - 1))
    heap = []
    for i in range(n - 1):
        cost, joined = lookup(symbols[i], symbols[i + 1])
        if cost != INFINITE:
            heap.append((cost, i, i + 1, symbols[i], symbols[i + 1], joined))
    heapify(heap)
    while heap:
        _, left, right, left_was, right_was, joined = heappop(heap)
        if symbols[left] != left_was or symbols[right] != right_was:
            continue
        symbols[left], symbols[right] = joined, None
        after[left] = behind = after[right]
        if behind < n:
            before[behind] = left
            cost, longer = lookup(joined, symbols[behind])
            if cost != INFINITE:
                heappush(heap, (cost, left, behind, joined, symbols[behind], longer))
        ahead = before[left]
        if ahead >= 0:
            cost, longer = lookup(symbols[ahead], joined)
            if cost != INFINITE:
                heappush(heap, (cost, ahead, left, symbols[ahead], joined, longer))
    return [symbol for symbol in symbols if symbol is not None]
