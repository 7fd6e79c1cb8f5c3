"""Read the sizes and numbers of one model, each checked for range."""

from __future__ import annotations

import math

from edge_rt.errors import ModelError
from edge_rt.loaders.source import WeightSource
from edge_rt.models.description import Architecture, Hyperparameters, Layer, Rope
from edge_rt.models.rope import ReadFloats, RopeReader, numbers

_MULTIPLIERS = ("embedding_scale", "residual_scale", "logit_scale")
# Numbers that change the sums of other families: a model that has one is refused by its name.
_UNSUPPORTED = (
    "expert_count", "attention.clamp_kqv", "attention.max_alibi_bias", "rope.dimension_sections",
    "attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa",
    "attention.value_scale", "attention.output_scale", "attention.shared_kv_layers",
)  # fmt: skip
_TINY = 1e-30


def read_hyperparameters(
    source: WeightSource, architecture: Architecture, read_floats: ReadFloats
) -> Hyperparameters:
    """Read what ``architecture`` needs; raises `ModelError` for what is missing, out of range or
    not supported. ``read_floats`` returns the bytes of a small F32 tensor."""
    return _Reader(source, architecture).read(read_floats)


class _Reader:
    def __init__(self, source: WeightSource, architecture: Architecture) -> None:
        self.source, self.architecture = source, architecture
        self.prefix = architecture.name

    def read(self, read_floats: ReadFloats) -> Hyperparameters:
        source, prefix, a = self.source, self.prefix, self.architecture
        for key in _UNSUPPORTED:
            value = source.metadata.get(f"{prefix}.{key}")
            if value is not None and value != 0:
                raise ModelError(f"{prefix}.{key} is not supported")
        if not source.get_bool(f"{prefix}.attention.causal", True):
            raise ModelError(f"{prefix}.attention.causal is false: not a model that writes text")
        n_layers = self.size("block_count", 1024)
        hidden = self.size("embedding_length", 1 << 17)
        n_heads = self.size("attention.head_count", 1024)
        n_kv_heads = self.size("attention.head_count_kv", 1024, n_heads)
        head_dim = self.size("attention.key_length", 1024, max(1, hidden // n_heads))
        if self.size("attention.value_length", 1024, head_dim) != head_dim:
            raise ModelError(
                f"{prefix}.attention.value_length differs from key_length: not supported"
            )
        if n_heads % n_kv_heads:
            raise ModelError(f"{n_heads} attention heads cannot share {n_kv_heads} key/value heads")
        n_ctx_train = self.size("context_length", 1 << 28)
        rope_dimensions = self.size("rope.dimension_count", head_dim, head_dim)
        if rope_dimensions % 2:
            raise ModelError(f"{prefix}.rope.dimension_count is {rope_dimensions}: it must be even")
        reader = RopeReader(source, prefix, rope_dimensions, n_ctx_train)
        ropes = [reader.main(read_floats)]
        layers = self.layers(n_layers, n_ctx_train, ropes, reader)
        by_hidden = n_layers == a.hidden_scale_layers
        scale = (hidden // n_heads if by_hidden else head_dim) ** -0.5
        for key in () if a.multipliers else _MULTIPLIERS:
            if f"{prefix}.{key}" in source.metadata:
                raise ModelError(f"{prefix}.{key} is not supported")
        temperature = source.get_float(f"{prefix}.attention.temperature_scale", 0.0)
        length = source.get_int(
            f"{prefix}.attention.temperature_length", reader.original_ctx, 1, 1 << 28
        )
        return Hyperparameters(
            n_layers=n_layers,
            hidden=hidden,
            ffn=self.size("feed_forward_length", 1 << 20),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            n_ctx_train=n_ctx_train,
            norm_eps=self.number("attention.layer_norm_rms_epsilon"),
            ropes=tuple(ropes),
            layers=layers,
            rope_halves=source.get_str(f"{prefix}.rope.pairs", a.rope_pairs) == "halves",
            norm_offset=source.get_float(f"{prefix}.norm_offset", 0.0),
            embedding_scale=math.sqrt(hidden)
            if a.scaled_embedding
            else self.number("embedding_scale", 1.0),
            residual_scale=self.number("residual_scale", 1.0),
            logit_scale=1 / self.number("logit_scale", 1.0),
            logit_cap=self.number("final_logit_softcapping", a.caps[1], lowest=0.0),
            attention_scale=self.number("attention.scale", 0.0, lowest=0.0) or scale,
            attention_cap=self.number("attn_logit_softcapping", a.caps[0], lowest=0.0),
            temperature=temperature,
            temperature_length=length,
        )

    def layers(
        self, n_layers: int, n_ctx_train: int, ropes: list[Rope], reader: RopeReader
    ) -> tuple[Layer, ...]:
        """Window and rope table of each layer; appends the windowed layers' own table."""
        windows, windowed = self.architecture.windows, [False] * n_layers
        key = f"{self.prefix}.attention.sliding_window"
        window = self.source.get_int(key, windows.size if windows else 0, 0, 1 << 31)
        shows_all = window >= n_ctx_train
        if window > 0 and (windows is not None or not shows_all):
            windowed = self.pattern(n_layers)
        tables: list[int | None] = [0] * n_layers
        local_base = f"{self.prefix}.rope.freq_base_swa"
        if local_base in self.source.metadata and not (windows and windows.unscaled_rope):
            raise ModelError(f"{local_base} is not supported")
        if windows and windows.unscaled_rope and any(windowed):
            ropes.append(reader.local(windows.rope_base))
            tables = [1 if local else 0 for local in windowed]
        for layer, turned in enumerate(self.turned(n_layers)):
            if not turned:
                tables[layer] = None
        return tuple(
            Layer(window if local and not shows_all else 0, table)
            for local, table in zip(windowed, tables, strict=True)
        )

    def pattern(self, n_layers: int) -> list[bool]:
        """Which layers have the window: a list, a period, or the family's own."""
        key = f"{self.prefix}.attention.sliding_window_pattern"
        windows, period = self.architecture.windows, self.source.metadata.get(key)
        if period is not None and not isinstance(period, int):
            return [value != 0 for value in numbers(self.source, key, n_layers)]
        if period is None:
            if windows is None:
                raise ModelError(
                    f"{self.prefix}.attention.sliding_window: which layers have it is unknown"
                )
            period = windows.full_every
        else:
            period = self.source.get_int(key, minimum=0, maximum=1 << 20)
        return [period == 0 or layer % period < period - 1 for layer in range(n_layers)]

    def turned(self, n_layers: int) -> list[bool]:
        """Which layers turn q and k."""
        key = f"{self.prefix}.attention.rope_pattern"
        if key in self.source.metadata:
            return [value != 0 for value in numbers(self.source, key, n_layers)]
        # Granite writes models without positions as ones whose rope was not trained.
        switch = f"{self.prefix}.rope.scaling.finetuned"
        if self.architecture.multipliers and not self.source.get_bool(switch, True):
            return [False] * n_layers
        every = self.architecture.rope_skips_every
        return [every == 0 or (layer + 1) % every != 0 for layer in range(n_layers)]

    def size(self, key: str, largest: int, default: int | None = None) -> int:
        full = f"{self.prefix}.{key}"
        value = self.source.get_int(full) if default is None else self.source.get_int(full, default)
        if not 1 <= value <= largest:
            raise ModelError(f"{full} is {value}: it must be between 1 and {largest}")
        return value

    def number(self, key: str, default: float | None = None, lowest: float = _TINY) -> float:
        full = f"{self.prefix}.{key}"
        value = (
            self.source.get_float(full) if default is None else self.source.get_float(full, default)
        )
        if not lowest <= value < 1e30:
            raise ModelError(f"{full} is {value}: it must be positive")
        return value
