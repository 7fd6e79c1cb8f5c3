"""The model of the machine, what the planner makes of it, and forecasts."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edge_rt.forecast import POSITION, curve, forecast, learn, step_seconds
from edge_rt.machine.rates import Cell, Rates
from edge_rt.opening import make_settings, open_planner
from edge_rt.performance import Performance, Stream, interpolate
from edge_rt.planner import Planner
from edge_rt.program import HEAD, LAYERS
from edge_rt.sizes import KIB, MIB

from .conftest import load_script
from .known_rates import DRIVE, cells, known, rate

# --- the model ------------------------------------------------------------------------------------


def test_interpolation() -> None:
    measured = cells(2e9)
    for cell in measured:
        assert interpolate(measured, cell.request_bytes, cell.depth)[0].mid == pytest.approx(
            cell.rate.mid
        )
    sizes = [interpolate(measured, size, 3)[0].mid for size in range(1 * KIB, 3 * MIB, 50 * KIB)]
    depths = [interpolate(measured, 100 * KIB, depth)[0].mid for depth in range(1, 64)]
    for row in (sizes, depths):
        assert all(a <= b * (1 + 1e-9) for a, b in pairwise(row)) and row[0] < row[-1]
    assert interpolate(measured, 1, 1) == interpolate(measured, 4 * KIB, 1)
    assert interpolate(measured, 1 << 40, 99) == interpolate(measured, MIB, 16)


@pytest.fixture
def planner(rates_file: Path, demo_model: Path) -> Planner:
    found = open_planner(demo_model)[1]
    found.rates = Rates(DRIVE)
    known(found.rates, 1)
    known(found.rates, 2, 1.7)
    found.rates.store_drive(cells(1e9), whole=True)
    found.forget_models()
    return found


def test_a_step_is_the_slower_of_reading_and_computing(planner: Planner) -> None:
    model = Performance(planner.program, planner.rates, 1, "f16")
    total = sum(m.n_bytes for m in planner.program.matrices)
    near = model.step(Stream(), POSITION)
    assert near.reads.mid == 0
    weights = sum(
        m.n_bytes / {"Q4_1": 11e9, "F32": 16e9, "Q8_0": 15e9, "Q6_K": 7e9}[m.format.name]
        for m in planner.program.matrices
    )
    assert weights < near.total.mid < 1.3 * weights
    assert model.step(Stream(), 2000).total.mid > near.total.mid
    streaming = model.step(Stream(total, 0, 128 * KIB, 16), POSITION)
    assert streaming.reads.mid == pytest.approx(total / 0.9e9, rel=0.01)
    assert streaming.total.mid == pytest.approx(streaming.reads.mid, rel=0.05)
    assert model.step(Stream(total, 0, 128 * KIB, 1), POSITION).total.mid > streaming.total.mid
    assert Performance(planner.program, planner.rates, 2, "f16").step(
        Stream(), POSITION
    ).total.mid == pytest.approx(near.total.mid / 1.7, rel=0.02)


def test_what_was_not_measured_has_a_wide_interval(planner: Planner) -> None:
    def width(n_threads: int, rates: Rates) -> float:
        total = Performance(planner.program, rates, n_threads, "f16").step(Stream(), 9).total
        assert total.low < total.mid < total.high
        return total.high / total.low

    assert width(2, planner.rates) < width(3, planner.rates) < width(2, Rates.unknown())


def test_prompts_in_passes(planner: Planner) -> None:
    model = Performance(planner.program, planner.rates, 1, "f16")
    resident = [model.prompt(Stream(), 512, n).mid for n in (16, 64, 256)]
    assert resident[0] > resident[1] > resident[2]
    one = model.prompt(Stream(), 256, 256).mid
    assert 2 * one < resident[2] < 3 * one  # attention grows
    layers = sum(m.n_bytes for m in planner.program.matrices if m.segment == LAYERS)
    head = sum(m.n_bytes for m in planner.program.matrices if m.segment == HEAD)
    planner.rates.store_drive(cells(1e7), whole=True)
    slow = Performance(planner.program, planner.rates, 1, "f16")
    stream = Stream(layers, head, 128 * KIB, 16)
    for n_passes, pass_tokens in ((8, 64), (2, 256)):
        expected = (n_passes * layers + head) / 0.9e7  # what streams reach of the rate
        assert slow.prompt(stream, 512, pass_tokens).mid == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", ["vectors", "attention_pass", "pass", "prefill"])
def test_prompts_take_what_is_slow(planner: Planner, name: str) -> None:
    """Each rate of passes counts for prompts, and for decoding only what a token has as well."""

    def seconds() -> tuple[float, float]:
        model = Performance(planner.program, planner.rates, 1, "f16")
        return model.prompt(Stream(), 512, 64).mid, model.step(Stream(), POSITION).total.mid

    prompt, step = seconds()
    stored = json.loads(json.dumps(planner.rates._kernels(1)[name]))
    slower = (
        rate(stored[1] * 3).stored()
        if name == "vectors"
        else {key: rate(value[1] / 3).stored() for key, value in stored.items()}
    )
    planner.rates.store_kernels(1, {name: slower})
    slow_prompt, slow_step = seconds()
    assert slow_prompt > 1.02 * prompt
    assert (slow_step > step) is (name == "vectors")


def test_streams_reach_the_limit_and_less_than_the_doctor(planner: Planner) -> None:
    stream = Stream(100 * MIB, 0, MIB, 16)
    planner.rates.store_drive(cells(1e9), whole=True)
    free = Performance(planner.program, planner.rates, 1, "f16").step(stream, 1).reads.mid
    assert 1.05 < free / (100 * MIB / 1e9) < 1.2
    planner.rates.drive = replace(DRIVE, limit=500_000_000)
    held = Performance(planner.program, planner.rates, 1, "f16").step(stream, 1).reads.mid
    assert held == pytest.approx(100 * MIB / 5e8, rel=0.01)


def test_loading_waits_for_memory(planner: Planner) -> None:
    def seconds() -> float:
        return Performance(planner.program, planner.rates, 1, "f16").load(100 * MIB).mid

    planner.rates.store_memory({"fresh": rate(1e11)})
    assert seconds() == pytest.approx(100 * MIB / 1e9, rel=0.02)
    planner.rates.store_memory({"fresh": rate(2e8)})
    assert seconds() == pytest.approx(100 * MIB / 2e8, rel=0.02)


def test_sizes_follow_the_rates(planner: Planner) -> None:
    """A drive that needs many requests in flight gets a larger ring; one whose passes read longer
    than they compute gets longer passes where they cost nothing; the floor is the same."""

    def plan(measured: list[Cell], cap: int | None = None) -> Any:
        settings = make_settings(planner, "110MiB", 512, 1, weight_cap=cap)
        planner.rates.store_drive(measured, whole=True)
        planner.forget_models()
        return planner.plan(settings)

    quick, distant = plan(cells(1e9, 1e-6)), plan(cells(1e9, 3e-3))
    assert distant.ring_bytes > quick.ring_bytes
    assert distant.stream.depth > quick.stream.depth
    slow = plan(cells(2e7, 1e-6), MIB)
    assert slow.pass_tokens > quick.pass_tokens
    assert quick.floor_bytes == distant.floor_bytes == slow.floor_bytes


def test_threads_that_hinder_are_left_out(planner: Planner) -> None:
    known(planner.rates, 4, 0.5)  # slower together than one alone
    settings = make_settings(planner, "400MiB", 512, 4)
    assert planner.plan(settings).n_threads == 4, "what the user says goes"
    planner.forget_models()
    chosen = planner.plan(replace(settings, threads_open=True))
    assert chosen.n_threads == 2 and chosen.floor_bytes == planner.plan(settings).floor_bytes


def test_reads_come_in_step_with_computing(tmp_path: Path, rates_file: Path) -> None:
    """At every point of a pass, what was streamed so far is its share of the time so far."""
    maker = load_script("make_model")
    config = maker.Config(
        layers=8, hidden=512, ffn=2048, heads=8, kv_heads=8, head_dim=64, vocab=4096,
        format="Q4_0", context=512,
    )  # fmt: skip
    maker.build(config, 3).write(tmp_path / "m.gguf")
    planner = open_planner(tmp_path / "m.gguf")[1]
    known(planner.rates, 1)
    planner.forget_models()
    floor, _ = planner.floor(make_settings(planner, 1 << 40, 64, 1))
    for share in (0.2, 0.5, 0.8):
        budget = floor + int(share * planner.weight_bytes)
        plan = planner.plan(make_settings(planner, budget, 64, 1))
        slowness = planner.performance(plan.settings).slowness
        tiles = planner.cut(plan.tile_bytes).all
        costs = [
            t.n_bytes * slowness(planner.program.matrices[t.matrix].format.name) for t in tiles
        ]
        out = [(t.matrix, t.row) not in plan.tile_offsets for t in tiles]
        streamed = sum(t.n_bytes for t, s in zip(tiles, out, strict=True) if s)
        assert streamed > 0
        seen, spent = 0, 0.0
        largest = max(t.n_bytes for t in tiles)
        for tile, cost, is_out in zip(tiles, costs, out, strict=True):
            spent += cost
            seen += tile.n_bytes if is_out else 0
            assert abs(seen - streamed * spent / sum(costs)) < 3 * largest


# --- forecasts ------------------------------------------------------------------------------------


def test_forecast_and_curve(planner: Planner) -> None:
    floor, _ = planner.floor(make_settings(planner, 1 << 40, 512, 1))
    speeds = []
    for ram in (floor, floor + planner.weight_bytes // 2, floor + 2 * planner.weight_bytes):
        plan = planner.plan(make_settings(planner, ram, 512, 1))
        found = forecast(planner, plan, opening_s=0.5)
        assert found["source"] == "measured"
        for name in ("tok_s", "ttft_s", "load_s"):
            assert 0 < found[f"{name}_low"] <= found[name] <= found[f"{name}_high"], name
        assert found["load_s"] >= 0.5 and found["tok_s_full_context"] <= found["tok_s"]
        speeds.append(found["tok_s"])
    assert found["tok_s_full_context"] < found["tok_s"]
    assert speeds[0] < speeds[1] < speeds[2]
    shown = curve(planner, make_settings(planner, "200MiB", 512, 1))
    rows = shown["curve"]
    assert rows[0]["ram_bytes"] == floor and rows[0]["tok_s"] == pytest.approx(speeds[0], rel=0.03)
    assert rows[-1]["tok_s"] == pytest.approx(speeds[2], rel=0.03)
    assert all(a["ram_bytes"] < b["ram_bytes"] for a, b in pairwise(rows))
    assert all(a["tok_s"] <= 1.02 * b["tok_s"] for a, b in pairwise(rows))
    knee = shown["knee_bytes"]
    assert floor <= knee <= rows[-1]["ram_bytes"] + MIB
    for ram, enough in ((knee, True), (knee - 4 * MIB, False)):
        plan = planner.plan(make_settings(planner, ram, 512, 1))
        fast = forecast(planner, plan)["tok_s"]
        assert (fast >= 0.94 * rows[-1]["tok_s"]) is enough


def test_earlier_runs_correct_the_forecast(planner: Planner) -> None:
    plans = {
        name: planner.plan(make_settings(planner, ram, 512, 1))
        for name, ram in (("whole", "400MiB"), ("streamed", "80MiB"))
    }
    before = {name: step_seconds(planner, plan)[0] for name, plan in plans.items()}
    learn(planner, plans["whole"], POSITION, 8, 1.0, 0.0)
    assert step_seconds(planner, plans["whole"])[1] is False, "eight steps say nothing"
    for _ in range(3):
        learn(planner, plans["whole"], POSITION, 64, 64 * 1.3 * before["whole"].mid, 0.0)
    after, corrected = step_seconds(planner, plans["whole"])
    assert corrected and after.mid == pytest.approx(1.3 * before["whole"].mid, rel=1e-3)
    assert after.high / after.low < before["whole"].high / before["whole"].low
    assert step_seconds(planner, plans["streamed"]) == (before["streamed"], False)
    seconds = 64 * before["streamed"].mid
    learn(planner, plans["streamed"], POSITION, 64, seconds, 0.0)
    assert step_seconds(planner, plans["streamed"])[1] is False, "nobody waited for the drive"
    learn(planner, plans["streamed"], POSITION, 64, 1.2 * seconds, 0.9 * seconds)
    assert step_seconds(planner, plans["streamed"])[1] is True
    planner.rates = Rates(DRIVE)
    planner.forget_models()
    assert step_seconds(planner, plans["whole"]) == (after, True), "it was kept"


def test_ratios_that_say_nothing_are_not_kept(rates_file: Path) -> None:
    rates = Rates(DRIVE)
    for ratio in (0.01, 100.0):
        rates.learn("run", ratio)
        assert rates.correction("run") is None
    for number in range(200):
        rates.learn(f"run {number % 90}", 1.0 + number / 1000)
    (machine,) = json.loads(rates_file.read_text())["machines"].values()
    assert len(machine["runs"]) <= 64
    assert all(len(ratios) <= 5 for ratios in machine["runs"].values())


def test_errors_of_forecasts() -> None:
    script = load_script("bench_forecast")
    names = ("tok_s", "ttft_s", "load_s")

    def row(forecast: float, measured: float) -> dict[str, Any]:
        ends = {f"{name}_low": 0.9 * forecast for name in names}
        ends |= {f"{name}_high": 1.1 * forecast for name in names}
        return {
            "forecast": ends | dict.fromkeys(names, forecast),
            "measured": dict.fromkeys(names, measured),
        }

    rows = [row(10.0, 10.5), row(10.0, 8.0), row(9.0, 10.0), row(20.0, 20.0)]
    found = script.summary(rows)["tok_s"]
    assert found["worst_error"] == pytest.approx(0.25)
    assert found["median_error"] == pytest.approx((0.5 / 10.5 + 0.1) / 2)
    assert found["interval_holds"] == 0.5
    assert script.speeds("full,1G,200M") == [None, 10**9, 2 * 10**8]
