"""The words that architecture files are written in, and the hyperparameters read from a file.

A description says which tensors a layer has and how they are joined; ``edge_rt.program`` turns it
into the step program. Shapes follow NumPy: a matrix is (rows out, columns in).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edge_rt.errors import ModelError
from edge_rt.loaders.source import WeightSource


@dataclass(frozen=True)
class Norm:
    """RMS norm of the residual stream with the weight ``blk.N.<weight>.weight``."""

    weight: str


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention; adds its output to the residual stream. Biases are used if
    present."""

    q: str
    k: str
    v: str
    output: str


@dataclass(frozen=True)
class GatedMlp:
    """down(activation(gate(x)) * up(x)), added to the residual stream."""

    gate: str
    up: str
    down: str
    activation: Literal["silu"]


Part = Norm | Attention | GatedMlp


@dataclass(frozen=True)
class Hyperparameters:
    """Sizes of one model. ``rope_frequencies``: radians per position, one per rotated pair."""

    n_layers: int
    hidden: int
    ffn: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ctx_train: int
    norm_eps: float
    rope_dimensions: int
    rope_base: float
    rope_divisor: float


@dataclass(frozen=True)
class Architecture:
    """One family of models. ``rope_pairs``: how GGUF stores q and k of this family."""

    name: str
    layer: tuple[Part, ...]
    rope_pairs: Literal["interleaved", "halves"]
    read: Callable[[WeightSource, str], Hyperparameters]
    embedding: str = "token_embd"
    final_norm: str = "output_norm"
    head: str = "output"  # the embedding matrix where it is missing
    rope_factors: str = "rope_freqs"  # optional divisors of the rope frequencies


def read_hyperparameters(source: WeightSource, prefix: str) -> Hyperparameters:
    """Read the keys that nearly all decoder-only GGUFs share, each checked for range."""

    def size(key: str, largest: int, default: int | None = None) -> int:
        full = f"{prefix}.{key}"
        value = source.get_int(full) if default is None else source.get_int(full, default)
        if not 1 <= value <= largest:
            raise ModelError(f"{full} is {value}: it must be between 1 and {largest}")
        return value

    hidden = size("embedding_length", 1 << 17)
    n_heads = size("attention.head_count", 1024)
    n_kv_heads = size("attention.head_count_kv", 1024, n_heads)
    head_dim = size("attention.key_length", 1024, max(1, hidden // n_heads))
    if size("attention.value_length", 1024, head_dim) != head_dim:
        raise ModelError(f"{prefix}.attention.value_length differs from key_length: not supported")
    if n_heads % n_kv_heads:
        raise ModelError(f"{n_heads} attention heads cannot share {n_kv_heads} key/value heads")
    rope_dimensions = size("rope.dimension_count", head_dim, head_dim)
    if rope_dimensions % 2:
        raise ModelError(f"{prefix}.rope.dimension_count is {rope_dimensions}: it must be even")
    eps = source.get_float(f"{prefix}.attention.layer_norm_rms_epsilon")
    base = source.get_float(f"{prefix}.rope.freq_base", 10000.0)
    for key, number in (("attention.layer_norm_rms_epsilon", eps), ("rope.freq_base", base)):
        if not (math.isfinite(number) and number > 0):
            raise ModelError(f"{prefix}.{key} is {number}: it must be positive")
    return Hyperparameters(
        n_layers=size("block_count", 1024),
        hidden=hidden,
        ffn=size("feed_forward_length", 1 << 20),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_ctx_train=size("context_length", 1 << 28),
        norm_eps=eps,
        rope_dimensions=rope_dimensions,
        rope_base=base,
        rope_divisor=_rope_divisor(source, prefix),
    )


def _rope_divisor(source: WeightSource, prefix: str) -> float:
    """The factor that linear rope scaling divides positions by; 1 without scaling."""
    kind = source.get_str(f"{prefix}.rope.scaling.type", "none")
    if kind == "none":
        # Before scaling types, GGUFs wrote a bare linear factor.
        factor = source.get_float(f"{prefix}.rope.scale_linear", 1.0)
    elif kind == "linear":
        factor = source.get_float(f"{prefix}.rope.scaling.factor")
    else:
        raise ModelError(f"rope scaling {kind[:80]!r} is not supported (supported: none, linear)")
    if not (math.isfinite(factor) and factor >= 1e-3):
        raise ModelError(f"{prefix}: a rope scaling factor of {factor} makes no sense")
    return factor
