"""Tiny random models against Hugging Face's code, and every path of ours against one another."""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import edge_rt.planner as planner
from edge_rt import Engine

from .parity import gguf_models
from .parity.variants import VARIANTS, Variant
from .parity.weights import token_ids

MAX_ERROR = 1e-4  # float32 sums in another order; logits are of order 1 to 5
KINDS = ("folder", "gguf")
CASES = [
    (name, kind)
    for name, variant in VARIANTS.items()
    for kind in KINDS
    if kind == "folder" or variant.gguf is not None
]


def our_logits(path: Path, variant: Variant, **options: Any) -> np.ndarray:
    options = {"ram": "4GiB", "ctx": variant.tokens, "kv": "f32"} | options
    with Engine(path, **options) as engine:
        return engine.logits(token_ids(variant).tolist())


@functools.cache
def expected_logits(hugging_face: ModuleType, name: str, kind: str) -> np.ndarray:
    variant = VARIANTS[name]
    described = gguf_models.as_gguf_says(variant) if kind == "gguf" else variant
    return hugging_face.logits(hugging_face.build(described), token_ids(variant))


def write(hugging_face: ModuleType, name: str, kind: str, folder: Path) -> Path:
    if kind == "gguf":
        return gguf_models.write(VARIANTS[name], folder / f"{name}.gguf")
    return hugging_face.save(hugging_face.build(VARIANTS[name]), folder / name)


def check(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    error = np.abs(found - expected)
    assert error.max() <= MAX_ERROR, f"{error.max():.1e}, first in row {error.max(1).argmax()}"


@pytest.mark.parametrize("name", VARIANTS)
def test_the_models_have_something_to_say(hugging_face: ModuleType, name: str) -> None:
    """Logits are neither flat nor huge, and every setting named in ``matters`` moves them."""
    variant = VARIANTS[name]
    logits = expected_logits(hugging_face, name, "folder")
    assert 1 < logits.std() < 5
    for settings in variant.matters:
        other = hugging_face.build(hugging_face.changed(variant, settings))
        moved = np.abs(hugging_face.logits(other, token_ids(variant)) - logits).max()
        assert moved > 1000 * MAX_ERROR, settings


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_logits_are_those_of_transformers(
    hugging_face: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
) -> None:
    variant = VARIANTS[name]
    path = write(hugging_face, name, kind, tmp_path)
    found = our_logits(path, variant)
    check(found, expected_logits(hugging_face, name, kind))

    assert our_logits(path, variant, weight_cap="0").tobytes() == found.tobytes()
    with monkeypatch.context() as patch:
        patch.setenv("EDGE_RT_ISA", "ref")
        assert our_logits(path, variant, threads=1).tobytes() == found.tobytes()
    for limit in ("MIN_PASS_TOKENS", "MAX_PASS_TOKENS"):
        monkeypatch.setattr(planner, limit, 7)
    monkeypatch.setattr(planner, "MIN_LOGIT_ROWS", 3)
    assert our_logits(path, variant).tobytes() == found.tobytes()


@pytest.mark.parametrize("window", [1, 2, 31, 32, 33, 65, 159, 160])
@pytest.mark.parametrize("name", ["gemma2", "olmo3", "phi3_window"])
def test_edges_of_windows(hugging_face: ModuleType, tmp_path: Path, name: str, window: int) -> None:
    """Windows that end inside, at and around the tiles of 32 positions that attention works in."""
    variant = hugging_face.changed(VARIANTS[name], {"sliding_window": window})
    path = gguf_models.write(variant, tmp_path / "model.gguf")
    expected = hugging_face.logits(hugging_face.build(variant), token_ids(variant))
    check(our_logits(path, variant), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "qwen2_tied", "gemma3_wrapper", "phi3_partial"])
def test_folders_of_half_precision(
    hugging_face: ModuleType, tmp_path: Path, name: str, dtype: str
) -> None:
    """The rounded weights, norms and biases too, computed in float32 by both."""
    variant = VARIANTS[name]
    kind = getattr(hugging_face.torch, dtype)
    model = hugging_face.build(variant, dtype=kind)
    path = hugging_face.save(model, tmp_path / name, dtype=kind)
    expected = hugging_face.logits(model, token_ids(variant))
    assert np.abs(expected - expected_logits(hugging_face, name, "folder")).max() > MAX_ERROR
    check(our_logits(path, variant), expected)


@pytest.mark.parametrize("name", ["llama_tied", "gemma3_wrapper", "phi3"])
def test_a_folder_of_several_files(hugging_face: ModuleType, tmp_path: Path, name: str) -> None:
    variant = VARIANTS[name]
    model = hugging_face.build(variant)
    path = hugging_face.save(model, tmp_path / name, max_shard_size="200KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    found = our_logits(path, variant)
    whole = hugging_face.save(model, tmp_path / "whole")
    assert found.tobytes() == our_logits(whole, variant).tobytes()
    check(found, expected_logits(hugging_face, name, "folder"))


@pytest.mark.parametrize("name", VARIANTS)
def test_folders_in_the_style_of_transformers_4(
    hugging_face: ModuleType, tmp_path: Path, name: str
) -> None:
    """Most files on the Hub: rope settings spelled otherwise, what is default left out."""
    variant = VARIANTS[name]
    path = write(hugging_face, name, "folder", tmp_path)
    hugging_face.age(path)
    check(our_logits(path, variant), expected_logits(hugging_face, name, "folder"))


@pytest.mark.parametrize("name", [n for n, variant in VARIANTS.items() if variant.wrapper])
def test_wrappers_with_either_prefix(hugging_face: ModuleType, tmp_path: Path, name: str) -> None:
    """transformers 4.52 to 4.57 wrote ``model.language_model.``, others the reverse."""
    variant = VARIANTS[name]
    path = write(hugging_face, name, "folder", tmp_path)
    hugging_face.rename_wrapped(path)
    check(our_logits(path, variant), expected_logits(hugging_face, name, "folder"))
