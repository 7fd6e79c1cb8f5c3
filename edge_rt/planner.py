"""What is where for a budget: the arithmetic before anything is loaded.

The budget is split into roles. Everything but resident weights is fixed by the model, the context
and the pass size; what is left holds as many weight tiles as fit, spread evenly over the layers,
and the rest streams through a ring. All of it lies in one arena whose layout is decided here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from edge_rt import budget
from edge_rt.chat.source import find_template
from edge_rt.errors import EdgeRTError, StorageError
from edge_rt.kv_cache import kv_positions
from edge_rt.loaders.source import WeightSource
from edge_rt.machine.host import last_level_cache
from edge_rt.machine.rates import Rates
from edge_rt.performance import Performance, Stream
from edge_rt.plan import MIN_LOGIT_ROWS, MIN_PASS_TOKENS, Plan, Run, Settings
from edge_rt.program import HEAD, LAYERS, LOGITS, Program, X
from edge_rt.sizes import MIB, PAGE, align_up
from edge_rt.tiles import Tile, Tiles, extent, outline, tile_sizes
from edge_rt.tokenizer.cost import tokenizer_bytes

MAX_PASS_TOKENS = 256
# What the least pass may hold of activations and of logits: wide models and large vocabularies
# begin with fewer tokens and rows, so that the floor stays near what cannot be made smaller.
_LEAST_ACTIVATION_BYTES = 5 * MIB
_LEAST_LOGIT_BYTES = 2 * MIB
_FEWEST_PASS_TOKENS = 16
N_IO_THREADS = 4  # kPreadThreads of flash_io/reader.h; io_uring takes one
MAX_DEPTH = 32  # kUringDepth
_MIN_RING_TILES = 4
# A ring that stays in the last-level cache: what the drive delivered is computed with before it
# leaves it. A quarter of it streamed 1.25 times as fast as all of it (docs/measurements.md).
_RING_CACHE_SHARE = 4
_MAX_RING_BYTES = 8 * MIB  # where the system does not say how large its caches are
# The request that sizes are chosen for.
TYPICAL_PROMPT, _TYPICAL_ANSWER, _TYPICAL_POSITION = 512, 128, 512
_CLEARLY = 0.95
_TRACE_EVENT_BYTES = 48  # TraceEvent of runtime/trace.h
_CANDIDATE_BYTES = 8  # one sampler candidate per token of the vocabulary


@dataclass(frozen=True)
class _Sizes:
    """What besides resident weights takes room; ``ring`` 0: everything is resident."""

    pass_tokens: int
    logit_rows: int
    ring: int
    tile_bytes: int


class Planner:
    """Plans one model: ``alignment`` is that of direct reads of its file, ``rates`` are those of
    this machine and the file's drive (None: assumed ones)."""

    def __init__(
        self,
        source: WeightSource,
        program: Program,
        alignment: int,
        rates: Rates | None = None,
    ) -> None:
        self.program = program
        self.rates = rates or Rates.unknown()
        self.name = f"{os.path.basename(source.path)} {source.file_size}"
        self.alignment = alignment
        self.tokenizer_peak, self.tokenizer_steady = tokenizer_bytes(source)
        self.template_bytes = _template_bytes(source)
        self._widest = max(m.n_cols for m in program.matrices)
        self._models: dict[tuple[int, str], Performance] = {}
        # By the bytes of a tile: how many there are, and the largest one's bytes.
        self._cuts = {n_bytes: outline(program, n_bytes) for n_bytes in tile_sizes(program)}
        self._tile_bytes = min(self._cuts)  # where nothing speaks for larger ones
        self._tiles = Tiles(program, alignment, self._tile_bytes)
        self.weight_bytes = self._tiles.n_bytes
        self._whole = self._tiles.whole
        self._matrix_bytes = [
            sum(m.n_bytes for m in program.matrices if m.segment == s) for s in (LAYERS, HEAD)
        ]
        rows = _LEAST_LOGIT_BYTES // (4 * program.n_vocab)
        self.min_logit_rows = max(1, min(MIN_LOGIT_ROWS, rows))
        self.min_pass_tokens = MIN_PASS_TOKENS
        while (
            self.min_pass_tokens > _FEWEST_PASS_TOKENS
            and self._buffers_bytes(self.program.buffers, self.min_pass_tokens, 0)
            > _LEAST_ACTIVATION_BYTES
        ):
            self.min_pass_tokens //= 2

    def cut(self, tile_bytes: int) -> Tiles:
        """The tiles of plans with ``tile_bytes``; the last cut is kept."""
        if self._tiles.tile_bytes != tile_bytes:
            self._tiles = Tiles(self.program, self.alignment, tile_bytes)
        return self._tiles

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

        attention = attention_scratch_bytes(self.program.hyper.head_dim)
        return align_up(max(matmul_scratch_bytes(self._widest), attention), 64)

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
        layers = self._kv_positions(settings)
        head = sum(kv_head_bytes(settings.kv, hyper.head_dim, rows) for rows in layers)
        return align_up(2 * hyper.n_kv_heads * head, PAGE)

    def _kv_positions(self, settings: Settings) -> list[int]:
        longest = max(MIN_PASS_TOKENS, MAX_PASS_TOKENS)
        return kv_positions(self.program, settings.ctx, longest)

    def _vector_bytes(self) -> int:
        return sum(align_up(4 * v.n, 64) for v in self.program.vectors.values())

    def _min_ring_bytes(self, tile_bytes: int) -> int:
        largest = self._cuts[tile_bytes][1] + self.alignment  # where it lies askew
        return _MIN_RING_TILES * align_up(largest, PAGE)  # each begins on a page

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
        ring = self._min_ring_bytes(self._tile_bytes)
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
        sizes = self._sizes(settings, limit)
        tiles = self.cut(sizes.tile_bytes)
        if sizes.ring:
            room = self._resident_room(settings, limit, sizes)
            resident = tiles.choose(room, self.performance(settings).slowness)
        else:
            resident = set(tiles.all)
        roles = self._fixed_roles(settings, sizes.pass_tokens, sizes.logit_rows, sizes.ring)
        plan = Plan(settings, True, floor, roles, sizes.pass_tokens, sizes.logit_rows)
        plan.ring_bytes, plan.tile_bytes = sizes.ring, sizes.tile_bytes
        self._lay_out(plan, resident)
        plan.n_threads = self._threads(settings, plan.stream)
        return plan

    # -- what the performance model decides -----------------------------------------------------

    def performance(self, settings: Settings, n_threads: int | None = None) -> Performance:
        """The model of this machine for ``settings``, or for another number of threads."""
        key = n_threads or settings.n_threads, settings.kv
        if key not in self._models:
            self._models[key] = Performance(self.program, self.rates, *key)
        return self._models[key]

    def forget_models(self) -> None:
        """After `rates` has learned something."""
        self._models.clear()

    def _threads(self, settings: Settings, stream: Stream) -> int:
        """The number of threads that decodes fastest; all, unless fewer are clearly faster."""
        best = settings.n_threads
        if not settings.threads_open:
            return best
        seconds = self.performance(settings).step(stream, _TYPICAL_POSITION).total.mid
        for n in self.rates.thread_counts():
            if n < settings.n_threads:
                fewer = self.performance(settings, n).step(stream, _TYPICAL_POSITION).total.mid
                if fewer < _CLEARLY * seconds:
                    best, seconds = n, fewer
        return best

    def _sizes(self, settings: Settings, limit: int) -> _Sizes:
        """Those with everything resident, where it fits."""
        least = self.min_pass_tokens, self.min_logit_rows
        room = self._room(settings, limit, *least, ring=0)
        if self._whole > self._capped(settings, room):
            return self._stream_sizes(settings, limit)
        spare = (room - self._whole) // 2
        return _Sizes(*self._pass_sizes(settings, spare, spare), 0, self._tile_bytes)

    def _stream_sizes(self, settings: Settings, limit: int) -> _Sizes:
        """The sizes with which a typical request ends soonest: what a pass and the ring take is
        room that resident weights do not have."""
        floor_ring = self._min_ring_bytes(self._tile_bytes)
        spare = self._room(settings, limit, self.min_pass_tokens, self.min_logit_rows, floor_ring)
        most = self._pass_sizes(settings, spare // 2, spare // 8)[0]
        logit_rows = self._pass_sizes(settings, spare // 2, spare // 32)[1]
        model = self.performance(settings)
        cap = max(floor_ring, min(_cache_share(), align_up(spare // 4, PAGE)))
        rings = []
        for tile_bytes in self._cuts if model.knows_drive else [self._tile_bytes]:
            ring = self._min_ring_bytes(tile_bytes)
            while ring <= cap:
                rings.append((ring, tile_bytes))
                ring = cap if ring < cap < ring * 3 // 2 else align_up(ring * 3 // 2, PAGE)
        passes = [self.min_pass_tokens]
        while passes[-1] < most:
            passes.append(passes[-1] * 2)
        prompt = min(TYPICAL_PROMPT, settings.ctx)

        def request(sizes: _Sizes) -> float:
            stream = self._stream_for(settings, limit, sizes)
            step = model.step(stream, _TYPICAL_POSITION).total.mid
            return model.prompt(stream, prompt, sizes.pass_tokens).mid + _TYPICAL_ANSWER * step

        best = _cheapest([_Sizes(passes[0], logit_rows, *ring) for ring in sorted(rings)], request)
        return _cheapest([replace(best, pass_tokens=n) for n in passes], request)

    def _stream_for(self, settings: Settings, limit: int, sizes: _Sizes) -> Stream:
        """What will be streamed, or so: without choosing tiles."""
        streamed = max(0, self.weight_bytes - self._resident_room(settings, limit, sizes))
        if streamed == 0 or sizes.ring == 0:
            return Stream()
        in_head = streamed * self._matrix_bytes[HEAD] // sum(self._matrix_bytes)
        request = self.weight_bytes // self._cuts[sizes.tile_bytes][0]
        return Stream(streamed - in_head, in_head, request, ring_depth(sizes.ring, request))

    def outline(self, settings: Settings) -> tuple[Stream, int] | None:
        """The stream and the tokens of a pass that a plan for ``settings`` will have, or so;
        without choosing tiles. None where it does not fit."""
        limit = settings.budget // PAGE * PAGE
        if limit < self.floor(settings)[0]:
            return None
        sizes = self._sizes(settings, limit)
        return self._stream_for(settings, limit, sizes), sizes.pass_tokens

    def _resident_room(self, settings: Settings, limit: int, sizes: _Sizes) -> int:
        """Bytes that resident tiles may have."""
        room = self._room(settings, limit, sizes.pass_tokens, sizes.logit_rows, sizes.ring)
        return self._capped(settings, room)

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

    def _lay_out(self, plan: Plan, resident: set[Tile]) -> None:
        """Give everything its place: the KV cache first, because it survives a resize."""
        settings, tiles, at = plan.settings, self.cut(plan.tile_bytes), 0

        def take(n_bytes: int, alignment: int) -> int:
            nonlocal at
            start = align_up(at, alignment)
            at = start + n_bytes
            return start

        grid = max(PAGE, self.alignment)
        plan.kv_bytes = self._kv_bytes(settings)
        plan.kv_positions = self._kv_positions(settings)
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
        for run in tiles.merged(resident):
            start, n_bytes = extent(run)
            first = take(tiles.charge(start, n_bytes), self.alignment) + start % self.alignment
            plan.runs.append(Run(start, n_bytes, first))
            for tile in run:
                plan.tile_offsets[tile.matrix, tile.row] = first + tile.file_offset - start
        plan.arena_bytes = align_up(at, PAGE)
        plan.roles["weights"] = align_up(at - weights_start, PAGE)
        plan.roles["kernel"] = budget.kernel_bytes(plan.arena_bytes)
        plan.resident_bytes = sum(tile.n_bytes for tile in resident)
        plan.stream = self._stream_of(plan)

    def _stream_of(self, plan: Plan) -> Stream:
        """What is not resident: the requests that a token makes."""
        tiles = self.cut(plan.tile_bytes)
        charges = [
            [tiles.charge(t.file_offset, t.n_bytes) for t in self.streamed(plan, segment)]
            for segment in (LAYERS, HEAD)
        ]
        layers, head = map(sum, charges)
        if not layers + head:
            return Stream()
        request = (layers + head) // sum(map(len, charges))
        return Stream(layers, head, request, ring_depth(plan.ring_bytes, request))

    def streamed(self, plan: Plan, segment: int) -> list[Tile]:
        """The tiles of ``segment`` that are not resident, in the order of use."""
        tiles = self.cut(plan.tile_bytes).of_segment[segment]
        return [t for t in tiles if (t.matrix, t.row) not in plan.tile_offsets]


def ring_depth(ring_bytes: int, request_bytes: int) -> int:
    """Reads in flight when the drive sets the pace: all of the ring but what is computed with."""
    return max(1, min(MAX_DEPTH, ring_bytes // request_bytes - 1))


def _cache_share() -> int:
    cache = last_level_cache()
    return cache // _RING_CACHE_SHARE if cache else _MAX_RING_BYTES


def _cheapest(candidates: list[_Sizes], seconds: Callable[[_Sizes], float]) -> _Sizes:
    """The first, smallest, that is within 1 % of the best: what it leaves is for others."""
    found = [(sizes, seconds(sizes)) for sizes in candidates]
    best = min(time for _, time in found)
    return next(sizes for sizes, time in found if time <= 1.01 * best)


def _template_bytes(source: WeightSource) -> int:
    """A ceiling for the largest of the model's own chat templates, compiled."""
    try:
        found = [find_template(source, tools) for tools in (False, True)]
    except StorageError:
        raise
    except EdgeRTError:  # a chat will say so
        return 0
    return max(budget.template_bytes(text) for text in {text or "" for text in found})
