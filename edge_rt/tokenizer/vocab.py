"""A vocabulary in three flat buffers instead of a Python object for each token.

A dict of 151936 tokens with its strings needs 22 MiB; this needs 4 MiB, at build time too.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any, Final

from edge_rt.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MAX_TOKENS: Final = 1 << 22  # the largest known vocabularies have 2^18
MAX_BLOB_BYTES: Final = 1 << 25  # of all tokens; 262144 tokens of gemma have 2 MiB
INFINITE: Final = float("inf")


def empty_slots(n_entries: int) -> array[int]:
    """A hash table for ``n_entries`` numbers: 1.5 to 3 slots for each, 4 bytes a slot, zeros."""
    size = 1 << max(3, (n_entries * 3 // 2).bit_length())
    return array("I", bytes(4)) * size


class Vocabulary:
    """Pieces, types and an index from a piece's bytes to its id.

    Raises `ModelError` for an empty or too large vocabulary, a duplicate piece and a wrong type.
    """

    __slots__ = ("_blob", "_ends", "_slots", "types")

    def __init__(self, pieces: Iterable[bytes], n_tokens: int, types: Iterable[int] | None) -> None:
        if not 0 < n_tokens < MAX_TOKENS:
            raise ModelError(f"a vocabulary of {n_tokens} tokens is not supported")
        blob = bytearray()
        ends = array("I")
        self._slots = empty_slots(n_tokens)
        self._blob: bytes | bytearray = blob
        self._ends = ends
        slots, mask = self._slots, len(self._slots) - 1
        end = 0
        for index, piece in enumerate(pieces):
            piece = piece or b"[EMPTY_%d]" % index
            # The slot is sought first, while the blob does not have this piece yet.
            slot = hash(piece) & mask
            while other := slots[slot]:
                if self.piece(other - 1) == piece:
                    raise ModelError(
                        f"token {index} {piece[:40]!r} occurs twice: it is token {other - 1} too"
                    )
                slot = (slot + 1) & mask
            slots[slot] = index + 1
            blob += piece
            end += len(piece)
            if end > MAX_BLOB_BYTES:
                raise ModelError(f"the vocabulary's tokens have more than {MAX_BLOB_BYTES} bytes")
            ends.append(end)
        self._blob = bytes(blob)
        # Without types every token is an ordinary one.
        self.types = _types(types, n_tokens) if types else bytearray([NORMAL]) * n_tokens

    def __len__(self) -> int:
        return len(self._ends)

    def piece(self, index: int) -> bytes:
        """The piece as the file has it."""
        return bytes(self._blob[self._ends[index - 1] if index else 0 : self._ends[index]])

    def find(self, piece: bytes) -> int:
        """The id of ``piece``, -1 when there is none."""
        slots = self._slots
        mask = len(slots) - 1
        slot = hash(piece) & mask
        while other := slots[slot]:
            if self.piece(other - 1) == piece:
                return other - 1
            slot = (slot + 1) & mask
        return -1

    @property
    def n_bytes(self) -> int:
        """Bytes of all pieces together."""
        return len(self._blob)


def _types(types: Iterable[int], n_tokens: int) -> bytearray:
    try:
        packed = bytearray(types)
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
