"""The models of the fault matrix, each with a twin of the same layout and other contents, and where
in their files each thing lies."""

from __future__ import annotations

import os
import shutil
import struct
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .conftest import load_script

maker = load_script("make_model")  # parity's modules import its neighbours

import numpy as np  # noqa: E402

from edge_rt.loaders.gguf import GGUFFile  # noqa: E402
from edge_rt.loaders.gguf_cursor import LazyArray  # noqa: E402
from edge_rt.loaders.safetensors import SafetensorsFolder  # noqa: E402
from edge_rt.loaders.source import SAFETENSORS_INDEX  # noqa: E402
from edge_rt.models.huggingface import huggingface_source  # noqa: E402

from .parity.folders import write_tokenizer  # noqa: E402
from .parity.variants import VARIANTS  # noqa: E402
from .parity.weights import weights  # noqa: E402
from .safetensors_builder import Safetensors, write_folder  # noqa: E402

N_PARTS = 3
_LETTERS = "etaoinshrdlcumwfgypbvk"
_OLD = 1_600_000_000  # when the files were last written to: long before anybody opens them

Extent = tuple[str, int, int]  # file, first and last byte


@dataclass
class Model:
    """``entry``: what a user gives, under ``folder``; ``twin``: a folder of the same files that
    hold another model of the same sizes. ``extents``: by name."""

    folder: Path
    twin: Path
    entry: str
    extents: dict[str, Extent] = field(default_factory=dict)


def byte_pairs(n: int) -> tuple[list[str], list[str]]:
    """``n`` entries of a byte-level BPE and its merges: <unk> <s> </s>, the bytes, short words."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    pieces, merges = ["<unk>", "<s>", "</s>", *letters], []
    short = list(_LETTERS)
    while len(pieces) < n:
        longer = []
        for first in short:
            for second in _LETTERS:
                if len(pieces) < n:
                    pieces.append(first + second)
                    longer.append(first + second)
                    merges.append(f"{first} {second}")
        short = longer
    return pieces, merges


def _gguf(seed: int) -> Any:
    """Two tiles to the largest matrices, and a header of more than one chunk."""
    config = maker.Config(
        layers=2, hidden=256, ffn=640, heads=4, kv_heads=2, head_dim=64, vocab=1024, context=512,
        format="Q8_0", rope_scaling="llama3", rope_factor=4.0, logit_std=3.0,
    )  # fmt: skip
    gguf = maker.build(config, seed)
    name = lambda raw: raw[8 : 8 + struct.unpack_from("<Q", raw)[0]]  # noqa: E731
    gguf.metadata = [raw for raw in gguf.metadata if not name(raw).startswith(b"tokenizer.")]
    pieces, merges = byte_pairs(config.vocab)
    types = np.full(len(pieces), 1, np.int32)
    types[:3] = 2, 3, 3
    gguf.add("tokenizer.ggml.model", "gpt2")
    gguf.add("tokenizer.ggml.pre", "smollm")
    gguf.add("tokenizer.ggml.tokens", pieces)
    gguf.add("tokenizer.ggml.token_type", types)
    gguf.add("tokenizer.ggml.merges", merges)
    gguf.add("tokenizer.ggml.bos_token_id", 1)
    gguf.add("tokenizer.ggml.eos_token_id", 2)
    gguf.add("tokenizer.ggml.add_bos_token", True)
    gguf.add("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}")
    gguf.add("general.description", "d" * 300_000)  # the directory lies in another chunk
    return gguf


def _split(whole: Any) -> list[Any]:
    parts = []
    for k in range(N_PARTS):
        part = maker.GGUFFile(list(whole.metadata) if k == 0 else [])
        part.tensors = whole.tensors[k::N_PARTS]
        part.add("split.no", k)
        part.add("split.count", N_PARTS)
        part.add("split.tensors.count", len(whole.tensors))
        parts.append(part)
    return parts


def _gguf_extents(path: Path) -> dict[str, Extent]:
    """Of tensors, arrays, the keys and the directory, in all parts of a model."""
    file = GGUFFile.open(path)
    names = [os.path.basename(p) for p in file.parts]
    found: dict[str, Extent] = {}
    for t in file.tensors.values():
        part = bisect_right(file.starts, t.offset) - 1
        first = t.offset - file.starts[part]
        found[t.name] = (names[part], first, first + t.n_bytes - 1)
    for key, value in file.metadata.items():
        if isinstance(value, LazyArray):
            found[key] = (names[0], value.offset, value.offset + value.n_bytes - 1)
    for k, part_path in enumerate(file.parts):
        raw = Path(part_path).read_bytes()[: 1 << 20]
        n_keys = struct.unpack_from("<Q", raw, 16)[0]
        start = min(raw.find(struct.pack("<Q", len(n)) + n.encode()) for n in file.tensors
                    if raw.find(struct.pack("<Q", len(n)) + n.encode()) > 0)  # fmt: skip
        assert n_keys > 2
        in_part = [e for e in found.values() if e[0] == names[k] and e[1] > start]
        end = min(e[1] for e in in_part)
        found[f"keys {k}"] = (names[k], 24, start - 1)
        found[f"directory {k}"] = (names[k], start, end - 1)
    return found


def _folder(where: Path, seed: int) -> None:
    variant = VARIANTS["llama_llama3"]
    shards = [Safetensors(), Safetensors()]
    for i, (name, values) in enumerate(weights(variant, seed).items()):
        data = np.ascontiguousarray(values, "<f2").tobytes()
        shards[i % 2].add(name, values.shape, "F16", data)
    config = {"model_type": variant.family, **variant.config}
    if seed:  # another model that is written in as many bytes
        config["rms_norm_eps"] = 9e-05
    write_folder(where, shards, config)
    write_tokenizer(where, variant.config["vocab_size"])
    if seed:
        path = where / "tokenizer.json"
        path.write_text(path.read_text().replace('"et"', '"\0"').replace('"te"', '"et"')
                        .replace('"\0"', '"te"'))  # fmt: skip
    word = "twin" if seed else "user"
    template = "{% for m in messages %}" + word + " {{ m.content }}{% endfor %}"
    (where / "chat_template.jinja").write_text(template)


def _whole(path: Path) -> Extent:
    return path.name, 0, path.stat().st_size - 1


def build(where: Path, kind: str) -> Model:
    """``kind``: ``gguf``, ``split`` or ``folder``."""
    model = Model(where / "model", where / "twin", "")
    for folder, seed in ((model.folder, 0), (model.twin, 1)):
        folder.mkdir(parents=True)
        if kind == "gguf":
            _gguf(seed).write(folder / "m.gguf")
        elif kind == "split":
            for k, part in enumerate(_split(_gguf(seed)), 1):
                part.write(folder / f"m-{k:05}-of-{N_PARTS:05}.gguf")
        else:
            _folder(folder, seed)
        for path in folder.iterdir():
            os.utime(path, (_OLD, _OLD))
    for path in model.folder.iterdir():
        other = model.twin / path.name
        assert path.stat().st_size == other.stat().st_size, path.name
    if kind == "folder":
        for path in model.folder.iterdir():
            model.extents[path.name] = _whole(path)
        raw = SafetensorsFolder.open(model.folder)
        source = huggingface_source(raw)
        for t in source.tensors.values():
            part = bisect_right(raw.starts, t.offset) - 1
            first = t.offset - raw.starts[part]
            model.extents[t.name] = os.path.basename(raw.parts[part]), first, first + t.n_bytes - 1
        for k, part_path in enumerate(raw.parts):
            (length,) = struct.unpack("<Q", Path(part_path).read_bytes()[:8])
            model.extents[f"header {k}"] = os.path.basename(part_path), 0, 7 + length
        assert SAFETENSORS_INDEX in model.extents
    else:
        model.entry = "m.gguf" if kind == "gguf" else f"m-00001-of-{N_PARTS:05}.gguf"
        model.extents = _gguf_extents(model.folder / model.entry)
    return model


def restore(model: Model, folder: Path) -> None:
    """Make ``folder`` hold the model again: new files where one is missing or was written to."""
    for path in folder.iterdir():
        if not (model.folder / path.name).exists():
            path.unlink()
    for path in model.folder.iterdir():
        there = folder / path.name
        try:
            s = there.stat()
            if (s.st_size, s.st_mtime) == (path.stat().st_size, _OLD):
                continue
        except FileNotFoundError:
            pass
        shutil.copy2(path, folder / (path.name + ".new"))
        os.rename(folder / (path.name + ".new"), there)
