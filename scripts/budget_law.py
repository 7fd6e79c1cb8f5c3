"""The budget law, measured from outside: one run per budget in a memory cgroup of exactly that
size.

    python scripts/budget_law.py MODEL ... [--tokens IDS.npy] --ram floor,96MiB,50% [--ctx 512]
        [--decode 256] [--peer-python BENCH_VENV/bin/python] [--user nobody] [--memlock 64KiB]
        [--json]

A MODEL is a GGUF or a folder; without ``--tokens`` its tokens are made up, as many as ``--ctx``.
One of each architecture, a few tens of MiB large:

    for arch in llama qwen2 qwen3 gemma gemma2 gemma3_text phi3 smollm3 olmo2 olmo3 granite; do
        python scripts/make_model.py --arch $arch --layers 8 --hidden 512 --ffn 1536 --heads 8 \\
            --kv-heads 2 --head-dim 64 --vocab 16384 --window 96 --format Q8_0 $arch.gguf; done

Every run is cold (page cache of the model dropped), without swap, and prints the digest of the
logits of all teacher-forced tokens, computed in passes as large as the budget allows, and of the
first ``--decode`` of them one token at a time. The first budget is run again with one thread and
with the scalar kernels; the last one once more in a larger cgroup, to see the page cache of the
model file. ``P %`` is the floor plus P % of the weights. With ``--peer-python`` llama.cpp (mmap, no
repacking) is tried at the same limits. Needs root for the cgroups.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MIB = 1 << 20


def child(args: argparse.Namespace) -> None:
    """Inside the cgroup: digests of the logits in passes and token by token."""
    import edge_rt.apps.cli  # noqa: F401  the same start-up as the command line
    from edge_rt import BudgetError, Engine
    from edge_rt.apps.bench import read_ids, sha256

    try:
        engine = Engine(args.model, args.ram, ctx=args.ctx, threads=args.threads)
    except BudgetError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    with engine:
        made_up = ((i * 7919) % (engine.n_vocab - 300) + 300 for i in range(args.ctx))
        ids = read_ids(args.tokens) if args.tokens else list(made_up)
        whole, prefix = sha256(), ""
        for index, row in engine.score_rows(ids, 0):
            whole.update(engine.logits_bytes(row))
            if index == args.decode - 1:
                prefix = whole.hexdigest()
        engine.forget()
        steps, before = sha256(), engine.stats()
        started = time.perf_counter()
        for token in ids[: args.decode]:
            engine.decode(token)
            steps.update(engine.logits_bytes())
        seconds = time.perf_counter() - started
        flash = engine.stats()["flash_bytes"] - before["flash_bytes"]
        result = {
            "sha256": whole.hexdigest(),
            "steps_agree": steps.hexdigest() == prefix,
            "pass_tokens": engine.plan.pass_tokens,
            "resident_bytes": engine.plan.resident_bytes,
            "tok_s": args.decode / seconds,
            "flash_gb_s": flash / seconds / 1e9,
            "memory": engine.memory(),
        }
    print(json.dumps(result))


def measure(args: argparse.Namespace, ram: int, **change: Any) -> dict[str, Any]:
    """One run of this script's child in a cgroup of ``limit`` (default ``ram``) bytes."""
    import cgroup

    threads = change.get("threads", args.threads)
    command = [
        sys.executable, str(HERE / "budget_law.py"), args.model, "--child",
        "--ram", str(ram), "--ctx", str(args.ctx),
        "--decode", str(args.decode), "--threads", str(threads),
    ]  # fmt: skip
    command += ["--tokens", str(args.tokens)] if args.tokens else []
    os.environ["EDGE_RT_ISA"] = change.get("isa", "auto")
    try:
        command = cgroup.as_chosen(args, command, Path(args.model), args.tokens)
        done = cgroup.run(
            command, change.get("limit", ram), model=Path(args.model), cold=True, timeout_s=3000
        )
    finally:
        del os.environ["EDGE_RT_ISA"]
    row = {
        "ram_bytes": ram,
        "limit_bytes": change.get("limit", ram),
        "threads": threads,
        "isa": change.get("isa", "auto"),
        "rc": done.rc,
        "oom_killed": done.oom_killed,
        "held_bytes": done.held_bytes,
        "kernel_bytes": done.kernel_peak_bytes,
        "cgroup_peak_bytes": done.cgroup_peak_bytes,
        "model_cache_bytes": done.model_cache_peak_bytes,
    }
    if done.rc == 0:
        row |= json.loads(done.stdout)
    elif done.rc != 3:
        row["error"] = done.stderr[-400:]
    return row


def peer(args: argparse.Namespace, ram: int) -> dict[str, Any]:
    """llama.cpp at the same limit: its speed, or how it ended."""
    import cgroup

    command = [
        args.peer_python, str(HERE / "peer_llama.py"), "decode", args.model, "--n", "8",
        "--threads", str(args.threads), "--tokens", str(args.tokens), "--no-repack",
    ]  # fmt: skip
    done = cgroup.run(command, ram, model=Path(args.model), cold=True, timeout_s=900)
    speed = json.loads(done.stdout.splitlines()[-1])["tok_s"] if done.rc == 0 else None
    return {"limit_bytes": ram, "rc": done.rc, "oom_killed": done.oom_killed, "tok_s": speed}


def report(row: dict[str, Any]) -> None:
    ok = row["rc"] == 0
    outcome = "KILLED" if row["oom_killed"] else "ok" if ok else f"exit {row['rc']}"
    held = row["held_bytes"] / MIB
    print(
        f"{row['ram_bytes'] / MIB:9.1f} {row['limit_bytes'] / MIB:9.1f} {row['threads']:3d}"
        f" {row['isa']:>5} {outcome:>7} {held:8.1f} {row['cgroup_peak_bytes'] / MIB:8.1f}"
        f" {(row['model_cache_bytes'] or 0) / MIB:6.2f}"
        + (
            f" {row['pass_tokens']:4d} {row['tok_s']:7.2f} {row['flash_gb_s']:5.2f}"
            f" {'yes' if row['steps_agree'] else 'NO':>5} {row['sha256'][:12]}"
            if ok
            else f"  {row.get('error', '')}"
        ),
        flush=True,
    )


def budgets(args: argparse.Namespace) -> tuple[int, list[int]]:
    from edge_rt.apps.bench import budgets as parse
    from edge_rt.opening import make_settings, open_planner

    _, planner, _ = open_planner(args.model)
    floor, _ = planner.floor(make_settings(planner, 1 << 50, args.ctx, args.threads))
    return floor, parse(args.ram, floor, planner.weight_bytes)


def law(args: argparse.Namespace) -> dict[str, Any]:
    """All runs of one model; ``lawful`` says whether they keep the law."""
    floor, sizes = budgets(args)
    print(
        f"{args.model}: floor {floor / MIB:.0f} MiB\n"
        "   budget    cgroup thr   isa outcome     held   cgroup"
        "  cache pass   tok/s  GB/s steps sha256"
    )
    rows = []
    for ram in sizes:
        rows.append(measure(args, ram))
        report(rows[-1])
    if args.variants:
        for ram, change in (
            (sizes[-1], {"threads": 1}),
            (sizes[-1], {"isa": "ref"}),
            (sizes[-1], {"limit": sizes[-1] + (2 << 30)}),
        ):
            rows.append(measure(args, ram, **change))
            report(rows[-1])
    refused = measure(args, floor - MIB)
    report(refused)
    peers = [peer(args, ram) for ram in sizes] if args.peer_python else []
    for row in peers:
        end = (
            "KILLED"
            if row["oom_killed"]
            else f"{row['tok_s']:.2f} tok/s"
            if row["tok_s"]
            else row["rc"]
        )
        print(f"llama.cpp at {row['limit_bytes'] / MIB:9.1f} MiB: {end}")
    lawful = (
        all(r["rc"] == 0 and not r["oom_killed"] and r["steps_agree"] for r in rows)
        and all(r["held_bytes"] <= r["ram_bytes"] for r in rows)
        and all((r["model_cache_bytes"] or 0) <= MIB for r in rows)
        and len({r["sha256"] for r in rows}) == 1
        and refused["rc"] == 3
    )
    print("the law holds" if lawful else "THE LAW IS BROKEN", flush=True)
    return {
        "model": args.model, "rows": rows, "refused": refused, "peers": peers, "lawful": lawful,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--ram", default="floor,25%,50%,75%")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--decode", type=int, default=256, help="tokens decoded one by one")
    parser.add_argument("--variants", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--peer-python", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--user", help="run as this user, who joins the cgroup as root")
    parser.add_argument("--memlock", metavar="SIZE", help="RLIMIT_MEMLOCK of the runs")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer_python and not args.tokens:
        parser.error("--peer-python needs --tokens")
    if args.child:
        child(argparse.Namespace(**vars(args), model=args.models[0]))
        return 0
    print(f"command: {' '.join(sys.argv)}")
    results = [law(argparse.Namespace(**vars(args), model=model)) for model in args.models]
    if args.json:
        print(json.dumps(results))
    return 0 if all(result["lawful"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
