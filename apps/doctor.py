"""``edge-rt doctor``: what this machine can do, measured."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from edge_rt.apps import options as o
from edge_rt.errors import BudgetError, as_ours
from edge_rt.sizes import KIB, format_size

_BUSY = 0.3  # of the cores: rates are no longer the machine's own
_MOST_RATE_THREADS = 8  # kernels are measured with 1, 2, 4, 8 and all threads


def _say_on_terminal(text: str) -> None:
    """What is being measured, in place; nothing where nobody looks."""
    if sys.stderr.isatty():
        print(f"\r\x1b[Kmeasuring {text}", end="", file=sys.stderr, flush=True)


def _clear_terminal() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _path(given: str | None) -> str:
    """What to measure the drive of: a model's file or a folder."""
    from edge_rt.demo import cache_dir, demo_path
    from edge_rt.errors import StorageError, UsageError
    from edge_rt.library import find_model
    from edge_rt.source import locate

    if given is not None:
        return given if os.path.isdir(given) else locate(find_model(given))[1]
    try:
        return str(demo_path())
    except UsageError:
        folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror} (give a model)") from error
    return str(folder)


def _why_not_direct(path: str) -> str | None:
    """Why reads of ``path`` go through the page cache."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        return f"the file system refuses O_DIRECT: {error.strerror}"
    return "the file system takes O_DIRECT, but then refuses to read"


def _measure_cores(rates: Any, counts: list[int], meanwhile: Callable[[], object]) -> bool:
    """Memory and kernels, as far as they are not known; whether all was."""
    from edge_rt.machine.kernels import (
        MAIN_FORMATS,
        measure_fresh_memory,
        measure_kernels,
        measure_memory_rates,
    )

    known = rates.fresh_memory() is not None and all(rates.memory(n) for n in counts)
    if not known:
        _say_on_terminal("memory")
        measure_fresh_memory(rates)
        measure_memory_rates(rates, counts)
    for n in counts:
        known = known and all(rates.kernel(n, "prefill", name) for name in MAIN_FORMATS)
        measure_kernels(rates, n, MAIN_FORMATS, said=_say_on_terminal, meanwhile=meanwhile)
    return known


def examine(path: str, refresh: bool) -> dict[str, Any]:
    """The object that ``doctor --json`` prints; measures what is not known, or everything."""
    from edge_rt.machine import host
    from edge_rt.machine.drive import DriveCurve, backends, file_on
    from edge_rt.machine.kernels import thread_counts
    from edge_rt.machine.missing import needed_bytes
    from edge_rt.opening import rates_for
    from edge_rt.process import peak_resident_bytes

    cores, memory = host.cores(), host.memory()
    if memory["available_bytes"] < needed_bytes():
        raise BudgetError(
            f"the doctor needs {format_size(needed_bytes())} of memory, and "
            f"{format_size(memory['available_bytes'])} are free"
        )
    busy, n_cores = cores["busy"], cores["online"]
    counts = [n for n in thread_counts(cores["usable"]) if n <= _MOST_RATE_THREADS]
    counts = sorted({*counts, cores["usable"]})
    drive = host.drive_of(path)
    with file_on(path) as file:
        rates = rates_for(file)
        if refresh:
            rates.forget()
        curve = None if rates.has_curve() else DriveCurve(file)
        meanwhile = curve.round if curve else lambda: None
        if curve:
            _say_on_terminal("the drive")
            curve.round()
        cached = _measure_cores(rates, counts, meanwhile) and curve is None
        if curve:
            _say_on_terminal("the drive")
            rates.store_drive(curve.finish(), whole=True)
        described = {
            "path": path,
            "file": file.path if os.path.isfile(path) else None,
            "file_system": drive.kind,
            "mount": drive.mount,
            "limit_bytes_s": drive.limit,
            "direct": file.direct,
            "why_not_direct": None if file.direct else _why_not_direct(file.path),
            "alignment": file.alignment,
            "backends": {
                name: {"available": not why, "reason": why or None}
                for name, why in backends(file).items()
            },
        }
    _clear_terminal()
    if not cached and busy > _BUSY * n_cores:
        o.say(
            f"others were busy on {busy:.1f} of {n_cores} cores: the rates are what they left; "
            "--refresh measures again"
        )
    return {
        "cached": cached,
        "cores": cores,
        "memory": memory
        | {"bandwidth": _bandwidth(rates, counts)}
        | _measured(rates.fresh_memory(), "fresh_gb_s"),
        "kernels": _kernels(rates, counts),
        "drive": described | {"curve": _curve(rates)},
        "peak_rss_bytes": peak_resident_bytes() or None,
    }


def _measured(rate: Any, name: str, unit: float = 1e9) -> dict[str, float | None]:
    """A rate and its ends under ``name``."""
    if rate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: rate.mid / unit, f"{name}_low": rate.low / unit, f"{name}_high": rate.high / unit}


def _bandwidth(rates: Any, counts: list[int]) -> list[dict[str, Any]]:
    return [{"threads": n} | _measured(rates.memory(n), "gb_s") for n in counts]


def _kernels(rates: Any, counts: list[int]) -> list[dict[str, Any]]:
    from edge_rt.machine.kernels import MAIN_FORMATS

    rows: list[dict[str, Any]] = []
    for n in counts:
        layer = rates.kernel(n, "layer")
        for name in MAIN_FORMATS:
            row: dict[str, Any] = {"format": name, "threads": n}
            row |= _measured(rates.kernel(n, "decode", name), "decode_gb_s")
            row |= _measured(rates.kernel(n, "prefill", name), "prefill_gmac_s")
            row["layer_us"] = layer.mid * 1e6 if layer else None
            rows.append(row)
    return rows


def _curve(rates: Any) -> list[dict[str, Any]]:
    return [
        {"io": c.io, "request_bytes": c.request_bytes, "depth": c.depth}
        | _measured(c.rate, "gb_s")
        | {"cpu_s_per_gb": c.cpu_s * 1e9}
        for c in rates.cells()
    ]


def doctor(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATH]",
            help="a model, or a folder, on the drive to measure; the demo model's if omitted",
        ),
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="measure again what is known already")
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Measure cores, memory and drive; forecasts and plans use it. About twenty seconds, once."""

    try:
        found = examine(_path(path), refresh)
    except (MemoryError, OSError, RuntimeError) as error:
        ours = as_ours(error)
        raise ours from (None if ours is error else error)
    finally:
        _clear_terminal()
    if as_json:
        o.print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    cores, memory, drive = found["cores"], found["memory"], found["drive"]
    print(f"cores         {o.printable(cores['name'])}: {_cores(cores)}")
    print(
        f"memory        {format_size(memory['available_bytes'])} free of "
        f"{format_size(memory['total_bytes'])}; pages of {memory['page_bytes']} bytes, "
        f"huge ones: {memory['huge_pages'] or 'unknown'}"
    )
    for limit in memory["cgroup_limits"]:
        print(f"  limit       {format_size(limit['bytes'])} by {o.printable(limit['group'])}")
    print(f"  {'new':>10}  {_shown(memory['fresh_gb_s'])} GB/s handed out by the system")
    for row in memory["bandwidth"]:
        print(f"  {row['threads']:>2} threads  {_shown(row['gb_s'])} GB/s from memory")
    print("kernels       decoding, GB/s of weights (prefill, G multiplications/s), by threads")
    counts = sorted({row["threads"] for row in found["kernels"]})
    print(f"  {'':<8}" + "".join(f"{n:>16}" for n in counts))
    for name in dict.fromkeys(row["format"] for row in found["kernels"]):
        rows = {r["threads"]: r for r in found["kernels"] if r["format"] == name}
        cells = [
            f"{_shown(r['decode_gb_s'])} ({_shown(r['prefill_gmac_s'])})" for r in rows.values()
        ]
        print(f"  {name:<8}" + "".join(f"{cell:>16}" for cell in cells))
    limit = drive["limit_bytes_s"]
    print(
        f"drive         {o.printable(drive['path'])}, {drive['file_system'] or 'unknown'} at "
        f"{o.printable(drive['mount'] or '?')}"
        + (f"; a cgroup allows {limit / 1e9:.2f} GB/s" if limit else "")
    )
    print(f"  O_DIRECT    {'yes' if drive['direct'] else 'no: ' + drive['why_not_direct']}")
    for name, backend in drive["backends"].items():
        reason = "yes" if backend["available"] else f"no: {backend['reason']}"
        print(f"  {name:<11} {reason}")
    for io in dict.fromkeys(row["io"] for row in drive["curve"]):
        _print_curve(io, [row for row in drive["curve"] if row["io"] == io])
    if found["cached"]:
        print("measured before; --refresh measures again")


def _print_curve(io: str, rows: list[dict[str, Any]]) -> None:
    depths = sorted({row["depth"] for row in rows})
    print(f"  {io}: GB/s by request and depth")
    print(f"  {'':>9}" + "".join(f"{depth:>8}" for depth in depths))
    for size in sorted({row["request_bytes"] for row in rows}):
        by_depth = {r["depth"]: r["gb_s"] for r in rows if r["request_bytes"] == size}
        print(f"  {size // KIB:>5} KiB" + "".join(f"{_shown(by_depth.get(d)):>8}" for d in depths))


def _shown(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def _cores(cores: dict[str, Any]) -> str:
    parts = [f"{len(cores['allowed'])} of {cores['online']} may be used"]
    if cores["physical"] < len(cores["allowed"]):
        parts.append(f"{cores['physical']} physical ones")
    if cores["efficiency"]:
        parts.append(f"{len(cores['efficiency'])} of them efficiency cores")
    if cores["quota"] is not None:
        parts.append(f"a cgroup allows {cores['quota']:.2g} cores' time")
    parts.append("caches " + ", ".join(f"{k} {format_size(v)}" for k, v in cores["caches"].items()))
    return "; ".join(parts)
