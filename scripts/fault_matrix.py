"""Run the fault matrix: every place that reads a model's files, met by every fault.

    python scripts/fault_matrix.py [--site WORDS] [--fault WORDS] [--io pread] [--json OUT]

It mounts a file system of its own (/dev/fuse, as root); with ``--world hook`` it needs no rights
and asks for the faults where the runtime asks the kernel. Prints a table; exit status 1 if a cell
does not hold. docs/faults.md has the last one and says what each column means.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind the installed package

from tests import faulty_cells as cells
from tests.fuse_server import Refused

WORLDS = {"fuse": cells.FuseWorld, "hook": cells.HookWorld}
HANG_S = 600  # of all cells of a site at the least


def table(found: list[cells.Outcome]) -> str:
    """Markdown: a row per fault, a column per set of sites to which the same things happen."""
    sites = list(dict.fromkeys(c.site for c in found))
    ios = list(dict.fromkeys(c.io for c in found))
    by = {(c.site, c.fault, c.io): mark(c) for c in found}
    faults = [f.name for f in [*cells.FAULTS, cells.LONG_DELAY]] + ["leaks"]
    faults = [f for f in faults if any(c.fault == f for c in found)]
    columns: dict[tuple[str, ...], list[str]] = {}
    for site in sites:
        column = []
        for fault in faults:
            marks = [by[site, fault, io] for io in ios if (site, fault, io) in by]
            column.append("/".join(dict.fromkeys(marks)) or "–")
        columns.setdefault(tuple(column), []).append(site)
    names = [chr(ord("A") + i) for i in range(len(columns))]
    lines = [f"- {n}: {', '.join(s)}" for n, s in zip(names, columns.values(), strict=True)]
    lines += ["", f"| fault | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for fault, *marks in zip(faults, *columns, strict=True):
        lines.append(f"| {fault} | {' | '.join(marks)} |")
    return "\n".join(lines)


def mark(cell: cells.Outcome) -> str:
    """✓ recovered, 5 an error of exit code 5, ✗ a cell that does not hold."""
    if not cell.holds:
        return "✗"
    return "✓" if cell.result == cells.RECOVERED else "5"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", action="append", help="only sites with these words")
    parser.add_argument("--exactly", action="append", help="only sites of these names")
    parser.add_argument("--fault", action="append", help="only faults with these words")
    parser.add_argument("--io", action="append", choices=["uring", "pread", "auto"])
    parser.add_argument("--world", choices=WORLDS, default="fuse", help="where faults come from")
    parser.add_argument("--long", action="store_true", help="the delay of 10 s, too")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all cells there")
    parser.add_argument("--sample", type=int, metavar="N", help="every N-th cell, evenly spread")
    parser.add_argument("--quiet", action="store_true", help="no table")
    args = parser.parse_args()
    faults = cells.FAULTS + ([cells.LONG_DELAY] if args.long else [])
    faults = [f for f in faults if not args.fault or any(w in f.name for w in args.fault)]
    sites = [s for s in cells.SITES if not args.site or any(w in s.name for w in args.site)]
    sites = [s for s in sites if not args.exactly or s.name in args.exactly]
    found: list[cells.Outcome] = []
    for site in sites:
        started = time.monotonic()
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        with tempfile.TemporaryDirectory() as where:
            try:
                ios = args.io or ["pread", "uring"]
                pick = None
                if args.sample:
                    shift = cells.SITES.index(site)
                    pick = lambda i, shift=shift: (i + shift) % args.sample == 0  # noqa: E731
                found += cells.run_site(site, faults, ios, Path(where), WORLDS[args.world], pick)
            except Refused as why:
                print(f"error: {why}", file=sys.stderr)
                return 2
        faulthandler.cancel_dump_traceback_later()
        here = [c for c in found if c.site == site.name]
        seconds = time.monotonic() - started
        print(f"{site.name}: {sum(c.holds for c in here)} of {len(here)} hold, {seconds:.0f} s",
              file=sys.stderr, flush=True)  # fmt: skip
        for cell in here:
            if not cell.holds:
                print(f"✗ {cell.fault} · {cell.io}: {'; '.join(cell.problems)}"
                      f" [{cell.result}: {cell.message}]", file=sys.stderr, flush=True)  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps([c.row() for c in found], indent=1))
    if not args.quiet:
        print(table(found))
    print(f"{sum(c.holds for c in found)} of {len(found)} cells hold", file=sys.stderr)
    return 0 if all(c.holds for c in found) else 1


if __name__ == "__main__":
    sys.exit(main())
