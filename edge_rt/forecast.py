"""How fast a plan will decode: bytes over bandwidths.

A token needs every weight once: the streamed ones cross the drive, all of them cross the cores.
Reading and computing overlap, so the slower of the two sets the pace. The two rates are those that
earlier runs on this machine measured (kept in the cache folder); before the first run they are
broad
assumptions.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from edge_rt.demo import cache_dir
from edge_rt.planner import Plan, Planner
from edge_rt.runtime._runtime import isa_name
from edge_rt.sizes import MIB

_FILE = "rates.json"
_GIGA = 1e9
# GB/s assumed before anything was measured: an SD card to NVMe; a phone core to two desktop cores.
_ASSUMED_FLASH = (0.1, 1.5, 6.0)
_ASSUMED_COMPUTE = (3.0, 10.0, 30.0)
_SPREAD = 0.25  # runs of the same work differ by this much on a machine that others use, too
_MIN_STEPS = 16  # fewer say nothing
_MIN_WEIGHT_BYTES = 32 * MIB  # a model that fits the caches says nothing about memory


def _rates() -> dict[str, float]:
    try:
        found = json.loads((cache_dir() / _FILE).read_text())
        return {
            name: float(rate)
            for name, rate in found.items()
            if isinstance(rate, (int, float)) and 0 < rate < 1e6
        }
    except (OSError, ValueError, RecursionError, AttributeError):
        return {}


def _compute_key(plan: Plan) -> str:
    isa = isa_name(os.environ.get("EDGE_RT_ISA", "auto"))
    return f"compute {isa} x{plan.settings.n_threads}"


def _range(rate: float | None, assumed: tuple[float, float, float]) -> tuple[float, float, float]:
    return assumed if rate is None else (rate * (1 - _SPREAD), rate, rate * (1 + _SPREAD))


def forecast(planner: Planner, plan: Plan) -> dict[str, Any]:
    """``tok_s`` with ``tok_s_low`` and ``tok_s_high``, what it is ``bound`` by, and the
    ``source``."""
    rates = _rates()
    flash = _range(rates.get("flash"), _ASSUMED_FLASH)
    compute = _range(rates.get(_compute_key(plan)), _ASSUMED_COMPUTE)
    weights = sum(m.n_bytes for m in planner.program.matrices)
    speeds = [
        1 / max(plan.streamed_bytes / (f * _GIGA), weights / (c * _GIGA))
        for f, c in zip(flash, compute, strict=True)
    ]
    needs_flash = plan.streamed_bytes > 0
    known = _compute_key(plan) in rates and ("flash" in rates or not needs_flash)
    slower = plan.streamed_bytes / flash[1] > weights / compute[1]
    return {
        "tok_s_low": speeds[0],
        "tok_s": speeds[1],
        "tok_s_high": speeds[2],
        "bound": "flash" if slower else "compute",
        "source": "measured by earlier runs" if known else "assumed: nothing was run here yet",
    }


def learn(planner: Planner, plan: Plan, steps: int, seconds: float, stall_s: float) -> None:
    """Keep the rates of ``steps`` decoded tokens for later forecasts; a read-only home is no
    error."""
    weights = sum(m.n_bytes for m in planner.program.matrices)
    if steps < _MIN_STEPS or seconds <= 0 or weights < _MIN_WEIGHT_BYTES:
        return
    rates, compute = _rates(), _compute_key(plan)
    if plan.streamed_bytes == 0:
        rates[compute] = weights * steps / seconds / _GIGA
    elif stall_s > 0.2 * seconds * plan.settings.n_threads:  # the drive set the pace
        rates["flash"] = plan.streamed_bytes * steps / seconds / _GIGA
    else:
        rates.setdefault(compute, weights * steps / seconds / _GIGA)
    folder = cache_dir()
    part = Path(folder, f"{_FILE}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(rates))
        part.replace(folder / _FILE)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
