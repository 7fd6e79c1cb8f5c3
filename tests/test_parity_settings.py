"""Settings of config.json that few models use: computed as transformers computes them, or refused.

What must never happen is an answer that ignores one of them.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edge_rt import Engine, ModelError

from .parity.variants import MINISTRAL_YARN, VARIANTS, YARN, Config, gemma3, layer_types, rope
from .parity.weights import token_ids

LONGROPE = {
    "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 10, "long_factor": [2.0 + i for i in range(10)],
}  # fmt: skip
SAME: list[tuple[str, Config]] = [
    ("llama", {"hidden_act": "swish"}),
    ("llama", {"rms_norm_eps": 1e-3}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": None, "num_attention_heads": 4}),
    ("llama", rope(**YARN | {"attention_factor": 1.3})),
    ("llama", rope(**YARN | {"beta_fast": 16.0, "beta_slow": 2.0})),
    ("llama", rope(**YARN | {"mscale": 0.7, "mscale_all_dim": 0.3})),
    ("llama", rope(**YARN | {"mscale": 0.7})),
    ("llama", rope(**LONGROPE)),
    ("llama", rope(**LONGROPE, attention_factor=1.4)),
    ("qwen2", {"head_dim": 20}),
    ("qwen2", {**layer_types("sff"), "use_sliding_window": True, "sliding_window": 24}),
    ("qwen3", {"attention_bias": True}),
    ("qwen3", {"num_key_value_heads": 6}),
    ("gemma", {"hidden_act": "gelu"}),  # transformers means the tanh one
    ("gemma", {"tie_word_embeddings": False}),
    ("gemma", rope(rope_type="linear", factor=4.0)),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("gemma2", {"attention_bias": True}),
    ("gemma2", layer_types("ffss")),
    ("gemma3", {"final_logit_softcapping": 3.0}),
    ("gemma3", {"sliding_window_pattern": 3, "layer_types": None}),
    ("gemma3", {"sliding_window_pattern": 1, "layer_types": None}),
    ("gemma3", gemma3(full=YARN | {"rope_theta": 1e6})),
    ("phi3", {"head_dim": 20}),
    ("phi3", {**layer_types("sff"), "sliding_window": 24}),
    ("phi3_longrope_long", {
        "rope_parameters": VARIANTS["phi3_longrope_long"].config["rope_parameters"]
        | {"attention_factor": 1.7}
    }),
    ("smollm3", {"no_rope_layer_interval": 2}),
    ("smollm3", {"no_rope_layers": [0] * 5}),
    ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    ("olmo2", {"attention_bias": True, "head_dim": 20}),
    ("olmo2", {"tie_word_embeddings": True}),
    ("granite", {"mlp_bias": True, "head_dim": 20}),
    ("ministral3", {"sliding_window": 24}),
    ("ministral3", {"rope_parameters": MINISTRAL_YARN | {"attention_factor": 1.4}}),
    ("ministral3", {"rope_parameters": MINISTRAL_YARN | {"rope_type": "linear"}}),
]  # fmt: skip
REFUSED: list[tuple[str, Config, str]] = [
    ("llama", {"hidden_act": "relu"}, "relu"),
    ("llama", {"hidden_act": "gelu"}, "gelu"),
    ("llama", rope(rope_type="dynamic", factor=2.0), "dynamic"),
    ("llama", rope(partial_rotary_factor=0.5), "partial_rotary_factor"),
    ("llama", rope(**YARN | {"truncate": False}), "truncate"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma2", {"hidden_activation": "gelu"}, "gelu"),
    ("gemma3", {"hidden_activation": "silu"}, "silu"),
    (
        "olmo3",
        {"rope_parameters": {"full_attention": YARN, "sliding_attention": YARN}},
        "windowed layers",
    ),
    ("granite", {"logits_scaling": -2.0}, "logit_scale"),
]


def named(case: tuple[str, Config] | tuple[str, Config, str]) -> str:
    return f"{case[0]}-{'-'.join(case[1])}"


def folder_of(hugging_face: ModuleType, name: str, settings: Config, path: Path) -> Path:
    variant = hugging_face.changed(VARIANTS[name], settings)
    return hugging_face.save(hugging_face.build(variant), path / "model")


@pytest.mark.parametrize(("name", "settings"), SAME, ids=map(named, SAME))
def test_same(hugging_face: ModuleType, tmp_path: Path, name: str, settings: Config) -> None:
    variant = hugging_face.changed(VARIANTS[name], settings)
    model = hugging_face.build(variant)
    path, ids = hugging_face.save(model, tmp_path / "model"), token_ids(variant)
    expected = hugging_face.logits(model, ids)
    with Engine(path, ram="4GiB", ctx=len(ids), kv="f32") as engine:
        found = engine.logits(ids.tolist())
    assert np.abs(found - expected).max() <= 1e-4


@pytest.mark.parametrize(("name", "settings", "word"), REFUSED, ids=map(named, REFUSED))
def test_refused(
    hugging_face: ModuleType, tmp_path: Path, name: str, settings: Config, word: str
) -> None:
    path = folder_of(hugging_face, name, settings, tmp_path)
    with pytest.raises(ModelError, match=word):
        Engine(path, ram="4GiB")
