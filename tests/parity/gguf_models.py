"""A variant as an F32 GGUF, made of NumPy's weights without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf_layout import ARCHITECTURES, PERMUTED, PLUS_ONE, gguf_name, keys, permute, rope_factors
from make_model import GGUFFile, Tensor, add_vocabulary

from .variants import Variant
from .weights import weights


def as_gguf_says(variant: Variant) -> Variant:
    """The model that the GGUF of ``variant`` describes: without what the converter drops."""
    assert variant.gguf is not None
    return replace(variant, config=variant.config | variant.gguf)


def architecture(variant: Variant) -> str:
    return "mistral3" if variant.wrapper == "mistral3" else ARCHITECTURES[variant.family]


def tensors(variant: Variant, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """(GGUF name, float32 array) of every tensor; a tied head is stored once."""
    config, family = variant.config, variant.family
    for name, value in weights(variant, seed).items():
        if family in PLUS_ONE and "norm" in name:
            value = value + np.float32(1)
        if architecture(variant) in PERMUTED:
            if ".q_proj." in name:
                value = permute(value, config["num_attention_heads"])
            if ".k_proj." in name:
                value = permute(value, config["num_key_value_heads"])
        yield gguf_name(family, name), value
    yield from rope_factors(config)


def write(variant: Variant, path: Path, seed: int = 0) -> Path:
    """Write the GGUF; the same bytes on every machine."""
    described, arch = as_gguf_says(variant), architecture(variant)
    gguf = GGUFFile()
    gguf.add("general.architecture", arch)
    gguf.add("general.file_type", 0)
    for key, value in keys(described.family, described.config, arch):
        gguf.add(key, value)
    add_vocabulary(gguf, variant.config["vocab_size"])
    for name, value in tensors(described, seed):
        data, dims = value.astype("<f4").tobytes(), tuple(reversed(value.shape))
        gguf.tensors.append(Tensor(name, dims, "F32", lambda out, data=data: out.write(data)))
    gguf.write(path)
    return path
