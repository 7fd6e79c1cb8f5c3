"""The words that architecture files are written in, and the sizes of one model.

A description says which tensors a layer has and how they are joined; ``edge_rt.lowering`` turns it
into the step program. Shapes follow NumPy: a matrix is (rows out, columns in). Tensor names are
GGUF's, without ``blk.N.`` and ``.weight``; biases are used where a file has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Norm:
    """RMS norm of the residual stream: what the next part reads instead of the stream itself."""

    weight: str


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention; adds its output to the residual stream.

    ``qkv`` is one matrix with the rows of q, k and v, for files that have it instead of the three.
    ``q_norm`` and ``k_norm`` are RMS norms before the rotation, over each head or over all of them
    (``norm_over``); ``post_norm`` is one of the output before it is added.
    """

    q: str = "attn_q"
    k: str = "attn_k"
    v: str = "attn_v"
    qkv: str = "attn_qkv"
    output: str = "attn_output"
    q_norm: str | None = None
    k_norm: str | None = None
    norm_over: Literal["head", "row"] = "head"
    post_norm: str | None = None


@dataclass(frozen=True)
class GatedMlp:
    """down(activation(gate(x)) * up(x)), added to the residual stream, after ``post_norm`` if any.

    Without ``gate`` the first half of ``up``'s rows is the gate. ``gelu`` is the tanh form.
    """

    gate: str | None = "ffn_gate"
    up: str = "ffn_up"
    down: str = "ffn_down"
    activation: Literal["silu", "gelu"] = "silu"
    post_norm: str | None = None


Part = Norm | Attention | GatedMlp


@dataclass(frozen=True)
class Windows:
    """Sliding windows: every ``full_every``-th layer sees all positions (0: none does).

    ``size`` is the window of files that do not say. Windowed layers turn q and k by a rope table
    without scaling if ``unscaled_rope``, with the base ``rope_base`` if it is not 0.
    """

    full_every: int
    size: int = 0
    unscaled_rope: bool = False
    rope_base: float = 0.0


@dataclass(frozen=True)
class HuggingFace:
    """How Hugging Face folders spell an architecture: one ``model_type`` of config.json.

    ``names`` maps a layer's tensor names, without ``model.layers.N.``, to ours; ``defaults`` are
    what a config.json that leaves them out means; ``config`` maps keys that only this family has to
    GGUF's. ``norm_offset`` is added to every stored norm weight.

    ``windows`` says which layers have ``sliding_window``, where config.json does not list them:
    all; all but each ``full_every``-th; those from ``max_window_layers`` on; those without rope.
    """

    model_type: str
    names: Mapping[str, str]
    defaults: Mapping[str, object]
    config: Mapping[str, str] = field(default_factory=dict)
    norm_offset: float = 0.0
    windows: Literal["none", "all", "period", "late", "without_rope"] = "none"
    partial_rope: bool = False


@dataclass(frozen=True)
class Architecture:
    """One family of models. ``rope_pairs``: how GGUF stores q and k of this family.

    ``rope_skips_every``: each n-th layer has no rotation. ``scaled_embedding``: rows are multiplied
    by the root of their width. ``caps``: soft caps of attention scores and logits of files that do
    not say, 0 for none. ``multipliers``: the file has scales of embeddings, residual sums,
    attention and logits. ``hidden_scale_layers``: a model with so many layers scales its attention
    by hidden / heads instead of the head's width.
    """

    name: str
    layer: tuple[Part, ...]
    rope_pairs: Literal["interleaved", "halves"]
    hugging_face: tuple[HuggingFace, ...]
    windows: Windows | None = None
    rope_skips_every: int = 0
    scaled_embedding: bool = False
    caps: tuple[float, float] = (0.0, 0.0)
    multipliers: bool = False
    hidden_scale_layers: int = 0
    embedding: str = "token_embd"
    final_norm: str = "output_norm"
    head: str = "output"  # the embedding matrix where it is missing


@dataclass(frozen=True)
class Rope:
    """One table of rotary frequencies, in radians per position, one per rotated pair.

    Contexts longer than ``original_ctx`` use ``long_frequencies`` where there are some.
    ``magnitude`` multiplies cosines and sines.
    """

    frequencies: tuple[float, ...]
    magnitude: float = 1.0
    long_frequencies: tuple[float, ...] | None = None
    original_ctx: int = 0

    def for_ctx(self, ctx: int) -> tuple[float, ...]:
        """The frequencies of an engine with ``ctx`` positions."""
        if self.long_frequencies is not None and ctx > self.original_ctx:
            return self.long_frequencies
        return self.frequencies


@dataclass(frozen=True)
class Layer:
    """``window``: positions a token sees, its own included, 0 for all; ``rope``: index of its
    table, None where q and k are not turned."""

    window: int
    rope: int | None


@dataclass(frozen=True)
class Hyperparameters:
    """Sizes and numbers of one model; a scale of 1, a cap or temperature of 0 does nothing."""

    n_layers: int
    hidden: int
    ffn: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ctx_train: int
    norm_eps: float
    ropes: tuple[Rope, ...]
    layers: tuple[Layer, ...]
    rope_halves: bool
    norm_offset: float
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    logit_cap: float
    attention_scale: float
    attention_cap: float
    temperature: float
    temperature_length: int
