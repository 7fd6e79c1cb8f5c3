"""``edge-rt doctor``: what it measures, keeps and prints, and what it takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_rt.machine.kernels import MAIN_FORMATS, thread_counts
from edge_rt.machine.missing import needed_bytes
from edge_rt.machine.probe import weight_bytes

MODULE = [sys.executable, "-m", "edge_rt.apps.cli"]


def edge_rt(*arguments: object, code: int = 0, **environment: object) -> tuple[str, str]:
    """Run a command; return what it wrote to stdout and stderr."""
    done = subprocess.run(
        [*MODULE, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {name: str(value) for name, value in environment.items()},
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def measured(cache: Path, demo_model: Path) -> dict[str, Any]:
    """What the first run finds."""
    out, _ = edge_rt("doctor", demo_model, "--json", XDG_CACHE_HOME=cache)
    found: dict[str, Any] = json.loads(out)
    return found


def test_what_is_measured(measured: dict[str, Any], demo_model: Path) -> None:
    assert measured["cached"] is False
    cores, memory, drive = measured["cores"], measured["memory"], measured["drive"]
    assert set(cores["allowed"]) == os.sched_getaffinity(0) and 1 <= cores["usable"] <= 64
    assert memory["page_bytes"] == os.sysconf("SC_PAGE_SIZE") and memory["available_bytes"] > 0
    counts = [row["threads"] for row in memory["bandwidth"]]
    assert counts[0] == 1 and counts[-1] == cores["usable"]
    for row in memory["bandwidth"]:
        assert 0 < row["gb_s_low"] <= row["gb_s"] <= row["gb_s_high"]
    kernels = {(row["format"], row["threads"]): row for row in measured["kernels"]}
    assert set(kernels) == {(name, n) for name in MAIN_FORMATS for n in counts}
    for row in kernels.values():
        assert 0 < row["decode_gb_s_low"] <= row["decode_gb_s"] <= row["decode_gb_s_high"]
        assert row["prefill_gmac_s"] > 0 and row["layer_us"] > 0
    assert drive["file"] == str(demo_model) and drive["alignment"] % 512 == 0
    assert set(drive["backends"]) == {"uring", "pread"}
    for backend in drive["backends"].values():
        assert backend["available"] is (backend["reason"] is None)
    assert drive["direct"] is (drive["why_not_direct"] is None)
    used = {name for name, backend in drive["backends"].items() if backend["available"]}
    assert {row["io"] for row in drive["curve"]} == used
    for row in drive["curve"]:
        assert 0 < row["gb_s_low"] <= row["gb_s"] <= row["gb_s_high"]


def test_it_stays_small(measured: dict[str, Any]) -> None:
    assert weight_bytes() < measured["peak_rss_bytes"] <= needed_bytes()


def test_it_is_kept_and_measured_again_on_request(
    measured: dict[str, Any], cache: Path, demo_model: Path
) -> None:
    environment = {"XDG_CACHE_HOME": cache}
    again = json.loads(edge_rt("doctor", demo_model, "--json", **environment)[0])
    assert again["cached"] is True
    assert again["kernels"] == measured["kernels"]
    assert again["drive"]["curve"] == measured["drive"]["curve"]
    text, _ = edge_rt("doctor", demo_model, **environment)
    for word in ("cores", "memory", "kernels", "drive", "O_DIRECT", "uring", *MAIN_FORMATS):
        assert re.search(rf"\b{word}\b", text), word
    assert "--refresh measures again" in text
    plan = json.loads(edge_rt("plan", demo_model, "--ram", "160MiB", "--json", **environment)[0])
    assert plan["forecast"]["source"] == "measured"
    refreshed = json.loads(edge_rt("doctor", demo_model, "--refresh", "--json", **environment)[0])
    assert refreshed["cached"] is False and refreshed["kernels"] != measured["kernels"]
    kept = json.loads((cache / "edge-rt/machine.json").read_text())
    assert kept["version"] == 1 and len(kept["machines"]) == 1


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    """A temporary file stands for the drive; nothing of it stays. A folder that takes no files, or
    is not there, is the user's mistake."""
    from edge_rt.machine.drive import DriveCurve, file_on

    with file_on(str(tmp_path)) as file:
        (cell,) = DriveCurve(file, ((65536, 2),)).finish()
        assert cell.rate.mid > 0 and (cell.request_bytes, cell.depth) == (65536, 2)
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []
    _, err = edge_rt("doctor", tmp_path / "nothing", code=2, XDG_CACHE_HOME=tmp_path)
    assert err.startswith("error: ")
    _, err = edge_rt("doctor", "/proc", code=5, XDG_CACHE_HOME=tmp_path)
    assert "/proc has 0 B free" in err


def test_plan_measures_what_is_missing(tmp_path: Path, demo_model: Path) -> None:
    """Once, where it can be kept; elsewhere it assumes, and says so."""
    arguments = ("plan", demo_model, "--ram", "1GiB", "--threads", 1, "--json")
    small = (*arguments[:3], "160MiB", *arguments[4:])  # which measuring would take more than
    at_first = json.loads(edge_rt(*small, XDG_CACHE_HOME=tmp_path)[0])
    assert at_first["forecast"]["source"].startswith("assumed")
    first = json.loads(edge_rt(*arguments, XDG_CACHE_HOME=tmp_path)[0])
    assert first["forecast"]["source"] == "measured"
    kept = (tmp_path / "edge-rt/machine.json").read_bytes()
    second = json.loads(edge_rt(*arguments, XDG_CACHE_HOME=tmp_path)[0])
    assert (tmp_path / "edge-rt/machine.json").read_bytes() == kept, "measured once"
    assert second["forecast"]["tok_s"] == first["forecast"]["tok_s"]
    assumed = json.loads(edge_rt(*arguments, XDG_CACHE_HOME="/proc")[0])
    assert assumed["forecast"]["source"].startswith("assumed")
    wide, narrow = assumed["forecast"], first["forecast"]
    assert wide["tok_s_high"] / wide["tok_s_low"] > narrow["tok_s_high"] / narrow["tok_s_low"]
    assert assumed["floor_bytes"] == first["floor_bytes"]


def test_thread_counts() -> None:
    assert [thread_counts(n) for n in (1, 2, 3, 4, 6, 16)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 6], [1, 2, 4, 8, 16],
    ]  # fmt: skip
