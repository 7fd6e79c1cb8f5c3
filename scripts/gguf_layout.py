"""How llama.cpp's convert_hf_to_gguf.py writes each architecture: keys, tensor names, layouts.

A ``config`` is a Hugging Face config.json of the language model as a dict, ``family`` its
model_type. What the converter drops (windows of mistral and qwen, Gemma's query scale) is not
written here either. tests/parity compares models made this way with transformers and llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

Config = dict[str, Any]

# model_type -> general.architecture
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma",
    "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3", "smollm3": "smollm3",
    "olmo2": "olmo2", "olmo3": "olmo2", "granite": "granite", "ministral3": "mistral3",
}  # fmt: skip
PERMUTED = {"llama", "smollm3", "granite", "mistral3"}  # rotary pairs side by side, not halves
POST_NORM = {"olmo2", "olmo3"}  # norms after the sublayers only, and over all heads at once
SANDWICH = {"gemma2", "gemma3_text"}  # norms before and after
HEAD_NORM = {"qwen3", "gemma3_text"}
PLUS_ONE = {"gemma", "gemma2", "gemma3_text"}  # norms multiply by 1 + weight
QKV_BIAS = {"qwen2"}
# Their config.json has no head_dim, and their GGUFs no key for it: it is hidden / heads.
EQUAL_HEADS = {"qwen2", "phi3", "smollm3", "olmo2", "olmo3", "granite"}

_TOP = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
_AROUND = {  # where the output of the attention has a norm of its own
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def head_dim(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def shapes(family: str, config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(Hugging Face name, shape) of every tensor of the language model; a tied head is absent."""
    hidden, ffn, dim = config["hidden_size"], config["intermediate_size"], head_dim(config)
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        if family not in POST_NORM:
            yield p + "input_layernorm.weight", (hidden,)
        matrices = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden)}
        if family == "phi3":
            matrices = {"qkv_proj": (q + 2 * kv, hidden)}
        for name, shape in {**matrices, "o_proj": (hidden, q)}.items():
            yield f"{p}self_attn.{name}.weight", shape
            if config.get("attention_bias") or (family in QKV_BIAS and name != "o_proj"):
                yield f"{p}self_attn.{name}.bias", shape[:1]
        if family in POST_NORM or family in HEAD_NORM:
            yield p + "self_attn.q_norm.weight", (q if family in POST_NORM else dim,)
            yield p + "self_attn.k_norm.weight", (kv if family in POST_NORM else dim,)
        yield p + "post_attention_layernorm.weight", (hidden,)
        if family in SANDWICH:
            yield p + "pre_feedforward_layernorm.weight", (hidden,)
        matrices = {"gate_proj": (ffn, hidden), "up_proj": (ffn, hidden)}
        if family == "phi3":
            matrices = {"gate_up_proj": (2 * ffn, hidden)}
        for name, shape in {**matrices, "down_proj": (hidden, ffn)}.items():
            yield f"{p}mlp.{name}.weight", shape
            if config.get("mlp_bias"):
                yield f"{p}mlp.{name}.bias", shape[:1]
        if family in SANDWICH or family in POST_NORM:
            yield p + "post_feedforward_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def gguf_name(family: str, name: str) -> str:
    """The GGUF name of a tensor, weight or bias."""
    stem, _, kind = name.removeprefix("model.").rpartition(".")
    if not stem.startswith("layers."):
        return f"{_TOP[stem]}.{kind}"
    _, layer, part = stem.split(".", 2)
    around = _AROUND if family in SANDWICH or family in POST_NORM else {}
    return f"blk.{layer}.{around.get(part) or _LAYER[part]}.{kind}"


def permute(w: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows (heads * dim, ...) from rotary halves to interleaved pairs."""
    halves = w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, *w.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(w.shape))


def rope_factors(config: Config) -> Iterator[tuple[str, np.ndarray]]:
    """(GGUF name, float32 frequency divisors): llama3 scaling and LongRoPE are tensors."""
    rope = config["rope_parameters"]
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(rope, head_dim(config))
    if rope.get("rope_type") == "longrope":
        yield "rope_factors_long.weight", np.array(rope["long_factor"], np.float32)
        yield "rope_factors_short.weight", np.array(rope["short_factor"], np.float32)


def _llama3_factors(rope: Config, dim: int) -> np.ndarray:
    factor, original = rope["factor"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    wavelength = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    smooth = (original / wavelength - low) / (high - low)
    factors = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelength < original / high, 1.0, factors)
    return np.where(wavelength > original / low, factor, factors).astype(np.float32)


def keys(family: str, config: Config, arch: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of the hyperparameters."""
    for key, value in _keys(family, config, arch):
        yield f"{arch}.{key}", value


def _keys(family: str, config: Config, arch: str) -> Iterator[tuple[str, Any]]:
    yield "block_count", config["num_hidden_layers"]
    yield "context_length", config["max_position_embeddings"]
    yield "embedding_length", config["hidden_size"]
    yield "feed_forward_length", config["intermediate_size"]
    yield "attention.head_count", config["num_attention_heads"]
    yield "attention.head_count_kv", config["num_key_value_heads"]
    yield "attention.layer_norm_rms_epsilon", config["rms_norm_eps"]
    if family not in EQUAL_HEADS:
        yield "attention.key_length", head_dim(config)
        yield "attention.value_length", head_dim(config)
    if family == "phi3":
        yield from _phi3_rope(config)
    elif family not in ("gemma", "gemma2"):  # these have the default rope and say nothing of it
        yield from _rope(config)
    if arch in PERMUTED:
        yield "vocab_size", config["vocab_size"]
        yield "rope.dimension_count", head_dim(config)
    if family in ("gemma2", "gemma3_text", "olmo3"):
        yield "attention.sliding_window", config["sliding_window"]
    if family == "olmo3":
        yield "attention.sliding_window_pattern", _window_pattern(config)
    if family == "gemma2":
        yield "attn_logit_softcapping", config["attn_logit_softcapping"]
    if config.get("final_logit_softcapping"):
        yield "final_logit_softcapping", config["final_logit_softcapping"]
    if family == "granite":
        yield "attention.scale", config["attention_multiplier"]
        yield "embedding_scale", config["embedding_multiplier"]
        yield "residual_scale", config["residual_multiplier"]
        yield "logit_scale", config["logits_scaling"]
    if family == "ministral3":
        yield "rope.scaling.yarn_log_multiplier", config["rope_parameters"]["mscale_all_dim"]
        yield "attention.temperature_scale", config["rope_parameters"]["llama_4_scaling_beta"]


def _window_pattern(config: Config) -> np.ndarray:
    kinds = config.get("layer_types")
    if kinds is not None:
        return np.array([kind == "sliding_attention" for kind in kinds])
    return (np.arange(config["num_hidden_layers"]) + 1) % 4 != 0


def _rope(config: Config) -> Iterator[tuple[str, Any]]:
    rope = config["rope_parameters"].get("full_attention", config["rope_parameters"])
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        yield "rope.scaling.type", kind
        yield "rope.scaling.factor", rope["factor"]
    if kind == "yarn":
        original = rope["original_max_position_embeddings"]
        yield "rope.scaling.original_context_length", original
        for beta in ("beta_fast", "beta_slow"):
            if beta in rope:
                yield f"rope.scaling.yarn_{beta}", rope[beta]
    yield "rope.freq_base", rope["rope_theta"]
    if local := config["rope_parameters"].get("sliding_attention"):
        yield "rope.freq_base_swa", local["rope_theta"]


def _phi3_rope(config: Config) -> Iterator[tuple[str, Any]]:
    rope, original = config["rope_parameters"], config["original_max_position_embeddings"]
    part = rope.get("partial_rotary_factor", 1.0)
    yield "rope.scaling.original_context_length", original
    yield "rope.dimension_count", int(part * config["hidden_size"]) // config["num_attention_heads"]
    yield "rope.freq_base", rope["rope_theta"]
    yield "attention.sliding_window", config.get("sliding_window") or 0
    if rope["rope_type"] == "longrope":
        scale = config["max_position_embeddings"] / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        yield "rope.scaling.attn_factor", factor
