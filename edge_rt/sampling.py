"""How the next token is chosen: what the user may set. The choosing itself is C++ (``sampler.h``):
in NumPy it would cost the process 16 MiB for the import alone, a sixth of the demo model's
budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edge_rt.errors import UsageError
from edge_rt.runtime._runtime import SamplerOptions


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters, applied in the order of llama.cpp: logit bias, penalties, top-k, top-p,
    min-p, temperature. ``temperature`` 0 takes the most likely token; ``seed`` None draws one."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_k", self.top_k, 0, 2**31 - 1),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repeat_penalty", self.repeat_penalty, 1e-3, 1e3),
            ("presence_penalty", self.presence_penalty, -1e3, 1e3),
            ("frequency_penalty", self.frequency_penalty, -1e3, 1e3),
            ("penalty_window", self.penalty_window, 0, 2**20),
        )
        for name, value, low, high in checks:
            if not low <= value <= high:  # also refuses NaN
                raise UsageError(f"{name} is {value}: it must be between {low:g} and {high:g}")
        if isinstance(self.stop, str):
            raise UsageError("stop is a list of strings, not one string")
        if not all(self.stop):
            raise UsageError("an empty stop string would stop at once")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise UsageError(f"seed is {self.seed}: it must be between 0 and 2^64 - 1")
        if any(math.isnan(value) for value in self.logit_bias.values()):
            raise UsageError("a logit bias is not a number")

    def options(self) -> SamplerOptions:
        """The same as the C++ sampler takes it."""
        options = SamplerOptions()
        for name in (
            "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty",
            "frequency_penalty",
        ):  # fmt: skip
            setattr(options, name, getattr(self, name))
        return options
