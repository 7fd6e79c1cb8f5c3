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


def cases() -> Iterator[Case]:
    """Every generated file."""
    for module in (
        attacks, gguf_fields, gguf_keys, gguf_tensors, vocabularies, splits, sparse, broken_weights,
        safetensors_files, folder_files, tokenizer_files, places,
    ):  # fmt: skip
        yield from module.cases()
    yield from _flipped()


def sample(every: int, seed: int) -> list[Case]:
    """All named attacks, and one of ``every`` other cases of each family."""
    rng, chosen = random.Random(seed), []
    by_family: dict[str, list[Case]] = {}
    for case in cases():
        by_family.setdefault(case.family, []).append(case)
    for family, found in by_family.items():
        n = len(found) if family == "attacks" else max(2, len(found) // every)
        chosen += rng.sample(found, min(n, len(found)))
    return chosen


def _flipped() -> Iterator[Case]:
    """Random bytes of a header: nobody knows what becomes of it."""
    rng = random.Random(7)
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


def families() -> dict[str, int]:
    """How many files each family has."""
    found: dict[str, int] = {}
    for case in cases():
        found[case.family] = found.get(case.family, 0) + 1
    return found
