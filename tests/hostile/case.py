"""What a hostile file is, and what must become of it."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# What `edge-rt generate` must do with a file:
REFUSED: Final = "refused"  # exit 4: damaged, hostile or not supported
RUNS: Final = "runs"  # exit 0: what was changed is harmless, or only changes the numbers
EITHER: Final = "either"  # one of the two: what a random byte means is not known
USAGE: Final = "usage"  # exit 2: no file at all, or a request that this model cannot fulfil
BUDGET: Final = "budget"  # exit 3: a model that is as large as it says
BROKEN: Final = "broken"  # exit 4, but only once it runs: its weights give no finite logits

EXPECTATIONS: Final = (REFUSED, RUNS, EITHER, USAGE, BUDGET, BROKEN)
Make = Callable[[Path], Path]


@dataclass(frozen=True)
class Case:
    """One hostile file: ``make`` writes it into an empty folder and returns what to give the
    command line.

    ``inspect``: what `edge-rt inspect` must do where that is known; by default it shows what runs
    and may do either with what does not. ``runs_s``: how long it may take if it runs, in seconds;
    a refusal has two.
    """

    family: str
    name: str
    expect: str
    make: Make
    inspect: str = ""
    ram: str = "96M"
    runs_s: float = 2.0
    prompt: str = "x"

    def __post_init__(self) -> None:
        assert self.expect in EXPECTATIONS and self.inspect in ("", *EXPECTATIONS)

    def codes(self, command: str) -> set[int]:
        """The exit codes that are right for ``command``."""
        if command == "inspect":
            by_default = EITHER if self.expect in (REFUSED, EITHER) else RUNS
            wanted = self.inspect or (USAGE if self.expect == USAGE else by_default)
        elif command == "plan" and (self.expect, self.inspect) in ((BROKEN, ""), (USAGE, RUNS)):
            wanted = RUNS  # it reads neither weights nor a prompt
        else:
            wanted = self.expect
        return {
            REFUSED: {4}, RUNS: {0}, EITHER: {0, 4}, USAGE: {2}, BUDGET: {3}, BROKEN: {4},
        }[wanted]  # fmt: skip


def digest(folder: Path) -> str:
    """What tells the files in ``folder`` from others: names, sizes, the first MiB of each."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found.update(os.fsencode(path.relative_to(folder)))
        found.update(struct.pack("<IQ", status.st_mode, status.st_size))
        if stat.S_ISLNK(status.st_mode):
            found.update(os.fsencode(path.readlink()))
        elif stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                found.update(file.read(1 << 20))
    return found.hexdigest()


def file_of(data: bytes, name: str = "m.gguf") -> Make:
    """A `Make` for one file of ``data``."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    return make


def patched(base: bytes, start: int, end: int, new: bytes) -> Make:
    """``base`` with ``new`` for its bytes ``start .. end``."""

    def make(folder: Path) -> Path:
        path = folder / "m.gguf"
        path.write_bytes(base[:start] + new + base[end:])
        return path

    return make
