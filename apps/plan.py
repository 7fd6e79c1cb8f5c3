"""``edge-rt plan``: what would be where for a budget; loads nothing."""

from __future__ import annotations

from typing import Any

from edge_rt.apps import options as o
from edge_rt.sizes import MIB, format_size


def plan_json(planner: Any, plan: Any) -> dict[str, Any]:
    """The object that ``plan --json`` prints."""
    from edge_rt.forecast import forecast

    return {
        "fits": plan.fits,
        "floor_bytes": plan.floor_bytes,
        "budget_bytes": plan.settings.budget,
        "roles": plan.roles,
        "resident_bytes": plan.resident_bytes,
        "streamed_bytes_per_token": plan.streamed_bytes,
        "forecast": forecast(planner, plan) if plan.fits else None,
    }


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
    from edge_rt.engine import make_settings, open_planner, with_baseline
    from edge_rt.tokenizer import Tokenizer

    source, planner, _ = open_planner(path)
    settings = make_settings(planner, o.budget_of(ram), ctx, threads, kv, weight_cap)
    decision = planner.plan(settings)
    if decision.fits:  # as the engine does: the tokenizer is built, then what is held is measured
        tokenizer = Tokenizer.from_source(source, planner.program.n_vocab)
        decision = planner.plan(with_baseline(settings))
        del tokenizer
    report = plan_json(planner, decision)
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
    f = report["forecast"]
    print(
        f"forecast      {f['tok_s_low']:.1f} to {f['tok_s_high']:.1f} tok/s, "
        f"bound by {f['bound']} ({f['source']})"
    )
