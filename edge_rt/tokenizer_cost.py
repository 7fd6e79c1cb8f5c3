"""How much memory a tokenizer from a GGUF file may hold, before it is built."""

from __future__ import annotations

from edge_rt.sizes import MIB

# Words of the cache and their ids (2048 x about 1 KiB at the very worst), the pre-tokenizer's
# expression, and what encoding one slice of 8192 characters makes for a moment.
_FIXED_BYTES = 6 * MIB
_SPECIAL_BYTES = 320  # tuple, text, integer and list slot of one special token
_HEAP_BYTES = 2 * MIB  # fragments of Python's and the C library's heaps, and read buffers


def tokenizer_ceilings(
    n_tokens: int, n_merges: int, token_bytes_total: int, n_special: int = 1024
) -> tuple[int, int]:
    """Upper bounds in bytes over what the imports hold: (while building, afterwards in use).

    ``token_bytes_total`` is the length of all tokens together (the extent of the GGUF array is
    an upper bound of it). The exact sizes of the buffers of `Vocabulary`, `BytePairModel` and
    `SentencePieceModel`, which grow by an eighth at a time, plus 15 %.
    """
    slots = _slot_bytes(n_tokens) + (_slot_bytes(n_merges) if n_merges else 0)
    flat = token_bytes_total + n_tokens * (4 + 1 + 4) + n_merges * (8 + 4)
    steady = slots + flat + n_special * _SPECIAL_BYTES + _FIXED_BYTES
    # While building: the blob once more as it becomes immutable, and arrays as they grow.
    peak = steady + token_bytes_total + flat // 4 + _HEAP_BYTES
    return peak * 115 // 100, steady * 115 // 100


def _slot_bytes(n_entries: int) -> int:
    return 4 << max(3, (n_entries * 3 // 2).bit_length())
