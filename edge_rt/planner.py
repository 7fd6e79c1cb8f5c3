"""What is where for a budget: the arithmetic before anything is loaded.

The budget is split into roles. Everything but resident weights is fixed by the model, the context
and the pass size; what is left holds as many weight tiles as fit, spread evenly over the layers,
and the rest streams through a ring. All of it lies in one arena whose layout is decided here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from edge_rt import budget
from edge_rt.chat.source import find_template
from edge_rt.errors import BudgetError, EdgeRTError, StorageError
from edge_rt.loaders.source import WeightSource
from edge_rt.program import LOGITS, MatrixUse, Program, X
from edge_rt.sizes import KIB, MIB, PAGE, align_up, format_size
from edge_rt.tokenizer.cost import tokenizer_bytes

MIN_PASS_TOKENS = 64
MAX_PASS_TOKENS = 256
MIN_LOGIT_ROWS = 16
# What the least pass may hold of activations and of logits: wide models and large vocabularies
# begin with fewer tokens and rows, so that the floor stays near what cannot be made smaller.
_LEAST_ACTIVATION_BYTES = 5 * MIB
_LEAST_LOGIT_BYTES = 2 * MIB
_FEWEST_PASS_TOKENS = 16
N_IO_THREADS = 4  # kPreadThreads of flash_io/reader.h; io_uring takes one
_MIN_RING_TILES = 4
# A ring that stays in the last-level cache: 8 MiB streamed 1.25 times as fast as 32 MiB
# (docs/measurements.md), because what the drive delivered is computed with before it leaves it.
_MAX_RING_BYTES = 8 * MIB
# A model is cut into about 2048 tiles: small ones spread evenly and fit a small ring, big ones are
# read at the drive's full speed and keep the lists short.
_TILES = 2048
_MIN_TILE_BYTES, _MAX_TILE_BYTES = 128 * KIB, 4 * MIB
# Beyond 128 GiB tiles grow again: a file can say that it has terabytes, and a list of a million
# tiles would take minutes and hundreds of MiB before anything was refused.
_MOST_TILES = 32768
_ATTENTION_TILE = 32  # kAttentionTile of kernels.h
_TRACE_EVENT_BYTES = 48  # TraceEvent of runtime/trace.h
KV_FORMATS = ("f16", "f32", "q8_0")  # elements of the KV cache, as kv_format_named knows them
_CANDIDATE_BYTES = 8  # one sampler candidate per token of the vocabulary


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows ``row .. row + n_rows`` of a matrix: the unit of residency, contiguous in the file."""

    matrix: int
    row: int
    n_rows: int
    file_offset: int
    n_bytes: int


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
    runs: list[Run] = field(default_factory=list)
    tile_offsets: dict[tuple[int, int], int] = field(default_factory=dict)  # (matrix, row) -> arena
    vector_offsets: dict[str, int] = field(default_factory=dict)
    resident_bytes: int = 0  # of tiles, without padding
    streamed_bytes: int = 0  # requested per pass with the head, padding included

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


class Planner:
    """Plans one model: ``alignment`` is that of direct reads of its file."""

    def __init__(self, source: WeightSource, program: Program, alignment: int) -> None:
        self.program = program
        self.alignment = alignment
        self.tokenizer_peak, self.tokenizer_steady = tokenizer_bytes(source)
        self.template_bytes = _template_bytes(source)
        total = sum(m.n_bytes for m in program.matrices)
        ideal = 1 << (total // _TILES).bit_length()
        largest = max(_MAX_TILE_BYTES, 1 << (total // _MOST_TILES).bit_length())
        self.tile_bytes = max(_MIN_TILE_BYTES, min(largest, ideal))
        self.tiles: list[list[Tile]] = [[], []]  # by segment, in the order of use
        self.tiles_of: list[list[Tile]] = []  # by matrix, rows ascending
        for index, matrix in enumerate(program.matrices):
            self.tiles_of.append(self._cut(index, matrix))
            self.tiles[matrix.segment].extend(self.tiles_of[-1])
        self.weight_bytes = sum(self._charge(t.file_offset, t.n_bytes) for t in self._all_tiles())
        rows = _LEAST_LOGIT_BYTES // (4 * program.n_vocab)
        self.min_logit_rows = max(1, min(MIN_LOGIT_ROWS, rows))
        self.min_pass_tokens = MIN_PASS_TOKENS
        while (
            self.min_pass_tokens > _FEWEST_PASS_TOKENS
            and self._buffers_bytes(self.program.buffers, self.min_pass_tokens, 0)
            > _LEAST_ACTIVATION_BYTES
        ):
            self.min_pass_tokens //= 2

    def _cut(self, index: int, matrix: MatrixUse) -> list[Tile]:
        rows = max(8, self.tile_bytes // matrix.row_bytes // 8 * 8)
        return [
            Tile(
                matrix=index,
                row=row,
                n_rows=min(rows, matrix.n_rows - row),
                file_offset=matrix.file_offset + row * matrix.row_bytes,
                n_bytes=min(rows, matrix.n_rows - row) * matrix.row_bytes,
            )
            for row in range(0, matrix.n_rows, rows)
        ]

    def _all_tiles(self) -> list[Tile]:
        return self.tiles[0] + self.tiles[1]

    def _charge(self, file_offset: int, n_bytes: int) -> int:
        """Bytes of the aligned extent that a direct read of the payload needs."""
        start = file_offset // self.alignment * self.alignment
        return align_up(file_offset + n_bytes, self.alignment) - start

    # -- sizes of the fixed roles ---------------------------------------------------------------

    def _buffer_bytes(self, name: str, pass_tokens: int, logit_rows: int) -> int:
        width = self.program.buffers[name]
        if name == LOGITS:
            return logit_rows * width * 4
        if name.endswith(".q8"):  # codes, then a float scale and an int32 sum per 32 columns
            return pass_tokens * (width + width // 32 * 8)
        return pass_tokens * width * 4

    def _scratch_bytes(self) -> int:
        from edge_rt.runtime._runtime import attention_scratch_bytes, matmul_scratch_bytes

        widest = max(m.n_cols for m in self.program.matrices)
        attention = attention_scratch_bytes(self.program.hyper.head_dim)
        return align_up(max(matmul_scratch_bytes(widest), attention), 64)

    def _spans_bytes(self, settings: Settings) -> int:
        from edge_rt.runtime._runtime import attention_spans_bytes

        hyper = self.program.hyper
        return align_up(attention_spans_bytes(hyper.n_heads, hyper.head_dim, settings.ctx), 64)

    def _staging_bytes(self) -> int:
        row = self.program.embedding_format.row_bytes(self.program.embedding.shape[1])
        return align_up(row, self.alignment) + self.alignment

    def _buffers_bytes(self, names: Iterable[str], pass_tokens: int, logit_rows: int) -> int:
        return sum(align_up(self._buffer_bytes(n, pass_tokens, logit_rows), 64) for n in names)

    def _working(self) -> list[str]:
        """Buffers whose contents nobody needs after a pass: sampling may have their place."""
        return [name for name in self.program.buffers if name not in (X, LOGITS)]

    def _activation_bytes(self, settings: Settings, pass_tokens: int, logit_rows: int) -> int:
        working = self._buffers_bytes(self._working(), pass_tokens, logit_rows)
        working += self._scratch_bytes() * settings.n_threads + self._spans_bytes(settings)
        candidates = align_up(self.program.n_vocab * _CANDIDATE_BYTES, 64)
        kept = self._buffers_bytes((X, LOGITS), pass_tokens, logit_rows)
        kept += align_up(self._trace_bytes(settings), 64)
        return align_up(kept + max(working, candidates), PAGE)

    def _trace_bytes(self, settings: Settings) -> int:
        """Room for one pass and its head: an operation makes one event of a thread at most."""
        n_events = sum(map(len, self.program.operations)) + 4
        return n_events * _TRACE_EVENT_BYTES * settings.n_threads if settings.trace else 0

    def _kv_bytes(self, settings: Settings) -> int:
        from edge_rt.runtime._runtime import kv_head_bytes

        hyper = self.program.hyper
        layers = kv_positions(self.program, settings.ctx)
        head = sum(kv_head_bytes(settings.kv, hyper.head_dim, rows) for rows in layers)
        return align_up(2 * hyper.n_kv_heads * head, PAGE)

    def _vector_bytes(self) -> int:
        return sum(align_up(4 * v.n, 64) for v in self.program.vectors.values())

    def _min_ring_bytes(self) -> int:
        largest = max(self._charge(t.file_offset, t.n_bytes) for t in self._all_tiles())
        return align_up(_MIN_RING_TILES * largest, PAGE)

    def _chat_bytes(self, settings: Settings) -> int:
        return self.template_bytes + (0 if settings.chat_loaded else budget.CHAT_BYTES)

    def _fixed_roles(
        self, settings: Settings, pass_tokens: int, logit_rows: int, ring: int
    ) -> dict[str, int]:
        threads = (
            settings.n_threads * budget.COMPUTE_THREAD_BYTES
            + N_IO_THREADS * budget.READ_THREAD_BYTES
        )
        tokenizer = self.tokenizer_steady
        interpreter = budget.INTERPRETER_BYTES
        if settings.baseline:
            tokenizer = min(tokenizer, settings.baseline // 2)
            interpreter = settings.baseline - tokenizer
        return {
            "interpreter": interpreter + self._chat_bytes(settings) + settings.reserved,
            "tokenizer": tokenizer,
            "weights": align_up(self._vector_bytes(), PAGE),
            "ring": ring,
            "kv": self._kv_bytes(settings),
            "activations": self._activation_bytes(settings, pass_tokens, logit_rows),
            "io": align_up(pass_tokens * self._staging_bytes(), PAGE) + threads,
            "kernel": budget.KERNEL_BASE_BYTES,
            "slack": budget.SLACK_BYTES + budget.CONTEXT_TOKEN_BYTES * settings.ctx,
        }

    # -- planning -------------------------------------------------------------------------------

    def _with_page_tables(self, roles: dict[str, int]) -> dict[str, int]:
        arena = sum(roles[name] for name in ("weights", "ring", "kv", "activations", "io"))
        return roles | {"kernel": budget.kernel_bytes(arena)}

    def floor(self, settings: Settings) -> tuple[int, dict[str, int]]:
        """The smallest budget that works, and its roles: the larger of start-up and running."""
        # A measured baseline below its ceiling makes room for weights, but no lower floor: what
        # works here must not depend on luck.
        chat = budget.CHAT_BYTES if settings.chat_loaded else 0
        if settings.baseline <= budget.INTERPRETER_BYTES + chat + self.tokenizer_steady:
            settings = replace(settings, baseline=0, chat_loaded=False)
        ring = self._min_ring_bytes()
        roles = self._with_page_tables(
            self._fixed_roles(settings, self.min_pass_tokens, self.min_logit_rows, ring)
        )
        building = roles["interpreter"] - self._chat_bytes(settings) + self.tokenizer_peak
        building += budget.KERNEL_BASE_BYTES
        return align_up(max(sum(roles.values()), building), MIB), roles

    def plan(self, settings: Settings) -> Plan:
        """Decide for ``settings``; the plan says itself whether it fits."""
        floor, least = self.floor(settings)
        limit = settings.budget // PAGE * PAGE
        if limit < floor:
            return Plan(settings, fits=False, floor_bytes=floor, roles=least)
        everything = set(self._all_tiles())
        least_sizes = self.min_pass_tokens, self.min_logit_rows
        room = self._room(settings, limit, *least_sizes, ring=0)
        whole = self._resident_charge(everything)
        if whole <= self._capped(settings, room):
            resident, ring = everything, 0
            spare = (room - whole) // 2
            pass_tokens, logit_rows = self._pass_sizes(settings, spare, spare)
        else:
            spare = self._room(settings, limit, *least_sizes, self._min_ring_bytes())
            # Passes of 64 tokens already compute longer than they read; shorter ones do not.
            pass_tokens, logit_rows = self._pass_sizes(settings, spare // 2, spare // 32)
            ring = min(_MAX_RING_BYTES, align_up(spare // 16, PAGE))
            ring = max(ring, self._min_ring_bytes())
            room = self._room(settings, limit, pass_tokens, logit_rows, ring)
            resident = self._choose(self._capped(settings, room))
        roles = self._fixed_roles(settings, pass_tokens, logit_rows, ring)
        plan = Plan(settings, True, floor, roles, pass_tokens, logit_rows, ring_bytes=ring)
        self._lay_out(plan, resident)
        return plan

    def _room(
        self, settings: Settings, limit: int, pass_tokens: int, logit_rows: int, ring: int
    ) -> int:
        """Bytes that are left besides everything but resident tiles."""
        fixed = self._fixed_roles(settings, pass_tokens, logit_rows, ring)
        left = limit - sum(self._with_page_tables(fixed).values())
        # Page tables grow with the arena by 1/512 of what the weights get; its parts end on pages.
        return max(0, left - left // 256 - 2 * PAGE)

    def _capped(self, settings: Settings, room: int) -> int:
        """Bytes of ``room`` that resident tiles may have."""
        return room if settings.weight_cap is None else min(room, settings.weight_cap)

    def _pass_sizes(self, settings: Settings, first: int, spare: int) -> tuple[int, int]:
        """Tokens per pass and logit rows that ``spare`` bytes more than the least ones allow;
        ``first`` bytes for passes of up to `MIN_PASS_TOKENS`."""
        pass_tokens, logit_rows = self.min_pass_tokens, self.min_logit_rows
        base = self._activation_bytes(settings, pass_tokens, logit_rows)
        while pass_tokens < settings.ctx and pass_tokens * 2 <= MAX_PASS_TOKENS:
            more = self._activation_bytes(settings, pass_tokens * 2, logit_rows) - base
            allowed = (first if pass_tokens < MIN_PASS_TOKENS else spare) // 2
            if more + pass_tokens * self._staging_bytes() > allowed:
                break
            pass_tokens *= 2
        while logit_rows < pass_tokens and logit_rows * 2 * self.program.n_vocab * 4 < spare // 2:
            logit_rows *= 2
        return pass_tokens, logit_rows

    def _choose(self, room: int) -> set[Tile]:
        """The largest evenly spread set of tiles whose aligned extents fit ``room`` bytes."""
        low, high = 0.0, min(1.0, 1.05 * room / max(1, self.weight_bytes))
        best: set[Tile] = set()
        for _ in range(12):
            middle = (low + high) / 2
            chosen = self._spread(middle)
            if self._resident_charge(chosen) <= room:
                low, best = middle, chosen
            else:
                high = middle
        return best

    def _spread(self, fraction: float) -> set[Tile]:
        """Take ``fraction`` of the bytes by error diffusion, so that reads never come in a lump."""
        chosen, due = set(), 0.0
        for tile in self._all_tiles():
            due += fraction * tile.n_bytes
            if due >= tile.n_bytes:
                chosen.add(tile)
                due -= tile.n_bytes
        return chosen

    def _merged(self, tiles: set[Tile]) -> list[list[Tile]]:
        """Tiles that follow each other in the file, as runs that are read and kept as one."""
        runs: list[list[Tile]] = []
        for tile in sorted(tiles, key=lambda t: t.file_offset):
            if runs and runs[-1][-1].file_offset + runs[-1][-1].n_bytes == tile.file_offset:
                runs[-1].append(tile)
            else:
                runs.append([tile])
        return runs

    def _run_extent(self, run: list[Tile]) -> tuple[int, int]:
        start = run[0].file_offset
        return start, run[-1].file_offset + run[-1].n_bytes - start

    def _resident_charge(self, tiles: set[Tile]) -> int:
        return sum(self._charge(*self._run_extent(run)) for run in self._merged(tiles))

    def _lay_out(self, plan: Plan, resident: set[Tile]) -> None:
        """Give everything its place: the KV cache first, because it survives a resize."""
        settings, at = plan.settings, 0

        def take(n_bytes: int, alignment: int) -> int:
            nonlocal at
            start = align_up(at, alignment)
            at = start + n_bytes
            return start

        grid = max(PAGE, self.alignment)
        plan.kv_bytes = self._kv_bytes(settings)
        plan.kv_positions = kv_positions(self.program, settings.ctx)
        plan.kv_offset = take(plan.kv_bytes, PAGE)
        for name in (X, LOGITS, *self._working()):
            n_bytes = self._buffer_bytes(name, plan.pass_tokens, plan.logit_rows)
            plan.buffers[name] = take(n_bytes, 64)
        plan.trace_bytes = self._trace_bytes(settings)
        plan.scratch_bytes = self._scratch_bytes()
        plan.scratch_offset = take(plan.scratch_bytes * settings.n_threads, 64)
        plan.spans_offset = take(self._spans_bytes(settings), 64)
        plan.candidates_offset = min(plan.buffers[name] for name in self._working())
        at = max(at, plan.candidates_offset + self.program.n_vocab * _CANDIDATE_BYTES)
        plan.trace_offset = take(plan.trace_bytes, 64)
        plan.staging_bytes = self._staging_bytes()
        plan.staging_offset = take(plan.pass_tokens * plan.staging_bytes, grid)
        plan.ring_offset = take(plan.ring_bytes, grid)
        weights_start = align_up(at, grid)
        for name, vector in self.program.vectors.items():
            plan.vector_offsets[name] = take(4 * vector.n, 64)
        for run in self._merged(resident):
            start, n_bytes = self._run_extent(run)
            first = take(self._charge(start, n_bytes), self.alignment) + start % self.alignment
            plan.runs.append(Run(start, n_bytes, first))
            for tile in run:
                plan.tile_offsets[tile.matrix, tile.row] = first + tile.file_offset - start
        plan.arena_bytes = align_up(at, PAGE)
        plan.roles["weights"] = align_up(at - weights_start, PAGE)
        plan.roles["kernel"] = budget.kernel_bytes(plan.arena_bytes)
        plan.resident_bytes = sum(tile.n_bytes for tile in resident)
        plan.streamed_bytes = sum(
            self._charge(t.file_offset, t.n_bytes) for t in self._all_tiles() if t not in resident
        )

    def streamed(self, plan: Plan, segment: int) -> list[Tile]:
        """The tiles of ``segment`` that are not resident, in the order of use."""
        return [t for t in self.tiles[segment] if (t.matrix, t.row) not in plan.tile_offsets]


def _template_bytes(source: WeightSource) -> int:
    """A ceiling for the largest of the model's own chat templates, compiled."""
    try:
        found = [find_template(source, tools) for tools in (False, True)]
    except StorageError:
        raise
    except EdgeRTError:  # a chat will say so
        return 0
    return max(budget.template_bytes(text) for text in {text or "" for text in found})


def kv_positions(program: Program, ctx: int) -> list[int]:
    """Rows of each layer's KV cache: ``ctx``, or a ring where a window needs no more.

    A pass stores all its positions before it looks back, so the ring holds a window and the longest
    pass, whatever the budget. It ends between tiles of attention.
    """
    longest = max(MIN_PASS_TOKENS, MAX_PASS_TOKENS)
    return [
        min(ctx, align_up(layer.window + longest, _ATTENTION_TILE)) if layer.window else ctx
        for layer in program.hyper.layers
    ]


def reusable(program: Program, plan: Plan, kept: int, written: int) -> int:
    """How many of the first ``kept`` positions a new pass can build on: all, or none where a ring
    has lost what the windows before ``kept`` show. ``written``: positions ever stored."""
    for layer, rows in zip(program.hyper.layers, plan.kv_positions, strict=True):
        if layer.window and max(0, kept + 1 - layer.window) < written - rows:
            return 0
    return kept


def default_threads() -> int:
    """The cores this process may run on."""
    return max(1, min(64, len(os.sched_getaffinity(0))))
