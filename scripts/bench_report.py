"""Tables and the plot of bench_vs_llamacpp.py."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

OURS = "edge-rt"
MIB = 1 << 20
BUSY = 0.7  # load before the first run from which on other work disturbs
_TITLES = {
    "decode": "Decoding, tokens per second",
    "prompt": "A prompt at once, tokens per second; first token after loading, seconds",
    "start": "From the start of the process to the first byte of text, seconds",
}


def grid(low: int, high: int, n: int = 12) -> list[int]:
    """``n`` budgets from ``low`` to ``high``, of whole MiB."""
    return sorted({(low + (high - low) * i // (n - 1)) // MIB * MIB + MIB for i in range(n)})


def _mib(n_bytes: float) -> str:
    return f"{n_bytes / MIB:.0f}"


def _spread(found: dict[str, Any]) -> str:
    """``median (quartiles)``, or what became of it."""
    if "median" not in found:
        return str(found["outcome"])
    digits = 3 if found["median"] < 1 else 2 if found["median"] < 100 else 1
    values = [f"{found[key]:.{digits}f}" for key in ("median", "q1", "q3")]
    return f"{values[0]} ({values[1]}–{values[2]})"


def line(cell: dict[str, Any]) -> str:
    """One cell in one line."""
    systems = cell["summary"]["systems"]
    parts = [f"{name} {_spread(found)}" for name, found in systems.items()]
    ratio = cell["summary"]["ratio"]
    parts.append(f"{ratio:.2f}x" if ratio else "no ratio")
    return f"{cell['mode']} at {cell['label']} ({_mib(cell['ram_bytes'])} MiB): {'; '.join(parts)}"


def bounds(result: dict[str, Any], cell: dict[str, Any]) -> list[float]:
    """Tokens per second that the drive, as it was around each of our runs, or computing with all
    weights resident, would allow at this budget; the latter as measured where it was, else the
    memory's rate."""
    found = cell["summary"]["systems"].get(OURS, {})
    if "median" not in found or cell["mode"] != "decode":
        return []
    machine = result["machine"]
    step = result["model"]["matrix_bytes"] / machine["memory_bytes_per_s"]
    for other in result["cells"]:
        resident = other["summary"]["systems"].get(OURS, {})
        if other["mode"] == "decode" and other["label"] == "resident" and "median" in resident:
            step = 1 / resident["median"]
    return [
        1 / max(step, run["flash_bytes_per_token"] / run["drive_bytes_per_s"])
        for run in cell["runs"][OURS]
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _decode_row(result: dict[str, Any], cell: dict[str, Any]) -> list[str]:
    ours, most = cell["summary"]["systems"][OURS], bounds(result, cell)
    if not most:
        return ["-"] * 5
    shares = [run["tok_s"] / one for run, one in zip(cell["runs"][OURS], most, strict=True)]
    forecast = cell.get("forecast")
    said = "-"
    if forecast:
        low, high = forecast["tok_s_low"], forecast["tok_s_high"]
        inside = "" if low <= ours["median"] <= high else ", missed"
        said = f"{forecast['tok_s']:.2f} ({low:.2f}–{high:.2f}{inside})"
    return [
        f"{statistics.median(most):.2f}", f"{statistics.median(shares):.0%}", said,
        f"{ours['flash_bytes_per_token'] / 1e6:.1f}", f"{1e3 * ours['cpu_s_per_token']:.0f}",
    ]  # fmt: skip


def _resources(cells: list[dict[str, Any]]) -> str:
    """What every system took, at every budget."""
    rows = []
    for cell in cells:
        for name, found in cell["summary"]["systems"].items():
            if "median" not in found:
                continue
            flash = found.get("flash_bytes_per_token")
            rows.append([
                cell["mode"], cell["label"], name, _mib(found["held_bytes"]),
                "-" if flash is None else f"{flash / 1e6:.1f}",
                f"{found['major_faults']:.0f}",
                f"{1e3 * found['cpu_s_per_token']:.0f}" if "cpu_s_per_token" in found else "-",
            ])  # fmt: skip
    head = [
        "mode",
        "budget",
        "system",
        "held MiB",
        "flash MB/token",
        "major faults",
        "CPU ms/token",
    ]
    return _table(head, rows)


def markdown(result: dict[str, Any]) -> str:
    """The whole report."""
    machine, model = result["machine"], result["model"]
    throttle = machine["throttle"]
    text = (
        f"# {model['name']}\n\n    {result['command']}\n\n"
        f"{model['bytes'] / MIB:.0f} MiB, {result['threads']} threads, ctx {result['ctx']}, "
        f"{result['tokens']} tokens, medians of {result['rounds']} interleaved rounds with their "
        f"quartiles. {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}; drive "
        f"{machine['drive_bytes_per_s'] / 1e9:.2f} GB/s"
        f"{' (throttled)' if throttle else ''}, memory "
        f"{machine['memory_bytes_per_s'] / 1e9:.1f} GB/s on these threads. Load before "
        f"{machine['load_before']:.1f}, after {machine['load_after']:.1f}.\n"
    )
    if machine["load_before"] > BUSY:
        text += (
            "\n**Other work was running.** Threads that wait for one another, which llama.cpp's do "
            "without sleeping, lose far more by that than ours: these are no results.\n"
        )
    for mode, title in _TITLES.items():
        cells = [cell for cell in result["cells"] if cell["mode"] == mode]
        if not cells:
            continue
        systems = list(cells[0]["summary"]["systems"])
        head = ["budget", "MiB", *systems, "ratio to the best peer (by rounds)"]
        if mode == "decode":
            head += ["bound", "of it", "forecast", "flash MB/token", "CPU ms/token"]
        if mode == "prompt":
            head += ["first token, s", "the best peer's"]
        rows = []
        for cell in cells:
            summary = cell["summary"]
            ratio, found = "-", summary["systems"]
            if summary["ratio"]:
                by_rounds = summary["ratios"]
                ratio = f"{summary['ratio']:.2f} ({by_rounds['q1']:.2f}–{by_rounds['q3']:.2f})"
            row = [cell["label"], _mib(cell["ram_bytes"]), *map(_spread, found.values()), ratio]
            if mode == "decode":
                row += _decode_row(result, cell)
            if mode == "prompt":
                for name in (OURS, summary["best_peer"]):
                    first = found.get(name, {}).get("ttft_s")
                    row.append("-" if first is None else f"{first:.2f}")
            rows.append(row)
        text += f"\n## {title}\n\n" + _table(head, rows)
    return text + "\n## What it took\n\n" + _resources(result["cells"])


def plot(result: dict[str, Any], path: Path) -> str | None:
    """Decoding speed against budget, with the rooflines; why there is none, if there is none."""
    try:
        import matplotlib
    except ImportError:
        return "matplotlib is not installed (pip install 'edge-rt[plot]')"
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = [cell for cell in result["cells"] if cell["mode"] == "decode"]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    names = list(dict.fromkeys(n for cell in cells for n in cell["summary"]["systems"]))
    for index, name in enumerate(names):
        found = [(c["ram_bytes"] / MIB, c["summary"]["systems"].get(name, {})) for c in cells]
        alive = sorted(((x, s) for x, s in found if "median" in s), key=lambda pair: pair[0])
        color = f"C{index}"
        if alive:
            middle = [s["median"] for _, s in alive]
            bars = [
                [s["median"] - s["q1"] for _, s in alive], [s["q3"] - s["median"] for _, s in alive]
            ]  # fmt: skip
            axes.errorbar(
                [x for x, _ in alive], middle, bars, fmt="o-", capsize=3, color=color, label=name
            )
        dead = [x for x, s in found if s.get("outcome") in ("killed", "refused")]
        if dead:
            axes.plot(
                dead, [0.02 + 0.03 * index] * len(dead), "x", color=color, label=f"{name}: killed",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
    machine = result["machine"]
    memory = machine["memory_bytes_per_s"] / result["model"]["matrix_bytes"]
    axes.axhline(memory, linestyle=":", color="gray", label="bound by memory")
    curve = [
        (point["ram_bytes"] / MIB, machine["drive_bytes_per_s"] / point["streamed_bytes"])
        for point in result.get("curve", [])
        if point["streamed_bytes"]
    ]
    below = [(x, y) for x, y in curve if y < 2 * memory]
    if below:
        axes.plot(*zip(*below, strict=True), "--", color="gray", label="bound by the drive")
    axes.set_yscale("log")
    axes.set_xlabel("budget of the process, MiB")
    axes.set_ylabel("tokens per second")
    axes.set_title(f"{result['model']['name']}, {result['threads']} threads")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return None
