"""The reader of Hugging Face folders: agreement with the safetensors library, and refusal of
whatever is wrong."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from edge_rt.loaders.safetensors import SafetensorsFolder
from edge_rt.loaders.source import PART_ALIGNMENT

from .safetensors_builder import Safetensors, count, write_folder


def sample(salt: int = 0, n: int = 3) -> Safetensors:
    """Random tensors on ragged shapes, a scalar and an empty one among them."""
    rng = random.Random(salt)
    file = Safetensors()
    for i in range(n):
        shape = tuple(rng.randrange(1, 9) for _ in range(rng.randrange(1, 4)))
        dtype, size = rng.choice([("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8), ("U8", 1)])
        file.add(f"layer.{salt}.{i}.weight", shape, dtype, rng.randbytes(size * count(shape)))
    file.add(f"scalar.{salt}", (), "F32", rng.randbytes(4))
    return file.add(f"none.{salt}", (0, 7), "F16")


def check(found: SafetensorsFolder, shards: list[Safetensors]) -> None:
    """Every tensor of ``shards`` is there, and its extent holds its bytes."""
    assert len(found.raw) == sum(len(s.entries) for s in shards)
    start = 0
    for path, shard in zip(found.parts, shards, strict=True):
        content = Path(path).read_bytes()
        for name, entry in shard.entries.items():
            t, (begin, end) = found.raw[name], entry["data_offsets"]
            assert (t.name, t.shape, t.format_name) == (name, tuple(entry["shape"]), entry["dtype"])
            assert (t.format is not None) == (entry["dtype"] in ("F32", "F16", "BF16"))
            at = t.offset - start
            assert content[at : at + t.n_bytes] == shard.data[begin:end]
        start = -(-(start + len(content)) // PART_ALIGNMENT) * PART_ALIGNMENT
    assert found.file_size == sum(os.path.getsize(path) for path in found.parts)


@pytest.mark.parametrize("n_shards", [1, 2, 7])
def test_finds_what_was_written(tmp_path: Path, n_shards: int) -> None:
    shards = [sample(salt, salt + 1) for salt in range(n_shards)]
    folder = write_folder(tmp_path / "m", shards, {"model_type": "qwen2", "n": 3})
    found = SafetensorsFolder.open(folder)
    check(found, shards)
    assert found.config == {"model_type": "qwen2", "n": 3}
    assert found.generation_config == {"eos_token_id": 2}
    assert found.folder == str(folder)
    assert "m: x" in str(found.fail("x"))
