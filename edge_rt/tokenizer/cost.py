"""How much memory a tokenizer may hold, before it is built."""

from __future__ import annotations

from edge_rt.loaders.source import WeightSource
from edge_rt.sizes import MIB
from edge_rt.tokenizer.special import MAX_SPECIALS

# Words of the cache and their ids (2048 x about 1 KiB at the very worst), the pre-tokenizer's
# expressions, and what encoding one slice of 8192 characters makes for a moment.
_FIXED_BYTES = 4 * MIB
_SPECIAL_BYTES = 400  # tuple, text, integer, list and dict slots of one special token
_HEAP_BYTES = 3 * MIB  # fragments of Python's and the C library's heaps, and read buffers
# The tokenizers library, imported and used for the first time, with a pre-tokenizer's expressions;
# its words of a slice are objects with offsets.
_LIBRARY_BYTES = 8 * MIB
_JSON_BUFFER_BYTES = 2 * MIB  # a chunk, the rest of the one before, and a small value's objects


def tokenizer_bytes(source: WeightSource) -> tuple[int, int]:
    """Ceilings of (build peak, what stays) for the tokenizer of ``source``, 0 where it has none.

    From counts only, so they are the same everywhere. A ``tokenizer.json`` is read for them; raises
    `ModelError` when it cannot be.
    """
    if source.folder is not None:
        from edge_rt.tokenizer.folder import tokenizer_file
        from edge_rt.tokenizer.json_file import scan

        counts = scan(tokenizer_file(source.texts))
        return tokenizer_ceilings(
            counts.tokens,
            counts.merges,
            counts.token_bytes,
            counts.specials,
            from_json=True,
            with_library=counts.with_library,
        )
    tokens = source.get_array("tokenizer.ggml.tokens", None)
    if tokens is None:
        return 0, 0
    merges = source.get_array("tokenizer.ggml.merges", None)
    types = source.get_array("tokenizer.ggml.token_type", None)
    n_special = 0
    if types is not None and types.kind == "int32":
        n_special = sum(part.count(kind) for part in types.parts() for kind in (2, 3, 4))
    return tokenizer_ceilings(
        len(tokens),
        len(merges) if merges is not None else 0,
        tokens.n_bytes - 8 * len(tokens),
        min(n_special, MAX_SPECIALS),
    )


def tokenizer_ceilings(
    n_tokens: int,
    n_merges: int,
    token_bytes_total: int,
    n_special: int,
    *,
    from_json: bool = False,
    with_library: bool = False,
) -> tuple[int, int]:
    """Upper bounds in bytes over what the imports hold: (while building, afterwards in use).

    ``token_bytes_total`` is the length of all tokens together. The exact sizes of the buffers of
    `Vocabulary`, `Merges` and `SentencePieceModel`, plus 15 %.
    """
    slots = _slot_bytes(n_tokens) + (_slot_bytes(n_merges) if n_merges else 0)
    flat = token_bytes_total + n_tokens * (4 + 1 + 4) + n_merges * (8 + 4)
    kept = slots + flat + n_special * _SPECIAL_BYTES + (_LIBRARY_BYTES if with_library else 0)
    steady = kept + _FIXED_BYTES
    # While building: a blob whose estimate was too small once more, and arrays as they grow.
    build = kept + token_bytes_total + flat // 4 + _HEAP_BYTES
    if from_json:  # the pieces in the file's order, their ends and ids, and the places of ids
        build += token_bytes_total * 9 // 8 + n_tokens * 4 * 3 + _JSON_BUFFER_BYTES
    return max(build, steady) * 115 // 100, steady * 115 // 100


def _slot_bytes(n_entries: int) -> int:
    return 4 << max(3, (n_entries * 3 // 2).bit_length())
