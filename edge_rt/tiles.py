"""Tiles: the unit of residency, and which of them stay for a number of bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_rt.program import MatrixUse, Program
from edge_rt.sizes import KIB, MIB, align_up

# A model is cut into about 2048 tiles, or fewer: small ones spread evenly and fit a small ring, big
# ones are read at the drive's full speed and keep the lists short.
_TILES = 2048
_MIN_TILE_BYTES, _MAX_TILE_BYTES = 128 * KIB, 4 * MIB
_FAST_TILE_BYTES = MIB  # no drive is known to want more at once
# Beyond 128 GiB tiles grow again: a file can say that it has terabytes, and a list of a million
# tiles would take minutes and hundreds of MiB before anything was refused.
_MOST_TILES = 32768


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows ``row .. row + n_rows`` of a matrix: the unit of residency, contiguous in the file."""

    matrix: int
    row: int
    n_rows: int
    file_offset: int
    n_bytes: int


def tile_sizes(program: Program) -> list[int]:
    """Bytes of the largest tile that a program may be cut into: the least, which decides about the
    floor, then what a drive may prefer."""
    total = sum(m.n_bytes for m in program.matrices)
    ideal = 1 << (total // _TILES).bit_length()
    largest = max(_MAX_TILE_BYTES, 1 << (total // _MOST_TILES).bit_length())
    sizes = [max(_MIN_TILE_BYTES, min(largest, ideal))]
    while sizes[-1] < _FAST_TILE_BYTES:
        sizes.append(2 * sizes[-1])
    return sizes


def _rows(matrix: MatrixUse, tile_bytes: int) -> int:
    return max(8, tile_bytes // matrix.row_bytes // 8 * 8)


def outline(program: Program, tile_bytes: int) -> tuple[int, int]:
    """How many tiles a cut will have, and the bytes of the largest one."""
    n_tiles, largest = 0, 0
    for matrix in program.matrices:
        rows = min(matrix.n_rows, _rows(matrix, tile_bytes))
        n_tiles += -(-matrix.n_rows // rows)
        largest = max(largest, rows * matrix.row_bytes)
    return n_tiles, largest


class Tiles:
    """All tiles of a program: ``of_segment`` in the order of use, ``of_matrix`` by rows.

    ``alignment`` is that of direct reads: a tile is charged the aligned extent that covers it.
    """

    def __init__(self, program: Program, alignment: int, tile_bytes: int) -> None:
        self.program = program
        self.alignment = alignment
        self.tile_bytes = tile_bytes
        self.of_segment: list[list[Tile]] = [[], []]
        self.of_matrix: list[list[Tile]] = []
        for index, matrix in enumerate(program.matrices):
            self.of_matrix.append(self._cut(index, matrix))
            self.of_segment[matrix.segment].extend(self.of_matrix[-1])
        self.all = self.of_segment[0] + self.of_segment[1]
        order = sorted(enumerate(self.all), key=lambda pair: pair[1].file_offset)
        self._by_offset = [(index, t.file_offset, t.n_bytes) for index, t in order]
        charges = [self.charge(t.file_offset, t.n_bytes) for t in self.all]
        self.n_bytes = sum(charges)  # streamed, all of them
        self.largest = max(charges)
        self.whole = self._kept_bytes(bytearray(b"\1") * len(self.all))  # resident, all of them

    def _cut(self, index: int, matrix: MatrixUse) -> list[Tile]:
        rows = _rows(matrix, self.tile_bytes)
        return [
            Tile(
                matrix=index,
                row=row,
                n_rows=min(rows, matrix.n_rows - row),
                file_offset=matrix.file_offset + row * matrix.row_bytes,
                n_bytes=min(rows, matrix.n_rows - row) * matrix.row_bytes,
            )
            for row in range(0, matrix.n_rows, rows)
        ]

    def charge(self, file_offset: int, n_bytes: int) -> int:
        """Bytes of the aligned extent that a direct read of the payload needs."""
        start = file_offset // self.alignment * self.alignment
        return align_up(file_offset + n_bytes, self.alignment) - start

    def choose(self, room: int, slowness: Callable[[str], float]) -> set[Tile]:
        """The largest evenly spread set of tiles whose aligned extents fit ``room`` bytes.

        ``slowness``: seconds per byte to compute with a format, by its name.
        """
        costs = self._costs(slowness)
        low, high = 0.0, 1 / min(costs)  # streams hardly anything, everything
        best = bytearray(len(self.all))
        for _ in range(14):
            middle = (low + high) / 2
            chosen = self._spread(middle, costs)
            if self._kept_bytes(chosen) <= room:
                high, best = middle, chosen
            else:
                low = middle
        return {tile for tile, kept in zip(self.all, best, strict=True) if kept}

    def _costs(self, slowness: Callable[[str], float]) -> list[float]:
        """How much longer than the average byte one of each matrix takes to compute with."""
        per_byte = {name: slowness(name) for name in {m.format.name for m in self.program.matrices}}
        total = sum(m.n_bytes for m in self.program.matrices)
        seconds = sum(m.n_bytes * per_byte[m.format.name] for m in self.program.matrices)
        return [per_byte[m.format.name] * total / seconds for m in self.program.matrices]

    def _spread(self, streamed: float, costs: list[float]) -> bytearray:
        """Which tiles, of `all`, stay: all but ``streamed`` bytes for the time that an average one
        is computed with, by error diffusion. Reads come in step with computing, never in a lump."""
        shares = [min(1.0, streamed * cost) for cost in costs]
        due, kept = 0.5, bytearray(len(self.all))
        for index, tile in enumerate(self.all):
            due += shares[tile.matrix] * tile.n_bytes
            if due >= tile.n_bytes:
                due -= tile.n_bytes
            else:
                kept[index] = 1
        return kept

    def _kept_bytes(self, kept: bytearray) -> int:
        """Bytes of the aligned extents of the tiles of `all` that are ``kept``."""
        total, start, end = 0, 0, 0
        for index, offset, n_bytes in self._by_offset:
            if kept[index]:
                if offset != end:
                    total += self.charge(start, end - start) if end else 0
                    start = offset
                end = offset + n_bytes
        return total + (self.charge(start, end - start) if end else 0)

    def merged(self, tiles: set[Tile]) -> list[list[Tile]]:
        """Tiles that follow each other in the file, as runs that are read and kept as one."""
        runs: list[list[Tile]] = []
        for tile in sorted(tiles, key=lambda t: t.file_offset):
            if runs and runs[-1][-1].file_offset + runs[-1][-1].n_bytes == tile.file_offset:
                runs[-1].append(tile)
            else:
                runs.append([tile])
        return runs


def extent(run: list[Tile]) -> tuple[int, int]:
    """Offset and bytes in the file of tiles that follow each other."""
    start = run[0].file_offset
    return start, run[-1].file_offset + run[-1].n_bytes - start
