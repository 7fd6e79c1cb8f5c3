"""edge-rt and llama.cpp on the same file, in memory cgroups of the same size, in turns, cold.

    python scripts/bench_vs_llamacpp.py MODEL.gguf --peer-python BENCH_VENV/bin/python
        [--mode decode,prompt,start] [--ram resident,75%+150MiB,50%+150MiB,25%+150MiB]
        [--threads 2] [--rounds 5] [--n 64] [--throttle 200MB/s] [--out FOLDER]

Budgets: a SIZE; ``P%+SIZE``, a share of the file and SIZE, for the whole process; ``P%``, our
floor and a share of the weights, as ``edge-rt bench`` has it; ``resident``, where we get 1.1 times
the file and 100 MiB and the peer as much as its repacked copy wants. Without swap; the page cache
of the model is dropped before each run; ``--throttle`` bounds reads from its drive, for both.

Modes: ``decode``, steps that are teacher-forced on the same ids (``--tokens IDS.npy``, or made
up); ``prompt``, 512 tokens at once, the first time after loading and again; ``start``, a process
from its start to its first byte of text. Each round runs every system once, in another order.

llama.cpp runs with what it does by itself (weights mapped and repacked), without repacking, and
without mapping. To be killed for its memory is a result; to fail in any other way, or to take
longer than ``--timeout``, ends the benchmark with an error: a peer that fails is no ratio. Ratios
are to the fastest setting that survives. Needs root, for the cgroups; writes FOLDER/result.json,
result.md and, with matplotlib, speed.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import signal
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench_report
import ceilings
import cgroup

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
OURS = "edge-rt"
PEERS = {
    "llama.cpp": ["--mmap", "--repack"],
    "llama.cpp, no repacking": ["--mmap", "--no-repack"],
    "llama.cpp, no mapping": ["--no-mmap", "--repack"],
}
# The package that is installed is meant, not a folder of that name here.
OUR_ENVIRONMENT = os.environ | {"PYTHONSAFEPATH": "1"}
# The number that a mode is about, and whether more of it is better.
METRIC = {"decode": ("tok_s", True), "prompt": ("prefill_tok_s", True), "start": ("first_s", False)}


class Failed(SystemExit):
    """A run that is no result."""


@dataclass(frozen=True)
class Budget:
    """``ram_bytes``: ours, and our cgroup's limit; ``peer_bytes``: the peer's limit."""

    label: str
    ram_bytes: int
    peer_bytes: int


def budget_of(label: str, file_bytes: int, floor: int, weight_bytes: int) -> Budget:
    """What a word of ``--ram`` means; raises `Failed` for other words."""
    from edge_rt.apps.bench import budgets
    from edge_rt.errors import EdgeRTError
    from edge_rt.sizes import parse_size

    if label == "resident":
        ours = file_bytes * 11 // 10 + 100 * MIB
        return Budget(label, ours, 3 * file_bytes + 1024 * MIB)
    try:
        share = re.fullmatch(r"([\d.]+)%\+(.+)", label)
        if share:
            size = int(float(share[1]) / 100 * file_bytes) + parse_size(share[2])
        else:
            (size,) = budgets(label, floor, weight_bytes)
    except (EdgeRTError, ValueError) as error:
        raise Failed(f"--ram {label}: {error}") from None
    return Budget(label, size, size)


def rate_of(text: str) -> int:
    """``200MB/s`` or ``1GiB/s`` as bytes per second."""
    from edge_rt.errors import EdgeRTError
    from edge_rt.sizes import parse_size

    try:
        return parse_size(text.removesuffix("/s"))
    except EdgeRTError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class Bench:
    """One model, one set of options: runs and what they gave."""

    def __init__(self, args: argparse.Namespace, ids: Path) -> None:
        self.args, self.ids, self.model = args, ids, Path(args.model)

    def _run(
        self, command: list[str], limit: int, env: dict[str, str] | None = None
    ) -> cgroup.Result:
        args = self.args
        done = cgroup.run(
            command, limit, model=self.model, cold=args.drop == "all", read_bps=args.throttle,
            timeout_s=args.timeout, env=env,
        )  # fmt: skip
        if done.timed_out:
            raise Failed(f"more than {args.timeout:.0f} s: {shlex.join(command)}")
        return done

    def drive_rate(self) -> float:
        """Bytes per second that the model's drive gives now."""
        args = self.args
        rate = args.drive_rate or ceilings.drive_rate(self.model, 0.7)
        return min(rate, args.throttle or rate)

    def ours(self, mode: str, budget: Budget) -> dict[str, Any]:
        """One run of edge-rt: ``outcome`` is ok, killed or refused."""
        args = self.args
        common = [
            "--ram", str(budget.ram_bytes), "--ctx", str(args.ctx), "--threads", str(args.threads),
        ]  # fmt: skip
        tool = [sys.executable, "-m", "edge_rt.apps.cli"]
        commands = {
            "decode": ["bench", args.model, "--tokens", str(self.ids), "--prompt", "0", "--json"],
            "prompt": [
                "bench", args.model, "--prompt", str(args.prompt), "-n", "1", "--warmup", "0",
                "--json",
            ],
            "start": ["generate", args.model, "-p", args.text, "-n", "1"],
        }  # fmt: skip
        command = [*tool, *commands[mode], *common]
        done = self._run(command, budget.ram_bytes, OUR_ENVIRONMENT)
        if done.oom_killed or done.rc == 3:
            return outside(done) | {"outcome": "killed" if done.oom_killed else "refused"}
        if done.rc:
            raise Failed(f"edge-rt ended with {done.rc}: {done.stderr[-500:]}")
        run = outside(done) | {"outcome": "ok"}
        if mode == "start":
            return run | {"first_s": done.first_output_s}
        row = json.loads(done.stdout)["rows"][0]
        names = {
            "resident_bytes", "load_s", "ttft_s", "prefill_tok_s", "flash_bytes_per_token",
            "stall_s", "cpu_s_per_token", "logits_sha256", "token_ms", "token_ms_quartiles",
        }  # fmt: skip
        run |= {name: row[name] for name in names & row.keys()}
        return run | {"tok_s": row["decode_tok_s"]}

    def theirs(self, mode: str, budget: Budget, setting: list[str]) -> dict[str, Any]:
        """One run of llama.cpp: ``outcome`` is ok or killed."""
        args = self.args
        commands = {
            "decode": ["decode", args.model, "--n", str(args.n), "--tokens", str(self.ids)],
            "prompt": ["prompt", args.model, "--n", str(args.prompt)],
            "start": ["first", args.model, "--text", args.text],
        }
        command = [
            args.peer_python, str(HERE / "peer_llama.py"), *commands[mode], *setting,
            "--threads", str(args.threads), "--ctx", str(args.ctx),
        ]  # fmt: skip
        done = self._run(command, budget.peer_bytes)
        if done.oom_killed:
            return outside(done) | {"outcome": "killed"}
        if done.rc:
            raise Failed(f"llama.cpp ended with {done.rc}: {done.stderr[-500:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        run = outside(done) | {"outcome": "ok", **found}
        return run | ({"first_s": done.first_output_s} if mode == "start" else {})

    def cell(self, mode: str, budget: Budget, systems: list[str]) -> dict[str, Any]:
        """All rounds of one mode at one budget. What was killed is not tried again."""
        args = self.args
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
        report: dict[str, Any] = {"mode": mode, **asdict(budget), "runs": runs}
        if mode == "decode":
            report["forecast"] = self.plan(budget.ram_bytes).get("forecast")
        for index in range(args.rounds):
            turn = index % len(systems)
            for name in systems[turn:] + systems[:turn]:
                if runs[name] and runs[name][0]["outcome"] != "ok":
                    continue
                say(f"{mode}, {budget.label}, round {index + 1} of {args.rounds}: {name}")
                if name == OURS:
                    before = self.drive_rate()
                    found = self.ours(mode, budget)
                    # What a drive gives changes within minutes where others use it, too.
                    found["drive_bytes_per_s"] = (before + self.drive_rate()) / 2
                else:
                    found = self.theirs(mode, budget, PEERS[name])
                if runs[name] and found["outcome"] != "ok":
                    raise Failed(f"{name} at {budget.label}: {found['outcome']} in a later round")
                runs[name].append(found)
        report["summary"] = summary(mode, runs)
        return report

    def plan(self, ram: int) -> dict[str, Any]:
        """What ``edge-rt plan`` says beforehand."""
        args = self.args
        command = [
            sys.executable, "-m", "edge_rt.apps.cli", "plan", args.model, "--ram", str(ram),
            "--ctx", str(args.ctx), "--threads", str(args.threads), "--json",
        ]  # fmt: skip
        done = self._run(command, max(ram, 256 * MIB), OUR_ENVIRONMENT)
        if done.rc not in (0, 3):
            raise Failed(f"edge-rt plan ended with {done.rc}: {done.stderr[-500:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def outside(done: cgroup.Result) -> dict[str, Any]:
    """What the runner measured of a process."""
    return {
        "wall_s": done.wall_s,
        "held_bytes": done.held_bytes,
        "cpu_s": done.cpu_s,
        "major_faults": done.major_faults,
        "read_bytes": done.read_bytes,
        "limit_bytes": done.limit_bytes,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return dict.fromkeys(("median", "q1", "q3"), values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high}


def summary(mode: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Per system its outcome and spread; ``ratio``: how many times as fast we are as the best peer
    that survives, of medians, and of the rounds one by one."""
    metric, more = METRIC[mode]
    systems: dict[str, Any] = {}
    for name, found in runs.items():
        if not found:
            continue
        ok = [r for r in found if r["outcome"] == "ok"]
        systems[name] = {"outcome": found[0]["outcome"]}
        if ok:
            systems[name] |= spread([r[metric] for r in ok])
            systems[name]["held_bytes"] = max(r["held_bytes"] for r in ok)
            for key in (
                "flash_bytes_per_token", "cpu_s_per_token", "ttft_s", "major_faults",
                "drive_bytes_per_s",
            ):  # fmt: skip
                if key in ok[0]:
                    systems[name][key] = statistics.median(r[key] for r in ok)
    alive = {n: s["median"] for n, s in systems.items() if "median" in s and n != OURS}
    best = (max if more else min)(alive, key=alive.__getitem__, default=None)
    report: dict[str, Any] = {
        "metric": metric,
        "systems": systems,
        "best_peer": best,
        "ratio": None,
    }
    if best is not None and "median" in systems.get(OURS, {}):
        pairs = zip(runs[OURS], runs[best], strict=True)
        ratios = [a[metric] / b[metric] if more else b[metric] / a[metric] for a, b in pairs]
        ours, theirs = systems[OURS]["median"], alive[best]
        report["ratio"] = ours / theirs if more else theirs / ours
        report["ratios"] = spread(ratios)
    return report


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Where it ran, and the ceilings of its drive and its memory in bytes per second."""
    names = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    drive = args.drive_rate or ceilings.drive_rate(Path(args.model))
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "drive_bytes_per_s": min(drive, args.throttle or drive),
        "memory_bytes_per_s": args.memory_rate or ceilings.memory_rate(args.threads),
        "throttle": args.throttle,
        "load_before": os.getloadavg()[0],
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument(
        "--peer-python", help="one with llama-cpp-python 0.3.36; without: ours only"
    )
    parser.add_argument("--peers", default=",".join("012"[: len(PEERS)]), metavar="0,1,2",
                        help="settings of llama.cpp: " + "; ".join(PEERS))  # fmt: skip
    parser.add_argument("--mode", default="decode", help="decode, prompt, start; several by commas")
    parser.add_argument("--ram", default="resident,75%+150MiB,50%+150MiB,25%+150MiB")
    parser.add_argument("--tokens", type=Path, metavar="IDS.npy")
    parser.add_argument("--n", type=int, default=64, help="steps of decode")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of prompt")
    parser.add_argument("--text", default="Once upon a time", help="the prompt of start")
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--throttle", type=rate_of, metavar="SIZE/s", help="200MB/s, 1GB/s")
    parser.add_argument("--drop", choices=["model", "all"], default="model",
                        help="the page cache to drop before each run")  # fmt: skip
    parser.add_argument("--drive-rate", type=rate_of, metavar="SIZE/s", help="instead of measuring")
    parser.add_argument(
        "--memory-rate", type=rate_of, metavar="SIZE/s", help="instead of measuring"
    )
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="S", help="of one run")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="result.json, .md, speed.png")
    args = parser.parse_args()
    modes = args.mode.split(",")
    if not set(modes) <= METRIC.keys():
        parser.error(f"--mode is {args.mode}: choose of {', '.join(METRIC)}")
    for mode, n in (("decode", args.n), ("prompt", args.prompt)):
        if mode in modes and not 1 <= n <= args.ctx:
            parser.error(f"{mode} of {n} tokens does not fit --ctx {args.ctx}")
    if args.rounds < 1:
        parser.error("--rounds is at least 1")
    args.model = str(Path(args.model).resolve())
    if not Path(args.model).is_file():
        parser.error(f"no such file: {args.model}")
    return args


def main() -> int:
    args = parse()
    reason = cgroup.available()
    if reason:
        say(f"NO MEMORY CGROUP, so nothing can be compared: {reason}")
        return 2
    cgroup.remove_left_behind()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # groups are removed on the way
    import numpy as np

    from edge_rt.apps.bench import read_ids
    from edge_rt.opening import make_settings, open_planner

    _, planner, _ = open_planner(args.model)
    floor, _ = planner.floor(make_settings(planner, 1 << 50, args.ctx, args.threads))
    file_bytes = os.stat(args.model).st_size
    budgets = [
        budget_of(label.strip(), file_bytes, floor, planner.weight_bytes)
        for label in args.ram.split(",")
    ]
    n_vocab = planner.program.n_vocab
    made_up = [i * 7919 % n_vocab for i in range(1, args.n + 1)]
    ids = read_ids(args.tokens)[: args.n] if args.tokens else made_up
    args.n = len(ids)
    chosen = [list(PEERS)[int(i)] for i in args.peers.split(",")] if args.peer_python else []
    result: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "model": {"name": Path(args.model).name, "bytes": file_bytes,
                  "matrix_bytes": sum(m.n_bytes for m in planner.program.matrices)},
        "threads": args.threads, "ctx": args.ctx, "tokens": args.n, "rounds": args.rounds,
        "drop": args.drop, "machine": machine(args), "cells": [],
    }  # fmt: skip
    del planner
    if result["machine"]["load_before"] > bench_report.BUSY:
        say(f"OTHER WORK IS RUNNING (load {os.getloadavg()[0]:.1f}): ratios will be wrong")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ids.npy")
        np.save(path, np.array(ids, np.int32))
        bench = Bench(args, path)
        for mode in args.mode.split(","):
            for budget in budgets:
                result["cells"].append(bench.cell(mode, budget, [OURS, *chosen]))
                print(bench_report.line(result["cells"][-1]), flush=True)
        if "decode" in args.mode:
            low, high = (f(b.ram_bytes for b in budgets) for f in (min, max))
            result["curve"] = [
                {"ram_bytes": ram, "streamed_bytes": found["streamed_bytes_per_token"]}
                for ram in bench_report.grid(max(low, floor), high)
                if (found := bench.plan(ram))["fits"]
            ]
    result["machine"]["load_after"] = os.getloadavg()[0]
    text = bench_report.markdown(result)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "result.json").write_text(json.dumps(result, indent=1))
        (args.out / "result.md").write_text(text)
        if "decode" in args.mode and (why := bench_report.plot(result, args.out / "speed.png")):
            say(f"NO PLOT: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
