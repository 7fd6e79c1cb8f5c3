"""``edge-rt profile``: where the time of a request goes, by operation, by layer and by token."""

from __future__ import annotations

import time
from typing import Any

from edge_rt.apps import options as o
from edge_rt.apps.generate import read_prompt
from edge_rt.errors import UsageError
from edge_rt.sizes import format_size

_SAMPLING, _PROFILING, _OTHER = "sampling", "profiling itself", "between passes"


class _Profiler:
    """Collects the events of passes; what that takes is counted as `_PROFILING`."""

    def __init__(self) -> None:
        from edge_rt.trace import Phase, Step

        self.steps: list[list[Step]] = []
        self.phase = Phase()
        self._profiling = 0

    def begin(self, engine: Any) -> None:
        """Once the engine is open."""
        from edge_rt.trace import steps_of

        self.steps = [
            steps_of(segment, steps, engine.matrix_name)
            for segment, steps in enumerate(engine.steps())
        ]

    def add_pass(self, events: bytes) -> None:
        start = time.perf_counter_ns()
        self.phase.add_pass(events, self.steps)
        self._profiling += time.perf_counter_ns() - start

    def end_phase(self, wall: int, sampling: int = 0) -> Any:
        """What was added since the last one ended; ``wall`` and ``sampling`` in ns."""
        from edge_rt.trace import Phase

        done, self.phase = self.phase, Phase()
        done.wall = wall
        done.rest = {_SAMPLING: sampling, _PROFILING: self._profiling}
        done.rest[_OTHER] = wall - done.in_passes() - sampling - self._profiling
        self._profiling = 0
        return done


def measure(engine: Any, profiler: _Profiler, prompt: list[int], n_tokens: int) -> dict[str, Any]:
    """Decode greedily and account for every nanosecond from the prompt to the last token."""
    from edge_rt.runtime._runtime import Sampler
    from edge_rt.sampling import Sampling
    from edge_rt.trace import Phase

    now = time.perf_counter_ns
    sampler, greedy = Sampler(0), Sampling()
    tokens: list[int] = []
    token_rows: list[dict[str, Any]] = []
    decode = Phase()
    with engine._exclusive():
        profiler.begin(engine)
        n_threads = engine.plan.n_threads
        mark = now()
        engine.prefill(prompt)
        for index in range(n_tokens):
            if index > 0:
                engine.decode(tokens[-1])
            before = now()
            tokens.append(engine.sample(sampler, greedy))
            end = now()
            phase = profiler.end_phase(end - mark, end - before)
            mark = end
            if index == 0:
                prefill, begun = phase, engine.stats()
                continue
            decode.add(phase)
            token_rows.append(
                {
                    "token": index,
                    **phase.total().report(n_threads),
                    "wall_ms": phase.wall / 1e6,
                    "rest_ms": (phase.wall - phase.in_steps()) / 1e6,
                }
            )
        ended = engine.stats()
    return {
        "threads": n_threads,
        "io": engine.io,
        "budget_bytes": engine.memory()["budget"],
        "resident_bytes": engine.plan.resident_bytes,
        "streamed_bytes_per_token": engine.plan.streamed_bytes,
        "prompt_tokens": len(prompt),
        "generated_tokens": len(tokens),
        "prefill": prefill.report(n_threads),
        "decode": decode.report(n_threads)
        | {
            "reading_ms": (ended["reading_ns"] - begun["reading_ns"]) / 1e6,
            "flash_requests": ended["flash_requests"] - begun["flash_requests"],
        },
        "tokens": token_rows,
        "events_lost": engine.n_trace_lost,
    }


def profile(
    model: o.Model = None,
    prompt: o.Prompt = None,
    file: o.PromptFile = None,
    ram: o.Ram = None,
    max_tokens: o.MaxTokens = 32,
    ctx: o.Ctx = None,
    threads: o.Threads = None,
    kv: o.Kv = "f16",
    io: o.Io = "auto",
    weight_cap: o.WeightCap = None,
    as_json: o.AsJson = False,
) -> None:
    """Continue a text greedily and show where the time went."""
    text = read_prompt(prompt, file)
    if max_tokens < 1:
        raise UsageError(f"-n is {max_tokens}: there is nothing to profile without a token")
    path = o.model_path(model)
    profiler = _Profiler()
    with o.open_engine(
        path, ram, ctx=ctx, threads=threads, kv=kv, io=io, weight_cap=weight_cap,
        trace=profiler.add_pass,
    ) as engine:  # fmt: skip
        ids = engine.encode_prompt(text)
        if not ids:
            raise UsageError("the prompt is empty, and this model has no token to begin with")
        if len(ids) + max_tokens - 1 > engine.ctx:
            raise UsageError(
                f"{len(ids)} tokens of prompt and {max_tokens} new ones do not fit a context of "
                f"{engine.ctx}"
            )
        report = measure(engine, profiler, ids, max_tokens)
    if as_json:
        o.print_json(report)
        return
    print(
        f"{report['threads']} threads, reading with {report['io']}; resident "
        f"{format_size(report['resident_bytes'])}, streamed "
        f"{format_size(report['streamed_bytes_per_token'])} per token"
    )
    _print_phase(f"prompt of {report['prompt_tokens']} tokens", report["prefill"], 1)
    if report["tokens"]:
        _print_phase("one decoded token", report["decode"], len(report["tokens"]))
        walls = sorted(row["wall_ms"] for row in report["tokens"])
        middle = walls[len(walls) // 2]
        if report["streamed_bytes_per_token"]:
            share = report["decode"]["reading_ms"] / report["decode"]["wall_ms"]
            print(f"reads in flight {100 * min(1.0, share):.1f} % of the time")
        print(f"tokens: fastest {walls[0]:.2f}, middle {middle:.2f}, slowest {walls[-1]:.2f} ms")
    if report["events_lost"]:
        print(f"{report['events_lost']} events had no room")


def _print_phase(title: str, phase: dict[str, Any], n: int) -> None:
    """A table in ms per each of ``n``; busy, stalled and idle are sums over the threads."""
    print(f"\n{title}: {phase['wall_ms'] / n:.3f} ms")
    print(f"{'':<44} {'wall':>9} {'busy':>9} {'stalled':>9} {'idle':>9} {'streamed':>11}")
    for row in sorted(phase["by_op"], key=lambda row: -row["wall_ms"]):
        times = " ".join(
            f"{row[name + '_ms'] / n:9.3f}" for name in ("wall", "busy", "stall", "idle")
        )
        print(f"{row['op'][:44]:<44} {times} {format_size(row['flash_bytes'] / n):>11}")
    for name, ms in phase["rest_ms"].items():
        print(f"{name:<44} {ms / n:9.3f}")
