"""The fault matrix (scripts/fault_matrix.py), a part of it on every run, all of it on request.

Sites run in processes of their own: what they leak is then theirs, and a hang ends that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT
from .faulty_cells import (
    FAULTS,
    LONG_DELAY,
    SITES,
    HookWorld,
    Outcome,
    reference,
    run_site,
    try_cell,
)

FULL = os.environ.get("EDGE_RT_FULL_MATRIX")  # every cell: about half an hour
FUSE_SITES = ["GGUF keys", "tokenizer_config.json", "streamed tile of a layer", "resident tiles"]


def matrix(tmp_path: Path, *args: str, timeout: int = 3600) -> list[dict[str, Any]]:
    """Run the script; every cell must hold."""
    out = tmp_path / "cells.json"
    command = [sys.executable, ROOT / "scripts/fault_matrix.py", "--json", out, "--quiet", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    if done.returncode == 2 and "cannot mount" in done.stderr:
        pytest.skip(f"NO FUSE: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(out.read_text())
    assert all(row["holds"] for row in rows)
    return rows


def exactly(sites: Sequence[str]) -> list[str]:
    return [word for site in sites for word in ("--exactly", site)]


NAMES = [site.name for site in SITES]
CHUNKS = [NAMES[i::4] for i in range(4)]  # by fours: a process takes a while to start


@pytest.mark.parametrize("chunk", range(4))
def test_every_site(tmp_path: Path, chunk: int) -> None:
    args = ["--world", "hook", *exactly(CHUNKS[chunk])]
    rows = matrix(tmp_path, *args, *([] if FULL else ["--sample", "8"]))
    assert {(row["site"], row["io"]) for row in rows} == {
        (site, io) for site in CHUNKS[chunk] for io in ("pread", "uring")
    }
    assert len(rows) >= len(CHUNKS[chunk]) * (2 * 17 if FULL else 5)


@pytest.mark.parametrize("chunk", range(4) if FULL else [0])
def test_real_errors(tmp_path: Path, chunk: int) -> None:
    sites = CHUNKS[chunk] if FULL else FUSE_SITES
    # On FUSE both backends are the pread pool.
    args = ["--io", "pread", *exactly(sites)]
    rows = matrix(tmp_path, *args, *([] if FULL else ["--sample", "8"]))
    assert {row["site"] for row in rows} == set(sites) and len(rows) >= 3 * len(sites)


@pytest.mark.slow
def test_ten_seconds(tmp_path: Path) -> None:
    """All at once: they only wait."""
    sites = ["streamed tile of the head", "embedding rows", "tokenizer.json"]
    chosen = [(site, io) for site in sites for io in ("pread", "uring")]

    def one(site: str, io: str) -> list[dict[str, Any]]:
        where = tmp_path / f"{site} {io}"
        where.mkdir()
        return matrix(where, "--world", "hook", "--exactly", site, "--io", io,
                      "--fault", LONG_DELAY.name, "--long")  # fmt: skip

    with ThreadPoolExecutor(6) as pool:
        for cell, leaks in pool.map(one, *zip(*chosen[: None if FULL else 2], strict=True)):
            assert cell["result"] == "recovered" and cell["seconds"] > 9 and leaks["holds"]


def test_the_judgement_can_fail(tmp_path: Path) -> None:
    """A cell whose fault is something else than the matrix says does not hold."""
    site = next(s for s in SITES if s.name == "streamed tile of the head")
    faults = {fault.name: fault for fault in FAULTS}
    world = HookWorld(tmp_path, site.model)
    try:

        def judged(name: str, expect: str, right: list[Any]) -> Outcome:
            fault = faults[name]
            return try_cell(world, site, type(fault)(**{**vars(fault), "expect": expect}), "pread",
                            right)  # fmt: skip

        right = reference(world, site, "pread")
        assert judged("EIO", "error", right).holds
        assert judged("EIO", "recovered", right).problems == ["not recovered"]
        assert judged("EINTR 3 times", "error", right).problems == ["no error"]
        wrong = [right[0], "?", *right[2:]]
        assert any("said" in p for p in judged("EINTR 3 times", "recovered", wrong).problems)
    finally:
        world.close()
    never = type(faults["EIO"])(**{**vars(faults["EIO"]), "rules": ()})
    world = HookWorld(tmp_path / "again", site.model)
    try:
        cell = try_cell(world, site, never, "pread", reference(world, site, "pread"))
        assert "the fault was not met" in cell.problems
    finally:
        world.close()


def test_a_leak_is_seen(tmp_path: Path) -> None:
    kept: list[Any] = []
    site = next(s for s in SITES if s.name == "config.json")

    class Leaking(HookWorld):
        def mend(self) -> None:
            kept.append(open("/dev/null"))  # noqa: SIM115
            super().mend()

    rows = run_site(site, FAULTS[:2], ["pread"], tmp_path, Leaking)
    for file in kept:
        file.close()
    assert any("files" in problem for problem in rows[-1].problems)
