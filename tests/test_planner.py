"""What `Engine` accepts, and the arithmetic of its plan."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edge_rt import BudgetError, Engine, UsageError
from edge_rt.opening import make_settings, open_planner
from edge_rt.plan import KV_FORMATS, MIN_LOGIT_ROWS, MIN_PASS_TOKENS
from edge_rt.sizes import MIB


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Every engine collects garbage: torch's and pytest's objects would take most of the time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 0}, {"threads": 65}, {"threads": -1}, {"kv": "q8"}, {"io": "mmap"},
        {"ctx": 0}, {"ctx": 513}, {"ram": "much"}, {"ram": 0}, {"ram": -5}, {"weight_cap": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options(stories_model: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Engine(stories_model, **{"ram": "4GiB"} | options)


def test_extreme_options_work(stories_model: Path) -> None:
    for options in ({"threads": 64}, {"threads": 1}, {"ctx": 1}, {"io": "pread"}, {"kv": "f32"}):
        with Engine(stories_model, ram="4GiB", **options) as engine:
            assert engine.generate([1], max_tokens=1).tokens == [403]


def test_no_file_and_no_model(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.gguf", "/dev/zero"):
        with pytest.raises(UsageError):
            Engine(path, ram="4GiB")


@pytest.fixture(scope="module", params=["stories", "long", "demo"])
def planner(request: pytest.FixtureRequest) -> Any:
    return open_planner(request.getfixturevalue(f"{request.param}_model"))[1]


def test_budget_error_has_the_arithmetic(stories_model: Path) -> None:
    planner = open_planner(stories_model)[1]
    plan = planner.plan(make_settings(planner, "20MiB"))
    with pytest.raises(BudgetError) as caught:
        Engine(stories_model, ram="20MiB")
    text = str(caught.value)
    assert isinstance(caught.value, MemoryError)
    assert f"--ram {plan.floor_bytes // MIB}MiB" in text and str(plan.floor_bytes) in text
    assert all(role in text for role in plan.roles)


def test_floor(planner: Any) -> None:
    settings = make_settings(planner, "1GiB", ctx=512)
    floor, _ = planner.floor(settings)
    assert floor % MIB == 0
    assert {planner.floor(settings)[0] for _ in range(5)} == {floor}
    assert planner.plan(make_settings(planner, floor, ctx=512)).fits
    assert planner.plan(make_settings(planner, floor - 1, ctx=512)).fits is False
    refused = planner.plan(make_settings(planner, floor - MIB, ctx=512))
    assert refused.fits is False and refused.floor_bytes == floor


@pytest.mark.parametrize("kv", ["f16", "f32", "q8_0"])
def test_roles_stay_within_the_budget(planner: Any, kv: str) -> None:
    rng = random.Random(5)
    for _ in range(60):
        ctx, threads = rng.choice([1, 7, 64, 512]), rng.choice([1, 2, 8, 64])
        floor, _ = planner.floor(make_settings(planner, 1 << 40, ctx, threads, kv))
        room = int(planner.weight_bytes * 1.5) + 64 * MIB
        budget = floor + rng.choice([0, 1, 4095, rng.randrange(room), rng.randrange(room)])
        plan = planner.plan(make_settings(planner, budget, ctx, threads, kv))
        assert plan.fits
        assert sum(plan.roles.values()) <= budget
        arena = sum(plan.roles[r] for r in ("weights", "ring", "kv", "activations", "io"))
        assert plan.arena_bytes <= arena


def test_more_budget_never_keeps_less(planner: Any) -> None:
    """Up to 1 % of the weights, which the pass and the ring may take first."""
    floor, _ = planner.floor(make_settings(planner, 1 << 40, 512))
    room = int(planner.weight_bytes * 1.3) + 64 * MIB
    plans = [planner.plan(make_settings(planner, floor + room * i // 40, 512)) for i in range(41)]
    kept = [plan.resident_bytes for plan in plans]
    slack = planner.weight_bytes // 100
    for before, after in pairwise(kept):
        assert after >= before - slack, kept
    assert kept[-1] == sum(t.n_bytes for t in planner.cut(plans[-1].tile_bytes).all)


def test_everything_resident_needs_no_ring(planner: Any) -> None:
    plan = planner.plan(make_settings(planner, "8GiB", ctx=512))
    assert (plan.ring_bytes, plan.roles["ring"], plan.streamed_bytes) == (0, 0, 0)
    least = planner.plan(make_settings(planner, "8GiB", ctx=512, weight_cap="0"))
    assert least.resident_bytes == 0
    assert least.streamed_bytes >= sum(t.n_bytes for t in planner.cut(least.tile_bytes).all)


def test_a_cap_is_of_the_weights_only(planner: Any) -> None:
    """A capped run has passes and a ring that its budget pays for."""
    for cap in ("0", "20K", planner.weight_bytes // 2):
        plan = planner.plan(make_settings(planner, "8GiB", ctx=512, weight_cap=cap))
        assert plan.resident_bytes <= make_settings(planner, 1, weight_cap=cap).weight_cap
        assert plan.streamed_bytes > 0
        assert plan.ring_bytes >= planner._min_ring_bytes(plan.tile_bytes)
        assert plan.pass_tokens >= MIN_PASS_TOKENS and plan.logit_rows >= MIN_LOGIT_ROWS


def test_context_and_threads_raise_the_floor(planner: Any) -> None:
    def floor(**options: Any) -> int:
        return planner.floor(make_settings(planner, 1 << 40, **options))[0]

    assert floor(ctx=512, threads=64) > floor(ctx=512, threads=1)
    if planner.program.hyper.n_ctx_train >= 4096:
        assert floor(ctx=4096) > floor(ctx=64)
        assert floor(ctx=4096, kv="f32") > floor(ctx=4096, kv="f16") > floor(ctx=4096, kv="q8_0")


def test_quantized_keys_and_values_take_half(planner: Any) -> None:
    """34 bytes per 32 elements, in tiles of 32 positions."""
    hyper = planner.program.hyper
    for ctx in (512, 100):
        plan = {kv: planner.plan(make_settings(planner, "8GiB", ctx, kv=kv)) for kv in KV_FORMATS}
        columns = 2 * hyper.n_layers * hyper.n_kv_heads * -(-hyper.head_dim // 32) * 32
        rows = -(-min(ctx, plan["f16"].kv_positions[0]) // 32) * 32
        if len(set(plan["f16"].kv_positions)) == 1:
            assert plan["q8_0"].kv_bytes == -(-columns * rows * 34 // 32 // 4096) * 4096
        for kv in KV_FORMATS:
            assert plan[kv].roles["kv"] == plan[kv].kv_bytes
