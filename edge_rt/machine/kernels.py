"""Rates of decoding and prefill by format and number of threads, and of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from edge_rt.flash_io._flash_io import File
from edge_rt.machine.probe import (
    FEW_TOKENS,
    MANY_TOKENS,
    POSITION,
    Probe,
    attention_work,
    large,
    random_file,
    small,
    with_heads,
)
from edge_rt.machine.rates import Rate, Rates
from edge_rt.quant.blocks import FORMATS
from edge_rt.runtime._runtime import measure_memory
from edge_rt.sizes import MIB

# Those that most files have; any other is measured when a model that has it is planned.
MAIN_FORMATS: Final = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16")
_MEMORY_BYTES: Final = 48 * MIB
_FEW, _MANY = 2, 14  # layers: two models of different depth tell a layer's cost from a token's


def thread_counts(n: int) -> list[int]:
    """1, 2, 4, … and ``n``."""
    counts = [1]
    while counts[-1] * 2 < n:
        counts.append(counts[-1] * 2)
    return sorted({*counts, n})


def measure_kernels(
    rates: Rates,
    n_threads: int,
    formats: Iterable[str],
    kv: str = "f16",
    seconds: float = 0.06,
    said: Callable[[str], object] = lambda _: None,
) -> None:
    """Measure what ``rates`` does not have yet, and store it."""
    with random_file() as file:
        if rates.kernel(n_threads, "layer") is None or rates.kernel(n_threads, "token") is None:
            said(f"steps, {n_threads} threads")
            rates.store_kernels(n_threads, _steps(file, n_threads, seconds))
        if rates.kernel(n_threads, "attention", kv) is None:
            said(f"attention, {n_threads} threads")
            found = {"attention": {kv: _attention(file, n_threads, kv, seconds).stored()}}
            rates.store_kernels(n_threads, found)
        for name in formats:
            if rates.kernel(n_threads, "prefill", name) is None:
                said(f"{name}, {n_threads} threads")
                rates.store_kernels(n_threads, _format(rates, file, n_threads, name, seconds))


def _steps(file: File, n_threads: int, seconds: float) -> dict[str, Any]:
    """Seconds per token and per layer of models with hardly any weights."""
    times = []
    for layers in (_FEW, _MANY):
        probe = Probe(small(layers), file, n_threads)
        times.append(Rate.of_times(probe.seconds(1, 0, seconds)))
        probe.close()
    few, many = times
    layer = [
        max(1e-7, (m - f) / (_MANY - _FEW))
        for f, m in ((few.low, many.low), (few.mid, many.mid), (few.high, many.high))
    ]
    token = [
        max(1e-7, f - _FEW * one)
        for f, one in zip((few.low, few.mid, few.high), layer, strict=True)
    ]
    return {"layer": Rate(*sorted(layer)).stored(), "token": Rate(*sorted(token)).stored()}


def _attention(file: File, n_threads: int, kv: str, seconds: float) -> Rate:
    """Columns of all heads times positions per second."""
    probe = Probe(with_heads(), file, n_threads, kv)
    near = Rate.of_times(probe.seconds(1, 0, seconds))
    far = Rate.of_times(probe.seconds(1, POSITION, seconds))
    probe.close()
    work = attention_work(probe.shape)
    base = near.mid
    return Rate(*sorted(work / max(1e-7, t - base) for t in (far.low, far.mid, far.high)))


def _format(rates: Rates, file: File, n_threads: int, name: str, seconds: float) -> dict[str, Any]:
    """Bytes per second of decoding; of a pass over several tokens what it takes at all (bytes per
    second) and for each token (multiplications per second). Steps are left out."""
    (format,) = (f for f in FORMATS.values() if f.name == name)
    probe = Probe(large(format), file, n_threads)
    decode = Rate.of_times(probe.seconds(1, 0, seconds))
    few = Rate.of_times(probe.seconds(FEW_TOKENS, 0, seconds))
    many = Rate.of_times(probe.seconds(MANY_TOKENS, 0, seconds))
    probe.close()
    layer, token = rates.kernel(n_threads, "layer"), rates.kernel(n_threads, "token")
    steps = (token.mid if token else 0) + (layer.mid if layer else 0) * probe.shape.layers

    def rate(work: float, share: float, times: Rate) -> list[float]:
        """Of the ``share`` of ``times`` that ``work`` takes."""
        low, mid, high = (
            share * max(t - steps, 0.5 * t) for t in (times.low, times.mid, times.high)
        )
        return Rate(work / high, work / mid, work / low).stored()

    each = (many.mid - few.mid) / (MANY_TOKENS - FEW_TOKENS) * MANY_TOKENS / many.mid
    each = min(0.95, max(0.5, each))  # the share of the longer pass that its tokens take
    return {
        "decode": {name: rate(probe.weight_bytes, 1, decode)},
        "pass": {name: rate(probe.weight_bytes, 1 - each, many)},
        "prefill": {name: rate(MANY_TOKENS * probe.shape.n_weights, each, many)},
    }


def measure_memory_rates(rates: Rates, counts: Iterable[int], seconds: float = 0.05) -> None:
    """Bytes per second that 1, 2, … threads read from memory; stored."""
    found = {}
    for n in counts:
        samples = [measure_memory(n, _MEMORY_BYTES, seconds) for _ in range(4)]
        found[n] = Rate.of(samples)
    rates.store_memory(found)
