"""A variant as a Hugging Face folder, made without torch: tensors lie at odd bytes of the file."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np

from .variants import VARIANTS, Variant
from .weights import weights


def write(variant: Variant, folder: Path, dtype: str = "F16", seed: int = 0) -> Path:
    """``dtype``: F32 or F16, of every tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, data = {}, b""
    for name, values in weights(variant, seed).items():
        begin = len(data)
        data += np.ascontiguousarray(values, {"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        offsets = [begin, len(data)]
        entries[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8 + 3)  # the format asks for no alignment
    file = struct.pack("<Q", len(header)) + header + data
    (folder / "model.safetensors").write_bytes(file)
    config = {"model_type": variant.family, **variant.config}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, variant.config["vocab_size"])
    return folder


def write_tokenizer(folder: Path, n: int) -> None:
    """A byte-level BPE of ``n`` entries: <unk> <s> </s>, the bytes, and merges of what there is."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    pieces = ["<unk>", "<s>", "</s>", *(letters[b] for b in range(256))]
    merges: list[tuple[str, str]] = []
    for first in "etaoinshr":
        for second in "etaoinshr":
            if len(pieces) < n:
                pieces.append(first + second)
                merges.append((first, second))
    assert len(pieces) == n
    special = [
        {"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i in range(3)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    write(VARIANTS[sys.argv[2]], Path(sys.argv[1]), *sys.argv[3:])
