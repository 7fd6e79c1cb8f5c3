"""A variant as transformers' own model, and as the folder that ``save_pretrained`` makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from .folders import write_tokenizer
from .variants import Config, Variant
from .weights import weights

CLASSES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma",
    "gemma2": "Gemma2", "gemma3_text": "Gemma3", "phi3": "Phi3", "smollm3": "SmolLM3",
    "olmo2": "Olmo2", "olmo3": "Olmo3", "granite": "Granite", "ministral3": "Ministral3",
}  # fmt: skip
VISION: Config = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


CONFIGS = {
    family: f"{name}TextConfig" if family == "gemma3_text" else f"{name}Config"
    for family, name in CLASSES.items()
}


def config_of(variant: Variant) -> Any:
    """The config object of the language model."""
    # Config classes write into their arguments.
    own = json.loads(json.dumps(variant.config))
    return getattr(transformers, CONFIGS[variant.family])(**own, attn_implementation="eager")


def build(variant: Variant, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """The transformers model with this project's weights, rounded to ``dtype``."""
    text = config_of(variant)
    torch.manual_seed(0)  # the vision part of a wrapper is transformers' own noise
    if variant.wrapper == "gemma3":
        vision = transformers.SiglipVisionConfig(**VISION)
        config = transformers.Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5,
            boi_token_index=6, eoi_token_index=7, tie_word_embeddings=text.tie_word_embeddings,
        )  # fmt: skip
        model = transformers.Gemma3ForConditionalGeneration(config)
    elif variant.wrapper == "mistral3":
        vision = transformers.PixtralVisionConfig(**VISION, head_dim=8)
        config = transformers.Mistral3Config(
            text_config=text, vision_config=vision, image_token_index=5,
            tie_word_embeddings=text.tie_word_embeddings,
        )  # fmt: skip
        model = transformers.Mistral3ForConditionalGeneration(config)
    else:
        model = getattr(transformers, CLASSES[variant.family] + "ForCausalLM")(text)
    model.set_attn_implementation("eager")
    model = model.float().eval()
    language = model.model.language_model if variant.wrapper else model.model
    own = {f"model.{name}": p for name, p in language.named_parameters()}
    if not text.tie_word_embeddings:
        own["lm_head.weight"] = model.lm_head.weight
    ours = weights(variant, seed)
    assert own.keys() == ours.keys(), own.keys() ^ ours.keys()
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(torch.from_numpy(ours[name]).to(dtype))
    return model


def logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """(n, vocab) float32."""
    with torch.inference_mode():
        batch = torch.from_numpy(ids.astype(np.int64))[None]
        return np.asarray(model(input_ids=batch, use_cache=False).logits[0].float().numpy())


def changed(variant: Variant, settings: Config) -> Variant:
    return replace(variant, config={**variant.config, **settings})


def save(
    model: Any, folder: Path, *, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB"
) -> Path:
    """Write the folder with a tokenizer; ``dtype`` is exact if `build` rounded to it."""
    # A copy of the tensors only: the model itself stays float32.
    state = {name: value.to(dtype) for name, value in model.state_dict().items()}
    config_dtype = model.config.dtype
    model.config.dtype = dtype
    model.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
    model.config.dtype = config_dtype
    text = model.config.get_text_config()
    write_tokenizer(folder, text.vocab_size)
    return folder


def age(folder: Path) -> None:
    """Rewrite config.json as transformers 4 wrote it: ``rope_theta`` and ``rope_scaling``, the
    layers with a window by rule where they follow it, ``torch_dtype``, and no default values."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config.get("text_config", config)
    rope = text.pop("rope_parameters")
    if local := rope.get("sliding_attention"):
        if text["model_type"] == "gemma3_text":
            text["rope_local_base_freq"] = local["rope_theta"]
        rope = rope["full_attention"]
    text["rope_theta"] = rope.pop("rope_theta")
    part = rope.pop("partial_rotary_factor", None)
    if part is not None:
        text["partial_rotary_factor"] = part
    if text["model_type"] == "ministral3":  # newer than the change: never spelled otherwise
        text["rope_parameters"] = rope | {"rope_theta": text.pop("rope_theta")}
    elif rope["rope_type"] != "default":
        text["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    default = getattr(transformers, CONFIGS[text["model_type"]])(
        num_hidden_layers=text["num_hidden_layers"]
    ).to_dict()
    keep = {"num_hidden_layers", "model_type", "rope_theta", "rope_scaling", "rope_parameters"}
    for key in [k for k in text if k not in keep and k in default and text[k] == default[k]]:
        del text[key]
    text.pop("_sliding_window_pattern", None)
    path.write_text(json.dumps(config, indent=1))


def rename_wrapped(folder: Path) -> None:
    """``language_model.model.X`` to ``model.language_model.X``, the head to ``lm_head``."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    new = {}
    for name, value in load_file(path).items():
        name = name.replace("language_model.lm_head.", "lm_head.")
        name = name.replace("language_model.model.", "model.language_model.")
        if name.startswith(("vision_tower.", "multi_modal_projector.")):
            name = f"model.{name}"
        new[name] = value
    assert any(name.startswith("model.language_model.") for name in new)
    save_file(new, path, metadata={"format": "pt"})
