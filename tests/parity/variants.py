"""The table of tiny models: one entry per thing that an architecture can do differently.

Sizes are odd on purpose. Rope scalings have original contexts shorter than the prompt, windows are
shorter than the prompt, and scales and soft caps are far enough from neutral that ignoring one
moves the logits: ``matters`` names settings that must, and a test makes sure that they do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]
WINDOW = 24

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
MINISTRAL_YARN = YARN | {
    "beta_fast": 16.0, "beta_slow": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.4, "max_position_embeddings": 512,
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """``family``: the model_type of the language model. ``config``: arguments of its config class.

    ``gguf``: what a GGUF of it says instead, because llama.cpp's converter drops the setting; None
    if it cannot be written. ``llama_cpp_rows``: how many rows llama.cpp computes as transformers
    does (``llama_cpp_note`` says why not all). ``matters``: settings that change the logits.
    """

    family: str
    config: Config
    wrapper: str = ""  # model_type of the multimodal model around it
    tokens: int = 96
    gguf: Config | None = field(default_factory=dict)
    llama_cpp_rows: int | None = None
    llama_cpp_note: str = ""
    matters: tuple[Config, ...] = ()


def rope(theta: float = 10000.0, **more: Any) -> Config:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


def sizes(**changed: Any) -> Config:
    """Sizes that all families have; ``hidden / heads`` is not the head size unless it must be."""
    return {
        "vocab_size": 320, "hidden_size": 96, "intermediate_size": 172, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **rope(), **changed,
    }  # fmt: skip


def equal_heads(**changed: Any) -> Config:
    """For families whose head size is hidden / heads."""
    config = sizes(**({"num_attention_heads": 4} | changed))
    del config["head_dim"]
    return config


def gemma(**changed: Any) -> Config:
    return sizes(**({"tie_word_embeddings": True, "rms_norm_eps": 1e-6} | changed))


def gemma2(**changed: Any) -> Config:
    return gemma(**({
        "num_hidden_layers": 4, "sliding_window": WINDOW, "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 3.0, "final_logit_softcapping": 10.0,
    } | changed))  # fmt: skip


def gemma3(local: float = 10000.0, full: Config | None = None, **changed: Any) -> Config:
    full = full or {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    return gemma(**({
        "num_hidden_layers": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 20,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
            "full_attention": full,
        },
    } | changed))  # fmt: skip


def olmo3(full: Config, **changed: Any) -> Config:
    """Both bases are 5e5: transformers reads the old spelling of any other wrongly."""
    return equal_heads(**({
        "num_hidden_layers": 5, "sliding_window": WINDOW,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            "full_attention": full,
        },
    } | changed))  # fmt: skip


def longrope(original: int, dimensions: int, **more: Any) -> Config:
    """Factors far from one another, so that short, long and none differ."""
    half = range(dimensions // 2)
    return {
        "original_max_position_embeddings": original,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0,
            "original_max_position_embeddings": original,
            "short_factor": [1.0 + 0.05 * i for i in half],
            "long_factor": [1.2 + 0.7 * i for i in half], **more,
        },
    }  # fmt: skip


def layer_types(kinds: str) -> Config:
    names = {"s": "sliding_attention", "f": "full_attention"}
    return {"layer_types": [names[kind] for kind in kinds]}


NO_WINDOW = {"sliding_window": None}
NO_WINDOWS = {"use_sliding_window": False, "layer_types": None}
PHI3_WINDOW = "its phi3 ignores the window"

VARIANTS: dict[str, Variant] = {
    # llama
    "llama": Variant("llama", sizes()),
    "llama_tied": Variant("llama", sizes(tie_word_embeddings=True)),
    "llama_llama3": Variant("llama", sizes(rope_parameters=LLAMA3), matters=(rope(),)),
    "llama_linear": Variant(
        "llama", sizes(**rope(rope_type="linear", factor=4.0)), matters=(rope(),)
    ),
    "llama_yarn": Variant("llama", sizes(rope_parameters=YARN), matters=(rope(),)),
    "llama_bias": Variant(
        "llama", sizes(attention_bias=True), matters=({"attention_bias": False},)
    ),
    "llama_mlp_bias": Variant("llama", sizes(mlp_bias=True), matters=({"mlp_bias": False},)),
    "llama_mha": Variant("llama", sizes(num_attention_heads=4, num_key_value_heads=4, head_dim=24)),
    "llama_one_kv_head": Variant(
        "llama",
        sizes(
            num_attention_heads=5,
            num_key_value_heads=1,
            head_dim=8,
            hidden_size=80,
            intermediate_size=44,
        ),
    ),
    "llama_wide_head": Variant(
        "llama",
        sizes(
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=80,
            tie_word_embeddings=True,
            **rope(1e6),
        ),
    ),
    # mistral: the converter makes it a llama, without its window
    "mistral": Variant("mistral", sizes(sliding_window=None)),
    "mistral_window": Variant(
        "mistral", sizes(sliding_window=WINDOW), tokens=160, gguf=NO_WINDOW, matters=(NO_WINDOW,)
    ),
    # qwen2
    "qwen2": Variant("qwen2", equal_heads(**rope(1e6))),
    "qwen2_tied": Variant(
        "qwen2", equal_heads(tie_word_embeddings=True, num_attention_heads=8, num_key_value_heads=1)
    ),
    "qwen2_yarn": Variant("qwen2", equal_heads(rope_parameters=YARN), matters=(rope(),)),
    "qwen2_window": Variant(
        "qwen2",
        equal_heads(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
        tokens=160,
        gguf=NO_WINDOWS,
        matters=(NO_WINDOWS, {"max_window_layers": 0}),
    ),
    # qwen3
    "qwen3": Variant("qwen3", sizes(**rope(1e6))),
    "qwen3_tied": Variant(
        "qwen3",
        sizes(tie_word_embeddings=True, num_attention_heads=3, num_key_value_heads=1, head_dim=80),
    ),
    "qwen3_yarn": Variant("qwen3", sizes(rope_parameters=YARN), matters=(rope(),)),
    "qwen3_window": Variant(
        "qwen3",
        sizes(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
        tokens=160,
        gguf=NO_WINDOWS,
        matters=(NO_WINDOWS, {"max_window_layers": 0}),
    ),
    # gemma
    "gemma": Variant("gemma", gemma()),
    "gemma_one_kv_head": Variant("gemma", gemma(num_key_value_heads=1, head_dim=80)),
    # gemma2
    "gemma2": Variant(
        "gemma2",
        gemma2(),
        tokens=160,
        matters=(
            {"sliding_window": 512},
            {"attn_logit_softcapping": None},
            {"final_logit_softcapping": None},
            layer_types("fsfs"),
        ),
    ),
    "gemma2_scalar": Variant(
        "gemma2",
        gemma2(query_pre_attn_scalar=31),
        tokens=160,
        gguf=None,
        matters=({"query_pre_attn_scalar": 20},),
    ),
    # The GGUF says nothing of the scalar: 46 layers mean hidden / heads.
    "gemma2_46_layers": Variant(
        "gemma2",
        gemma2(
            num_hidden_layers=46,
            hidden_size=48,
            intermediate_size=52,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=12,
            query_pre_attn_scalar=24,
            attn_logit_softcapping=20.0,
            final_logit_softcapping=10.0,
        ),
        tokens=64,
        matters=({"query_pre_attn_scalar": 12},),
    ),
    # gemma3
    "gemma3": Variant(
        "gemma3_text",
        gemma3(),
        tokens=160,
        matters=(
            {"sliding_window": 512},
            layer_types("s" * 8),
            gemma3(full={"rope_type": "default", "rope_theta": 1e6}),
            gemma3(local=1e6),
        ),
    ),
    "gemma3_default_rope": Variant(
        "gemma3_text",
        gemma3(full={"rope_type": "default", "rope_theta": 1e6}, num_hidden_layers=7),
        tokens=160,
    ),
    "gemma3_pattern": Variant(
        "gemma3_text",
        gemma3(num_hidden_layers=4, **layer_types("sfsf"), query_pre_attn_scalar=31),
        tokens=160,
        gguf=None,
        matters=(layer_types("ssss"), {"query_pre_attn_scalar": 20}),
    ),
    "gemma3_62_layers": Variant(
        "gemma3_text",
        gemma3(
            num_hidden_layers=62,
            hidden_size=48,
            intermediate_size=52,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=12,
            query_pre_attn_scalar=24,
        ),
        tokens=64,
        matters=({"query_pre_attn_scalar": 12},),
    ),
    # The window hides nothing, but its layers still have a rope of their own.
    "gemma3_wide_window": Variant(
        "gemma3_text", gemma3(sliding_window=600), matters=(gemma3(local=1e6),)
    ),
    "gemma3_wrapper": Variant("gemma3_text", gemma3(), wrapper="gemma3", tokens=160),
    # phi3
    "phi3": Variant("phi3", equal_heads(original_max_position_embeddings=512)),
    "phi3_partial": Variant(
        "phi3",
        equal_heads(
            original_max_position_embeddings=512,
            **rope(partial_rotary_factor=0.75),
            num_key_value_heads=4,
        ),
        matters=(rope(partial_rotary_factor=1.0),),
    ),
    "phi3_longrope_short": Variant(
        "phi3",
        equal_heads(**longrope(256, 24), num_key_value_heads=1),
        matters=({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},),
    ),
    "phi3_longrope_long": Variant(
        "phi3",
        equal_heads(**longrope(64, 24)),
        matters=({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},),
    ),
    "phi3_longrope_partial": Variant(
        "phi3",
        equal_heads(**longrope(64, 18, partial_rotary_factor=0.75), tie_word_embeddings=True),
    ),
    "phi3_window": Variant(
        "phi3",
        equal_heads(original_max_position_embeddings=512, sliding_window=WINDOW),
        tokens=160,
        matters=(NO_WINDOW,),
        llama_cpp_rows=WINDOW,
        llama_cpp_note=PHI3_WINDOW,
    ),
    # smollm3
    "smollm3": Variant(
        "smollm3",
        equal_heads(num_hidden_layers=5, tie_word_embeddings=True),
        matters=({"no_rope_layers": [1] * 5},),
    ),
    "smollm3_pattern": Variant(
        "smollm3",
        equal_heads(num_hidden_layers=4, no_rope_layers=[0, 1, 1, 0]),
        gguf=None,
        matters=({"no_rope_layers": [1, 1, 1, 0]},),
    ),
    "smollm3_window": Variant(
        "smollm3",
        equal_heads(num_hidden_layers=4, use_sliding_window=True, sliding_window=WINDOW),
        tokens=160,
        gguf=NO_WINDOWS,
        matters=(NO_WINDOWS,),
    ),
    # olmo2, olmo3
    "olmo2": Variant("olmo2", equal_heads()),
    "olmo2_mha": Variant("olmo2", equal_heads(num_key_value_heads=4, **rope(5e5))),
    "olmo3": Variant(
        "olmo3",
        olmo3(YARN | {"rope_theta": 5e5}),
        tokens=160,
        matters=(
            {"sliding_window": 512},
            layer_types("sssss"),
            olmo3({"rope_type": "default", "rope_theta": 5e5}),
        ),
    ),
    "olmo3_wide_window": Variant(
        "olmo3",
        olmo3(YARN | {"rope_theta": 5e5}, sliding_window=600),
        matters=(olmo3({"rope_type": "default", "rope_theta": 5e5}),),
    ),
    "olmo3_pattern": Variant(
        "olmo3",
        olmo3({"rope_type": "default", "rope_theta": 5e5}, **layer_types("fsfss")),
        tokens=160,
        matters=(layer_types("sfsfs"),),
    ),
    # granite
    "granite": Variant(
        "granite",
        equal_heads(
            embedding_multiplier=3.0,
            residual_multiplier=0.6,
            attention_multiplier=0.11,
            logits_scaling=1.6,
            tie_word_embeddings=True,
        ),
        matters=(
            {"embedding_multiplier": 1.0},
            {"residual_multiplier": 1.0},
            {"attention_multiplier": 0.2},
            {"logits_scaling": 1.0},
        ),
    ),
    "granite_bias": Variant(
        "granite",
        equal_heads(
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.3,
            logits_scaling=1.5,
            attention_bias=True,
            num_key_value_heads=4,
            **rope(1e6),
        ),
        matters=({"attention_bias": False},),
    ),
    # mistral3: the wrapper around mistral and ministral3
    "mistral3_mistral": Variant("mistral", sizes(sliding_window=None), wrapper="mistral3"),
    "mistral3_ministral3": Variant(
        "ministral3",
        sizes(rope_parameters=MINISTRAL_YARN),
        wrapper="mistral3",
        tokens=160,
        matters=(
            {"rope_parameters": MINISTRAL_YARN | {"rope_type": "default"}},
            {"rope_parameters": MINISTRAL_YARN | {"llama_4_scaling_beta": 0.0}},
            {"rope_parameters": MINISTRAL_YARN | {"beta_fast": 32.0, "beta_slow": 1.0}},
        ),
    ),
    "ministral3": Variant(
        "ministral3",
        sizes(rope_parameters=MINISTRAL_YARN | {"mscale_all_dim": 0.5}, tie_word_embeddings=True),
        tokens=160,
        matters=({"rope_parameters": MINISTRAL_YARN},),
    ),
}
