"""The performance model: how long a pass takes on this machine, from measured rates.

A decoded token needs every weight once: all of them cross the cores, the streamed ones the drive,
too. The two overlap all the time, so the slower one sets the pace:

    compute = token + layers · layer + Σ weight bytes ÷ rate of their format
              + heads' columns · positions ÷ rate of attention + columns of vectors · their time
              + bytes read · processor time per byte ÷ threads
    reads   = bytes read ÷ rate of the drive at the stream's request size and depth
    step    = (compute⁴ + reads⁴)^¼ + the embedding row

Where one takes much longer than the other, it hides it; where they are even, a block that is late
costs time that early ones do not bring back: a fifth more than either.

In a pass over a prompt the weights take what unpacking them takes, and for each token its
multiplications ÷ the rate of prefill. Every rate has an
interval, and so has what comes out; what was not measured here has a wide one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edge_rt.machine.rates import NOTHING, Cell, Rate, Rates
from edge_rt.program import HEAD, LAYERS, Program
from edge_rt.quant.blocks import FORMATS
from edge_rt.sizes import KIB, MIB

# Assumed where nothing was measured: an SD card to NVMe, a phone's core to a desktop's.
_ASSUMED_SECONDS, _ASSUMED_BYTES_S = 1e-4, 1.5e9  # of a request, of a drive
_ASSUMED_DECODE: Final = Rate(3e9, 10e9, 30e9)
_ASSUMED_PASS: Final = Rate(3e9, 10e9, 30e9)
_ASSUMED_PREFILL: Final = Rate(5e9, 50e9, 300e9)
_ASSUMED_ATTENTION: Final = Rate(0.5e9, 3e9, 10e9)
_ASSUMED_STEP: Final = Rate(2e-6, 2e-5, 2e-4)
_ASSUMED_FRESH: Final = Rate(0.5e9, 3e9, 20e9)
_ASSUMED_COLUMN: Final = Rate(1e-10, 4e-10, 4e-9)
# What the model leaves out, and how much runs of the same work differ from one minute to another on
# a machine that others use, too (docs/speed.md): of a token, of a prompt.
MODEL_SPREAD, PROMPT_SPREAD = 0.15, 0.25
# Of the rate at which the doctor reads, who waits for nothing, what streams reach: the median of
# runs (docs/speed.md). What a cgroup allows they reach.
_STREAMED_SHARE, _AT_LIMIT = 0.9, 0.95
_OVERLAP: Final = 4  # the power of the overlap of two things that go on at once
_OTHER_SPREAD: Final = 0.35  # of a rate that stands for another format or number of threads
_EMBEDDING_REQUEST: Final = 4 * KIB
_LOAD_REQUEST, _LOAD_DEPTH = MIB, 8  # kLoadRequestBytes and kLoadRequests of load.cc


@dataclass(frozen=True)
class Stream:
    """What of the weights crosses the drive in a pass: bytes of the layers and of the head, the
    mean request, and how many are in flight."""

    layer_bytes: int = 0
    head_bytes: int = 0
    request_bytes: int = MIB
    depth: int = 1

    @property
    def n_bytes(self) -> int:
        """With the head: what a decoded token reads."""
        return self.layer_bytes + self.head_bytes


@dataclass(frozen=True)
class Times:
    """Seconds of a pass: what the cores and what the drive need, and what passes."""

    compute: Rate
    reads: Rate
    total: Rate


def attention_work(program: Program, position: int, n_tokens: int) -> float:
    """Columns of all heads times positions, for tokens from ``position`` on, over the layers."""
    hyper = program.hyper
    seen = position + (n_tokens + 1) / 2
    rows = sum(min(seen, layer.window or seen) for layer in hyper.layers)
    return n_tokens * rows * hyper.n_heads * hyper.head_dim


def vector_columns(program: Program) -> int:
    """Columns that the layers' operations on vectors (norms, rotations, activations, …) have for
    each token."""
    return sum(
        program.buffers.get(operation.dst or operation.src, 0)
        for operation in program.operations[LAYERS]
        if operation.kind not in ("matmul", "attention")
    )


class Performance:
    """The model for one program, number of threads and kind of KV cache."""

    def __init__(self, program: Program, rates: Rates, n_threads: int, kv: str) -> None:
        self.program = program
        self.rates = rates
        self.n_threads = n_threads
        self.kv = kv
        self.cells = _usable(rates.cells())
        self._counts = rates.thread_counts()
        self._complete = True  # all rates asked for so far were measured
        self._token = self._kernel(_ASSUMED_STEP, "token")
        self._layer = self._kernel(_ASSUMED_STEP, "layer")
        self._attention = [
            self._kernel(_ASSUMED_ATTENTION, name, kv) for name in ("attention", "attention_pass")
        ]
        self._columns = self._kernel(_ASSUMED_COLUMN, "vectors") * vector_columns(program)
        self._weights: list[Rate] = []  # seconds of decoding, by segment
        self._unpacking = NOTHING  # seconds of a pass of several tokens through the layers: at all,
        self._products = NOTHING  # and for each of them
        for segment in (LAYERS, HEAD):
            n_bytes: dict[str, int] = {}
            n_weights: dict[str, int] = {}
            for m in program.matrices:
                if m.segment == segment:
                    name = m.format.name
                    n_bytes[name] = n_bytes.get(name, 0) + m.n_bytes
                    n_weights[name] = n_weights.get(name, 0) + m.n_rows * m.n_cols
            decode = NOTHING
            for name, n in n_bytes.items():
                decode += self._format(_ASSUMED_DECODE, "decode", name).seconds(n)
                if segment == LAYERS:
                    self._unpacking += self._format(_ASSUMED_PASS, "pass", name).seconds(n)
                    rate = self._format(_ASSUMED_PREFILL, "prefill", name)
                    self._products += rate.seconds(n_weights[name])
            self._weights.append(decode)

    # -- rates ----------------------------------------------------------------------------------

    @property
    def knows_kernels(self) -> bool:
        """Whether every kernel was measured with this number of threads."""
        return self._complete

    @property
    def knows_drive(self) -> bool:
        return bool(self.cells)

    def _kernel(self, assumed: Rate, *name: str) -> Rate:
        """A measured rate; one of the nearest number of threads; the assumed one."""
        found = self.rates.kernel(self.n_threads, *name)
        if found is not None:
            return found
        self._complete = False
        for n in sorted(self._counts, key=lambda n: abs(math.log(n / self.n_threads))):
            found = self.rates.kernel(n, *name)
            if found is not None:
                return found.spread(_OTHER_SPREAD)
        return assumed

    def _format(self, assumed: Rate, kind: str, name: str) -> Rate:
        """`_kernel` of a format; where it was not measured, of the one nearest in size."""
        if self.rates.kernel(self.n_threads, kind, name) is not None:
            return self._kernel(assumed, kind, name)
        self._complete = False
        bits = {f.name: f.block_bytes / f.block_elements for f in FORMATS.values()}
        for other in sorted(bits, key=lambda other: abs(math.log(bits[other] / bits[name]))):
            found = self.rates.kernel(self.n_threads, kind, other)
            if found is not None:
                return found.spread(_OTHER_SPREAD)
        return self._kernel(assumed, kind, name)

    def slowness(self, format: str) -> float:
        """Seconds per byte that decoding takes in ``format``."""
        return 1 / self._format(_ASSUMED_DECODE, "decode", format).mid

    def drive(self, request_bytes: int, depth: int) -> tuple[Rate, float]:
        """Bytes per second, and processor seconds per byte, of such reads."""
        if not self.cells:
            latent = depth * request_bytes / (_ASSUMED_SECONDS + request_bytes / _ASSUMED_BYTES_S)
            mid = min(latent, _ASSUMED_BYTES_S)
            return Rate(mid / 15, mid, mid * 4), 0.0
        return interpolate(self.cells, request_bytes, depth)

    def _stream_rate(self, stream: Stream) -> tuple[Rate, float]:
        """`drive` for the reads of a stream."""
        rate, cpu_s = self.drive(stream.request_bytes, stream.depth)
        limit = self.rates.drive.limit if self.rates.drive else None
        at_limit = limit is not None and rate.mid >= _AT_LIMIT * limit
        return rate if at_limit else rate * _STREAMED_SHARE, cpu_s

    # -- times ----------------------------------------------------------------------------------

    def _beside(self, position: int, n_tokens: int) -> Rate:
        """What a pass takes that is not its matrices'."""
        attention = self._attention[n_tokens > 1]
        seconds = self._token + self._layer * self.program.hyper.n_layers
        seconds += self._columns * n_tokens
        return seconds + attention.seconds(attention_work(self.program, position, n_tokens))

    def step(self, stream: Stream, position: int) -> Times:
        """One decoded token with ``position`` tokens before it."""
        compute = self._beside(position, 1) + self._weights[LAYERS] + self._weights[HEAD]
        return self._overlapped(compute, stream, stream.n_bytes, 1)

    def prompt_pass(self, stream: Stream, position: int, n_tokens: int) -> Times:
        """A pass over ``n_tokens`` of a prompt through the layers."""
        compute = self._beside(position, n_tokens)
        compute += _most(self._unpacking + self._products * n_tokens, self._weights[LAYERS])
        return self._overlapped(compute, stream, stream.layer_bytes, n_tokens)

    def _overlapped(self, compute: Rate, stream: Stream, n_bytes: int, n_tokens: int) -> Times:
        rate, cpu_s = self._stream_rate(stream)
        reads = rate.seconds(n_bytes) if n_bytes else NOTHING
        spent = n_bytes * cpu_s / self.n_threads
        compute += Rate(0.5 * spent, spent, spent)
        rows, _ = self.drive(_EMBEDDING_REQUEST, min(8, n_tokens))
        embedding = rows.seconds(_EMBEDDING_REQUEST * n_tokens)
        return Times(compute, reads, _overlap(compute, reads) + embedding)

    def prompt(self, stream: Stream, n_tokens: int, pass_tokens: int) -> Rate:
        """Seconds to the first token after a prompt, with the engine open."""
        n_whole, rest = divmod(n_tokens, pass_tokens)
        total = NOTHING
        if n_whole:  # what differs, attention, grows evenly: the middle one stands for all
            middle = pass_tokens * (n_whole - 1) // 2
            total += self.prompt_pass(stream, middle, pass_tokens).total * n_whole
        if rest:
            total += self.prompt_pass(stream, n_tokens - rest, rest).total
        head = _overlap(self._weights[HEAD], self._head_reads(stream))
        return total + head

    def _head_reads(self, stream: Stream) -> Rate:
        rate, _ = self._stream_rate(stream)
        return rate.seconds(stream.head_bytes) if stream.head_bytes else NOTHING

    def load(self, n_bytes: int) -> Rate:
        """Seconds to read the resident weights into memory that is new to the process."""
        if not n_bytes:
            return NOTHING
        rate, _ = self.drive(_LOAD_REQUEST, _LOAD_DEPTH)
        reads = rate.seconds(n_bytes)
        fresh = (self.rates.fresh_memory() or _ASSUMED_FRESH).seconds(n_bytes)
        return _overlap(reads, fresh)


def _overlap(a: Rate, b: Rate) -> Rate:
    """Seconds of two things of which each waits for the other now and then."""

    def both(x: float, y: float) -> float:
        return float((x**_OVERLAP + y**_OVERLAP) ** (1 / _OVERLAP))

    return Rate(both(a.low, b.low), both(a.mid, b.mid), both(a.high, b.high))


def _most(a: Rate, b: Rate) -> Rate:
    return Rate(max(a.low, b.low), max(a.mid, b.mid), max(a.high, b.high))


def _usable(cells: Sequence[Cell]) -> list[Cell]:
    """Of the backend that is used where both are there."""
    uring = [cell for cell in cells if cell.io == "uring"]
    return uring or list(cells)


def interpolate(cells: Sequence[Cell], request_bytes: int, depth: int) -> tuple[Rate, float]:
    """Bytes per second and processor seconds per byte between measured cells, along the logarithms
    of size and depth; at the edge where the question lies outside."""
    size = math.log2(request_bytes)
    sizes = sorted({cell.request_bytes for cell in cells})
    below = max((s for s in sizes if s <= request_bytes), default=sizes[0])
    above = min((s for s in sizes if s >= request_bytes), default=sizes[-1])
    first, first_cpu = _at_depth(cells, below, depth)
    if above == below:
        return first, first_cpu
    second, second_cpu = _at_depth(cells, above, depth)
    share = (size - math.log2(below)) / (math.log2(above) - math.log2(below))
    return _between(first, second, share), first_cpu + share * (second_cpu - first_cpu)


def _at_depth(cells: Sequence[Cell], request_bytes: int, depth: int) -> tuple[Rate, float]:
    row = {cell.depth: cell for cell in cells if cell.request_bytes == request_bytes}
    below = max((d for d in row if d <= depth), default=min(row))
    above = min((d for d in row if d >= depth), default=max(row))
    a, b = row[below], row[above]
    if above <= below:
        return a.rate, a.cpu_s
    share = math.log(depth / below) / math.log(above / below)
    return _between(a.rate, b.rate, share), a.cpu_s + share * (b.cpu_s - a.cpu_s)


def _between(a: Rate, b: Rate, share: float) -> Rate:
    def mean(x: float, y: float) -> float:
        return float(x ** (1 - share) * y**share)

    return Rate(mean(a.low, b.low), mean(a.mid, b.mid), mean(a.high, b.high))
