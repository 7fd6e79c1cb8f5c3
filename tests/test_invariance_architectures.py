"""Promise 2 for every architecture: the same bytes at every budget, pass, thread count and ISA.

Matrices are cut into several tiles; the prompt is longer than the windows and than two attention
tiles. test_invariance.py asks more of the llama.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import edge_rt.planner as planner
from edge_rt import Engine
from edge_rt.kernels import _kernels

from .conftest import load_script
from .invariance import (
    frozen,  # noqa: F401
    ids,
    open_engine,
    reference,
    reference_row,
    rows,
    rows_on,
    set_pass,
)
from .parity import folders, gguf_models
from .parity.variants import VARIANTS
from .parity.weights import token_ids

N_TOKENS = 75
WINDOW = 20
# model_type -> layers: enough for both kinds where there are two
LAYERS = {
    "llama": 3, "qwen2": 3, "qwen3": 3, "gemma": 3, "gemma2": 4, "gemma3_text": 7, "phi3": 3,
    "smollm3": 5, "olmo2": 3, "olmo3": 5, "granite": 3, "ministral3": 3,
}  # fmt: skip


@pytest.fixture(scope="module", params=LAYERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    maker, arch = load_script("make_model"), request.param
    config = maker.Config(
        arch=arch, layers=LAYERS[arch], hidden=256, ffn=768, heads=4, kv_heads=2, head_dim=64,
        vocab=1024, context=192, window=WINDOW, rope_theta=10000.0,
        format="Q8_0" if LAYERS[arch] > 3 else "F16", tied=arch in ("qwen2", "smollm3"),
    )  # fmt: skip
    path: Path = tmp_path_factory.mktemp("models") / f"{arch}.gguf"
    maker.build(config, 11).write(path)
    return path


def scored(engine: Engine) -> bytes:
    """The logits of all tokens, without reserving memory for them."""
    found = engine.score_rows(ids(N_TOKENS), 0)
    return b"".join(engine.logits_bytes(row) for _, row in found)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_residency(model: Path, share: float) -> None:
    with open_engine(model) as engine:
        tiles, weights = (
            engine._planner.cut(engine.plan.tile_bytes).of_matrix,
            engine._planner.weight_bytes,
        )
        assert sum(map(len, tiles)) > len(tiles)
    with open_engine(model, weight_cap=int(share * weights)) as engine:
        assert engine.plan.streamed_bytes > 0
        assert (engine.plan.resident_bytes > weights // 4) == (share > 0)
        assert scored(engine) == reference(model, N_TOKENS)


@pytest.mark.parametrize(("threads", "isa"), [(1, "ref"), (3, _kernels.ISAS[-1])])
def test_threads_and_instruction_sets(
    model: Path, monkeypatch: pytest.MonkeyPatch, threads: int, isa: str
) -> None:
    expected, options = reference(model, N_TOKENS), {"threads": threads, "weight_cap": 400_000}
    assert rows_on(monkeypatch, isa, model, N_TOKENS, **options) == expected


@pytest.mark.parametrize("pass_tokens", [7, 32, 64])
def test_pass_sizes(model: Path, monkeypatch: pytest.MonkeyPatch, pass_tokens: int) -> None:
    reference(model, N_TOKENS)
    set_pass(monkeypatch, pass_tokens)
    with open_engine(model, weight_cap="0") as engine:
        assert engine.plan.pass_tokens == pass_tokens
        assert scored(engine) == reference(model, N_TOKENS)


def test_decoding_equals_prefill(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference(model, N_TOKENS)
    set_pass(monkeypatch, 9)
    with open_engine(model, weight_cap=400_000) as engine:
        for index, token in enumerate(ids(N_TOKENS)):
            engine.decode(token)
            assert engine.logits_bytes() == reference_row(model, N_TOKENS, index), f"token {index}"


@pytest.mark.parametrize("pass_tokens", [9, None])
def test_going_back(model: Path, monkeypatch: pytest.MonkeyPatch, pass_tokens: int | None) -> None:
    """A shorter prefix of what is known, by more than a window, and on from there."""
    reference(model, N_TOKENS)
    if pass_tokens:
        set_pass(monkeypatch, pass_tokens)
    with open_engine(model) as engine:
        for end in (5, 40, 75, 41, 12, 60):
            engine.prefill(ids(N_TOKENS)[:end])
            assert engine.logits_bytes() == reference_row(model, N_TOKENS, end - 1), (
                f"after {end} tokens"
            )
        engine.prefill(ids(N_TOKENS)[:30])
        engine.generate(ids(N_TOKENS)[:30], max_tokens=30, ignore_eos=True)
        engine.prefill(ids(N_TOKENS))
        assert engine.logits_bytes() == reference_row(model, N_TOKENS, N_TOKENS - 1)


def test_resize_in_the_middle(model: Path) -> None:
    with open_engine(model) as engine:
        engine.prefill(ids(N_TOKENS)[:33])
        for index in range(33, N_TOKENS):
            if index == 35:
                engine.resize(engine.memory()["floor"])
                assert engine.plan.pass_tokens == planner.MIN_PASS_TOKENS
            if index == 50:
                engine.resize("4GiB")
                assert engine.plan.streamed_bytes == 0
            engine.decode(ids(N_TOKENS)[index])
            assert engine.logits_bytes() == reference_row(model, N_TOKENS, index), f"token {index}"


@pytest.mark.parametrize("kv", ["f32", "q8_0"])
def test_each_kv_type(model: Path, kv: str) -> None:
    found = rows(model, N_TOKENS, kv=kv, weight_cap="0", threads=1)
    assert found == rows(model, N_TOKENS, kv=kv)
    assert found != reference(model, N_TOKENS)


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gemma3", "phi3", "olmo3"])
def test_tensors_at_odd_bytes(tmp_path: Path, name: str) -> None:
    """A folder whose tensors are at odd bytes, vectors too, against the aligned GGUF of it."""
    variant = VARIANTS[name]
    tokens = [int(token) for token in token_ids(variant)]
    folders.write(variant, tmp_path / "folder", "F32")
    gguf_models.write(variant, tmp_path / "model.gguf")
    found = []
    for path, options in (("model.gguf", {}), ("folder", {}), ("folder", {"weight_cap": "0"})):
        with Engine(tmp_path / path, "4GiB", ctx=256, threads=2, **options) as engine:
            if path == "folder":
                offsets = {tensor.offset % 4 for tensor in engine.source.tensors.values()}
                assert offsets == {3}
            found.append([engine.logits_bytes(row) for _, row in engine.score_rows(tokens, 0)])
    assert found[0] == found[1] == found[2]
