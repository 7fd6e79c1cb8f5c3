"""Rates of a made-up machine and drive."""

from __future__ import annotations

from edge_rt.machine.host import Drive
from edge_rt.machine.rates import Cell, Rate, Rates
from edge_rt.sizes import KIB, MIB

DRIVE = Drive("/dev/made-up ext4", "/", "ext4", None)


def rate(mid: float) -> Rate:
    return Rate(0.9 * mid, mid, 1.1 * mid)


def cells(best: float, latency: float = 1e-4, io: str = "uring") -> list[Cell]:
    return [
        Cell(io, size, depth, rate(min(best, depth * size / (latency + size / best))), 1e-11)
        for size in (4 * KIB, 64 * KIB, MIB)
        for depth in (1, 4, 16)
    ]


def known(rates: Rates, n_threads: int, scale: float = 1.0) -> None:
    """Store rates of a plausible machine, each different, ``scale`` times as fast."""
    formats = {"Q4_0": 12e9, "Q4_1": 11e9, "Q8_0": 15e9, "F32": 16e9, "Q6_K": 7e9}
    rates.store_kernels(
        n_threads,
        {
            "layer": rate(1e-5 / scale).stored(),
            "token": rate(3e-5 / scale).stored(),
            "attention": {"f16": rate(3e9 * scale).stored()},
            "attention_pass": {"f16": rate(5e9 * scale).stored()},
            "vectors": rate(4e-10 / scale).stored(),
            "decode": {name: rate(r * scale).stored() for name, r in formats.items()},
            "pass": {name: rate(r * scale).stored() for name, r in formats.items()},
            "prefill": {name: rate(5 * r * scale).stored() for name, r in formats.items()},
        },
    )
