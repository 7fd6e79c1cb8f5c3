"""What a plan will do: tokens per second, time to the first token and loading, with intervals.

The numbers are those of `edge_rt.performance`. What earlier runs of the same model measured moves
them: the ratio of measured to modelled seconds, kept with the machine's rates.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

from edge_rt.machine.rates import Rate
from edge_rt.performance import MODEL_SPREAD, PROMPT_SPREAD, Times
from edge_rt.plan import Plan, Settings
from edge_rt.planner import TYPICAL_PROMPT, Planner
from edge_rt.sizes import MIB, PAGE, align_up

POSITION: Final = 64  # tokens before the one that is forecast
_LOAD_SPREAD: Final = 0.5  # memory that others gave back just now comes twice as fast
_LEAST_OPENING_S: Final = 1e-3
_MIN_STEPS: Final = 16  # a shorter run says nothing
_CURVE_POINTS: Final = 16
_KNEE: Final = 0.95  # of the speed with everything resident


def _run_name(planner: Planner, plan: Plan, times: Times) -> str:
    """What runs are told apart by; what sets the pace is part of it."""
    drive = planner.rates.drive
    bound = "compute"
    if times.reads.mid > times.compute.mid:
        bound = f"{drive.key} {drive.limit}" if drive else "drive"
    return f"{planner.name} x{plan.n_threads} {plan.settings.kv} {bound}"


def _speed(times: Rate) -> dict[str, float]:
    return {"tok_s_low": 1 / times.high, "tok_s": 1 / times.mid, "tok_s_high": 1 / times.low}


def _interval(times: Rate, share: float) -> Rate:
    """``times`` with the errors of its rates and the model's own: independent, so they add up as
    squares do."""
    low = math.hypot(math.log(times.mid / times.low), math.log1p(share))
    high = math.hypot(math.log(times.high / times.mid), math.log1p(share))
    return Rate(times.mid / math.exp(low), times.mid, times.mid * math.exp(high))


def step_seconds(planner: Planner, plan: Plan, position: int = POSITION) -> tuple[Rate, bool]:
    """Seconds of a decoded token, and whether earlier runs corrected them."""
    times = planner.performance(plan.settings, plan.n_threads).step(plan.stream, position)
    correction = planner.rates.correction(_run_name(planner, plan, times))
    if correction is None:
        return _interval(times.total, MODEL_SPREAD), False
    return _interval(times.total * correction.mid, MODEL_SPREAD / 2), True


def forecast(planner: Planner, plan: Plan, opening_s: float = 0.0) -> dict[str, Any]:
    """The object ``forecast`` of ``plan --json``; seconds, and tokens per second.

    ``tok_s`` is that of a short context (``context`` tokens), ``tok_s_full_context`` at its end;
    ``ttft_s`` after a prompt of ``prompt_tokens`` with the engine open. ``opening_s``: what
    opening the model and building its tokenizer took, a part of loading.
    """
    model = planner.performance(plan.settings, plan.n_threads)
    last = plan.settings.ctx - 1
    position = min(POSITION, last)
    seconds, corrected = step_seconds(planner, plan, position)
    far, _ = step_seconds(planner, plan, last)
    times = model.step(plan.stream, position)
    prompt = min(TYPICAL_PROMPT, plan.settings.ctx)
    first = _interval(model.prompt(plan.stream, prompt, plan.pass_tokens), PROMPT_SPREAD)
    load = model.load(plan.resident_bytes)
    opening_s = max(opening_s, _LEAST_OPENING_S)
    load = _interval(load + Rate(opening_s, opening_s, opening_s), _LOAD_SPREAD)
    measured = model.knows_kernels and (model.knows_drive or not plan.streamed_bytes)
    source = "measured" if measured else "assumed: not measured here (edge-rt doctor does)"
    return {
        **_speed(seconds),
        "bound": "flash" if times.reads.mid > times.compute.mid else "compute",
        "source": "measured, and earlier runs of this model" if measured and corrected else source,
        "context": position,
        "tok_s_full_context": 1 / far.mid,
        "compute_s": times.compute.mid,
        "flash_s": times.reads.mid,
        "prompt_tokens": prompt,
        "ttft_s_low": first.low,
        "ttft_s": first.mid,
        "ttft_s_high": first.high,
        "load_s_low": load.low,
        "load_s": load.mid,
        "load_s_high": load.high,
        "reads": {
            "request_bytes": plan.stream.request_bytes if plan.streamed_bytes else 0,
            "depth": plan.stream.depth if plan.streamed_bytes else 0,
        },
    }


def curve(planner: Planner, settings: Settings) -> dict[str, Any]:
    """Speed against budget, from the floor to everything resident: ``curve``, rows of ``ram_bytes``
    and ``tok_s``, and ``knee_bytes``, the least budget with 95 % of the greatest speed."""
    floor = planner.floor(settings)[0]

    def speed(ram: int) -> float:
        found = planner.outline(replace(settings, budget=max(floor, ram)))
        assert found is not None
        model = planner.performance(settings)
        return 1 / model.step(found[0], min(POSITION, settings.ctx - 1)).total.mid

    whole = _least(planner, settings, floor)
    step = (whole - floor) / (_CURVE_POINTS - 1)
    budgets = [align_up(floor + round(step * i), PAGE) for i in range(_CURVE_POINTS - 1)]
    rows = [{"ram_bytes": ram, "tok_s": speed(ram)} for ram in dict.fromkeys([*budgets, whole])]
    best = speed(whole)
    low, high = floor, whole  # the knee lies above `low`, or at the floor
    if speed(floor) >= _KNEE * best:
        high = floor
    while high - low > MIB:
        middle = (low + high) // 2
        low, high = (low, middle) if speed(middle) >= _KNEE * best else (middle, high)
    return {"curve": rows, "knee_bytes": align_up(high, MIB)}


def _least(planner: Planner, settings: Settings, floor: int) -> int:
    """The least budget with which everything is resident."""

    def is_whole(ram: int) -> bool:
        found = planner.outline(replace(settings, budget=ram))
        return found is not None and not found[0].n_bytes

    low, high = floor, floor + 2 * planner.weight_bytes + 64 * MIB
    while high - low > MIB:
        middle = (low + high) // 2
        low, high = (low, middle) if is_whole(middle) else (middle, high)
    return align_up(high, MIB)


def learn(
    planner: Planner, plan: Plan, position: int, steps: int, seconds: float, stall_s: float
) -> None:
    """Keep how ``steps`` decoded tokens around ``position`` compare to the model, for later
    forecasts of the same model; a cache that cannot be written is no error."""
    if steps < _MIN_STEPS or seconds <= 0:
        return
    model = planner.performance(plan.settings, plan.n_threads)
    if not model.knows_kernels or (plan.streamed_bytes and not model.knows_drive):
        return  # a ratio to an assumption would be wrong as soon as there is a measurement
    times = model.step(plan.stream, position)
    waited = stall_s > 0.2 * seconds * plan.n_threads
    if waited != (times.reads.mid > times.compute.mid):
        return  # something else set the pace: a ratio would be of two different things
    planner.rates.learn(_run_name(planner, plan, times), seconds / steps / times.total.mid)
