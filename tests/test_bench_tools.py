"""scripts/bench_vs_llamacpp.py: what its words mean, what it makes of runs, and that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import ROOT, load_script

# Scripts find each other beside themselves, which a safe path forbids.
SCRIPTS = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}

MIB = 2**20
OURS, PEER, OTHER = "edge-rt", "llama.cpp", "llama.cpp, no repacking"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script("bench_vs_llamacpp")


def run(tok_s: float, **more: Any) -> dict[str, Any]:
    return {
        "outcome": "ok", "tok_s": tok_s, "held_bytes": 10 * MIB, "major_faults": 0,
        "flash_bytes_per_token": 5e6, "cpu_s_per_token": 0.1, **more,
    }  # fmt: skip


KILLED = {"outcome": "killed", "held_bytes": MIB, "major_faults": 9}


def test_budgets(tool: ModuleType) -> None:
    def of(label: str) -> tuple[int, int]:
        found = tool.budget_of(label, 1000 * MIB, 50 * MIB, 800 * MIB)
        return found.ram_bytes // MIB, found.peer_bytes // MIB

    assert of("resident") == (1200, 4024)
    assert of("50%+150MiB") == (650, 650)  # of the file
    assert of("50%") == (450, 450)  # of what can be resident, above our floor
    assert of("floor") == (50, 50) and of("96MiB") == (96, 96)
    for label in ("half", "x%+1MiB", "50%+", "nan%", ""):
        with pytest.raises(SystemExit):
            of(label)
    assert tool.rate_of("200MB/s") == 200_000_000 and tool.rate_of("1GiB/s") == 2**30


def test_ratios_are_to_the_best_that_survives(tool: ModuleType) -> None:
    runs = {OURS: [run(8), run(10), run(12)], PEER: [KILLED], OTHER: [run(2), run(4), run(5)]}
    found = tool.summary("decode", runs)
    assert found["best_peer"] == OTHER and found["ratio"] == 10 / 4
    assert found["systems"][PEER] == {"outcome": "killed"}
    assert found["ratios"] == {"median": 2.5, "q1": pytest.approx(2.45), "q3": 3.25}
    assert found["systems"][OURS]["q1"] == 9 and found["systems"][OURS]["q3"] == 11
    seconds = {OURS: [run(1, first_s=0.5)], PEER: [run(1, first_s=2.0)]}
    assert tool.summary("start", seconds)["ratio"] == 4  # less is better
    alone = tool.summary("decode", {OURS: [run(8)], PEER: [KILLED]})
    assert alone["ratio"] is None and alone["best_peer"] is None
    refused = tool.summary("decode", {OURS: [{**KILLED, "outcome": "refused"}], PEER: [run(1)]})
    assert refused["ratio"] is None and refused["systems"][OURS]["outcome"] == "refused"


def test_what_is_no_result(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are errors, being killed is a result, and one that comes and goes is neither."""
    args = tool.argparse.Namespace(rounds=2, model="m", drive_rate=1e9, throttle=None)
    bench = tool.Bench(args, Path("ids"))
    budget = tool.Budget("1MiB", MIB, MIB)
    monkeypatch.setattr(bench, "plan", lambda ram: {"forecast": None})
    monkeypatch.setattr(bench, "ours", lambda mode, budget: run(1))
    ends = iter([KILLED])
    monkeypatch.setattr(bench, "theirs", lambda *_: next(ends))
    cell = bench.cell("decode", budget, [OURS, PEER])
    assert len(cell["runs"][OURS]) == 2 and len(cell["runs"][PEER]) == 1
    ends = iter([run(1), KILLED])
    with pytest.raises(tool.Failed, match="later round"):
        bench.cell("decode", budget, [OURS, PEER])


@pytest.fixture
def result(tool: ModuleType) -> dict[str, Any]:
    cells = []
    for label, ours, flash in (("resident", 20.0, 0.0), ("50%", 4.0, 2e8), ("25%", 2.0, 4e8)):
        runs = {
            OURS: [run(ours, flash_bytes_per_token=flash, drive_bytes_per_s=1e9) for _ in range(2)],
            PEER: [KILLED] if label == "25%" else [run(2.0), run(2.0)],
        }
        size = int({"resident": 1000, "50%": 500, "25%": 250}[label] * MIB)
        forecast = {"tok_s_low": 3.0, "tok_s": 4.0, "tok_s_high": 5.0}
        cells.append({
            "mode": "decode", "label": label, "ram_bytes": size, "peer_bytes": size,
            "runs": runs, "forecast": forecast, "summary": tool.summary("decode", runs),
        })  # fmt: skip
    return {
        "command": "python x", "threads": 2, "ctx": 512, "tokens": 64, "rounds": 2,
        "model": {"name": "m.gguf", "bytes": 900 * MIB, "matrix_bytes": 800 * MIB},
        "machine": {
            "cpu": "a cpu", "cores": 2, "kernel": "6", "drive_bytes_per_s": 1e9, "throttle": None,
            "memory_bytes_per_s": 2e10, "load_before": 0.1, "load_after": 2.0,
        },
        "cells": cells, "curve": [{"ram_bytes": 300 * MIB, "streamed_bytes": 4e8}],
    }  # fmt: skip


def test_bounds(result: dict[str, Any]) -> None:
    report = load_script("bench_report")
    resident, half, quarter = result["cells"]
    assert report.bounds(result, resident) == [20.0, 20.0]  # as measured
    assert report.bounds(result, half) == pytest.approx([5.0, 5.0])  # 0.2 GB at 1 GB/s
    assert report.bounds(result, quarter) == pytest.approx([2.5, 2.5])
    quarter["runs"][OURS][1]["drive_bytes_per_s"] = 0.5e9  # slower by then
    assert report.bounds(result, quarter) == pytest.approx([2.5, 1.25])
    result["cells"] = [quarter]
    for one in quarter["runs"][OURS]:
        one["drive_bytes_per_s"] = 1e12
    assert report.bounds(result, quarter) == pytest.approx([2e10 / (800 * MIB)] * 2)


def test_the_table_says_what_happened(result: dict[str, Any]) -> None:
    report = load_script("bench_report")
    text = report.markdown(result)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    assert "killed" in rows["25%"] and "80%" in rows["25%"] and "missed" in rows["25%"]
    assert "2.00 (2.00–2.00)" in rows["50%"] and "missed" not in rows["50%"]
    assert (
        len({line.count("|") for line in text.split("\n## ")[1].splitlines() if "|" in line}) == 1
    )
    assert "Other work" not in text
    result["machine"]["load_before"] = 3.0
    assert "Other work was running" in report.markdown(result)


def test_the_plot(result: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="NO MATPLOTLIB: pip install 'edge-rt[plot]'")
    report = load_script("bench_report")
    assert report.plot(result, tmp_path / "speed.png") is None
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_ours_alone_for_real(cgroup: ModuleType, stories_model: Path, tmp_path: Path) -> None:
    """Without a peer: every mode at a budget and below the floor, in cgroups, down to the files."""
    done = subprocess.run(
        [
            sys.executable, ROOT / "scripts/bench_vs_llamacpp.py", stories_model,
            "--mode", "decode,prompt,start", "--ram", "64MiB,32MiB", "--n", "8",
            "--prompt", "32", "--ctx", "64", "--threads", "1", "--rounds", "1",
            "--drive-rate", "1GB/s", "--memory-rate", "10GB/s", "--out", tmp_path,
        ],
        capture_output=True, text=True, check=False, env=SCRIPTS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "result.json").read_text())["cells"]
    assert len(cells) == 6
    for cell in cells:
        (ours,) = cell["summary"]["systems"].values()
        assert ours["outcome"] == ("refused" if cell["label"] == "32MiB" else "ok")
        if ours["outcome"] == "ok":
            assert 0 < ours["held_bytes"] <= cell["ram_bytes"] and ours["median"] > 0
    assert "refused" in (tmp_path / "result.md").read_text()


def test_a_peer_that_fails_is_an_error(
    cgroup: ModuleType, stories_model: Path, tmp_path: Path
) -> None:
    peer = tmp_path / "python"
    peer.write_text("#!/bin/sh\necho broken >&2\nexit 7\n")
    peer.chmod(0o755)
    done = subprocess.run(
        [
            sys.executable, ROOT / "scripts/bench_vs_llamacpp.py", stories_model, "--ram", "64MiB",
            "--peer-python", peer, "--n", "4", "--ctx", "64", "--rounds", "1",
            "--drive-rate", "1GB/s", "--memory-rate", "10GB/s",
        ],
        capture_output=True, text=True, check=False, env=SCRIPTS,
    )  # fmt: skip
    assert done.returncode == 1 and "llama.cpp ended with 7: broken" in done.stderr
    left = cgroup._own_group("memory").glob("edge-rt-*")
    assert not [p for p in left if not Path("/proc", p.name.split("-")[2]).exists()]


def test_groups_of_killed_runners_are_removed(cgroup: ModuleType) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    stale = cgroup._own_group("memory") / f"edge-rt-{dead.pid}-1"
    alive = cgroup._own_group("memory") / f"edge-rt-{os.getpid()}-test"
    stale.mkdir()
    alive.mkdir()
    try:
        cgroup.remove_left_behind()
        assert not stale.exists() and alive.exists()
    finally:
        alive.rmdir()
        if stale.exists():
            stale.rmdir()
