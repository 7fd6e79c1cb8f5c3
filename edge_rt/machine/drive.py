"""The curve of a drive: random direct reads of the sizes and depths that streams have."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean, geometric_mean, median
from typing import Final

from edge_rt.errors import StorageError, UsageError
from edge_rt.flash_io._flash_io import File, measure_reads, why_no_uring
from edge_rt.flash_io.files import open_file, storage_errors
from edge_rt.machine.rates import Cell, Rate
from edge_rt.sizes import KIB, MIB, format_size

SIZES: Final = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB)
DEPTHS: Final = (1, 2, 4, 8, 16, 32)
# The few cells that a forecast cannot do without.
QUICK: Final = tuple((size, depth) for size in (4 * KIB, 128 * KIB, MIB) for depth in (1, 4, 8))
_ROUNDS: Final = 10
_CELL_SECONDS: Final = 0.01  # of each round
_BETWEEN_SECONDS: Final = 0.2
_MOST_SECONDS: Final = 10.0  # of two rounds or more
_SLOW_SECONDS: Final = 0.4  # where one cell would take longer, deeper ones are left out
_MOST_BYTES: Final = 32 * MIB  # of buffers: up to twice the depth
_USED: Final = 64 * KIB  # blocks of weights, which are computed with; what is smaller are rows
_FILE_BYTES: Final = 256 * MIB  # of a temporary file
_LEAST_BYTES: Final = 32 * MIB  # of a model's file that stands for its drive


@contextmanager
def file_on(path: str) -> Iterator[File]:
    """A file to read: ``path`` itself, the largest model in the folder ``path``, or a temporary
    file there.

    Raises `UsageError` where there is no such path, or no right to write there, and `StorageError`
    where the drive fails or has no room.
    """
    if not os.path.isdir(path):
        yield open_file(path)
        return
    models: list[tuple[int, str]] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.endswith((".gguf", ".safetensors")) and entry.is_file():
                models.append((entry.stat().st_size, entry.path))
    if models and max(models)[0] >= _LEAST_BYTES:
        yield open_file(max(models)[1])
        return
    with _temporary(path) as name:
        yield open_file(name)


@contextmanager
def _temporary(folder: str) -> Iterator[str]:
    """A file of random bytes, on the drive and out of the page cache; removed afterwards."""
    import shutil
    import tempfile

    free = shutil.disk_usage(folder).free
    if free < 4 * _FILE_BYTES:
        raise StorageError(
            f"{folder} has {format_size(free)} free: to measure its drive without a model there, "
            f"{format_size(4 * _FILE_BYTES)} are needed"
        )
    try:
        file = tempfile.NamedTemporaryFile(dir=folder, prefix=".edge-rt-doctor-")  # noqa: SIM115
    except OSError as error:
        raise UsageError(
            f"cannot make a file in {folder} to measure its drive: {error.strerror} "
            "(give a model's file that lies on it)"
        ) from None
    with file:
        try:
            piece = os.urandom(4 * MIB)
            for number in range(_FILE_BYTES // len(piece)):
                file.write(number.to_bytes(8, "little") + piece[8:])
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise StorageError(f"cannot write to {folder}: {error.strerror}") from error
        yield file.name


def backends(file: File) -> dict[str, str]:
    """Ways to read ``file``, each with why it cannot be used here; empty where it can."""
    return {"uring": why_no_uring(file), "pread": ""}


class DriveCurve:
    """The rates of reads of ``wanted`` (request bytes, depth), or of the whole curve, by backend.

    Drives that others share give twice as much now and half as much a second later, to requests of
    every size alike. So all cells take turns, in short rounds that lie apart in time: a cell is how
    it compares to the others in its rounds, times the level that the rounds had on average, which
    is what a run of many seconds finds.
    """

    def __init__(self, file: File, wanted: tuple[tuple[int, int], ...] | None = None) -> None:
        if wanted is None:
            wanted = tuple((size, depth) for size in SIZES for depth in DEPTHS)
        self._file = file
        self._names = [name for name, why in backends(file).items() if not why]
        if len(wanted) < len(SIZES) * len(DEPTHS):
            self._names = self._names[:1]
        self._wanted = [
            (size, depth)
            for size, depth in wanted
            if size <= file.size and not size % file.alignment and 2 * depth * size <= _MOST_BYTES
        ]
        self._speeds: dict[tuple[str, int, int], list[float]] = {}  # of all rounds
        self._cpu: dict[tuple[str, int, int], float] = {}
        self._fastest = self._spent = 0.0
        self.n_rounds = 0

    @property
    def done(self) -> bool:
        return self.n_rounds >= _ROUNDS or (self.n_rounds > 1 and self._spent > _MOST_SECONDS)

    def round(self) -> None:
        """Measure each cell once more, for a moment; nothing where there were enough.

        What would take a slow drive long is left out: it is as fast with less in flight by then.
        """
        if self.done:
            return
        begin = time.perf_counter()
        for size, depth in self._wanted:
            for name in self._names:
                cell = name, size, depth
                slow = self._fastest and 2 * depth * size / self._fastest > _SLOW_SECONDS
                if slow if self.n_rounds == 0 else cell not in self._speeds:
                    continue
                seed = self.n_rounds + 1
                with storage_errors():
                    found = measure_reads(
                        self._file, name, size, depth, _CELL_SECONDS, seed, size >= _USED
                    )
                speed = found["bytes"] / found["seconds"]
                self._fastest = max(self._fastest, speed)
                self._speeds.setdefault(cell, []).append(speed)
                cpu_s = found["cpu_seconds"] / found["bytes"]
                self._cpu[cell] = min(cpu_s, self._cpu.get(cell, cpu_s))
        self.n_rounds += 1
        self._spent += time.perf_counter() - begin

    def cells(self) -> list[Cell]:
        """What the rounds so far say."""
        if not self._speeds:
            return []
        typical = {cell: median(speeds) for cell, speeds in self._speeds.items()}
        levels = [
            geometric_mean(speeds[turn] / typical[cell] for cell, speeds in self._speeds.items())
            for turn in range(self.n_rounds)
        ]
        cut = self.n_rounds // 8
        ordered = sorted(levels)[cut : self.n_rounds - cut]
        level = Rate(ordered[0], fmean(ordered), ordered[-1])
        return [
            Cell(
                *cell,
                level * median(speed / at for speed, at in zip(speeds, levels, strict=True)),
                self._cpu[cell],
            )
            for cell, speeds in self._speeds.items()
        ]

    def finish(self) -> list[Cell]:
        """`cells`, after the rounds that are left, a little apart."""
        while not self.done:
            if self.n_rounds:
                time.sleep(_BETWEEN_SECONDS)
            self.round()
        return self.cells()
