"""What a user chose, and what was decided for it: the data of planning."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_rt.errors import BudgetError
from edge_rt.performance import Stream
from edge_rt.sizes import MIB, format_size

# The least that a pass has, of tokens and of rows of logits, where a model is not wide.
MIN_PASS_TOKENS = 64
MIN_LOGIT_ROWS = 16
KV_FORMATS = ("f16", "f32", "q8_0")  # elements of the KV cache, as kv_format_named knows them


@dataclass(frozen=True)
class Settings:
    """What the user chose. Sizes in bytes; ``weight_cap`` None: no cap."""

    budget: int
    ctx: int
    n_threads: int
    kv: str = "f16"  # one of KV_FORMATS
    weight_cap: int | None = None
    reserved: int = 0  # held by the caller on top: results of `logits`, for one
    baseline: int = 0  # measured: interpreter and tokenizer; 0: unknown, the ceilings hold
    chat_loaded: bool = False  # what `budget.CHAT_BYTES` is for is in the baseline
    threads_open: bool = False  # fewer threads than `n_threads` will do where they are faster
    trace: bool = False  # room for what the threads do in a pass


@dataclass(frozen=True)
class Run:
    """A contiguous extent of the file that stays resident at ``arena_offset``."""

    file_offset: int
    n_bytes: int
    arena_offset: int


@dataclass
class Plan:
    """One decision. Arena offsets are bytes from its start; ``buffers`` maps names to offsets."""

    settings: Settings
    fits: bool
    floor_bytes: int
    roles: dict[str, int]
    pass_tokens: int = MIN_PASS_TOKENS
    logit_rows: int = MIN_LOGIT_ROWS
    arena_bytes: int = 0
    kv_offset: int = 0
    kv_bytes: int = 0
    kv_positions: list[int] = field(default_factory=list)  # of each layer
    buffers: dict[str, int] = field(default_factory=dict)
    scratch_offset: int = 0
    scratch_bytes: int = 0
    trace_offset: int = 0
    trace_bytes: int = 0
    spans_offset: int = 0
    candidates_offset: int = 0
    staging_offset: int = 0
    staging_bytes: int = 0
    ring_offset: int = 0
    ring_bytes: int = 0
    tile_bytes: int = 0  # of the cut; `Planner.cut` has it
    runs: list[Run] = field(default_factory=list)
    tile_offsets: dict[tuple[int, int], int] = field(default_factory=dict)  # (matrix, row) -> arena
    vector_offsets: dict[str, int] = field(default_factory=dict)
    resident_bytes: int = 0  # of tiles, without padding
    stream: Stream = field(default_factory=Stream)  # what is not resident
    n_threads: int = 0  # that compute; the settings' number is charged

    @property
    def streamed_bytes(self) -> int:
        """Requested per token, padding included."""
        return self.stream.n_bytes

    def require_fit(self, what: str) -> None:
        """Raise `BudgetError` with the arithmetic unless the plan fits its budget."""
        if self.fits:
            return
        rows = "".join(f"\n  {name:<12}{format_size(n):>12}" for name, n in self.roles.items())
        floor = self.floor_bytes
        raise BudgetError(
            f"{what} does not fit {format_size(self.settings.budget)} with "
            f"--ctx {self.settings.ctx}: the least it needs is{rows}\n"
            f"the smallest budget that works is --ram {floor // MIB}MiB ({floor} bytes)",
        )
