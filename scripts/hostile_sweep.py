"""Every hostile or damaged file of tests/hostile through inspect, plan and generate.

    python scripts/hostile_sweep.py                         # all of them: minutes
    python scripts/hostile_sweep.py --family sparse --family splits --json sweep.json

Ends with 0 only if every file held: what must be refused ends with exit code 4 and one line that
names the file, within 2 s; `inspect` holds at most 64 MiB, `generate` at most its ``--ram``; what
may run does. With all families at least 5000 distinct files must have been refused. A command
that took longer than it may is run again alone, three times, and judged by the median.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # behind the installed package, so that `edge_rt` is not the folder

from tests.hostile import corpus  # noqa: E402
from tests.hostile.runner import Outcome, again, run_all, size_of  # noqa: E402

LEAST_REFUSED = 5000
MIB = 1 << 20
COLUMNS = ("files", "refused", "accepted", "usage", "budget", "inspect s", "refusal s", "run s",
           "inspect MiB", "% of --ram", "wrong")  # fmt: skip


def row(outcomes: list[Outcome]) -> dict[str, Any]:
    """One line of the table; what happened to a file is what `generate` did with it."""
    of = {c: [o for o in outcomes if o.command == c] for c in ("inspect", "plan", "generate")}
    ended = [o.code for o in of["generate"]]

    def slowest(found: Iterable[Outcome]) -> float:
        return max((o.seconds for o in found), default=0.0)

    used = (100 * o.peak / size_of(o.case.ram) for o in of["generate"])
    values = (
        len(ended), ended.count(4), ended.count(0), ended.count(2), ended.count(3),
        slowest(of["inspect"]), slowest(o for o in of["generate"] if o.code == 4),
        slowest(o for o in of["generate"] if o.code == 0),
        max((o.peak for o in of["inspect"]), default=0) / MIB, max(used, default=0.0),
        sum(bool(o.wrong) for o in outcomes),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def show(name: str, values: dict[str, Any]) -> str:
    cells = (f"{v:.2f}" if c.endswith(" s") else f"{v:.0f}" for c, v in values.items())
    return f"{name:<16}" + "".join(
        f"{cell:>{len(c) + 2}}" for c, cell in zip(COLUMNS, cells, strict=True)
    )


def main() -> int:
    """Run the sweep; the exit status."""
    families = list(dict.fromkeys(case.family for case in corpus.cases()))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--family", action="append", choices=families, metavar="NAME",
                        help=f"only this one; repeatable ({', '.join(families)})")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="files at a time")
    parser.add_argument("--seed", type=int, default=7, help="of the bytes that are flipped")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    chosen = [c for c in corpus.cases(args.seed) if not args.family or c.family in args.family]
    by_family: dict[str, list[Outcome]] = {}
    slow = 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = []
        for outcome in run_all(chosen, root, args.jobs):
            found.append(outcome)
            if outcome.wrong:
                print(f"? {outcome.case.family}: {outcome.case.name!a}: {outcome.command}: "
                      f"{outcome.wrong}", file=sys.stderr, flush=True)  # fmt: skip
            elif len(found) % 1000 == 0:
                print(f"{len(found)} commands", file=sys.stderr, flush=True)
        for outcome in found:
            if outcome.only_slow:
                slow += 1
                outcome = again(outcome, root)
            by_family.setdefault(outcome.case.family, []).append(outcome)
    every = [o for outcomes in by_family.values() for o in outcomes]
    distinct = len({o.digest for o in every if o.command == "generate" and o.code == 4})
    print(f"{'family':<16}" + "".join(f"  {c}" for c in COLUMNS))
    rows = {family: row(outcomes) for family, outcomes in by_family.items()}
    total = row(every)
    for name, values in rows.items():
        print(show(name, values))
    print(show("all", total))
    print("\nwhy files of a family may be accepted:")
    for name, values in rows.items():
        if values["refused"] < values["files"]:
            print(f"  {name}: {corpus.WHY_ACCEPTED[name]}")
    wrong = [o for o in every if o.wrong]
    for o in wrong:
        print(f"WRONG {o.case.family}: {o.case.name!a}: {o.command}: {'; '.join(o.wrong)}")
    few = not args.family and distinct < LEAST_REFUSED
    seconds = time.perf_counter() - started
    print(
        f"\n{len(every)} commands on {len(chosen)} files in {seconds:.0f} s, seed {args.seed}; "
        f"{distinct} distinct files refused{f', not {LEAST_REFUSED}' if few else ''}; "
        f"{slow} commands took too long at first and were measured again alone; {len(wrong)} wrong"
    )
    if args.json:
        report = {
            "seed": args.seed, "jobs": args.jobs, "seconds": seconds, "families": rows,
            "all": total, "distinct_refused": distinct, "measured_again": slow,
            "wrong": [[o.case.family, o.case.name, o.command, o.wrong] for o in wrong],
        }  # fmt: skip
        args.json.write_text(json.dumps(report, indent=1))
    return int(bool(wrong) or few)


if __name__ == "__main__":
    sys.exit(main())
