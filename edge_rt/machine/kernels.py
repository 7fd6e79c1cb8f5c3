"""Rates of decoding and prefill by format and number of threads, and of memory."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import Any, Final

from edge_rt.flash_io._flash_io import File
from edge_rt.machine.probe import (
    FEW_TOKENS,
    MANY_TOKENS,
    PASS_POSITION,
    POSITION,
    Probe,
    in_turns,
    large,
    narrow,
    random_file,
    shallow,
    small,
    with_heads,
)
from edge_rt.machine.rates import NOTHING, Rate, Rates
from edge_rt.performance import attention_work, vector_columns
from edge_rt.quant.blocks import FORMATS
from edge_rt.runtime._runtime import measure_memory
from edge_rt.sizes import MIB

# Those that most files have; any other is measured when a model that has it is planned.
MAIN_FORMATS: Final = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16")
_MEMORY_BYTES: Final = 48 * MIB
_FRESH_BYTES, _FRESH_SAMPLES = 8 * MIB, 6
_LEAST_COLUMN_S, _VECTORS_SPREAD = 1e-12, 0.3  # what is a small difference of large times
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
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """Measure what ``rates`` does not have yet, and store it; ``meanwhile`` is called between."""
    with random_file() as file:
        steps: list[tuple[tuple[str, ...], str, Callable[[float], dict[str, Any]]]] = [
            (("layer",), "steps", partial(_steps, file, n_threads)),
            (("attention_pass", kv), "attention", partial(_attention, file, n_threads, kv)),
            (("vectors",), "vectors", partial(_vectors, rates, file, n_threads)),
        ]
        for name in formats:
            steps.append((("prefill", name), name, partial(_format, rates, file, n_threads, name)))
        for names, what, measure in steps:
            if rates.kernel(n_threads, *names) is None:
                said(f"{what}, {n_threads} threads")
                rates.store_kernels(n_threads, measure(seconds))
                meanwhile()


def _steps(file: File, n_threads: int, seconds: float) -> dict[str, Any]:
    """Seconds per token and per layer of models with hardly any weights."""
    with (
        closing(Probe(small(_FEW), file, n_threads)) as flat,
        closing(Probe(small(_MANY), file, n_threads)) as deep,
    ):
        few, many = in_turns([(flat, 1, 0), (deep, 1, 0)], seconds)
    layer = [
        max(1e-7, (m - f) / (_MANY - _FEW))
        for f, m in ((few.low, many.low), (few.mid, many.mid), (few.high, many.high))
    ]
    token = [
        max(1e-7, f - _FEW * one)
        for f, one in zip((few.low, few.mid, few.high), layer, strict=True)
    ]
    return {"layer": Rate(*sorted(layer)).stored(), "token": Rate(*sorted(token)).stored()}


def _attention(file: File, n_threads: int, kv: str, seconds: float) -> dict[str, Any]:
    """Columns of all heads times positions per second, of one token and of many."""
    found = {}
    with closing(Probe(with_heads(), file, n_threads, kv)) as probe:
        for name, n_tokens, position in (
            ("attention", 1, POSITION),
            ("attention_pass", MANY_TOKENS, PASS_POSITION),
        ):
            near, far = in_turns([(probe, n_tokens, 0), (probe, n_tokens, position)], seconds)
            work = attention_work(probe.program, position, n_tokens)
            work -= attention_work(probe.program, 0, n_tokens)
            times = (max(1e-7, t - near.mid) for t in (far.low, far.mid, far.high))
            found[name] = {kv: Rate(*sorted(work / t for t in times)).stored()}
    return found


def _beside(rates: Rates, probe: Probe, n_tokens: int) -> float:
    """Seconds of a pass that are not its matrices', as far as they are known."""

    def known(*name: str) -> Rate:
        return rates.kernel(probe.n_threads, *name) or NOTHING

    program = probe.program
    seconds = known("token").mid + known("layer").mid * program.hyper.n_layers
    seconds += known("vectors").mid * vector_columns(program) * n_tokens
    attention = known("attention_pass", "f16").mid
    return seconds + (attention_work(program, 0, n_tokens) / attention if attention else 0.0)


def _vectors(rates: Rates, file: File, n_threads: int, seconds: float) -> dict[str, Any]:
    """Seconds per column and token of what is neither a matrix nor attention: what a narrow model's
    tokens take more for their multiplications than a wide one's."""
    shapes = shallow(FORMATS[8]), narrow()
    with (
        closing(Probe(shapes[0], file, n_threads)) as wide,
        closing(Probe(shapes[1], file, n_threads)) as slim,
    ):
        passes = [(p, n, 0) for p in (wide, slim) for n in (FEW_TOKENS, MANY_TOKENS)]
        times = [rate.mid for rate in in_turns(passes, seconds)]

    def of_token(probe: Probe, few: float, many: float) -> float:
        beside = _beside(rates, probe, MANY_TOKENS) - _beside(rates, probe, FEW_TOKENS)
        return (many - few - beside) / (MANY_TOKENS - FEW_TOKENS)

    share = shapes[1].n_weights / shapes[0].n_weights
    more = of_token(slim, *times[2:]) - of_token(wide, *times[:2]) * share
    columns = vector_columns(slim.program) - vector_columns(wide.program) * share
    column = max(more / columns, _LEAST_COLUMN_S)
    return {"vectors": Rate(column, column, column).spread(_VECTORS_SPREAD).stored()}


def _format(rates: Rates, file: File, n_threads: int, name: str, seconds: float) -> dict[str, Any]:
    """Bytes per second of decoding; of a pass over several tokens what it takes at all (bytes per
    second) and for each token (multiplications per second). What is not matrices' is left out."""
    (format,) = (f for f in FORMATS.values() if f.name == name)
    with closing(Probe(large(format), file, n_threads)) as deep:
        (one,) = in_turns([(deep, 1, 0)], seconds)
    with closing(Probe(shallow(format), file, n_threads)) as probe:
        few, many = in_turns([(probe, n, 0) for n in (FEW_TOKENS, MANY_TOKENS)], seconds)

    def less(probe: Probe, n_tokens: int, times: Rate) -> Rate:
        beside = _beside(rates, probe, n_tokens)
        return Rate(*(max(t - beside, 0.5 * t) for t in (times.low, times.mid, times.high)))

    one, many = less(deep, 1, one), less(probe, MANY_TOKENS, many)
    few = less(probe, FEW_TOKENS, few)
    each = (many.mid - few.mid) / (MANY_TOKENS - FEW_TOKENS) * MANY_TOKENS / many.mid
    each = min(0.95, max(0.5, each))  # the share of the longer pass that its tokens take
    n_products = MANY_TOKENS * probe.shape.n_weights
    return {
        "decode": {name: one.seconds(deep.weight_bytes).stored()},
        "pass": {name: (many * (1 - each)).seconds(probe.weight_bytes).stored()},
        "prefill": {name: (many * each).seconds(n_products).stored()},
    }


def measure_memory_rates(rates: Rates, counts: Iterable[int], seconds: float = 0.05) -> None:
    """Bytes per second that 1, 2, … threads read from memory; stored."""
    found = {}
    for n in counts:
        samples = [measure_memory(n, _MEMORY_BYTES, seconds) for _ in range(4)]
        found[str(n)] = Rate.of(samples)
    rates.store_memory(found)


def measure_fresh_memory(rates: Rates) -> None:
    """Bytes per second at which the system hands out memory that nobody had before; stored.

    The system zeroes it, and where it is a guest itself, its host may have to find it first.
    """
    samples = []
    with ExitStack() as held:  # what was given back would be handed out again, and faster
        for _ in range(_FRESH_SAMPLES):
            block = held.enter_context(mmap.mmap(-1, _FRESH_BYTES))
            with suppress(AttributeError, OSError):  # no huge pages here
                block.madvise(mmap.MADV_HUGEPAGE)
            begin = time.perf_counter()
            for at in range(0, _FRESH_BYTES, mmap.PAGESIZE):
                block[at] = 1
            samples.append(_FRESH_BYTES / (time.perf_counter() - begin))
    rates.store_memory({"fresh": Rate.of(samples)})
