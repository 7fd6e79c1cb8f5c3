"""Where direct reads land: how the memory that is read into changes what a drive gives.

    python scripts/bench_read_targets.py FILE [--rounds 6] [--seconds 0.5] [--json OUT]

Four threads read 1 MiB at random places into huge pages, each time the next block of a window of
memory, as the stream ring does: windows of 4 to 64 MiB; blocks that begin on pages or 512 bytes
after; and blocks that are looked at before they are read into again, or never. Medians of
interleaved rounds, in GB/s.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import random
import statistics
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import ceilings

MIB = 1 << 20
N_THREADS = 4
BLOCK = MIB
PAGE = 4096


@dataclass(frozen=True)
class Case:
    window: int  # bytes
    lead: int  # of each block, behind a page's begin
    used: bool

    def __str__(self) -> str:
        place = f"{self.lead} bytes behind a page" if self.lead else "on pages"
        return f"{self.window // MIB} MiB, {place}, {'looked at' if self.used else 'not looked at'}"


CASES = [
    *(Case(window * MIB, 0, used) for window in (4, 8, 16, 64) for used in (False, True)),
    *(Case(window * MIB, 512, False) for window in (4, 8)),
]


def rate(fd: int, size: int, memory: mmap.mmap, case: Case, seconds: float) -> float:
    """Bytes per second."""
    view, base = memoryview(memory), ctypes.addressof(ctypes.c_char.from_buffer(memory))
    draw, lock = random.Random(0), threading.Lock()
    n_blocks, last = case.window // BLOCK, (size - BLOCK) // PAGE
    taken = 0

    def read(_: int) -> int:
        nonlocal taken
        with lock:
            at = taken % n_blocks * BLOCK + case.lead
            taken += 1
            place = draw.randrange(last) * PAGE
        n = os.preadv(fd, [view[at : at + BLOCK]], place)
        if case.used:
            ceilings.look_at(base + at, n)
        return n

    return ceilings.rates(read, N_THREADS, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    size = args.file.stat().st_size
    if size < 64 * MIB:
        parser.error("the file has less than 64 MiB")
    memory = ceilings.huge(max(case.window for case in CASES) + BLOCK)
    found: dict[str, list[float]] = {str(case): [] for case in CASES}
    fd = os.open(args.file, os.O_RDONLY | os.O_DIRECT)
    try:
        for _ in range(args.rounds):
            for case in CASES:
                found[str(case)].append(rate(fd, size, memory, case, args.seconds) / 1e9)
    finally:
        os.close(fd)
    print(f"command: {' '.join(sys.argv)}")
    print("| window | median, GB/s | least | most |\n|---|---|---|---|")
    for name, rates in found.items():
        print(f"| {name} | {statistics.median(rates):.2f} | {min(rates):.2f} | {max(rates):.2f} |")
    if args.json:
        args.json.write_text(json.dumps({"command": sys.argv, "gb_s": found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
