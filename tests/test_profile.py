"""`edge-rt profile`: the times add up, the bytes are those of the weights, stalls are where they
happen."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from edge_rt import Engine, UsageError
from edge_rt.flash_io._flash_io import Faults
from edge_rt.plan import Settings
from edge_rt.program import HEAD, LAYERS
from edge_rt.trace import Phase, Step, Times, steps_of

from .test_cli import edge_rt, one_object

MS = 10**6
KEYS = {"wall_ms", "busy_ms", "stall_ms", "idle_ms", "flash_bytes", "resident_bytes", "units"}


def profiled(model: Path, *args: object) -> dict[str, Any]:
    out, err = edge_rt("profile", model, "-p", "Zoo and", "--ram", "64MiB", "--json", *args)
    assert err == ""
    return one_object(out)


def matrix_bytes(model: Path) -> int:
    with Engine(model, ram="1GiB") as engine:
        return sum(m.n_bytes for m in engine._planner.program.matrices)


def check_sums(phase: dict[str, Any], n_threads: int) -> None:
    """Every way to sum a phase gives its wall time, and the threads' times fill it."""
    rest = sum(phase["rest_ms"].values())
    for rows in (phase["by_kind"], phase["by_op"], phase["by_layer"]):
        assert sum(row["wall_ms"] for row in rows) + rest == pytest.approx(phase["wall_ms"])
        for name in KEYS - {"wall_ms"}:
            assert sum(row[name] for row in rows) == pytest.approx(phase[name])
        for row in rows:
            filled = row["busy_ms"] + row["stall_ms"] + row["idle_ms"]
            assert filled == pytest.approx(n_threads * row["wall_ms"], abs=1e-3), row
    assert all(ms >= 0 for ms in phase["rest_ms"].values()), phase["rest_ms"]


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("streamed", [False, True])
def test_sums(chat_model: Path, n_threads: int, streamed: bool) -> None:
    cap = ("--weight-cap", 0) if streamed else ()
    found = profiled(chat_model, "-n", 5, "--threads", n_threads, *cap)
    assert found["generated_tokens"] == 5 and found["events_lost"] == 0
    decode = found["decode"]
    check_sums(found["prefill"], n_threads)
    check_sums(decode, n_threads)
    tokens = found["tokens"]
    assert [row["token"] for row in tokens] == [1, 2, 3, 4]
    assert sum(row["wall_ms"] for row in tokens) == pytest.approx(decode["wall_ms"])
    for name in KEYS - {"wall_ms"}:
        assert sum(row[name] for row in tokens) == pytest.approx(decode[name])
    # A token needs every weight once, from one place or the other.
    used, other = ("flash_bytes", "resident_bytes")[:: 1 if streamed else -1]
    assert decode[used] == 4 * matrix_bytes(chat_model) and decode[other] == 0
    assert [row["layer"] for row in decode["by_layer"]] == ["0", "1", "head"]
    names = {name for row in decode["by_op"] for name in row["op"].split("+")}
    assert {"attn_q", "ffn_up", "ffn_down", "attention", "output", "rms_norm"} <= names
    if streamed:
        assert decode["reading_ms"] > 0 and decode["flash_requests"] > 0
    else:
        assert decode["reading_ms"] == 0 and decode["stall_ms"] == 0


def test_stall_is_where_the_drive_is_slow(chat_model: Path, faults: Faults) -> None:
    """A slow extent makes the operation stall that needs it, whoever reads."""
    collected: list[bytes] = []
    with Engine(
        chat_model, ram="1GiB", threads=2, weight_cap="0", io="pread", trace=collected.append
    ) as engine:
        steps = [
            steps_of(segment, steps, engine.matrix_name)
            for segment, steps in enumerate(engine.steps())
        ]
        engine.decode(1)
        slow = engine.source.tensors["blk.1.attn_output.weight"]
        # Not its first and last pages: reads of its neighbours cover them, too.
        begin, end = slow.offset + 8192, slow.offset + slow.n_bytes - 8192
        assert begin < end
        faults.add("delay", 150, begin=begin, end=end)
        collected.clear()
        for token in range(3):
            engine.decode(token)
    phase = Phase()
    for events in collected:
        phase.add_pass(events, steps)
    stalls = {(step.op, step.layer): times.stall for step, times in phase.steps.items()}
    slowest = max(stalls, key=lambda key: stalls[key])
    assert "attn_output" in slowest[0] and slowest[1] == "1", stalls
    assert stalls[slowest] > 150 * MS, stalls


def test_tracing_changes_no_logits(stories_model: Path) -> None:
    rows = []
    for trace in (None, lambda events: None):
        with Engine(stories_model, ram="1GiB", ctx=64, threads=2, trace=trace) as engine:
            engine.prefill([1, 40, 41, 42, 43])
            engine.decode(7)
            rows.append(engine.logits_bytes())
    assert rows[0] == rows[1]


def test_room_is_charged(stories_model: Path) -> None:
    with Engine(stories_model, ram="1GiB") as engine:
        planner = engine._planner
    plain, traced = (
        planner.plan(Settings(budget=64 << 20, ctx=64, n_threads=2, trace=trace))
        for trace in (False, True)
    )
    assert plain.trace_bytes == 0
    assert traced.trace_bytes == 2 * 48 * (4 + sum(map(len, planner.program.operations)))
    more = traced.roles["activations"] - plain.roles["activations"]
    assert 0 <= more - traced.trace_bytes // 4096 * 4096 <= 2 * 4096
    assert traced.trace_offset % 8 == 0
    assert traced.trace_offset + traced.trace_bytes <= traced.arena_bytes


def event(
    start: int, end: int, step: int, segment: int = LAYERS, thread: int = 0, stall: int = 0
) -> bytes:
    return struct.pack("=QQQQQIHBB", start, end, stall, 10, 5, 3, step, segment, thread)


def test_windows() -> None:
    """A step lasts until the next one begins, the last of a segment until its last unit ends."""
    a, b, c = Step("a", "matmul", "0"), Step("b", "attention", "1"), Step("c", "matmul", "head")
    phase = Phase()
    phase.add_pass(
        event(0, 50, 0xFFFF)
        + event(100, 180, 0, stall=30)
        + event(110, 200, 0, thread=1)
        + event(230, 300, 1, thread=1)
        + event(240, 290, 1)
        + event(400, 450, 0, HEAD)
        + event(0, 500, 0xFFFE),
        [[a, b], [c]],
    )
    assert {step: times.wall for step, times in phase.steps.items()} == {a: 130, b: 70, c: 50}
    assert phase.steps[a] == Times(130, 50 + 90, 30, 20, 10, 6)
    assert phase.embedding == 50 and phase.passes == 500 - 50 - 250
    both = Phase()
    both.add(phase)
    both.add(phase)
    assert both.summed(lambda step: step.kind)["matmul"].wall == 2 * 180
    assert both.in_passes() == 1000


def test_refusals(stories_model: Path, tmp_path: Path) -> None:
    common = ("profile", stories_model, "--ram", "64MiB")
    edge_rt(*common, code=2)
    edge_rt(*common, "-p", "Zoo", "-n", 0, code=2)
    edge_rt(*common, "-p", "Zoo", "-n", 600, "--ctx", 64, code=2)
    edge_rt("profile", stories_model, "--ram", "20MiB", "-p", "Zoo", code=3)
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    edge_rt("profile", bad, "--ram", "64MiB", "-p", "Zoo", code=4)


def test_text(stories_model: Path) -> None:
    out, _ = edge_rt("profile", stories_model, "-p", "Zoo", "-n", 3, "--ram", "64MiB")
    assert "ffn_gate+ffn_up+silu_gate" in out and "sampling" in out and "fastest" in out
    alone, _ = edge_rt("profile", stories_model, "-p", "Zoo", "-n", 1, "--ram", "64MiB")
    assert "one decoded token" not in alone


def test_a_closed_engine_has_no_steps(stories_model: Path) -> None:
    engine = Engine(stories_model, ram="1GiB")
    engine.close()
    with pytest.raises(UsageError):
        engine.steps()
