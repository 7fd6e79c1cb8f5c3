"""Promise 2: the budget changes speed, not answers. All comparisons are of bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

import edge_rt.planner as planner
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

FORMATS = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "IQ2_XS", "F16", "BF16")
N_TOKENS = 37  # no multiple of any tile, block or pass


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


def test_the_models_exercise_tiles(model: Path) -> None:
    with open_engine(model, weight_cap=700_000) as engine:
        n_tiles = sum(map(len, engine._planner.cut(engine.plan.tile_bytes).of_matrix))
        if "stories" not in model.name:
            assert n_tiles > len(engine._planner.cut(engine.plan.tile_bytes).of_matrix)
        assert 0 < engine.plan.resident_bytes <= 700_000
        assert engine.plan.streamed_bytes > 0


@pytest.mark.parametrize("weight_cap", ["0", 300_000, 700_000, 1_500_000])
def test_residency(model: Path, weight_cap: str | int) -> None:
    assert rows(model, N_TOKENS, weight_cap=weight_cap) == reference(model, N_TOKENS)


@pytest.mark.parametrize("threads", [1, 3, 5])
@pytest.mark.parametrize("weight_cap", ["0", None])
def test_threads(model: Path, threads: int, weight_cap: str | None) -> None:
    assert rows(model, N_TOKENS, threads=threads, weight_cap=weight_cap) == reference(
        model, N_TOKENS
    )


@pytest.mark.parametrize("isa", _kernels.ISAS)
def test_instruction_sets(model: Path, monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    expected = reference(model, N_TOKENS)
    assert rows_on(monkeypatch, isa, model, N_TOKENS, weight_cap=500_000) == expected


@pytest.mark.parametrize("pass_tokens", [1, 2, 3, 7, 19, 64])
@pytest.mark.parametrize("weight_cap", ["0", None])
def test_pass_sizes(
    model: Path, monkeypatch: pytest.MonkeyPatch, pass_tokens: int, weight_cap: str | None
) -> None:
    expected = reference(model, N_TOKENS)
    set_pass(monkeypatch, pass_tokens)
    with open_engine(model, weight_cap=weight_cap) as engine:
        assert engine.plan.pass_tokens == pass_tokens
        assert engine.logits(ids(N_TOKENS)).tobytes() == expected


@pytest.mark.parametrize("weight_cap", ["0", None])
def test_decoding_equals_prefill(model: Path, weight_cap: str | None) -> None:
    with open_engine(model, weight_cap=weight_cap) as engine:
        for index, token in enumerate(ids(N_TOKENS)):
            engine.decode(token)
            assert engine.logits_bytes() == reference_row(model, N_TOKENS, index), f"token {index}"


def test_prefill_in_odd_splits(model: Path) -> None:
    with open_engine(model, weight_cap=500_000) as engine:
        for end in (1, 2, 5, 6, 13, 22, 36, 37):
            engine.prefill(ids(N_TOKENS)[:end])
            assert engine.logits_bytes() == reference_row(model, N_TOKENS, end - 1), (
                f"after {end} tokens"
            )


def test_prefix_reuse(model: Path) -> None:
    with open_engine(model, weight_cap=500_000) as engine:
        engine.generate(ids(N_TOKENS)[:20], max_tokens=30, ignore_eos=True)
        engine.prefill(ids(N_TOKENS))  # 20 tokens are reused, the answer's are overwritten
        assert engine.logits_bytes() == reference_row(model, N_TOKENS, N_TOKENS - 1)
        engine.prefill(ids(N_TOKENS)[:9])  # back into the middle of what is known
        assert engine.logits_bytes() == reference_row(model, N_TOKENS, 8)
        assert engine.logits(ids(N_TOKENS)).tobytes() == reference(model, N_TOKENS)


def test_resize_in_the_middle(model: Path) -> None:
    """The KV cache survives; residency, pass size and ring change under it."""
    with open_engine(model) as engine:
        engine.prefill(ids(N_TOKENS)[:11])
        for index in range(11, N_TOKENS):
            step = (index - 11) % 9
            if step == 1:
                engine._life.replan(weight_cap=0)
            if step == 3:
                engine.resize(engine.memory()["floor"])
                assert engine.plan.pass_tokens == planner.MIN_PASS_TOKENS
            if step == 5:
                engine._life.replan(weight_cap=500_000)
            if step == 8:
                engine._life.replan(weight_cap=None)
                engine.resize("4GiB")
            engine.decode(ids(N_TOKENS)[index])
            assert engine.logits_bytes() == reference_row(model, N_TOKENS, index), f"token {index}"


def test_scores_do_not_depend_on_the_budget(model: Path) -> None:
    found = set()
    for weight_cap, threads in (("0", 1), (None, 2), (600_000, 3)):
        with open_engine(model, weight_cap=weight_cap, threads=threads) as engine:
            found.add(
                tuple(
                    engine.negative_log_likelihood(row, 5)
                    for _, row in engine.score_rows(ids(N_TOKENS), N_TOKENS // 2)
                )
            )
    assert len(found) == 1


@pytest.mark.parametrize("kv", ["f16", "f32", "q8_0"])
def test_each_kv_type_is_invariant(model: Path, monkeypatch: pytest.MonkeyPatch, kv: str) -> None:
    found = rows(model, N_TOKENS, kv=kv, threads=3)
    assert rows(model, N_TOKENS, kv=kv, weight_cap="0", threads=1) == found
    assert rows_on(monkeypatch, "ref", model, N_TOKENS, kv=kv, weight_cap=500_000) == found
    # The elements of the cache are a choice that changes answers, and it is the only one.
    monkeypatch.undo()
    assert (found == reference(model, N_TOKENS)) == (kv == "f16")
    set_pass(monkeypatch, 5)
    assert rows(model, N_TOKENS, kv=kv, threads=2) == found


@pytest.mark.parametrize("kv", ["f16", "f32", "q8_0"])
def test_long_contexts_are_invariant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kv: str
) -> None:
    """Several spans of attention: in a decode step the threads share them."""
    maker = load_script("make_model")
    config = maker.Config(
        layers=2, hidden=64, ffn=64, heads=6, kv_heads=2, head_dim=24, vocab=512, context=700,
        format="F16",
    )  # fmt: skip
    maker.build(config, 3).write(tmp_path / "long.gguf")
    n, found = 530, set()
    for isa, threads, longest in (("auto", 3, 256), ("ref", 2, 256), ("auto", 1, 7)):
        monkeypatch.setenv("EDGE_RT_ISA", isa)
        set_pass(monkeypatch, longest)
        for prompt in (n - 1, n - 9):  # the last tokens within a pass, or one by one
            with open_engine(tmp_path / "long.gguf", ctx=700, threads=threads, kv=kv) as engine:
                engine.prefill(ids(n)[:prompt])
                for token in ids(n)[prompt:]:
                    engine.decode(token)
                found.add(engine.logits_bytes())
    assert len(found) == 1
