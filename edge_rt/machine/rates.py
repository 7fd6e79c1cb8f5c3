"""What was measured on this machine: the one place that holds rates.

A file in the cache folder, by machine, build and file system, written whole or not at all. What is
damaged, of another version or of another build counts as not measured. Rates are in bytes or
operations per second, each with what it may fall to and rise to.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_rt import __version__
from edge_rt.demo import cache_dir
from edge_rt.machine.host import Drive, processor_name
from edge_rt.runtime import _runtime

FILE_NAME: Final = "machine.json"
_VERSION: Final = 1
_MAX_BYTES: Final = 4 << 20
_MAX_MACHINES, _MAX_RUNS = 16, 64
_MOST: Final = 1e18  # of anything per second
_RUNS_KEPT: Final = 5  # of one model, the latest


@dataclass(frozen=True)
class Rate:
    """A rate per second; a time in seconds where said. ``low`` <= ``mid`` <= ``high``."""

    low: float
    mid: float
    high: float

    @classmethod
    def of(cls, samples: list[float]) -> Rate:
        """Median and quartiles; all samples lie between the ends where there are fewer than 4."""
        ordered = sorted(samples)
        n = len(ordered)
        cut = 0 if n < 4 else n // 4
        middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        return cls(ordered[cut], middle, ordered[n - 1 - cut])

    @classmethod
    def of_times(cls, samples: list[float]) -> Rate:
        """Seconds that something takes on this machine: what others do to it at times only adds, so
        the first quartile stands for it, between the least and the third quartile."""
        ordered = sorted(samples)
        n = len(ordered)
        return cls(ordered[0], ordered[n // 4], ordered[3 * n // 4])

    def seconds(self, work: float) -> Rate:
        """The time that ``work`` takes at this rate."""
        return Rate(work / self.high, work / self.mid, work / self.low)

    def spread(self, share: float) -> Rate:
        """Wider by ``share`` both ways."""
        return Rate(self.low / (1 + share), self.mid, self.high * (1 + share))

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.low + other.low, self.mid + other.mid, self.high + other.high)

    def __mul__(self, factor: float) -> Rate:
        return Rate(self.low * factor, self.mid * factor, self.high * factor)

    def stored(self) -> list[float]:
        return [float(f"{x:.6g}") for x in (self.low, self.mid, self.high)]


NOTHING: Final = Rate(0.0, 0.0, 0.0)


def _rate(value: object) -> Rate | None:
    """A stored `Rate`, None for anything else."""
    if not isinstance(value, list) or len(value) != 3:
        return None
    if not all(type(x) in (int, float) and 0 < x < _MOST for x in value):
        return None
    low, mid, high = sorted(map(float, value))
    return Rate(low, mid, high)


def _dig(data: object, *keys: str) -> dict[str, Any]:
    """The object at the end of ``keys``; an empty one where something else lies on the way."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _make(data: dict[str, Any], key: str) -> dict[str, Any]:
    """The object at ``key``, made where there is none."""
    found = data[key] = _dig(data, key)
    return found


@dataclass(frozen=True)
class Cell:
    """Random reads of ``request_bytes``, ``depth`` at a time, through ``io``.

    ``rate``: bytes per second; ``cpu_s``: processor seconds per byte.
    """

    io: str
    request_bytes: int
    depth: int
    rate: Rate
    cpu_s: float

    def stored(self) -> list[Any]:
        cpu = float(f"{self.cpu_s:.4g}")
        return [self.io, self.request_bytes, self.depth, self.rate.stored(), cpu]


def _cell(value: object) -> Cell | None:
    if not isinstance(value, list) or len(value) != 5:
        return None
    io, n_bytes, depth, rate, cpu_s = value[0], value[1], value[2], _rate(value[3]), value[4]
    sane = io in ("uring", "pread") and type(n_bytes) is int and type(depth) is int
    if not sane or rate is None or type(cpu_s) not in (int, float) or not 0 <= cpu_s < 1:
        return None
    if not (1 <= n_bytes <= 1 << 30 and 1 <= depth <= 1024):
        return None
    return Cell(io, n_bytes, depth, rate, float(cpu_s))


class Rates:
    """The rates of this machine; ``drive`` is where the model lies.

    Reads the file once. `store` changes it on the drive and here.
    """

    def __init__(self, drive: Drive | None = None) -> None:
        self.drive = drive
        isa = _runtime.isa_name(os.environ.get("EDGE_RT_ISA", "auto"))
        self._machine = f"{processor_name()} x{os.cpu_count()}"
        self._code = f"{__version__} {os.stat(_runtime.__file__).st_mtime_ns} {isa}"
        self._data = _dig(_read(), "machines", self._machine)

    @classmethod
    def unknown(cls) -> Rates:
        """Nothing was measured, nothing is read."""
        rates = cls.__new__(cls)
        rates.drive, rates._machine, rates._code, rates._data = None, "", "", {}
        return rates

    # -- kernels --------------------------------------------------------------------------------

    def _kernels(self, n_threads: int) -> dict[str, Any]:
        return _dig(self._data, "kernels", self._code, str(n_threads))

    def thread_counts(self) -> list[int]:
        """Of which kernels were measured, ascending."""
        found = _dig(self._data, "kernels", self._code)
        return sorted(int(name) for name in found if name.isdigit() and 0 < int(name) <= 64)

    def kernel(self, n_threads: int, *name: str) -> Rate | None:
        """``("decode", FORMAT)``: bytes of weights per second. ``("pass", FORMAT)`` and
        ``("prefill", FORMAT)``, which add up: bytes per second of a pass over several tokens, and
        their multiplications per second. ``("attention", KV)``, of one token, and
        ``("attention_pass", KV)``, of many: columns of all heads times positions per second.
        ``("vectors",)``: seconds per column and token of what is neither. ``("token",)`` and
        ``("layer",)``: seconds that they take besides."""
        data: dict[str, Any] = self._kernels(n_threads)
        return _rate(_dig(data, *name[:-1]).get(name[-1]))

    def memory(self, n_threads: int) -> Rate | None:
        """Bytes per second that as many threads read from memory."""
        return _rate(_dig(self._data, "memory").get(str(n_threads)))

    def fresh_memory(self) -> Rate | None:
        """Bytes per second at which the system hands out memory."""
        return _rate(_dig(self._data, "memory").get("fresh"))

    # -- drives ---------------------------------------------------------------------------------

    def cells(self) -> list[Cell]:
        """What was measured of the drive, none if nothing was."""
        if self.drive is None:
            return []
        entry = self._drive_entry()
        limit = self.drive.limit
        stored = entry.get("cells")
        found = [cell for value in _list(stored) if (cell := _cell(value))]
        if limit is None:
            return found
        cap = Rate(0.97 * limit, float(limit), 1.03 * limit)  # held to from outside
        return [Cell(c.io, c.request_bytes, c.depth, _least(c.rate, cap), c.cpu_s) for c in found]

    def _drive_entry(self) -> dict[str, Any]:
        """What was measured under the limit in force, else without any."""
        assert self.drive is not None
        by_limit = _dig(self._data, "drives", self.drive.key)
        limited = _dig(by_limit, str(self.drive.limit))
        return limited or _dig(by_limit, "None")

    # -- runs -----------------------------------------------------------------------------------

    def correction(self, run: str) -> Rate | None:
        """Measured over modelled seconds of earlier runs called ``run``."""
        stored = _dig(self._data, "runs").get(run)
        sane = [float(x) for x in _list(stored) if type(x) in (int, float) and 0.2 <= x <= 5.0]
        return Rate.of(sane) if sane else None

    def learn(self, run: str, ratio: float) -> None:
        """Keep measured over modelled seconds of one more ``run``."""
        if not 0.2 <= ratio <= 5.0:
            return  # another machine's load, not the model's

        def change(data: dict[str, Any]) -> None:
            runs = _make(data, "runs")
            kept = _list(runs.pop(run, None))[-_RUNS_KEPT + 1 :]
            runs[run] = [*kept, float(f"{ratio:.4g}")]
            while len(runs) > _MAX_RUNS:
                del runs[next(iter(runs))]

        self._change(change)

    # -- storing --------------------------------------------------------------------------------

    def store_kernels(self, n_threads: int, found: dict[str, Any]) -> None:
        """Keep what `kernel` reads; what is known of other names stays. Builds that are gone are
        forgotten."""

        def change(data: dict[str, Any]) -> None:
            same_build = self._code.rpartition(" ")[0]
            kept = {
                code: _dig(data, "kernels", code)
                for code in _dig(data, "kernels")
                if code.rpartition(" ")[0] == same_build
            }
            data["kernels"] = kept
            entry = _make(_make(kept, self._code), str(n_threads))
            for name, value in found.items():
                if isinstance(value, dict):
                    entry[name] = _dig(entry, name) | value
                else:
                    entry[name] = value

        self._change(change)

    def store_memory(self, found: dict[str, Rate]) -> None:
        """Keep what `memory`, by number of threads, and `fresh_memory`, ``"fresh"``, read."""

        def change(data: dict[str, Any]) -> None:
            stored = {name: rate.stored() for name, rate in found.items()}
            data["memory"] = _dig(data, "memory") | stored

        self._change(change)

    def store_drive(self, cells: list[Cell], whole: bool) -> None:
        """Keep what was measured of ``drive`` under the limit in force: the ``whole`` curve, or the
        few cells that a forecast needs."""
        drive = self.drive
        assert drive is not None

        def change(data: dict[str, Any]) -> None:
            by_limit = _make(_make(data, "drives"), drive.key)
            by_limit[str(drive.limit)] = {
                "whole": whole,
                "cells": [cell.stored() for cell in cells],
            }

        self._change(change)

    def has_curve(self) -> bool:
        """Whether the whole curve of the drive was measured under the limit in force."""
        assert self.drive is not None
        by_limit = _dig(self._data, "drives", self.drive.key)
        return _dig(by_limit, str(self.drive.limit)).get("whole") is True

    def forget(self) -> None:
        """Cores, memory and ``drive`` are to be measured again; ratios of runs were to the rates
        before."""
        drive = self.drive

        def change(data: dict[str, Any]) -> None:
            for name in ("kernels", "memory", "runs"):
                data.pop(name, None)
            if drive is not None:
                _dig(data, "drives").pop(drive.key, None)

        self._change(change)

    def _change(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Apply ``change`` to what is on the drive now; a cache that cannot be written is no
        error."""
        everything = _read()
        machines = _make(everything, "machines")
        data = _dig(machines, self._machine) or self._data
        machines.pop(self._machine, None)
        machines[self._machine] = self._data = data
        while len(machines) > _MAX_MACHINES:
            del machines[next(iter(machines))]
        change(data)
        _write(everything)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _least(a: Rate, b: Rate) -> Rate:
    return Rate(min(a.low, b.low), min(a.mid, b.mid), min(a.high, b.high))


def can_store() -> bool:
    """Whether the cache folder takes files: what cannot be kept is not worth measuring unasked."""
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _read() -> dict[str, Any]:
    try:
        with (cache_dir() / FILE_NAME).open("rb") as file:
            found = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {"version": _VERSION}
    if not isinstance(found, dict) or found.get("version") != _VERSION:
        return {"version": _VERSION}
    return found


def _write(everything: dict[str, Any]) -> None:
    folder = cache_dir()
    part = Path(folder, f"{FILE_NAME}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(everything))
        part.replace(folder / FILE_NAME)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
