"""What a forecast of one model needs and nobody has measured yet: about four seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edge_rt.flash_io._flash_io import File
from edge_rt.machine.drive import QUICK, DriveCurve
from edge_rt.machine.kernels import measure_fresh_memory, measure_kernels
from edge_rt.machine.probe import weight_bytes
from edge_rt.machine.rates import Rates, can_store
from edge_rt.process import available_bytes
from edge_rt.program import Program
from edge_rt.sizes import MIB

_OTHERS: Final = 106 * MIB  # what is read into, a made-up model's file, and room for others


def needed_bytes() -> int:
    """Of free memory, for measuring."""
    return weight_bytes() + _OTHERS


def _formats(rates: Rates, program: Program, n_threads: int) -> list[str]:
    names = dict.fromkeys(m.format.name for m in program.matrices)
    return [name for name in names if rates.kernel(n_threads, "prefill", name) is None]


def is_missing(rates: Rates, program: Program, n_threads: int, kv: str) -> bool:
    """Whether a rate was not measured, and measuring makes sense: it can be kept, and there is
    memory for it."""
    known = (
        bool(rates.cells())
        and rates.fresh_memory() is not None
        and rates.kernel(n_threads, "vectors") is not None
        and rates.kernel(n_threads, "attention_pass", kv) is not None
        and not _formats(rates, program, n_threads)
    )
    return not known and can_store() and available_bytes() >= needed_bytes()


def measure_missing(
    rates: Rates,
    file: File,
    program: Program,
    n_threads: int,
    kv: str,
    said: Callable[[str], object] = lambda _: None,
) -> None:
    """Measure and store it; ``said`` is told what is being measured."""
    if rates.fresh_memory() is None:
        measure_fresh_memory(rates)
    curve = None if rates.cells() else DriveCurve(file, QUICK)
    meanwhile = curve.round if curve else lambda: None
    if curve:
        said("the drive")
        curve.round()
    formats = _formats(rates, program, n_threads)
    measure_kernels(rates, n_threads, formats, kv, 0.05, said, meanwhile)
    if curve:
        rates.store_drive(curve.finish(), whole=False)
