"""Tiny random models against Hugging Face's code, and every path of ours against one another."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edge_rt import Engine

VARIANTS = (
    "plain", "tied", "llama3", "linear", "bias", "mistral", "mha", "one_kv_head", "wide_head",
)  # fmt: skip
MAX_ERROR = 1e-4  # float32 sums in another order; logits are of order 1 to 5


def our_logits(path: Path, ids: np.ndarray, **options: object) -> np.ndarray:
    with Engine(path, ram="4GiB", ctx=128, kv="f32", **options) as engine:
        return engine.logits(ids.tolist())


def test_every_variant_is_named_here(parity: ModuleType) -> None:
    assert set(VARIANTS) == set(parity.VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(
    parity: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    path, model = parity.make_tiny_llama(tmp_path, name=variant, **parity.VARIANTS[variant])
    ids = parity.token_ids()
    expected = parity.hf_logits(model, ids)
    found = our_logits(path, ids)
    assert found.shape == expected.shape and expected.std() > 0.3
    assert np.abs(found - expected).max() <= MAX_ERROR

    assert our_logits(path, ids, weight_cap="0").tobytes() == found.tobytes()
    monkeypatch.setenv("EDGE_RT_ISA", "ref")
    assert our_logits(path, ids, threads=1).tobytes() == found.tobytes()
