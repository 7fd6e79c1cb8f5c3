"""Windowed layers keep a ring of positions: what it forgot is computed again, never made up."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import edge_rt.planner as planner
from edge_rt import Engine
from edge_rt.kv_cache import reusable

from .conftest import load_script

WINDOW, CTX = 20, 160


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose layers 0 and 2 have a window."""
    maker = load_script("make_model")
    config = maker.Config(
        layers=3, hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=320, context=CTX,
        format="F32",
    )  # fmt: skip
    model = maker.build(config, 5)
    model.add("llama.attention.sliding_window", WINDOW)
    model.add("llama.attention.sliding_window_pattern", 2)
    path = tmp_path_factory.mktemp("models") / "windowed.gguf"
    model.write(path)
    return path


@pytest.mark.parametrize("longest", [1, 7])
def test_rewinding(windowed: Path, monkeypatch: pytest.MonkeyPatch, longest: int) -> None:
    """Prompts that share any prefix with what was there, and decoding between them."""
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    with Engine(windowed, ram="1GiB", ctx=CTX) as whole:  # a pass of 256: no ring
        assert whole.plan.kv_positions == [CTX] * 3
        monkeypatch.setattr(planner, "MIN_PASS_TOKENS", longest)
        monkeypatch.setattr(planner, "MAX_PASS_TOKENS", longest)
        with Engine(windowed, ram="1GiB", ctx=CTX) as ring:
            assert ring.plan.kv_positions == [32, CTX, 32]
            assert ring.plan.kv_bytes < whole.plan.kv_bytes
            tokens: list[int] = []
            for step in range(60):
                same = rng.choice([rng.randint(0, len(tokens)), max(0, len(tokens) - 3)])
                more = rng.randint(1, min(50, CTX - 20 - same)) if same < CTX - 20 else 1
                tokens = tokens[:same] + [rng.randrange(3, 320) for _ in range(more)]
                ring.prefill(tokens)
                whole.forget()
                whole.prefill(tokens)
                assert ring.logits_bytes() == whole.logits_bytes(), (seed, step)
                for _ in range(min(rng.choice([0, 0, 5, 15]), CTX - len(tokens))):
                    token = rng.randrange(3, 320)
                    ring.decode(token)
                    whole.decode(token)
                    tokens.append(token)
                    assert ring.logits_bytes() == whole.logits_bytes(), (seed, step)
                if rng.random() < 0.1:
                    ring.resize(rng.choice(["900MiB", "1GiB"]))


def test_what_can_be_reused(windowed: Path) -> None:
    with Engine(windowed, ram="1GiB", ctx=CTX) as engine:
        program, plan = engine._planner.program, engine.plan
    assert all(reusable(program, plan, n, CTX) == n for n in range(CTX))  # nothing is overwritten
    rows = 32
    plan.kv_positions = [rows, CTX, rows]
    for written in range(CTX + 1):
        for kept in range(written + 1):
            lost = max(0, written - rows)  # positions before it have been overwritten
            seen = max(0, kept + 1 - WINDOW)  # the first that the next position looks at
            assert reusable(program, plan, kept, written) == (kept if seen >= lost else 0)


def test_scoring_past_the_ring(windowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [3 + i * i % 300 for i in range(CTX)]
    with Engine(windowed, ram="1GiB", ctx=CTX, kv="f32") as engine:
        expected = engine.logits(tokens)
    monkeypatch.setattr(planner, "MIN_PASS_TOKENS", 5)
    monkeypatch.setattr(planner, "MAX_PASS_TOKENS", 5)
    for options in ({"threads": 1}, {"weight_cap": "0"}):
        with Engine(windowed, ram="1GiB", ctx=CTX, kv="f32", **options) as engine:
            assert engine.logits(tokens).tobytes() == expected.tobytes()
