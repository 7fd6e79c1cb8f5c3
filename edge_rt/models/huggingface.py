"""A Hugging Face folder as a `WeightSource`: config.json and tensor names in GGUF's words.

What a GGUF says by storing tensors otherwise has keys of our own here: ``rope.pairs`` (Hugging Face
always turns halves), ``norm_offset`` (Gemma stores w and means 1 + w), ``rope.scaling.*_factor``
(llama3 and LongRoPE, tensors in a GGUF). Lists are tuples. Keys without a value (null) and missing
ones mean what they mean to transformers, whose code is the reference.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any

from edge_rt.errors import ModelError
from edge_rt.loaders.gguf_cursor import clip
from edge_rt.loaders.safetensors import SafetensorsFolder
from edge_rt.loaders.source import TensorInfo, WeightSource
from edge_rt.models import ARCHITECTURES
from edge_rt.models.description import Architecture, GatedMlp, HuggingFace
from edge_rt.models.rope import yarn_magnitude

FAMILIES: dict[str, tuple[Architecture, HuggingFace]] = {
    family.model_type: (architecture, family)
    for architecture in ARCHITECTURES.values()
    for family in architecture.hugging_face
}
# Multimodal models around a language model: its model_type where text_config does not say.
WRAPPERS = {"gemma3": "gemma3_text", "mistral3": "mistral"}

_PREFIXES = (
    "model.", "language_model.model.", "model.language_model.", "language_model.", "",
)  # fmt: skip
_LARGEST = 1 << 53  # of any number in config.json: a float holds it
_HEADS = ("lm_head", "language_model.lm_head")
# Parts of multimodal models that text does not pass through, and tables that are computed.
_IGNORED = re.compile(
    r"(model\.)?(vision_tower|multi_modal_projector)\..*|.*\.rotary_emb\.inv_freq"
)
_ACTIVATIONS = {
    "silu": {"silu", "swish"},
    "gelu": {"gelu_pytorch_tanh", "gelu_new"},
}
# Settings that change the sums; each is refused by its name unless it is null, false or 0.
_UNSUPPORTED = (
    "clip_qkv", "use_bidirectional_attention", "num_local_experts", "num_experts",
    "attention_chunk_size", "alibi", "num_kv_shared_layers",
)  # fmt: skip


def huggingface_source(raw: SafetensorsFolder) -> WeightSource:
    """Translate ``raw``; raises `ModelError` for what is unknown, missing or not supported."""
    source = WeightSource(raw.folder, raw.parts, raw.file_size)
    source.folder, source.file = raw.folder, raw.file
    config = _language_config(raw)
    architecture, family = FAMILIES[config["model_type"]]
    keys = _Translator(raw, config, architecture, family).keys()
    source.metadata["general.architecture"] = architecture.name
    source.metadata["general.name"] = os.path.basename(os.path.abspath(raw.folder))
    for key, value in keys.items():
        source.metadata[f"{architecture.name}.{key}"] = value
    # transformers ties the head to the embedding only where the file has no head of its own.
    tied = raw.config.get("tie_word_embeddings", _ties_by_default(raw, family))
    source.tensors = _tensors(raw, family, bool(tied))
    return source


def _language_config(raw: SafetensorsFolder) -> dict[str, Any]:
    """The part of config.json that describes the language model, its model_type filled in."""
    config, model_type = raw.config, raw.config.get("model_type")
    if isinstance(model_type, str) and model_type in WRAPPERS:
        text = config.get("text_config")
        if not isinstance(text, dict):
            raise raw.fail("config.json has no text_config")
        model_type = text.get("model_type", WRAPPERS[model_type])
        config = text
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES.keys() | WRAPPERS))
        raise raw.fail(f"model_type {clip(model_type)} is not supported (supported: {known})")
    return config | {"model_type": model_type}


def _ties_by_default(raw: SafetensorsFolder, family: HuggingFace) -> bool:
    if raw.config.get("model_type") in WRAPPERS:
        return True
    return bool(family.defaults.get("tie_word_embeddings", False))


def _tensors(raw: SafetensorsFolder, family: HuggingFace, tied: bool) -> dict[str, TensorInfo]:
    """The directory under GGUF's names; what has none keeps its own, for others to refuse."""
    prefix = next((p for p in _PREFIXES if f"{p}embed_tokens.weight" in raw.raw), None)
    if prefix is None:
        raise raw.fail("there is no tensor model.embed_tokens.weight")
    names = {f"{prefix}embed_tokens": "token_embd", f"{prefix}norm": "output_norm"}
    head = next((h for h in _HEADS if f"{h}.weight" in raw.raw), None)
    if head is not None:
        names[head] = "output"
    elif not tied:
        raise raw.fail("there is no tensor lm_head.weight, and tie_word_embeddings is false")
    layer = re.compile(re.escape(prefix) + r"layers\.(\d+)\.(.+)")
    found = {}
    for name, info in raw.raw.items():
        if _IGNORED.fullmatch(name):
            continue
        stem, _, kind = name.rpartition(".")
        match = layer.fullmatch(stem)
        if match and match[2] in family.names:
            stem = f"blk.{int(match[1])}.{family.names[match[2]]}"
        else:
            stem = names.get(stem, stem)
        found[f"{stem}.{kind}"] = info
    return found


class _Translator:
    """Reads one language model's config.json."""

    def __init__(
        self,
        raw: SafetensorsFolder,
        config: dict[str, Any],
        architecture: Architecture,
        family: HuggingFace,
    ) -> None:
        self.raw, self.config = raw, config
        self.architecture, self.family = architecture, family

    def keys(self) -> dict[str, object]:
        """GGUF's keys, without the architecture's name in front."""
        self.refuse_unsupported()
        n_layers, hidden = self.integer("num_hidden_layers"), self.integer("hidden_size")
        heads = self.integer("num_attention_heads")
        if not 1 <= n_layers <= 1024 or heads < 1:
            raise self.raw.fail(f"config.json: {n_layers} layers of {heads} heads make no sense")
        head_dim = self.integer("head_dim", hidden // heads)
        context = self.integer("max_position_embeddings")
        keys: dict[str, object] = {
            "block_count": n_layers,
            "embedding_length": hidden,
            "feed_forward_length": self.integer("intermediate_size"),
            "context_length": context,
            "attention.head_count": heads,
            "attention.head_count_kv": self.integer("num_key_value_heads", heads),
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "attention.layer_norm_rms_epsilon": self.number("rms_norm_eps"),
            "rope.pairs": "halves",
            "norm_offset": self.family.norm_offset,
        }
        for key, ours in self.family.config.items():
            keys[ours] = self.number(key, 0.0)
        if self.get("query_pre_attn_scalar") is not None:
            scalar = self.number("query_pre_attn_scalar")
            if not scalar > 0:
                raise self.raw.fail(f"config.json: query_pre_attn_scalar is {scalar}")
            keys["attention.scale"] = scalar**-0.5
        turned = self.turned(n_layers)
        if not all(turned):
            keys["attention.rope_pattern"] = turned
        self.windows(keys, n_layers, turned)
        self.rope(keys, head_dim, context)
        return keys

    # -- values -----------------------------------------------------------------------------------

    def get(self, key: str) -> Any:
        """What config.json says or, where it does not, what the family means; None for null."""
        return self.config[key] if key in self.config else self.family.defaults.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 <= value <= _LARGEST:
            raise self.raw.fail(f"config.json: {key} is {clip(value)}, not a size")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        return self.as_number(key, self.get(key), default)

    def as_number(self, key: str, value: object, default: float | None = None) -> float:
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.raw.fail(f"config.json: {key} is {clip(value)}, not a number")
        if not -_LARGEST <= value <= _LARGEST:  # NaN is not, either
            raise self.raw.fail(f"config.json: {key} is {clip(value)}")
        return float(value)

    def numbers(self, key: str, value: object) -> tuple[float, ...]:
        if not isinstance(value, list):
            raise self.raw.fail(f"config.json: {key} is {clip(value)}, not a list")
        return tuple(self.as_number(key, x) for x in value)

    def refuse_unsupported(self) -> None:
        for key in _UNSUPPORTED:
            if self.config.get(key):
                raise self.raw.fail(f"config.json: {key} {clip(self.config[key])} is not supported")
        part = next(p for p in self.architecture.layer if isinstance(p, GatedMlp))
        known = _ACTIVATIONS[part.activation]
        if self.family.model_type == "gemma":  # its first files say gelu and mean this
            known = known | {"gelu"}
        name = self.get("hidden_activation") or self.get("hidden_act") or sorted(known)[0]
        if not isinstance(name, str) or name not in known:
            raise self.raw.fail(
                f"config.json: the activation {clip(name)} is not supported for "
                f"{self.family.model_type} (supported: {', '.join(sorted(known))})"
            )

    # -- layers -----------------------------------------------------------------------------------

    def turned(self, n_layers: int) -> tuple[bool, ...]:
        """Which layers turn q and k."""
        every = self.architecture.rope_skips_every
        listed = self.get("no_rope_layers") if every else None
        if listed is not None:
            pattern = tuple(x != 0 for x in self.numbers("no_rope_layers", listed))
            if len(pattern) != n_layers:
                raise self.raw.fail(f"config.json: no_rope_layers has {len(pattern)} elements")
            return pattern
        every = self.integer("no_rope_layer_interval", every) if every else 0
        return tuple(every < 1 or (layer + 1) % every != 0 for layer in range(n_layers))

    def windows(self, keys: dict[str, object], n_layers: int, turned: tuple[bool, ...]) -> None:
        """Which layers see only the last ``sliding_window`` positions."""
        rule, window = self.family.windows, self.get("sliding_window")
        optional = rule in ("late", "without_rope")
        if rule == "none" or window is None or (optional and not self.get("use_sliding_window")):
            keys["attention.sliding_window"] = 0
            # What transformers makes of this contradiction differs from family to family.
            if rule != "none" and window and any(self.listed(self.get("layer_types"), n_layers)):
                raise self.raw.fail("config.json: layer_types has windows that are switched off")
            return
        window = self.integer("sliding_window")
        if window < 1:
            raise self.raw.fail(f"config.json: sliding_window is {window}")
        pattern = self.listed(self.get("layer_types") if rule != "all" else None, n_layers)
        keys["attention.sliding_window"] = window
        keys["attention.sliding_window_pattern"] = pattern or self.pattern(n_layers, turned)

    def pattern(self, n_layers: int, turned: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which layers have the window where config.json has no layer_types."""
        rule = self.family.windows
        if rule == "late":
            first = self.integer("max_window_layers")
            return tuple(layer >= first for layer in range(n_layers))
        if rule == "without_rope":
            return tuple(not t for t in turned)
        every = self.get("sliding_window_pattern") or self.get("_sliding_window_pattern")
        every = 0 if rule == "all" else every or self.get("full_every")
        if type(every) is not int or every < 0:
            raise self.raw.fail(f"config.json: sliding_window_pattern is {clip(every)}")
        return tuple(every == 0 or (i + 1) % every != 0 for i in range(n_layers))

    def listed(self, types: object, n_layers: int) -> tuple[bool, ...]:
        """Which layers a layer_types calls windowed; empty where there is none."""
        known = ("full_attention", "sliding_attention")
        if types is None:
            return ()
        if not isinstance(types, list) or len(types) != n_layers:
            raise self.raw.fail(f"config.json: layer_types is not a list of {n_layers}")
        for kind in types:
            if kind not in known:
                raise self.raw.fail(f"config.json: layer type {clip(kind)} is not supported")
        return tuple(kind == "sliding_attention" for kind in types)

    # -- rope -------------------------------------------------------------------------------------

    def rope(self, keys: dict[str, object], head_dim: int, context: int) -> None:
        """``rope_parameters`` (also one for each type of layer), or ``rope_theta`` and
        ``rope_scaling`` of older files."""
        rope = self.config.get("rope_scaling") or self.get("rope_parameters") or {}
        if not isinstance(rope, dict):
            raise self.raw.fail(f"config.json: the rope parameters are {clip(rope)}")
        theta = self.number("rope_theta")
        nested = "full_attention" in rope or "sliding_attention" in rope
        windows = self.architecture.windows
        if nested:
            local = rope.get("sliding_attention") or {}
            rope = rope.get("full_attention") or {}
            if not isinstance(local, dict) or not isinstance(rope, dict):
                raise self.raw.fail("config.json: the rope parameters are no objects")
            if _kind(local) != "default" or not (windows and windows.unscaled_rope):
                raise self.raw.fail("config.json: rope scaling of windowed layers is not supported")
            local_theta = local.get("rope_theta")
        else:
            local_theta = None
        if windows and windows.unscaled_rope:
            if local_theta is None:
                local_theta = self.get("rope_local_base_freq")
            default = rope.get("rope_theta", theta) if local_theta is None else local_theta
            keys["rope.freq_base_swa"] = self.as_number("rope_theta", default)
        keys["rope.freq_base"] = self.as_number("rope_theta", rope.get("rope_theta"), theta)
        part = rope.get("partial_rotary_factor", self.get("partial_rotary_factor"))
        part = self.as_number("partial_rotary_factor", part, 1.0)
        if part != 1.0 and not self.family.partial_rope:
            raise self.raw.fail(
                f"config.json: partial_rotary_factor is not supported for {self.family.model_type}"
            )
        keys["rope.dimension_count"] = int(head_dim * part)
        original = None if nested else self.get("original_max_position_embeddings")
        if original is None:
            original = rope.get("original_max_position_embeddings", context)
        if type(original) is not int or not 1 <= original <= _LARGEST:
            raise self.raw.fail(
                f"config.json: original_max_position_embeddings is {clip(original)}"
            )
        keys["rope.scaling.original_context_length"] = original
        beta = rope.get("llama_4_scaling_beta")
        if beta is not None:
            keys["attention.temperature_scale"] = self.as_number("llama_4_scaling_beta", beta)
        self.scaling(keys, rope, context / original)

    def scaling(self, keys: dict[str, object], rope: dict[str, Any], growth: float) -> None:
        """How the frequencies are stretched; ``growth`` is the context by the original one."""
        kind = _kind(rope)
        if rope.get("long_factor") is not None and kind in ("su", "yarn"):
            kind = "longrope"  # what the first Phi-3 files called it
        if kind == "default":
            return
        factor = self.as_number("factor", rope.get("factor"), growth)
        if kind not in ("linear", "llama3", "yarn", "longrope"):
            raise ModelError(
                f"{self.raw.folder}: config.json: rope scaling {clip(kind)} is not supported "
                "(supported: default, linear, llama3, yarn, longrope)"
            )
        keys["rope.scaling.type"] = kind
        keys["rope.scaling.factor"] = factor
        given = rope.get("attention_factor")
        if kind == "llama3":
            for key in ("low_freq_factor", "high_freq_factor"):
                keys[f"rope.scaling.{key}"] = self.as_number(key, rope.get(key))
        elif kind == "longrope":
            for key in ("short_factor", "long_factor"):
                keys[f"rope.scaling.{key}"] = self.numbers(key, rope.get(key))
            original = float(str(keys["rope.scaling.original_context_length"]))
            grown = 1.0
            if factor > 1 and original > 1:
                grown = math.sqrt(1 + math.log(factor) / math.log(original))
            keys["rope.scaling.attn_factor"] = self.as_number("attention_factor", given, grown)
        elif kind == "yarn":
            self.yarn(keys, rope, factor, given)

    def yarn(
        self, keys: dict[str, object], rope: dict[str, Any], factor: float, given: object
    ) -> None:
        if not rope.get("truncate", True):
            raise self.raw.fail("config.json: YaRN without truncate is not supported")
        for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0)):
            keys[f"rope.scaling.yarn_{key}"] = self.as_number(key, rope.get(key) or default)

        scales = [self.as_number(key, rope.get(key), 0.0) for key in ("mscale", "mscale_all_dim")]
        default = yarn_magnitude(factor, 1.0)
        if all(scales):
            if min(scales) < 0:
                raise self.raw.fail("config.json: mscale and mscale_all_dim must be positive")
            default = yarn_magnitude(factor, scales[0]) / yarn_magnitude(factor, scales[1])
        keys["rope.scaling.yarn_attn_factor"] = self.as_number("attention_factor", given, default)


def _kind(rope: dict[str, Any]) -> object:
    return rope.get("rope_type", rope.get("type", "default"))
