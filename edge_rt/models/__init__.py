"""The architectures that run, one declarative file each."""

from __future__ import annotations

from edge_rt.errors import ModelError
from edge_rt.loaders.source import WeightSource
from edge_rt.models import (
    gemma,
    gemma2,
    gemma3,
    granite,
    llama,
    mistral3,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    smollm3,
)
from edge_rt.models.description import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    module.ARCHITECTURE.name: module.ARCHITECTURE
    for module in (
        gemma, gemma2, gemma3, granite, llama, mistral3, olmo2, phi3, qwen2, qwen3, smollm3,
    )
}  # fmt: skip


def architecture_of(source: WeightSource) -> Architecture:
    """Return the description of the model in ``source``; raises `ModelError` for unknown ones."""
    name = source.get_str("general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelError(f"architecture {name[:80]!r} is not supported (supported: {known})")
    return ARCHITECTURES[name]
