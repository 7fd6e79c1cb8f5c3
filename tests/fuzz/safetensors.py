"""A Hugging Face folder: the headers of its weight files, config.json, generation_config.json, the
index; then its translation, its program and a plan.

The input are the files (`harness.join`); those that end in ``.header`` are the header of a weight
file, which gets the data that its entries ask for, the others are files as they are.
"""

from __future__ import annotations

import json
import random
import struct
from typing import Any

from edge_rt.loaders.safetensors import SafetensorsFolder
from edge_rt.models.huggingface import FAMILIES, WRAPPERS
from edge_rt.opening import make_settings, open_planner
from edge_rt.planner import Planner
from edge_rt.sizes import MIB
from tests.fuzz.harness import bounded, join, raw_of, require, scratch_folder, split, text_of
from tests.fuzz.mutate import mutate_bytes, mutate_json_text, mutate_text

_FOLDER = scratch_folder()
_HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM, _FFN, _VOCAB = 16, 2, 1, 8, 24, 5
_WORDS = [
    "dtype", "shape", "data_offsets", "__metadata__", "format", "pt", "F32", "F16", "BF16", "F64",
    "I8", "U8", "BOOL", "F4", "F8_E4M3", "weight_map", "metadata", "total_size", *FAMILIES,
    *WRAPPERS, "model_type", "text_config", "vocab_size", "hidden_size", "intermediate_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
    "max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "rope_type", "type",
    "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
    "short_factor", "long_factor", "attention_factor", "beta_fast", "beta_slow", "mscale",
    "mscale_all_dim", "truncate", "partial_rotary_factor", "linear", "llama3", "yarn", "longrope",
    "su", "default", "full_attention", "sliding_attention", "layer_types", "sliding_window",
    "sliding_window_pattern", "use_sliding_window", "max_window_layers", "no_rope_layers",
    "no_rope_layer_interval", "query_pre_attn_scalar", "attn_logit_softcapping",
    "final_logit_softcapping", "rope_local_base_freq", "tie_word_embeddings", "hidden_act",
    "hidden_activation", "silu", "gelu_pytorch_tanh", "quantization_config", "quant_method",
    "num_experts", "attention_bias", "mlp_bias", "eos_token_id", "embedding_multiplier",
    "residual_multiplier", "attention_multiplier", "logits_scaling", "llama_4_scaling_beta",
    "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
    "model-00001-of-00002.safetensors", "../x.safetensors", "model.vision_tower.x",
    "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate_up_proj.weight",
    "model.layers.00.mlp.up_proj.weight", "model.layers.9999999999999999999.mlp.up_proj.weight",
    "model.layers.٣.mlp.up_proj.weight", "model.layers.0.self_attn.rotary_emb.inv_freq",
]  # fmt: skip
_HEADERS = (
    "model.safetensors.header", "model-00001-of-00002.safetensors.header",
    "model-00002-of-00002.safetensors.header",
)  # fmt: skip
_NAMES = (*_HEADERS, "config.json", "generation_config.json", "model.safetensors.index.json")


def _tensors(family: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a one-layer model."""
    p = "model.layers.0."
    q, kv = _HEADS * _HEAD_DIM, _KV_HEADS * _HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (_VOCAB, _HIDDEN),
        f"{p}input_layernorm.weight": (_HIDDEN,),
        f"{p}self_attn.o_proj.weight": (_HIDDEN, q),
        f"{p}post_attention_layernorm.weight": (_HIDDEN,),
        f"{p}mlp.down_proj.weight": (_HIDDEN, _FFN),
        "model.norm.weight": (_HIDDEN,),
    }
    if family == "phi3":
        shapes[f"{p}self_attn.qkv_proj.weight"] = (q + 2 * kv, _HIDDEN)
        shapes[f"{p}mlp.gate_up_proj.weight"] = (2 * _FFN, _HIDDEN)
    else:
        shapes |= {f"{p}self_attn.q_proj.weight": (q, _HIDDEN)}
        shapes |= {f"{p}self_attn.{one}_proj.weight": (kv, _HIDDEN) for one in "kv"}
        shapes |= {f"{p}mlp.{one}_proj.weight": (_FFN, _HIDDEN) for one in ("gate", "up")}
    if family == "qwen2":
        shapes[f"{p}self_attn.q_proj.bias"] = (q,)
        shapes |= {f"{p}self_attn.{one}_proj.bias": (kv,) for one in "kv"}
    if family.startswith(("gemma2", "gemma3")):
        for one in ("pre", "post"):
            shapes[f"{p}{one}_feedforward_layernorm.weight"] = (_HIDDEN,)
    if family in ("qwen3", "gemma3_text"):
        for one in "qk":
            shapes[f"{p}self_attn.{one}_norm.weight"] = (_HEAD_DIM,)
    if not family.startswith("gemma"):
        shapes["lm_head.weight"] = (_VOCAB, _HIDDEN)
    return shapes


def _header(shapes: dict[str, tuple[int, ...]], dtype: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, width = 0, {"F32": 4, "F16": 2, "BF16": 2}[dtype]
    for name, shape in shapes.items():
        size = width
        for n in shape:
            size *= n
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return json.dumps(entries, separators=(",", ":")).encode()


def _config(family: str, **more: Any) -> bytes:
    values = {
        "model_type": family, "vocab_size": _VOCAB, "hidden_size": _HIDDEN,
        "intermediate_size": _FFN, "num_hidden_layers": 1, "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS, "head_dim": _HEAD_DIM, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    return json.dumps(values | more).encode()


def seeds() -> list[bytes]:
    scalings: list[dict[str, Any]] = [
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 16},
        {"type": "yarn", "factor": 4.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
         "mscale_all_dim": 0.7},
        {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
        {"type": "linear", "factor": 2.0},
    ]  # fmt: skip
    found = []
    for i, family in enumerate(sorted(FAMILIES)):
        scaling = scalings[i % 4] if family in ("llama", "mistral", "phi3", "qwen2") else None
        more: dict[str, Any] = {"rope_scaling": scaling} if scaling else {}
        if family.startswith("gemma"):
            more["tie_word_embeddings"] = True
            more["hidden_activation"] = "gelu_pytorch_tanh"
            more["sliding_window"] = 16
        dtype = ("F32", "BF16", "F16")[i % 3]
        found.append(
            join(
                {
                    _NAMES[0]: _header(_tensors(family), dtype),
                    "config.json": _config(family, **more),
                }
            )
        )
    shapes = list(_tensors("llama").items())
    maps = {
        name: f"model-0000{1 + (i > 3)}-of-00002.safetensors" for i, (name, _) in enumerate(shapes)
    }
    found.append(
        join({
            _NAMES[1]: _header(dict(shapes[:4]), "F32"),
            _NAMES[2]: _header(dict(shapes[4:]), "F32"),
            "config.json": _config("llama"), "generation_config.json": b'{"eos_token_id": [2]}',
            _NAMES[5]: json.dumps({"metadata": {}, "weight_map": maps}).encode(),
        })
    )  # fmt: skip
    text = json.loads(_config("gemma3_text", tie_word_embeddings=True))
    found.append(
        join({
            _NAMES[0]: _header(_tensors("gemma3_text"), "BF16"),
            "config.json": json.dumps({"model_type": "gemma3", "text_config": text}).encode(),
        })
    )  # fmt: skip
    return found


def mutate(data: bytes, rng: random.Random) -> bytes:
    files = split(data)
    name = rng.choice([n for n in files if n in _NAMES] or ["config.json"])
    raw = files.get(name, b"{}")
    match rng.randrange(12):
        case 0:
            files.pop(name, None)
            files[rng.choice(_NAMES)] = raw
        case 1 | 2:
            files[name] = raw_of(mutate_text(text_of(raw), rng, _WORDS))
        case 3:
            files[name] = mutate_bytes(raw, rng)
        case 4 if name in _HEADERS:
            files[name] = _moved(raw, rng)
        case _:
            files[name] = mutate_json_text(raw, rng, _WORDS)
    return join(files)


def _moved(raw: bytes, rng: random.Random) -> bytes:
    """Another shape for one tensor, with offsets that fit: deeper checks see it."""
    try:
        entries = json.loads(raw)
        shapes = {k: tuple(v["shape"]) for k, v in entries.items() if k != "__metadata__"}
        name = rng.choice(list(shapes))
        shape = list(shapes[name])
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 8, 16, 24, 64))
        shapes[name] = tuple(shape if rng.random() < 0.8 else shape[::-1])
        return _header(shapes, rng.choice(("F32", "F16", "BF16")))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError):
        return raw


def _data_bytes(header: bytes) -> int:
    """Where the last tensor ends, as far as the header says so."""
    try:
        entries = json.loads(header)
        ends = [v["data_offsets"][1] for k, v in entries.items() if k != "__metadata__"]
        return max(0, min(int(max(ends, default=0)), 1 << 20))
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        RecursionError,
        OverflowError,
    ):
        return 0


def run(data: bytes) -> None:
    files = split(data)
    for path in _FOLDER.iterdir():
        path.unlink()
    for name in _NAMES:
        if name not in files:
            continue
        if name in _HEADERS:
            path = _FOLDER / name.removesuffix(".header")
            header = files[name]
            path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(_data_bytes(header)))
        else:
            (_FOLDER / name).write_bytes(files[name])
    with bounded():
        raw = SafetensorsFolder.open(_FOLDER, allow_unsupported=True)
        end = 0
        for t in sorted(raw.raw.values(), key=lambda t: (t.offset, t.n_bytes)):
            require(end <= t.offset, f"tensor {t.name!r} at {t.offset} overlaps")
            end = t.offset + t.n_bytes
        require(end <= raw.file_size + MIB * len(raw.parts), f"tensors end at {end}")
    with bounded():
        planner = _planner()
        for ram in ("64MiB", "300MiB"):
            plan = planner.plan(make_settings(planner, ram, None, 1))
            require(not plan.fits or sum(plan.roles.values()) <= plan.settings.budget, "too much")


_TOKENIZER = json.dumps({
    "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
    "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
})  # fmt: skip


def _planner() -> Planner:
    """With a tokenizer that counts little: its target is another one."""
    (_FOLDER / "tokenizer.json").write_text(_TOKENIZER)
    return open_planner(_FOLDER)[1]
