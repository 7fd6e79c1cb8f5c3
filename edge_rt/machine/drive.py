"""The curve of a drive: random direct reads of the sizes and depths that streams have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
_ROUNDS: Final = 3
_CELL_SECONDS: Final = 0.03  # of each round
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


def measure_drive(
    file: File,
    wanted: tuple[tuple[int, int], ...] | None = None,
    seconds: float = _CELL_SECONDS,
) -> list[Cell]:
    """Measure ``wanted`` (request bytes, depth), or the whole curve, for each backend, in a few
    rounds.

    What would take a slow drive long is left out: it is as fast with less in flight by then.
    """
    if wanted is None:
        wanted = tuple((size, depth) for size in SIZES for depth in DEPTHS)
    names = [name for name, why in backends(file).items() if not why]
    if len(wanted) < len(SIZES) * len(DEPTHS):
        names = names[:1]
    found: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    fastest = 0.0
    for turn in range(_ROUNDS):
        for size, depth in wanted:
            in_flight = 2 * depth * size
            if size > file.size or size % file.alignment or in_flight > _MOST_BYTES:
                continue
            if fastest and in_flight / fastest > _SLOW_SECONDS:
                continue
            for io in names:
                with storage_errors():
                    rate = measure_reads(file, io, size, depth, seconds, turn + 1, size >= _USED)
                speed = rate["bytes"] / rate["seconds"]
                fastest = max(fastest, speed)
                cpu = rate["cpu_seconds"] / rate["bytes"]
                found.setdefault((io, size, depth), []).append((speed, cpu))
    return [
        Cell(io, size, depth, Rate.of([s for s, _ in runs]), min(cpu for _, cpu in runs))
        for (io, size, depth), runs in found.items()
    ]
