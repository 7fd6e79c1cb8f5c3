"""Rotary frequencies and every way of stretching them.

Frequencies are radians per position, in double precision: base^(-2i/n) (RoFormer,
arXiv:2104.09864, section 3.2.2), divided by a file's factors, then scaled. The magnitude multiplies
cosines and sines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from edge_rt.errors import ModelError
from edge_rt.loaders.gguf_cursor import LazyArray, clip
from edge_rt.loaders.source import TensorInfo, WeightSource
from edge_rt.models.description import Rope
from edge_rt.quant.blocks import F32

FACTORS, LONG_FACTORS, SHORT_FACTORS = (
    "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight",
)  # fmt: skip
KINDS = ("none", "linear", "llama3", "yarn", "longrope")

ReadFloats = Callable[[TensorInfo], bytes]  # the bytes of a small F32 tensor


class RopeReader:
    """Reads the rope tables of one model; ``n`` columns of a head are turned."""

    def __init__(self, source: WeightSource, prefix: str, n: int, n_ctx_train: int) -> None:
        self.source, self.prefix, self.n = source, prefix, n
        self.original_ctx = source.get_int(
            f"{prefix}.rope.scaling.original_context_length", n_ctx_train, 1, 1 << 28
        )

    def main(self, read_floats: ReadFloats) -> Rope:
        """The table of the layers that see everything."""
        base = self.positive("rope.freq_base", 10000.0)
        plain = self.plain(base)
        kind = self.source.get_str(f"{self.prefix}.rope.scaling.type", "none")
        if kind not in KINDS:
            known = ", ".join(KINDS)
            raise ModelError(f"rope scaling {clip(kind)} is not supported (supported: {known})")
        factors, long_factors = self.factors(kind, plain, read_floats)
        long = _divide(plain, long_factors) if long_factors is not None else None
        rope = Rope(_divide(plain, factors), self.positive("rope.scaling.attn_factor", 1.0), long)
        rope = replace(rope, original_ctx=self.original_ctx)
        if kind == "yarn":
            return self.yarn(rope, base)
        # Before scaling types, GGUFs wrote a bare linear factor.
        if kind == "linear":
            factor = self.factor()
        elif kind == "none":
            factor = self.positive("rope.scale_linear", 1.0)
        else:
            return rope
        return replace(rope, frequencies=_divide(rope.frequencies, [factor] * (self.n // 2)))

    def local(self, base: float) -> Rope:
        """The table of windowed layers of a family whose scaling is for the other ones."""
        default = base or self.positive("rope.freq_base", 10000.0)
        return Rope(self.plain(self.positive("rope.freq_base_swa", default)))

    def plain(self, base: float) -> tuple[float, ...]:
        return tuple(base ** (-2 * i / self.n) for i in range(self.n // 2))

    def yarn(self, rope: Rope, base: float) -> Rope:
        """YaRN (arXiv:2309.00071, section 3.2): fast pairs stay, slow ones are interpolated.

        The magnitude is 0.1 ln(factor) + 1 unless the file says otherwise, as Hugging Face's
        ``attention_factor`` or as ``mscale_all_dim`` (GGUF: yarn_log_multiplier).
        """
        factor = self.factor()
        if base <= 1:
            raise ModelError(f"{self.prefix}.rope.freq_base is {base}: YaRN needs more than 1")
        if self.source.get_float(f"{self.prefix}.rope.scaling.yarn_ext_factor", 1.0) != 1.0:
            raise ModelError(f"{self.prefix}.rope.scaling.yarn_ext_factor is not supported")

        def pair_that_turns(times: float) -> float:
            turns = math.log(self.original_ctx / (times * 2 * math.pi))
            return self.n * turns / (2 * math.log(base))

        fast = pair_that_turns(self.positive("rope.scaling.yarn_beta_fast", 32.0))
        slow = pair_that_turns(self.positive("rope.scaling.yarn_beta_slow", 1.0))
        low, high = max(math.floor(fast), 0), min(math.ceil(slow), self.n - 1)
        stretched = []
        for i, frequency in enumerate(rope.frequencies):
            ramp = min(1.0, max(0.0, (i - low) / max(0.001, high - low)))
            stretched.append(frequency / factor * ramp + frequency * (1 - ramp))
        every = self.source.get_float(f"{self.prefix}.rope.scaling.yarn_log_multiplier", 0.0)
        if not 0 <= every < 1e30:
            raise ModelError(f"{self.prefix}.rope.scaling.yarn_log_multiplier is {every}")
        default = yarn_magnitude(factor, 1.0)
        if every:
            default /= yarn_magnitude(factor, every)
        magnitude = self.positive("rope.scaling.yarn_attn_factor", default)
        return replace(rope, frequencies=tuple(stretched), magnitude=rope.magnitude * magnitude)

    def factors(
        self, kind: str, plain: Sequence[float], read_floats: ReadFloats
    ) -> tuple[Sequence[float] | None, Sequence[float] | None]:
        """Divisors of the frequencies, and those of contexts beyond the original one, if any."""
        tensors, scaling = self.source.tensors, f"{self.prefix}.rope.scaling"
        if FACTORS in tensors:
            return self.tensor(FACTORS, read_floats), None
        if SHORT_FACTORS in tensors or LONG_FACTORS in tensors:
            short, long = (self.tensor(name, read_floats) for name in (SHORT_FACTORS, LONG_FACTORS))
            return short, long
        if kind == "llama3":
            return self.llama3(plain), None
        if kind == "longrope":
            short, long = (
                self.checked(numbers(self.source, f"{scaling}.{name}_factor", self.n // 2), name)
                for name in ("short", "long")
            )
            return short, long
        return None, None

    def llama3(self, plain: Sequence[float]) -> list[float]:
        """Llama 3.1's divisors: 1 for fast pairs, the factor for slow ones, a blend between."""
        factor = self.factor()
        low, high = (self.positive(f"rope.scaling.{end}_freq_factor") for end in ("low", "high"))
        if high <= low:
            raise ModelError(f"{self.prefix}: llama3 scaling from {low} to {high} makes no sense")
        divisors = []
        for frequency in plain:
            turns = self.original_ctx * frequency / (2 * math.pi)
            smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
            divisors.append(1 / ((1 - smooth) / factor + smooth))
        return divisors

    def tensor(self, name: str, read_floats: ReadFloats) -> Sequence[float]:
        info = self.source.tensors.get(name)
        if info is None:
            raise ModelError(f"the file has no tensor {name}")
        if info.shape != (self.n // 2,) or info.format != F32:
            raise ModelError(f"{name} must be F32 {(self.n // 2,)}")
        return self.checked(memoryview(read_floats(info)).cast("f").tolist(), name)

    def checked(self, factors: Sequence[float], name: str) -> Sequence[float]:
        if not all(0 < f < math.inf for f in factors):
            raise ModelError(f"{name} holds factors that are not positive")
        return factors

    def factor(self) -> float:
        key = f"{self.prefix}.rope.scaling.factor"
        value = self.source.get_float(key)
        if not 1e-3 <= value < 1e30:
            raise ModelError(f"{key}: a rope scaling factor of {value} makes no sense")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        full = f"{self.prefix}.{key}"
        get = self.source.get_float
        value = get(full) if default is None else get(full, default)
        if not 1e-30 < value < 1e30:
            raise ModelError(f"{full} is {value}: it must be positive")
        return value


def numbers(source: WeightSource, key: str, length: int) -> list[float]:
    """The array of ``length`` numbers at ``key``: a GGUF's, or a tuple from a config.json."""
    value = source.metadata.get(key)
    if not isinstance(value, tuple):
        value = source.get_array(key)
    if len(value) != length:
        raise ModelError(f"{key} has {len(value)} elements, not {length}")
    found = list(value.numbers() if isinstance(value, LazyArray) else value)
    if not all(isinstance(x, int | float) for x in found):
        raise ModelError(f"{key} must hold numbers")
    return found


def _divide(frequencies: Sequence[float], factors: Sequence[float] | None) -> tuple[float, ...]:
    if factors is None:
        return tuple(frequencies)
    return tuple(f / factor for f, factor in zip(frequencies, factors, strict=True))


def yarn_magnitude(factor: float, multiplier: float) -> float:
    """What YaRN multiplies cosines and sines by (arXiv:2309.00071, section 3.4)."""
    return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0
