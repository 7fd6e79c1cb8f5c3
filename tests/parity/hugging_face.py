"""A variant as transformers' own model, and as the folder that ``save_pretrained`` makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

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


def config_of(variant: Variant) -> Any:
    """The config object of the language model."""
    name = CLASSES[variant.family] + ("Text" if variant.family == "gemma3_text" else "")
    # Config classes write into their arguments.
    own = json.loads(json.dumps(variant.config))
    return getattr(transformers, f"{name}Config")(**own, attn_implementation="eager")


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


def as_gguf_says(variant: Variant) -> Variant:
    """The model that the GGUF of ``variant`` describes."""
    assert variant.gguf is not None
    return changed(variant, variant.gguf)


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
