"""Decode speed against llama.cpp in the same memory cgroup, interleaved, on the same token ids.

    python scripts/bench_llama_cpp.py MODEL.gguf --tokens IDS.npy --peer-python
    BENCH_VENV/bin/python
        [--ram 50%] [--n 24] [--rounds 3] [--repack] [--json]

A and B alternate ``--rounds`` times in cgroups of the same size, cold, without swap; medians and
their ratio are printed. A peer that fails for any reason but the kill is an error, not a ratio. ``P
%`` is our floor plus P % of the weights. Needs root for the cgroups.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MIB = 1 << 20


def ours(args: argparse.Namespace, ram: int, ids: Path) -> dict[str, Any]:
    import cgroup

    command = [
        sys.executable, "-m", "edge_rt.apps.cli", "bench", args.model, "--ram", str(ram),
        "--ctx", str(args.ctx), "--threads", str(args.threads), "--tokens", str(ids), "--json",
    ]  # fmt: skip
    done = cgroup.run(command, ram, model=Path(args.model), cold=True, timeout_s=1800)
    if done.rc != 0:
        raise SystemExit(f"edge-rt failed with {done.rc}: {done.stderr[-500:]}")
    row = json.loads(done.stdout)["rows"][0]
    steady = row["token_ms"][1:]
    return {"tok_s": 1e3 * len(steady) / sum(steady), "held_bytes": done.held_bytes}


def theirs(args: argparse.Namespace, ram: int, ids: Path, n: int) -> dict[str, Any]:
    import cgroup

    command = [
        args.peer_python, str(HERE / "peer_llama.py"), "decode", args.model, "--n", str(n),
        "--threads", str(args.threads), "--tokens", str(ids),
        "--repack" if args.repack else "--no-repack",
    ]  # fmt: skip
    done = cgroup.run(command, ram, model=Path(args.model), cold=True, timeout_s=1800)
    if done.oom_killed:
        return {"tok_s": None, "held_bytes": done.held_bytes}
    if done.rc != 0:
        raise SystemExit(f"llama.cpp failed with {done.rc}: {done.stderr[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {"tok_s": found["tok_s"], "held_bytes": done.held_bytes}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--ram", default="50%")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repack", action="store_true", help="let llama.cpp repack its weights")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    import tempfile

    import numpy as np

    from edge_rt.apps.bench import budgets, read_ids
    from edge_rt.engine import make_settings, open_planner

    _, planner, _ = open_planner(args.model)
    floor, _ = planner.floor(make_settings(planner, 1 << 50, args.ctx, args.threads))
    print(f"command: {' '.join(sys.argv)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder, "ids.npy")
        np.save(ids, np.array(read_ids(args.tokens)[: args.n], np.int32))
        for ram in budgets(args.ram, floor, planner.weight_bytes):
            a, b = [], []
            for _ in range(args.rounds):
                a.append(ours(args, ram, ids))
                b.append(theirs(args, ram, ids, args.n))
            ours_s = statistics.median(r["tok_s"] for r in a)
            killed = any(r["tok_s"] is None for r in b)
            peer_s = None if killed else statistics.median(r["tok_s"] for r in b)
            rows.append({"ram_bytes": ram, "ours": a, "llama_cpp": b})
            ratio = f"{ours_s / peer_s:.2f}x" if peer_s else "llama.cpp was killed"
            print(
                f"{ram / MIB:8.0f} MiB  edge-rt {ours_s:7.2f} tok/s  llama.cpp "
                f"{'killed' if killed else f'{peer_s:7.2f} tok/s'}  {ratio}",
                flush=True,
            )
    if args.json:
        print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
