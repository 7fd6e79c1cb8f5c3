"""What the threads did in each step of the passes, summed by operation, by layer and by token.

At any time all threads are in the same step, so the wall time of a pass is divided among its steps:
one lasts from its first unit's begin to the next one's. In that time a thread is *busy*, it
*stalls* for a tile that the drive has not delivered, or it is *idle*: it waits for the others'
units. busy + stall + idle = threads x wall.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edge_rt.program import HEAD, Operation

# TraceEvent of runtime/trace.h: start, end, stall (ns), bytes streamed and resident, units, step,
# segment, thread.
_EVENT = struct.Struct("=QQQQQIHBB")
_EMBEDDING, _PASS = 0xFFFF, 0xFFFE


@dataclass
class Times:
    """Of a step, or of many; nanoseconds and bytes. All but ``wall`` are summed over threads."""

    wall: int = 0
    busy: int = 0
    stall: int = 0
    flash_bytes: int = 0
    resident_bytes: int = 0
    units: int = 0

    def add(self, other: Times) -> None:
        self.wall += other.wall
        self.busy += other.busy
        self.stall += other.stall
        self.flash_bytes += other.flash_bytes
        self.resident_bytes += other.resident_bytes
        self.units += other.units

    def report(self, n_threads: int) -> dict[str, Any]:
        """With times in milliseconds."""
        found = asdict(self)
        times = {name: found.pop(name) / 1e6 for name in ("wall", "busy", "stall")}
        idle = max(0.0, n_threads * times["wall"] - times["busy"] - times["stall"])
        return {f"{name}_ms": value for name, value in (times | {"idle": idle}).items()} | found


@dataclass(frozen=True)
class Step:
    """One step of a segment: what `Times` are summed by."""

    op: str  # its operations and tensors: "attn_q+attn_k+attn_v+rope+store_kv"
    kind: str  # of its first operation
    layer: str


def steps_of(
    segment: int, steps: Sequence[Sequence[Operation]], name_of: Callable[[int], str]
) -> list[Step]:
    """Describe ``steps``, as `Engine.steps` gives them; ``name_of`` a matrix's index."""
    found = []
    for operations in steps:
        names: dict[str, None] = {}
        for operation in operations:
            for part in operation.parts:
                names[_short(name_of(part.matrix))] = None
            if not operation.parts:
                names[operation.kind] = None
        layer = operations[-1].layer
        outside = "head" if segment == HEAD else "input"
        found.append(
            Step("+".join(names), operations[0].kind, str(layer) if layer >= 0 else outside)
        )
    return found


def _short(tensor: str) -> str:
    return ".".join(p for p in tensor.split(".") if p not in ("blk", "weight") and not p.isdigit())


@dataclass
class Phase:
    """The passes of a part of a request, and the wall time (ns) of all of it, which ends up in one
    of ``steps``, ``embedding`` (waiting for rows of the embedding), ``passes`` (beginning and
    ending passes) and what the caller puts into ``rest``."""

    wall: int = 0
    embedding: int = 0
    passes: int = 0
    rest: dict[str, int] = field(default_factory=dict)
    steps: dict[Step, Times] = field(default_factory=dict)

    def in_steps(self) -> int:
        """Nanoseconds of wall time."""
        return sum(t.wall for t in self.steps.values())

    def in_passes(self) -> int:
        """Nanoseconds of wall time."""
        return self.embedding + self.passes + self.in_steps()

    def total(self) -> Times:
        """Of all steps."""
        return _sum(self.steps.values())

    def add_pass(self, events: bytes, steps: Sequence[Sequence[Step]]) -> None:
        """Add what `Engine`'s ``trace`` was given for one pass, or for rows of the head."""
        pass_ns = within = 0
        begun: dict[tuple[int, int], int] = {}
        ended = [0, 0]
        found: dict[tuple[int, int], Times] = {}
        for start, end, stall, flash, resident, units, step, segment, _ in _EVENT.iter_unpack(
            events
        ):
            if step == _PASS:
                pass_ns += end - start
            elif step == _EMBEDDING:
                self.embedding += end - start
                within += end - start
            else:
                key = segment, step
                begun[key] = min(start, begun.get(key, start))
                ended[segment] = max(end, ended[segment])
                times = found.setdefault(key, Times())
                times.add(Times(0, end - start - stall, stall, flash, resident, units))
        order = sorted(begun, key=lambda key: begun[key])
        for key, after in zip(order, [*order[1:], None], strict=True):
            segment, step = key
            same = after is not None and after[0] == segment
            until = begun[after] if same and after is not None else ended[segment]
            found[key].wall = until - begun[key]
            within += found[key].wall
            self.steps.setdefault(steps[segment][step], Times()).add(found[key])
        self.passes += pass_ns - within

    def add(self, other: Phase) -> None:
        """Sum both."""
        self.wall += other.wall
        self.embedding += other.embedding
        self.passes += other.passes
        for name, ns in other.rest.items():
            self.rest[name] = self.rest.get(name, 0) + ns
        for step, times in other.steps.items():
            self.steps.setdefault(step, Times()).add(times)

    def summed(self, by: Callable[[Step], str]) -> dict[str, Times]:
        """Times of the steps for which ``by`` says the same, in the order of execution."""
        found: dict[str, Times] = {}
        for step, times in self.steps.items():
            found.setdefault(by(step), Times()).add(times)
        return found

    def report(self, n_threads: int) -> dict[str, Any]:
        """The object of ``profile --json``: its ``by_op`` and its ``by_layer``, each with ``rest``,
        add up to ``wall_ms``."""
        rest = {"embedding rows": self.embedding, "begin and end of passes": self.passes}
        return {
            **self.total().report(n_threads),
            "wall_ms": self.wall / 1e6,
            "rest_ms": {name: ns / 1e6 for name, ns in (rest | self.rest).items()},
            "by_kind": _rows("kind", self.summed(lambda step: step.kind), n_threads),
            "by_op": _rows("op", self.summed(lambda step: step.op), n_threads),
            "by_layer": _rows("layer", self.summed(lambda step: step.layer), n_threads),
        }


def _sum(many: Iterable[Times]) -> Times:
    total = Times()
    for times in many:
        total.add(times)
    return total


def _rows(key: str, summed: dict[str, Times], n_threads: int) -> list[dict[str, Any]]:
    return [{key: name, **times.report(n_threads)} for name, times in summed.items()]
