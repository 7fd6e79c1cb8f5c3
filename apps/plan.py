"""``edge-rt plan``: what would be where for a budget, and how fast; loads nothing."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

from edge_rt.apps import options as o
from edge_rt.errors import EdgeRTError
from edge_rt.sizes import MIB, format_size

_BAR = 32  # characters of the fastest row


def plan_json(planner: Any, plan: Any, opening_s: float = 0.0) -> dict[str, Any]:
    """The object that ``plan --json`` prints."""
    from edge_rt.forecast import curve, forecast

    return {
        "fits": plan.fits,
        "floor_bytes": plan.floor_bytes,
        "budget_bytes": plan.settings.budget,
        "roles": plan.roles,
        "resident_bytes": plan.resident_bytes,
        "streamed_bytes_per_token": plan.streamed_bytes,
        "threads": plan.n_threads,
        "pass_tokens": plan.pass_tokens,
        "forecast": forecast(planner, plan, opening_s) if plan.fits else None,
        **curve(planner, plan.settings),
    }


def _measure(planner: Any, file: Any, settings: Any) -> None:
    """Measure what the forecast needs and nobody has measured here."""
    from edge_rt.machine.missing import is_missing, measure_missing, needed_bytes
    from edge_rt.process import resident_bytes

    needed = planner.rates, planner.program, settings.n_threads, settings.kv
    if not is_missing(*needed) or settings.budget - resident_bytes() < needed_bytes():
        return  # measuring takes no more than what is planned for
    if sys.stderr.isatty():
        o.say("measuring drive and kernels for the forecast, once (edge-rt doctor measures more)")
    # A plan does not fail for want of a rate: what cannot be measured is assumed, and said to be.
    with suppress(EdgeRTError, OSError, MemoryError, RuntimeError):
        measure_missing(planner.rates, file, *needed[1:])
    planner.forget_models()


def plan(
    model: o.Model = None,
    ram: o.Ram = None,
    ctx: o.Ctx = None,
    threads: o.Threads = None,
    kv: o.Kv = "f16",
    weight_cap: o.WeightCap = None,
    as_json: o.AsJson = False,
) -> None:
    """Show what is where for a budget, the floor and a forecast."""
    path = o.model_path(model)
    import edge_rt.engine  # noqa: F401  counts in what is measured: a run has it, too
    from edge_rt.opening import make_settings, open_planner, with_baseline
    from edge_rt.tokenizer import Tokenizer

    started = time.perf_counter()
    source, planner, file = open_planner(path)
    settings = make_settings(planner, o.budget_of(ram), ctx, threads, kv, weight_cap)
    decision = planner.plan(settings)
    opening_s = 0.0
    if decision.fits:  # as the engine does: the tokenizer is built, then what is held is measured
        tokenizer = Tokenizer.from_source(source, planner.program.n_vocab)
        opening_s = time.perf_counter() - started
        settings = with_baseline(settings)
        _measure(planner, file, settings)
        decision = planner.plan(settings)
        del tokenizer
    report = plan_json(planner, decision, opening_s)
    if as_json:
        o.print_json(report)
        if not decision.fits:
            raise SystemExit(3)
        return
    decision.require_fit(path)
    for role, n_bytes in decision.roles.items():
        print(f"{role:<14}{format_size(n_bytes):>12}")
    print(f"{'total':<14}{format_size(sum(decision.roles.values())):>12}", end="")
    print(f"  of {format_size(settings.budget)} (floor {decision.floor_bytes // MIB} MiB)")
    print(f"{'resident':<14}{format_size(decision.resident_bytes):>12}  of the weights")
    print(f"{'streamed':<14}{format_size(decision.streamed_bytes):>12}  per token")
    _print_forecast(report)


def _print_forecast(report: dict[str, Any]) -> None:
    f = report["forecast"]
    print(
        f"forecast      {f['tok_s_low']:.1f} to {f['tok_s_high']:.1f} tok/s, "
        f"likely {f['tok_s']:.1f}, bound by {f['bound']} ({f['source']})"
    )
    print(
        f"first token   {f['ttft_s_low']:.2g} to {f['ttft_s_high']:.2g} s "
        f"after a prompt of {f['prompt_tokens']} tokens; loading {f['load_s']:.2g} s"
    )
    rows, ours, knee = report["curve"], report["budget_bytes"], report["knee_bytes"]
    print("speed by budget, tok/s")
    fastest = max(row["tok_s"] for row in rows)
    at = max((i for i, row in enumerate(rows) if row["ram_bytes"] <= ours), default=0)
    for i, row in enumerate(rows):
        bar = "#" * max(1, round(_BAR * row["tok_s"] / fastest))
        note = "  <- this budget" if i == at else ""
        line = f"{format_size(row['ram_bytes']):>12} {row['tok_s']:>8.1f}  {bar:<{_BAR}}{note}"
        print(line.rstrip())
    whole = rows[-1]["ram_bytes"]
    print(
        f"knee          {format_size(knee)}: more is hardly faster"
        + (f"; from {format_size(whole)} on everything is resident" if whole > knee else "")
    )
