"""The matmul kernels against the machine: GB/s of decoding and Gop/s of prefill for each format.

    python scripts/bench_kernels.py [--formats Q4_0,Q4_K] [--threads 1,2] [--tokens 64,256]
        [--isa auto] [--mib 128] [--cols 3072] [--rounds 5] [--clock processor] [--json FILE]

Builds ``kernels_bench`` of kernels/kernels_bench.cc below build/native and runs it. The ceiling is
what plain loads get out of a buffer of ``--mib`` MiB, measured in every round beside the kernels:
make that larger than the last-level cache. ``--clock processor`` counts processor time instead of
time, for machines where others compute as well (bandwidth is shared all the same).
docs/kernels.md has results and what the kernels below the ceiling do with their time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "native"
FORMATS = {
    "F32": 0, "F16": 1, "BF16": 30, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23,
    "MXFP4": 39, "TQ1_0": 34, "TQ2_0": 35, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ2_S": 22,
    "IQ3_XXS": 18, "IQ3_S": 21, "IQ1_S": 19, "IQ1_M": 29,
}  # fmt: skip
NAMES = {number: name for name, number in FORMATS.items()}
MOST = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS",
        "IQ4_NL", "MXFP4", "F16", "BF16")  # fmt: skip


def build() -> Path:
    """The path of the native benchmark, up to date."""
    cmake = shutil.which("cmake")
    if cmake is None:
        raise SystemExit("bench_kernels needs cmake: pip install cmake ninja")
    generator = "Ninja" if shutil.which("ninja") else "Unix Makefiles"

    def run(*arguments: str) -> None:
        subprocess.run([cmake, *arguments], check=True, stdout=subprocess.DEVNULL)

    if not (BUILD / "CMakeCache.txt").exists():
        run("-S", str(ROOT), "-B", str(BUILD), "-G", generator, "-DEDGE_RT_TESTS=ON",
            "-DCMAKE_BUILD_TYPE=Release")  # fmt: skip
    run("--build", str(BUILD), "--target", "kernels_bench")
    return BUILD / "kernels" / "kernels_bench"


def measure(binary: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each thing that was measured: its keys, the median, the lowest, the highest."""
    formats = [FORMATS[name] for name in args.formats.split(",")]
    command = [
        str(binary), "--formats", ",".join(map(str, formats)), "--threads", args.threads,
        "--tokens", f"1,{args.tokens}" if args.tokens else "1", "--isa", args.isa,
        "--mib", str(args.mib), "--cols", str(args.cols), "--rounds", str(args.rounds),
        "--clock", args.clock,
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rates: dict[str, list[float]] = defaultdict(list)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            rate = found.pop("rate")
            rates[json.dumps(found)].append(rate)
    rows = []
    for keys, values in rates.items():
        row = json.loads(keys)
        row["format"] = NAMES[row["format"]]
        row |= {"median": statistics.median(values), "low": min(values), "high": max(values)}
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], threads: list[int], tokens: list[int]) -> str:
    """Markdown: a line for each format."""
    found = {
        (r["kind"], r["format"], r.get("layout", ""), r.get("tokens", 0), r["threads"]): r["median"]
        for r in rows
    }
    heads, cells = ["format"], []
    for n in threads:
        heads += [f"read {n}T", f"file {n}T", f"interleaved {n}T", "of the ceiling"]
        heads += [f"{t} tokens {n}T Gop/s" for t in tokens]
    for name in dict.fromkeys(r["format"] for r in rows):
        line = [name]
        for n in threads:
            ceiling = found["read", name, "", 0, n]
            plain = found["gemv", name, "file", 1, n]
            best = found.get(("gemv", name, "interleaved", 1, n))
            line += [f"{ceiling:.1f}", f"{plain:.1f}", f"{best:.1f}" if best else "-"]
            line.append(f"{100 * (best or plain) / ceiling:.0f} %")
            for t in tokens:
                rate = found.get(("gemm", name, "interleaved", t, n))
                line.append(f"{rate or found['gemm', name, 'file', t, n]:.0f}")
        cells.append(line)
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--formats", default=",".join(MOST))
    parser.add_argument(
        "--threads", default=",".join(str(n) for n in sorted({1, os.cpu_count() or 1}))
    )
    parser.add_argument("--tokens", default="128", help="of prefill; empty: decoding only")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--cols", type=int, default=3072)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    unknown = [name for name in args.formats.split(",") if name not in FORMATS]
    if unknown:
        parser.error(f"no such format: {', '.join(unknown)}; known are {', '.join(FORMATS)}")
    rows = measure(build(), args)
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args) | {"json": None}, "rows": rows}))
    tokens = [int(t) for t in args.tokens.split(",") if t]
    print(table(rows, [int(n) for n in args.threads.split(",")], tokens))
    return 0


if __name__ == "__main__":
    sys.exit(main())
