"""A minimal safetensors and Hugging Face folder writer for tests, able to write wrong values."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BITS = {"F32": 32, "F16": 16, "BF16": 16, "F64": 64, "I64": 64, "I32": 32, "U8": 8, "BOOL": 8}


def count(shape: tuple[int, ...] | list[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


@dataclass
class Safetensors:
    """One file: ``add`` lays tensors out one after the other; ``entries`` may be changed after."""

    entries: dict[str, Any] = field(default_factory=dict)
    data: bytes = b""
    metadata: dict[str, str] | None = field(default_factory=lambda: {"format": "pt"})

    def add(
        self, name: str, shape: tuple[int, ...], dtype: str = "F32", data: bytes | None = None
    ) -> Safetensors:
        data = bytes(count(shape) * BITS[dtype] // 8) if data is None else data
        begin = len(self.data)
        self.data += data
        self.entries[name] = {
            "dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + len(data)],
        }  # fmt: skip
        return self

    def header(self) -> bytes:
        metadata = {} if self.metadata is None else {"__metadata__": self.metadata}
        text = json.dumps(metadata | self.entries).encode()
        return text + b" " * (-len(text) % 8)

    def pack(self) -> bytes:
        return pack(self.header(), self.data)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.pack())
        return path


def pack(header: bytes | str, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of any header; ``length`` overrides what the file says of it."""
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def write_folder(
    folder: Path,
    shards: list[Safetensors],
    config: dict[str, Any] | None = None,
    index: bool | None = None,
) -> Path:
    """A Hugging Face folder; several shards get an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        shard.write(folder / (name if len(shards) > 1 else "model.safetensors"))
        weight_map.update(dict.fromkeys(shard.entries, name))
    if index if index is not None else len(shards) > 1:
        write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: dict[str, Any]) -> None:
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)
