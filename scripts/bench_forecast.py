"""`edge-rt plan` before the run against the run, over models, budgets and drives.

    python scripts/bench_forecast.py MODEL... [--ram 25%,50%,75%,100%] [--drives full,1G,200M]
        [--rounds 3] [--threads 2] [--ctx 1024] [--json OUT] [--learn]

For each model and budget the doctor measures first, into a cache of its own, without any limit.
Then, for each drive, `plan` and a run in a memory cgroup of the budget, both reading from a drive
that a cgroup slows down (blkio or io.max). The run decodes up to 64 tokens after a prompt of 32, at
least 16 and no more than fit into 12 seconds, then answers a prompt of 512; a cell's figures are
medians over the rounds, of which a drive slowed to less than half a gigabyte per second, being
steady, has one. Printed are the errors of speed, time to the first token and loading, and how often
the interval holds. Earlier runs correct later forecasts of the same model: here only with --learn.
Needs root for the cgroups; leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

N_BEFORE, N_DECODED, N_PROMPT = 32, 64, 512
N_LEAST, LONG_S = 20, 12.0  # steps that are made however long they take
N_SETTLING = 4  # the first steps find a ring that was filled in advance
STEADY = 500_000_000  # bytes per second of a drive that has no moods
PLAN_BYTES = 2 << 30  # of the cgroup that `plan` runs in
TIMEOUT_S = 1800.0
WHAT = {"tok_s": "decoding", "ttft_s": "first token", "load_s": "loading"}


def measure_here(model: str, ram: int, threads: int, ctx: int) -> dict[str, float]:
    """One run in this process."""
    from edge_rt import Engine

    rng = random.Random(1)
    with Engine(model, ram, threads=threads, ctx=ctx) as engine, engine._exclusive():
        ids = [rng.randrange(engine.n_vocab) for _ in range(N_PROMPT)]
        engine.prefill(ids[:N_BEFORE])
        before = engine.stats()["stall_ns"]
        times: list[float] = []
        for token in ids[N_BEFORE : N_BEFORE + N_DECODED]:
            if len(times) >= N_LEAST and sum(times) > LONG_S:
                break
            begin = time.perf_counter()
            engine.decode(token)
            times.append(time.perf_counter() - begin)
        steady = times[N_SETTLING:]
        stall_s = (engine.stats()["stall_ns"] - before) / 1e9
        engine.learn(len(steady), sum(steady), stall_s)
        engine.forget()
        begin = time.perf_counter()
        engine.prefill(ids[: min(N_PROMPT, ctx)])
        ttft = time.perf_counter() - begin
        return {"tok_s": len(steady) / sum(steady), "ttft_s": ttft, "load_s": engine.load_s}


class Bench:
    """Runs commands in cgroups with a cache of their own."""

    def __init__(self, args: argparse.Namespace, cache: Path) -> None:
        self.args = args
        self.rates = cache / "edge-rt/machine.json"
        # The package that is installed is meant, not a folder of that name here.
        self.environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONSAFEPATH": "1"}
        self.common = ["--threads", str(args.threads), "--ctx", str(args.ctx)]

    def run(self, command: list[str], model: str, limit: int, drive: int | None) -> Any:
        """The JSON that ``command`` prints, run cold and alone."""
        import cgroup

        done = cgroup.run(
            [sys.executable, *command],
            limit,
            model=Path(model),
            cold=True,
            read_bps=drive,
            env=self.environment,
            timeout_s=TIMEOUT_S,
        )
        if done.rc != 0:
            what = "was killed for its memory" if done.oom_killed else f"failed with {done.rc}"
            raise SystemExit(f"{' '.join(command)} {what}: {done.stderr[-500:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def doctor(self, model: str) -> None:
        command = ["-m", "edge_rt.apps.cli", "doctor", model, "--refresh", "--json"]
        self.run(command, model, PLAN_BYTES, None)
        # Formats and kinds of cache that the doctor leaves out are measured by the first plan.
        self.plan(model, 1 << 40, None)

    def plan(self, model: str, ram: int, drive: int | None) -> dict[str, Any]:
        command = ["-m", "edge_rt.apps.cli", "plan", model, "--ram", str(ram), "--json"]
        found: dict[str, Any] = self.run([*command, *self.common], model, PLAN_BYTES, drive)
        return found

    def cell(self, model: str, ram: int, drive: int | None) -> dict[str, Any]:
        """Forecast and measurement of one model, budget and drive."""
        before = self.rates.read_bytes()
        plan = self.plan(model, ram, drive)
        command = [__file__, "--child", model, "--ram", str(ram), *self.common]
        n_rounds = 1 if drive and drive < STEADY else self.args.rounds
        runs = [self.run(command, model, ram, drive) for _ in range(n_rounds)]
        if not self.args.learn:
            self.rates.write_bytes(before)
        measured = {name: statistics.median(run[name] for run in runs) for name in WHAT}
        return {
            "model": Path(model).name,
            "ram_bytes": ram,
            "drive_bytes_s": drive,
            "forecast": plan["forecast"],
            "streamed_bytes": plan["streamed_bytes_per_token"],
            "measured": measured,
            "runs": runs,
        }


def error(row: dict[str, Any], name: str) -> float:
    """Forecast over measured, less one."""
    return float(row["forecast"][name] / row["measured"][name] - 1)


def holds(row: dict[str, Any], name: str) -> bool:
    forecast = row["forecast"]
    return bool(forecast[f"{name}_low"] <= row["measured"][name] <= forecast[f"{name}_high"])


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each figure: median and worst error, and the share of intervals that hold."""
    return {
        name: {
            "median_error": statistics.median(abs(error(row, name)) for row in rows),
            "worst_error": max(abs(error(row, name)) for row in rows),
            "interval_holds": sum(holds(row, name) for row in rows) / len(rows),
        }
        for name in WHAT
    }


def line(row: dict[str, Any]) -> str:
    forecast, drive = row["forecast"], row["drive_bytes_s"]
    cells = [
        row["model"],
        f"{row['ram_bytes'] / 2**20:.0f} MiB",
        f"{drive / 1e9:.1f} GB/s" if drive else "full",
        f"{forecast['tok_s_low']:.2f} {forecast['tok_s']:.2f} {forecast['tok_s_high']:.2f}",
        f"{row['measured']['tok_s']:.2f}",
        forecast["bound"],
        *(f"{100 * error(row, name):+.0f} %{'' if holds(row, name) else ' out'}" for name in WHAT),
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| model | budget | drive | forecast, tok/s | measured | bound | error | first token | load |"
    "\n|---|---|---|---|---|---|---|---|---|"
)


def speeds(text: str) -> list[int | None]:
    """``full,1G,200M`` as bytes per second."""
    from edge_rt.sizes import parse_size

    return [None if part == "full" else parse_size(part) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--ram", default="25%,50%,75%,100%")
    parser.add_argument("--drives", default="full,1G,200M", type=speeds)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--learn", action="store_true", help="let earlier runs correct forecasts")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure_here(args.child, int(args.ram), args.threads, args.ctx)))
        return 0
    import cgroup

    if reason := cgroup.available():
        raise SystemExit(f"cgroups are needed: {reason}")
    from edge_rt.apps.bench import budgets
    from edge_rt.opening import make_settings, open_planner

    print(f"command: {' '.join(sys.argv)}\n{HEAD}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        for model in args.models:
            _, planner, _ = open_planner(model)
            floor, _ = planner.floor(make_settings(planner, 1 << 50, args.ctx, args.threads))
            for ram in budgets(args.ram, floor, planner.weight_bytes):
                bench.doctor(model)
                for drive in args.drives:
                    rows.append(bench.cell(model, ram, drive))
                    print(line(rows[-1]), flush=True)
    total = summary(rows)
    for name, what in WHAT.items():
        found = total[name]
        print(
            f"{what}: median error {100 * found['median_error']:.1f} %, worst "
            f"{100 * found['worst_error']:.1f} %, interval holds in "
            f"{100 * found['interval_holds']:.0f} % of {len(rows)}"
        )
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "summary": total}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
