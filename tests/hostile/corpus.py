"""All hostile files, in a fixed order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from . import (
    attacks,
    broken_weights,
    folder_files,
    gguf_fields,
    gguf_keys,
    gguf_tensors,
    places,
    safetensors_files,
    sparse,
    splits,
    tokenizer_files,
    vocabularies,
)
from .case import EITHER, Case
from .small import shard, small, small_bytes, write_small_folder

_FLIPS = 400


def cases(seed: int = 7) -> Iterator[Case]:
    """Every generated file; ``seed``: of the family "flipped bytes"."""
    for module in (
        attacks, gguf_fields, gguf_keys, gguf_tensors, vocabularies, splits, sparse, broken_weights,
        safetensors_files, folder_files, tokenizer_files, places,
    ):  # fmt: skip
        yield from module.cases()
    yield from _flipped(seed)


def sample(every: int, seed: int) -> list[Case]:
    """All named attacks, and one of ``every`` other cases of each family."""
    rng, chosen = random.Random(seed), []
    by_family: dict[str, list[Case]] = {}
    for case in cases(seed):
        by_family.setdefault(case.family, []).append(case)
    for family, found in by_family.items():
        n = len(found) if family == "attacks" else max(2, len(found) // every)
        chosen += rng.sample(found, min(n, len(found)))
    return chosen


def _flipped(seed: int) -> Iterator[Case]:
    """Random bytes of a header: nobody knows what becomes of it."""
    rng = random.Random(seed)
    whole, header = small_bytes(), len(small().header())
    for _ in range(_FLIPS):
        changes = [
            (rng.randrange(4, header), rng.randrange(256)) for _ in range(rng.choice((1, 1, 2, 8)))
        ]
        name = ", ".join(f"{at} = {value}" for at, value in changes)

        def make(folder: Path, changes: list[tuple[int, int]] = changes) -> Path:
            data = bytearray(whole)
            for at, value in changes:
                data[at] = value
            (folder / "m.gguf").write_bytes(data)
            return folder / "m.gguf"

        yield Case("flipped bytes", f"m.gguf: {name}", EITHER, make, EITHER)
    length = len(shard().header())
    for name, end in (
        ("model.safetensors", 8 + length),
        ("tokenizer.json", 6000),
        ("config.json", 300),
    ):
        for _ in range(_FLIPS // 8):
            at, value = rng.randrange(8, end), rng.randrange(256)

            def change(folder: Path, name: str = name, at: int = at, value: int = value) -> Path:
                path = write_small_folder(folder / "m") / name
                data = bytearray(path.read_bytes())
                data[at % len(data)] = value
                path.write_bytes(data)
                return folder / "m"

            yield Case("flipped bytes", f"{name}: {at} = {value}", EITHER, change, EITHER)


# Why files of a family may run although something in them was changed.
WHY_ACCEPTED: dict[str, str] = {
    "attacks": "a template that no command but a chat renders; a prompt beyond a tiny context",
    "fields": "numbers that are valid, only others: ids, scores, epsilon, weights in another order",
    "texts": "names and pieces that nothing depends on",
    "keys": "keys that nothing reads, and values that mean the same or as much in another type",
    "alignment": "alignments that the file is laid out for",
    "kinds": "a key that is off",
    "arrays": "arrays that nothing reads",
    "formats": "another format with the room that it needs: its weights are only numbers",
    "extra": "tensors and keys that the architecture knows",
    "vocabulary": "pieces, scores and kinds are free",
    "special ids": "ids that exist, and roles that nothing needs",
    "merges": "other orders and pre-tokenizers, and a vocabulary that has no token for the prompt",
    "splits": "whole splits by every name that they go by",
    "sparse": "zeros behind the last tensor; models as large as they say (or exit 3)",
    "weights": "finite numbers; NaN and infinity where no logit meets them",
    "blocks": "bytes that are numbers in that format; refused once logits are not finite",
    "header texts": "spaces, escapes and metadata that JSON allows",
    "index": "an index that agrees with the files",
    "folder tensors": "tensors that are ignored by everybody",
    "config.json": "keys that nothing reads, null for the default, valid numbers",
    "rope": "factors that are numbers in their range",
    "folder texts": "texts of another layout with the same meaning",
    "small files": "damage to files that only a chat needs",
    "tokenizer.json": "settings that mean the same",
    "components": "components that are implemented",
    "ids": "permutations that agree with each other",
    "added tokens": "tokens that are allowed",
    "patterns": "patterns that the library takes and answers in time",
    "growing": "growth within the bounds, or a prompt that is too long",
    "tokenizer text": "texts of another layout with the same meaning",
    "no files": "not a model at all: exit 2; a folder with one model runs",
    "names of files": "whole models under odd names",
    "flipped bytes": "random bytes may be harmless",
}
