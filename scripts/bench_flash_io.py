"""Random direct reads through our readers against fio with the same backend, interleaved.

    python scripts/bench_flash_io.py [--file PATH] [--rounds 5] [--seconds 1]
        [--fio-memory malloc] [--json OUT]

For each request size and depth: `pread` against fio's psync with as many threads, `uring` against
fio's io_uring with registered buffers and files. A cell is the median over the rounds of the ratio
of one run of ours to the run of fio's beside it; the second table has a second run of fio's in our
place: what it differs from 1 is the drive's mood. We read into huge pages, as the runtime does, and
fio into pages of 4 KiB, unless it is told otherwise (--fio-memory shmhuge, which needs
/proc/sys/vm/nr_hugepages). Needs fio; makes a file of 2 GiB if none is given.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from edge_rt.flash_io._flash_io import File, measure_reads, why_no_uring
from edge_rt.sizes import KIB, MIB

SIZES = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB)
DEPTHS = (1, 2, 4, 8, 16, 32)
FIO = {
    "pread": ["--ioengine=psync", "--thread", "--group_reporting"],
    "uring": ["--ioengine=io_uring", "--fixedbufs", "--registerfiles"],
}


def fio(path: Path, memory: str, backend: str, size: int, depth: int, seconds: float) -> float:
    """Bytes per second that fio reads."""
    jobs = {"pread": f"--numjobs={depth}", "uring": f"--iodepth={depth}"}
    command = [
        "fio", "--name=x", f"--filename={path}", "--readonly", "--direct=1", "--rw=randread",
        "--norandommap", "--randrepeat=0", f"--bs={size}", "--time_based", "--output-format=json",
        f"--runtime={round(seconds * 1000)}ms", f"--mem={memory}", *FIO[backend], jobs[backend],
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(run.stdout)["jobs"][0]["read"]["bw_bytes"])


def ours(
    file: File, backend: str, size: int, depth: int, seconds: float, seed: int
) -> tuple[float, float]:
    """Bytes per second that we read, and processor seconds per GB."""
    rate = measure_reads(file, backend, size, depth, seconds, seed)
    return rate["bytes"] / rate["seconds"], rate["cpu_seconds"] / (rate["bytes"] / 1e9)


def in_turn(turn: int, *runs: Callable[[], Any]) -> list[Any]:
    """The results in the order of `runs`, which begin with another one every turn."""
    order = [(turn + i) % len(runs) for i in range(len(runs))]
    results = {i: runs[i]() for i in order}
    return [results[i] for i in range(len(runs))]


def measure(path: Path, rounds: int, seconds: float, memory: str) -> list[dict[str, Any]]:
    file = File([path])
    if not file.direct:
        sys.exit(f"{path} cannot be read past the page cache: fio and we would measure memory")
    backends = ["pread"]
    if reason := why_no_uring(file):
        print(f"uring is left out: {reason}", file=sys.stderr)
    else:
        backends.append("uring")
    cells: dict[tuple[str, int, int], list[tuple[float, float, float, float]]] = {}
    for turn in range(rounds):
        for size in SIZES:
            for depth in DEPTHS:
                for backend in backends:
                    # The order takes turns: caches and the drive's mood do, too.
                    theirs, (rate, cpu), control = in_turn(
                        turn,
                        partial(fio, path, memory, backend, size, depth, seconds),
                        partial(ours, file, backend, size, depth, seconds, turn + 1),
                        partial(fio, path, memory, backend, size, depth, seconds),
                    )
                    cells.setdefault((backend, size, depth), []).append(
                        (rate, theirs, control, cpu)
                    )
        print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    return [
        {
            "backend": backend,
            "request_bytes": size,
            "depth": depth,
            "bytes_s": statistics.median(r for r, _, _, _ in runs),
            "fio_bytes_s": statistics.median(f for _, f, _, _ in runs),
            "ratio": statistics.median(r / f for r, f, _, _ in runs),
            "control_ratio": statistics.median(c / f for _, f, c, _ in runs),
            "cpu_s_per_gb": statistics.median(c for _, _, _, c in runs),
        }
        for (backend, size, depth), runs in cells.items()
    ]


def table(rows: list[dict[str, Any]], rate: str, ratio: str) -> str:
    lines = []
    for backend in dict.fromkeys(row["backend"] for row in rows):
        lines.append(f"{backend}: MB/s (ratio to fio), by depth")
        lines.append(f"{'request':>9}" + "".join(f"{depth:>15}" for depth in DEPTHS))
        for size in SIZES:
            cells = [r for r in rows if r["backend"] == backend and r["request_bytes"] == size]
            lines.append(
                f"{size // KIB:>5} KiB"
                + "".join(f"{c[rate] / 1e6:>8.0f} ({c[ratio]:.2f})" for c in cells)
            )
        ratios = [row[ratio] for row in rows if row["backend"] == backend]
        low = sum(r < 0.95 for r in ratios)
        lines.append(
            f"ratio: median {statistics.median(ratios):.2f}, least {min(ratios):.2f}; "
            f"{low} of {len(ratios)} below 0.95\n"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--fio-memory", default="malloc")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = options.file
        if path is None:
            path = Path(folder) / "data"
            with path.open("wb") as file:
                for _ in range(128):
                    file.write(os.urandom(16 * MIB))
                os.fsync(file.fileno())
        rows = measure(path, options.rounds, options.seconds, options.fio_memory)
    print(table(rows, "bytes_s", "ratio"))
    print("fio against fio")
    print(table(rows, "fio_bytes_s", "control_ratio"))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
