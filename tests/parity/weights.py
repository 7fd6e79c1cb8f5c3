"""Weights of a variant under Hugging Face's names: NumPy only, the same bytes everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .variants import Config, Variant

POST_NORM = {"olmo2", "olmo3"}  # norms after the sublayers only, and over all heads at once
SANDWICH = {"gemma2", "gemma3_text"}
PLUS_ONE = {"gemma", "gemma2", "gemma3_text"}  # norms multiply by 1 + weight
HEAD_NORM = {"qwen3", "gemma3_text"}
QKV_BIAS = {"qwen2"}


def head_dim(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def normal(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of variance 1, a sum of four random bytes each: raw PCG64, which NumPy never changes.

    Depends on the seed and the name alone.
    """
    n = math.prod(shape)
    bits = np.random.PCG64(np.random.SeedSequence([seed, *name.encode()]))
    octets = bits.random_raw(-(-n // 2)).astype("<u8").view(np.uint8)[: 4 * n]
    sums = octets.reshape(n, 4).sum(1, dtype=np.int32) - 510
    return (sums.astype(np.float32) * np.float32(1 / 147.8)).reshape(shape)


def shapes(variant: Variant) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of the language model, as transformers names them."""
    c, family = variant.config, variant.family
    hidden, ffn, dim = c["hidden_size"], c["intermediate_size"], head_dim(c)
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden)
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        if family not in POST_NORM:
            yield p + "input_layernorm.weight", (hidden,)
        matrices = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden)}
        if family == "phi3":
            matrices = {"qkv_proj": (q + 2 * kv, hidden)}
        for name, shape in {**matrices, "o_proj": (hidden, q)}.items():
            yield f"{p}self_attn.{name}.weight", shape
            if c.get("attention_bias") or (family in QKV_BIAS and name != "o_proj"):
                yield f"{p}self_attn.{name}.bias", shape[:1]
        if family in POST_NORM or family in HEAD_NORM:
            yield p + "self_attn.q_norm.weight", (q if family in POST_NORM else dim,)
            yield p + "self_attn.k_norm.weight", (kv if family in POST_NORM else dim,)
        yield p + "post_attention_layernorm.weight", (hidden,)
        if family in SANDWICH:
            yield p + "pre_feedforward_layernorm.weight", (hidden,)
        if family == "phi3":
            yield p + "mlp.gate_up_proj.weight", (2 * ffn, hidden)
        else:
            yield p + "mlp.gate_proj.weight", (ffn, hidden)
            yield p + "mlp.up_proj.weight", (ffn, hidden)
        yield p + "mlp.down_proj.weight", (hidden, ffn)
        if family in SANDWICH or family in POST_NORM:
            yield p + "post_feedforward_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], hidden)


def weights(variant: Variant, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 arrays: logits of a standard deviation of 1 to 5, scores of order 1 to 2."""
    return {name: _fill(variant, name, shape, seed) for name, shape in shapes(variant)}


def _fill(variant: Variant, name: str, shape: tuple[int, ...], seed: int) -> Any:
    noise = normal(seed, name, shape)
    if "norm" in name:
        return noise * np.float32(0.2) + np.float32(0 if variant.family in PLUS_ONE else 1)
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
