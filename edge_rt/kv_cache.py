"""Rows of the KV cache: how many each layer keeps, and what of them a new pass can build on."""

from __future__ import annotations

from typing import Final

from edge_rt.plan import Plan
from edge_rt.program import Program
from edge_rt.sizes import align_up

_ATTENTION_TILE: Final = 32  # kAttentionTile of kernels.h


def kv_positions(program: Program, ctx: int, longest: int) -> list[int]:
    """Rows of each layer's KV cache: ``ctx``, or a ring where a window needs no more.

    A pass, of up to ``longest`` tokens, stores all its positions before it looks back, so the ring
    holds a window and the longest pass, whatever the budget. It ends between tiles of attention.
    """
    return [
        min(ctx, align_up(layer.window + longest, _ATTENTION_TILE)) if layer.window else ctx
        for layer in program.hyper.layers
    ]


def reusable(program: Program, plan: Plan, kept: int, written: int) -> int:
    """How many of the first ``kept`` positions a new pass can build on: all, or none where a ring
    has lost what the windows before ``kept`` show. ``written``: positions ever stored."""
    for layer, rows in zip(program.hyper.layers, plan.kv_positions, strict=True):
        if layer.window and max(0, kept + 1 - layer.window) < written - rows:
            return 0
    return kept
