"""Weights of a variant under Hugging Face's names: NumPy only, the same bytes everywhere."""

from __future__ import annotations

import math

import numpy as np
from gguf_layout import PLUS_ONE, shapes

from .variants import Variant


def normal(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of variance 1, a sum of four random bytes each: raw PCG64, which NumPy never changes.

    Depends on the seed and the name alone.
    """
    n = math.prod(shape)
    bits = np.random.PCG64(np.random.SeedSequence([seed, *name.encode()]))
    octets = bits.random_raw(-(-n // 2)).astype("<u8").view(np.uint8)[: 4 * n]
    sums = octets.reshape(n, 4).sum(1, dtype=np.int32) - 510
    return (sums.astype(np.float32) * np.float32(1 / 147.8)).reshape(shape)


def weights(variant: Variant, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 arrays: logits of a standard deviation of 1 to 5, scores of order 1 to 2."""
    return {
        name: _fill(variant.family, name, shape, seed)
        for name, shape in shapes(variant.family, variant.config)
    }


def _fill(family: str, name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = normal(seed, name, shape)
    if "norm" in name:
        return noise * np.float32(0.2) + np.float32(0 if family in PLUS_ONE else 1)
    if name.endswith(".bias"):
        return noise * np.float32(0.3)
    gain = 1.0
    if "embed_tokens" in name:
        gain = 0.3 * math.sqrt(shape[-1])
    elif "lm_head" in name:
        gain = 2.0
    elif name.endswith(("q_proj.weight", "k_proj.weight")):
        gain = 1.3
    return noise * np.float32(gain / math.sqrt(shape[-1]))


def token_ids(variant: Variant, seed: int = 0) -> np.ndarray:
    """(tokens,) int32: BOS, then anything but the special tokens."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, 7])).random_raw(variant.tokens)
    ids = (3 + bits % np.uint64(variant.config["vocab_size"] - 3)).astype(np.int32)
    ids[0] = 1
    return ids
