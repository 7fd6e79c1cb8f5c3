"""A variant as the GGUF that llama.cpp's convert_hf_to_gguf.py makes of it. NumPy only.

What the converter drops (windows of mistral and qwen, Gemma's query scale) is not written here
either; the keys and tensors of every variant were compared with the converter's own.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .variants import Config, Variant
from .weights import PLUS_ONE, POST_NORM, SANDWICH, head_dim, weights

# model_type -> general.architecture; the wrapper decides where there is one
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma",
    "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3", "smollm3": "smollm3",
    "olmo2": "olmo2", "olmo3": "olmo2", "granite": "granite", "ministral3": "mistral3",
}  # fmt: skip
PERMUTED = {"llama", "smollm3", "granite", "mistral3"}  # rotary pairs side by side, not halves
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}

_TOP = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
_AROUND = {  # where the attention's output has a norm of its own
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def make_model() -> ModuleType:
    """The module scripts/make_model.py: the GGUF writer, the formats and a vocabulary."""
    key = "edge_rt_scripts_make_model"
    if key not in sys.modules:
        path = Path(__file__).resolve().parents[2] / "scripts/make_model.py"
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
    return sys.modules[key]


def architecture(variant: Variant) -> str:
    return "mistral3" if variant.wrapper == "mistral3" else ARCHITECTURES[variant.family]


def permute(w: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows (heads * dim, ...) from rotary halves to interleaved pairs."""
    halves = w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, *w.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(w.shape))


def llama3_factors(config: Config) -> np.ndarray:
    """(head_dim / 2,) frequency divisors of llama3 scaling."""
    rope, dim = config["rope_parameters"], head_dim(config)
    factor, original = rope["factor"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    wavelength = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    smooth = (original / wavelength - low) / (high - low)
    factors = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelength < original / high, 1.0, factors)
    return np.where(wavelength > original / low, factor, factors).astype(np.float32)


def tensors(variant: Variant, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """(GGUF name, float32 array) of every tensor; a tied head is stored once."""
    c, arch = variant.config, architecture(variant)
    around = variant.family in SANDWICH or variant.family in POST_NORM
    names = {**_LAYER, **(_AROUND if around else {})}
    for key, value in weights(variant, seed).items():
        stem, _, kind = key.removeprefix("model.").rpartition(".")
        if variant.family in PLUS_ONE and "norm" in stem:
            value = value + np.float32(1)
        if not stem.startswith("layers."):
            yield f"{_TOP[stem]}.{kind}", value
            continue
        _, layer, part = stem.split(".", 2)
        if arch in PERMUTED and part.endswith((".q_proj", ".k_proj")):
            q = part.endswith(".q_proj")
            value = permute(value, c["num_attention_heads" if q else "num_key_value_heads"])
        yield f"blk.{layer}.{names[part]}.{kind}", value
    rope = c["rope_parameters"]
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", llama3_factors(c)
    if rope.get("rope_type") == "longrope":
        yield "rope_factors_long.weight", np.array(rope["long_factor"], np.float32)
        yield "rope_factors_short.weight", np.array(rope["short_factor"], np.float32)


def keys(variant: Variant) -> Iterator[tuple[str, Any]]:
    """The hyperparameters, without the architecture's prefix; floats are written as float32."""
    c, family = variant.config, variant.family
    yield "block_count", c["num_hidden_layers"]
    yield "context_length", c["max_position_embeddings"]
    yield "embedding_length", c["hidden_size"]
    yield "feed_forward_length", c["intermediate_size"]
    yield "attention.head_count", c["num_attention_heads"]
    yield "attention.head_count_kv", c["num_key_value_heads"]
    yield "attention.layer_norm_rms_epsilon", c["rms_norm_eps"]
    if "head_dim" in c:
        yield "attention.key_length", c["head_dim"]
        yield "attention.value_length", c["head_dim"]
    if family in ("gemma", "gemma2"):  # these have the default rope and say nothing of it
        assert c["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    elif family == "phi3":
        yield from _phi3_rope(c)
    else:
        yield from _rope(c)
    if architecture(variant) in PERMUTED:
        yield "vocab_size", c["vocab_size"]
        yield "rope.dimension_count", head_dim(c)
    if family in ("gemma2", "gemma3_text", "olmo3"):
        yield "attention.sliding_window", c["sliding_window"]
    if family == "gemma2":
        yield "attn_logit_softcapping", c["attn_logit_softcapping"]
    if c.get("final_logit_softcapping"):
        yield "final_logit_softcapping", c["final_logit_softcapping"]
    if family == "olmo3":
        yield "attention.sliding_window_pattern", _window_pattern(c)
    if family == "granite":
        yield "attention.scale", c["attention_multiplier"]
        yield "embedding_scale", c["embedding_multiplier"]
        yield "residual_scale", c["residual_multiplier"]
        yield "logit_scale", c["logits_scaling"]
    if family == "ministral3":
        yield "rope.scaling.yarn_log_multiplier", c["rope_parameters"]["mscale_all_dim"]
        yield "attention.temperature_scale", c["rope_parameters"]["llama_4_scaling_beta"]


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
    width = int(part * config["hidden_size"]) // config["num_attention_heads"]
    yield "rope.scaling.original_context_length", original
    yield "rope.dimension_count", width
    yield "rope.freq_base", rope["rope_theta"]
    yield "attention.sliding_window", config.get("sliding_window") or 0
    if rope["rope_type"] == "longrope":
        scale = config["max_position_embeddings"] / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        yield "rope.scaling.attn_factor", factor


def write(variant: Variant, path: Path, *, fmt: str = "F32", seed: int = 0) -> Path:
    """Write the GGUF with matrices in ``fmt`` (F32, F16, BF16 or Q8_0) and norms in float32."""
    maker, arch = make_model(), architecture(variant)
    gguf = maker.GGUFFile()
    gguf.add("general.architecture", arch)
    gguf.add("general.name", "parity")
    gguf.add("general.file_type", FILE_TYPES[fmt])
    gguf.add("general.quantization_version", 2)
    for key, value in keys(variant):
        gguf.add(f"{arch}.{key}", value)
    maker.add_vocabulary(gguf, variant.config["vocab_size"])
    for name, value in tensors(variant, seed):
        kind = fmt if value.ndim == 2 else "F32"
        data = maker.encode(value, kind)
        dims = tuple(reversed(value.shape))
        gguf.tensors.append(maker.Tensor(name, dims, kind, lambda out, data=data: out.write(data)))
    gguf.write(path)
    return path
