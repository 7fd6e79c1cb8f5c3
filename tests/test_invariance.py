"""Promise 2: the budget changes speed, not answers. All comparisons are of bytes."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edge_rt.planner as planner
from edge_rt import Engine, UsageError

from .conftest import load_script

FORMATS = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "IQ2_XS", "F16", "BF16")
N_TOKENS = 37  # no multiple of any tile, block or pass
CTX = 96


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Every engine collects garbage: torch's and pytest's objects would take most of the time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", params=["stories", *FORMATS])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K, and random models whose matrices are cut into several tiles."""
    if request.param == "stories":
        return request.getfixturevalue("stories_model")
    maker = load_script("make_model")
    config = maker.Config(
        layers=3, hidden=256, ffn=1024, heads=4, kv_heads=2, head_dim=64, vocab=2048,
        context=256, format=request.param, tied=request.param in ("Q4_1", "F16"),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("models") / f"{request.param}.gguf"
    maker.build(config, 7).write(path)
    return path


def ids(n: int = N_TOKENS) -> list[int]:
    return [1, *((i * 97 + 11) % 500 + 3 for i in range(n - 1))]


def open_engine(path: Path, **options: Any) -> Engine:
    return Engine(path, **{"ram": "4GiB", "ctx": CTX, "threads": 2} | options)


def rows(path: Path, **options: Any) -> bytes:
    with open_engine(path, **options) as engine:
        return engine.logits(ids()).tobytes()


@functools.cache
def reference(path: Path) -> bytes:
    """(N_TOKENS, n_vocab) float32 as bytes: everything resident, two threads, the best ISA."""
    return rows(path)


def reference_row(path: Path, index: int) -> bytes:
    return reference(path)[len(reference(path)) // N_TOKENS * index :][
        : len(reference(path)) // N_TOKENS
    ]


def test_the_models_exercise_tiles(model: Path) -> None:
    with open_engine(model, weight_cap=700_000) as engine:
        n_tiles = sum(map(len, engine._planner.tiles_of))
        if "stories" not in model.name:
            assert n_tiles > len(engine._planner.tiles_of)
        assert 0 < engine.plan.resident_bytes <= 700_000
        assert engine.plan.streamed_bytes > 0


@pytest.mark.parametrize("weight_cap", ["0", 300_000, 700_000, 1_500_000])
def test_residency(model: Path, weight_cap: str | int) -> None:
    assert rows(model, weight_cap=weight_cap) == reference(model)


@pytest.mark.parametrize("threads", [1, 3, 5])
@pytest.mark.parametrize("weight_cap", ["0", None])
def test_threads(model: Path, threads: int, weight_cap: str | None) -> None:
    assert rows(model, threads=threads, weight_cap=weight_cap) == reference(model)


@pytest.mark.parametrize("isa", ["ref", "avx2"])
def test_instruction_sets(model: Path, monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    monkeypatch.setenv("EDGE_RT_ISA", isa)
    try:
        found = rows(model, weight_cap=500_000)
    except UsageError as error:
        pytest.skip(f"NO {isa} KERNELS HERE: {error}")
    assert found == reference(model)


@pytest.mark.parametrize("pass_tokens", [1, 2, 3, 7, 19, 64])
@pytest.mark.parametrize("weight_cap", ["0", None])
def test_pass_sizes(
    model: Path, monkeypatch: pytest.MonkeyPatch, pass_tokens: int, weight_cap: str | None
) -> None:
    monkeypatch.setattr(planner, "MIN_PASS_TOKENS", pass_tokens)
    monkeypatch.setattr(planner, "MAX_PASS_TOKENS", pass_tokens)
    monkeypatch.setattr(planner, "MIN_LOGIT_ROWS", min(3, pass_tokens))
    with open_engine(model, weight_cap=weight_cap) as engine:
        assert engine.plan.pass_tokens == pass_tokens
        assert engine.logits(ids()).tobytes() == reference(model)


@pytest.mark.parametrize("weight_cap", ["0", None])
def test_decoding_equals_prefill(model: Path, weight_cap: str | None) -> None:
    with open_engine(model, weight_cap=weight_cap) as engine:
        for index, token in enumerate(ids()):
            engine.decode(token)
            assert engine.logits_bytes() == reference_row(model, index), f"token {index}"


def test_prefill_in_odd_splits(model: Path) -> None:
    with open_engine(model, weight_cap=500_000) as engine:
        for end in (1, 2, 5, 6, 13, 22, 36, 37):
            engine.prefill(ids()[:end])
            assert engine.logits_bytes() == reference_row(model, end - 1), f"after {end} tokens"


def test_prefix_reuse(model: Path) -> None:
    with open_engine(model, weight_cap=500_000) as engine:
        engine.generate(ids()[:20], max_tokens=30, ignore_eos=True)
        engine.prefill(ids())  # 20 tokens are reused, the answer's are overwritten
        assert engine.logits_bytes() == reference_row(model, N_TOKENS - 1)
        engine.prefill(ids()[:9])  # back into the middle of what is known
        assert engine.logits_bytes() == reference_row(model, 8)
        assert engine.logits(ids()).tobytes() == reference(model)


def test_resize_in_the_middle(model: Path) -> None:
    """The KV cache survives; residency, pass size and ring change under it."""
    with open_engine(model) as engine:
        engine.prefill(ids()[:11])
        for index in range(11, N_TOKENS):
            step = (index - 11) % 9
            if step == 1:
                engine._replan(replace(engine._settings, weight_cap=0))
            if step == 3:
                engine.resize(engine.memory()["floor"])
                assert engine.plan.pass_tokens == planner.MIN_PASS_TOKENS
            if step == 5:
                engine._replan(replace(engine._settings, weight_cap=500_000))
            if step == 8:
                engine._replan(replace(engine._settings, weight_cap=None))
                engine.resize("4GiB")
            engine.decode(ids()[index])
            assert engine.logits_bytes() == reference_row(model, index), f"token {index}"


def test_scores_do_not_depend_on_the_budget(model: Path) -> None:
    found = set()
    for weight_cap, threads in (("0", 1), (None, 2), (600_000, 3)):
        with open_engine(model, weight_cap=weight_cap, threads=threads) as engine:
            found.add(
                tuple(
                    engine.negative_log_likelihood(row, 5)
                    for _, row in engine.score_rows(ids(), N_TOKENS // 2)
                )
            )
    assert len(found) == 1


@pytest.mark.parametrize("kv", ["f16", "f32"])
def test_each_kv_type_is_invariant(model: Path, kv: str) -> None:
    assert rows(model, kv=kv, weight_cap="0", threads=1) == rows(model, kv=kv, threads=3)
    # The elements of the cache are a choice that changes answers, and it is the only one.
    assert (rows(model, kv=kv) == reference(model)) == (kv == "f16")
