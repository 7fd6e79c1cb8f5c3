"""The engine: one model, one budget, one conversation's KV cache."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edge_rt import budget, generation
from edge_rt.assemble import assemble
from edge_rt.chat.source import find_template, special_tokens
from edge_rt.chat.template import RESERVED, ChatTemplate
from edge_rt.errors import (
    BudgetError,
    EdgeRTError,
    ForkError,
    StorageError,
    UsageError,
)
from edge_rt.flash_io.files import File, storage_errors
from edge_rt.forecast import learn
from edge_rt.generation import Completion
from edge_rt.library import find_model
from edge_rt.loaders.source import TensorInfo, WeightSource
from edge_rt.lowering import build_program
from edge_rt.machine.host import drive_of, usable_cores
from edge_rt.machine.rates import Rates
from edge_rt.plan import KV_FORMATS, Plan, Settings
from edge_rt.planner import Planner, reusable
from edge_rt.process import available_bytes, peak_resident_bytes, resident_bytes
from edge_rt.program import HEAD, LAYERS, Operation
from edge_rt.runtime._runtime import (
    Arena,
    Gate,
    Hold,
    Kept,
    Runtime,
    Sampler,
    begin_exit,
    calls_in_progress,
    forget_calls,
    isa_name,
    keep_forever,
    set_leak_warnings,
)
from edge_rt.sampling import Sampling
from edge_rt.sizes import format_size, parse_size
from edge_rt.source import open_source
from edge_rt.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Progress = Callable[[int, int], object]
_DEFAULT_CTX = 4096

_EXIT_SECONDS = 5.0  # for callbacks and drives that do not return
_ABANDON_SECONDS = 0.1  # for a drive that does not answer while loading is given up
_engines: list[weakref.ref[Engine]] = []  # no WeakSet: its callbacks would swallow a Ctrl-C
# Their engines are gone, but the drive has not answered: to free them, and the arenas and files
# that they keep, would wait for it under the GIL.
_unanswered: list[Runtime] = []


def _free_answered() -> None:
    """Give back what the drive has answered for by now, and forget engines that are gone."""
    for dropped in [engine for engine in _engines if engine() is None]:
        with suppress(ValueError):  # another thread was faster
            _engines.remove(dropped)
    _unanswered[:] = [runtime for runtime in _unanswered if not runtime.close(0.0)]


@atexit.register
def _close_all() -> None:
    """At the interpreter's end, while other threads still run: a daemon thread within a pass would
    be ended there, and the memory freed under the others of its team."""
    begin_exit()
    deadline = time.monotonic() + _EXIT_SECONDS
    for engine in filter(None, [alive() for alive in _engines]):
        # What a signal handler raises here must not keep the others from being closed.
        with suppress(BaseException):
            engine._end(max(0.0, deadline - time.monotonic()))
        engine._kept.abandon()
    while calls_in_progress() > 0 and time.monotonic() < deadline:
        time.sleep(0.001)  # a thread that is ended on its way back to Python aborts the process
    _free_answered()
    for runtime in _unanswered:
        keep_forever(runtime)
    if _unanswered or any(thread.daemon for thread in threading.enumerate()):
        set_leak_warnings(False)  # what its frames hold is never dropped


def _in_child() -> None:
    """After a fork: the parent's other threads are not here, but what they held is."""
    forget_calls()
    set_leak_warnings(False)
    _unanswered.clear()


os.register_at_fork(after_in_child=_in_child)


def open_planner(model: str | os.PathLike[str] | None) -> tuple[WeightSource, Planner, File]:
    """Open a model (a path, a name that `find_model` knows, None: the demo model), check its
    directory and get ready to plan."""
    source = open_source(find_model(model))
    file = source.file
    assert file is not None

    def read_floats(tensor: TensorInfo) -> bytes:
        with storage_errors():
            return file.read(tensor.offset, tensor.n_bytes)

    with source.named():
        program = build_program(source, read_floats)
        return source, Planner(source, program, file.alignment, rates_for(file)), file


def rates_for(file: File) -> Rates:
    """What was measured of this machine and of the drive that ``file`` lies on."""
    try:
        return Rates(drive_of(file.path))
    except OSError:  # moved away since it was opened
        return Rates()


def make_settings(
    planner: Planner,
    ram: str | int | None,
    ctx: int | None = None,
    threads: int | None = None,
    kv: str = "f16",
    weight_cap: str | int | None = None,
) -> Settings:
    """Check a user's choices and fill in the defaults; raises `UsageError`."""
    trained = planner.program.hyper.n_ctx_train
    if ctx is None:
        ctx = min(_DEFAULT_CTX, trained)
    if not 1 <= ctx <= trained:
        raise UsageError(f"ctx is {ctx}: this model works with 1 to {trained} tokens")
    if kv not in KV_FORMATS:
        raise UsageError(f"kv is {kv!r}: it must be f16, f32 or q8_0")
    if threads is not None and not 1 <= threads <= 64:
        raise UsageError(f"threads is {threads}: it must be between 1 and 64")
    return Settings(
        budget=parse_size(ram) if ram is not None else available_bytes() * 9 // 10,
        ctx=ctx,
        n_threads=threads or usable_cores(),
        threads_open=threads is None,
        kv=kv,
        weight_cap=None if weight_cap is None else _parse_cap(weight_cap),
    )


def with_baseline(settings: Settings) -> Settings:
    """``settings`` with what this process, its tokenizer built, will hold besides an arena; as they
    are where the system does not say what it holds: the ceilings stand then."""
    resident = resident_bytes()
    if not resident:
        return settings
    loaded = "edge_rt.chat.sandbox" in sys.modules
    return replace(settings, baseline=budget.baseline_bytes(resident), chat_loaded=loaded)


def _parse_cap(text: str | int) -> int:
    try:
        return parse_size(text)
    except UsageError:
        if str(text).rstrip("BKMGTibkmgt").strip() == "0":
            return 0  # everything streams
        raise


class Engine:
    """Runs one model inside a hard memory budget for the whole process.

    ``ram``: what the process may hold, e.g. ``"1.5GiB"`` (None: nine tenths of what is free).
    ``ctx``: positions of the KV cache. ``kv``: its elements, ``"f16"``, ``"f32"`` or ``"q8_0"``
    (blocks of 32 int8 codes: little more than half of f16's bytes, logits slightly off).
    ``weight_cap`` lowers residency below what the budget allows. ``progress(done, total)`` is
    called while loading, ``trace(events)`` after each pass with what its threads did
    (`edge_rt.trace` reads it).

    Raises `BudgetError` before anything is loaded if the budget cannot hold the model, `ModelError`
    for files that are damaged or not supported (and later, from requests, where damaged weights
    give logits that are no numbers), `UsageError` for impossible settings and
    `StorageError` when reading fails. One thread at a time; a second one is refused, but any may
    `close`.

    Ctrl-C is noticed within 100 ms wherever a call waits or works. A request that it ends leaves
    the engine ready for the next one; where it ends `resize`, the engine is closed, and reads that
    the drive has not answered keep its memory until `close` is called again, or a new engine made.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        ram: str | int | None = None,
        *,
        ctx: int | None = None,
        threads: int | None = None,
        kv: str = "f16",
        io: str = "auto",
        weight_cap: str | int | None = None,
        progress: Progress | None = None,
        trace: Callable[[bytes], object] | None = None,
    ) -> None:
        if io not in ("auto", "uring", "pread"):
            raise UsageError(f"io is {io!r}: it must be auto, uring or pread")
        started = time.perf_counter()
        _free_answered()
        self._pid = os.getpid()
        self._gate = Gate()
        self._closed = False
        self._kept = Kept(_unanswered)
        self._ready = False
        self._arena: Arena | None = None
        self._progress = progress
        self._trace = trace
        self._isa = _isa()
        self._io = io
        self.source, self._planner, self._file = open_planner(model)
        settings = make_settings(self._planner, ram, ctx, threads, kv, weight_cap)
        self._settings = replace(settings, trace=trace is not None)
        self._plan = self._planner.plan(self._settings)
        self._plan.require_fit(os.path.basename(self.source.path))
        self._history: list[int] = []
        self._written = 0  # positions stored since the last empty cache, rewound ones included
        self.tokenizer = Tokenizer.from_source(self.source, self.n_vocab)
        self._charge_baseline()
        self._template: ChatTemplate | None = None
        self._template_bytes = self._planner.template_bytes  # charged
        _engines.append(weakref.ref(self))
        self._start(self._settings, self._plan)
        self.load_s = time.perf_counter() - started

    # -- life cycle -----------------------------------------------------------------------------

    def _charge_baseline(self) -> None:
        """What the process holds before the arena exists counts, whoever allocated it."""
        self._settings = with_baseline(self._settings)
        self._plan = self._planner.plan(self._settings)
        self._plan.require_fit(
            f"{os.path.basename(self.source.path)} in a process that already holds "
            f"{format_size(resident_bytes())}"
        )

    def _start(self, settings: Settings, plan: Plan) -> None:
        """Make the arena as ``plan`` says and load the resident weights; keeps the KV cache.

        Whatever ends it, an exception in ``progress`` or between any two steps included, either all
        has become as planned, or the engine is closed.
        """
        try:
            self._ready = False
            runtime = self._runtime
            if runtime is not None:
                runtime.close()  # its threads end before its memory changes
            self._runtime = runtime = None
            self._settings, self._plan = settings, plan
            arena = self._arena
            if arena is None:
                self._arena = arena = Arena(plan.arena_bytes, plan.kv_bytes)
            else:
                arena.resize(plan.arena_bytes, kept=plan.kv_bytes)
            runtime = assemble(self._planner, plan, arena, self._file, self._isa, self._io)
            self._runtime = runtime
            if self._closed:  # by another thread, which may not have seen this runtime
                raise UsageError("the engine is closed")
            runtime.load(
                [(run.file_offset, run.n_bytes, run.arena_offset) for run in plan.runs],
                self._progress,
            )
            if self._progress is not None:
                self._progress(1, 1)
            if self._closed:
                raise UsageError("the engine is closed")
            self._ready = True
        except BaseException as error:
            runtime = arena = None  # a traceback would keep them
            self._end(_ABANDON_SECONDS)
            ours = as_ours(error)
            try:
                raise ours from (None if ours is error else error)
            finally:
                del ours  # or it holds this frame, which holds it

    def close(self) -> None:
        """Give all memory back. Closing twice does nothing.

        May be called from any thread: a request that runs in another one ends with `UsageError`
        before its memory is freed. Waits for reads that the drive has not answered; Ctrl-C ends
        that wait with the engine closed but its memory held until `close` is called again.
        """
        self._end()

    def _end(self, seconds: float | None = None) -> None:
        """`close`; after ``seconds`` the waiting is over, and what is still in use stays."""
        self._closed = True
        self._ready = False
        runtime = self._runtime
        if os.getpid() == self._pid and runtime is not None and not runtime.close(seconds):
            return
        self._runtime = runtime = None
        self._arena = None
        self._history.clear()  # its KV cache is gone

    @property
    def _runtime(self) -> Runtime | None:
        """Of `_plan`, and loaded, while `_ready`."""
        return self._kept.runtime

    @_runtime.setter
    def _runtime(self, runtime: Runtime | None) -> None:
        self._kept.runtime = runtime

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def resize(self, ram: str | int) -> None:
        """Change the budget between requests; the KV cache stays, so the conversation goes on.

        Raises `BudgetError`, with everything as it was, if the new budget is below the floor, and
        `StorageError`, with the engine closed, if reading the weights again fails.
        """
        with self._exclusive():
            self._running()
            self._replan(replace(self._settings, budget=parse_size(ram)))

    def _replan(self, settings: Settings) -> None:
        plan = self._planner.plan(settings)
        plan.require_fit(os.path.basename(self.source.path))
        self._start(settings, plan)

    # -- what it is -----------------------------------------------------------------------------

    @property
    def ctx(self) -> int:
        """Positions of the KV cache."""
        return self._settings.ctx

    @property
    def plan(self) -> Plan:
        """The decision in force."""
        return self._plan

    @property
    def io(self) -> str:
        """What reads the drive: ``"uring"`` or ``"pread"``."""
        return self._running().io

    @property
    def why_no_uring(self) -> str:
        """Why `io` is ``"pread"`` where io_uring was allowed; empty otherwise."""
        return self._running().why_no_uring

    @property
    def n_vocab(self) -> int:
        return self._planner.program.n_vocab

    def memory(self) -> dict[str, Any]:
        """Bytes: ``roles``, their sum ``planned``, ``budget``, ``floor``, ``held`` now and ``peak``
        (None where the system does not say)."""
        roles = dict(self._plan.roles)
        return {
            "budget": self._settings.budget,
            "floor": self._plan.floor_bytes,
            "planned": sum(roles.values()),
            "held": resident_bytes() or None,
            "peak": peak_resident_bytes() or None,
            "roles": roles,
        }

    def stats(self) -> dict[str, int]:
        """Counters since the last (re)start: passes, tokens, flash bytes and requests, times in
        ns."""
        return self._running().stats()

    def steps(self) -> tuple[list[list[Operation]], list[list[Operation]]]:
        """The operations of each step that a trace's events name, by segment."""
        runtime, operations = self._running(), self._planner.program.operations
        layers, head = (
            [[operations[segment][i] for i in step] for step in runtime.steps(segment)]
            for segment in (LAYERS, HEAD)
        )
        return layers, head

    @property
    def n_trace_lost(self) -> int:
        """Events that a trace had no room for."""
        return self._running().n_trace_lost

    def matrix_name(self, index: int) -> str:
        """The tensor that a `MatmulPart` of a step multiplies with."""
        return self._planner.program.matrices[index].tensor.name

    def learn(self, steps: int, seconds: float, stall_s: float) -> None:
        """Keep the rates of a decoding run for later forecasts."""
        position = max(0, len(self._history) - steps // 2)
        learn(self._planner, self._plan, position, steps, seconds, stall_s)

    # -- passes ---------------------------------------------------------------------------------

    def _exclusive(self) -> Hold:
        self._check_process()
        return self._gate.enter()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkError(
                "this engine was made before a fork: make a new one in the child process"
            )

    def _running(self) -> Runtime:
        self._check_process()
        runtime = self._runtime
        if runtime is None or not self._ready:
            raise UsageError("the engine is closed")
        return runtime

    def forget(self) -> None:
        """Drop the conversation: the next request starts with an empty KV cache."""
        self._history.clear()
        self._written = 0

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Raise `UsageError` unless ``tokens`` are of the vocabulary and fit the context."""
        if not 1 <= len(tokens) <= self.ctx:
            raise UsageError(f"{len(tokens)} tokens do not fit a context of {self.ctx}")
        n_vocab = self.n_vocab
        for token in tokens:
            if not 0 <= token < n_vocab:
                raise UsageError(f"token {token} is not in the vocabulary of {n_vocab}")

    def prefill(self, tokens: Sequence[int]) -> None:
        """Bring the KV cache to ``tokens`` (reusing their common prefix with what it holds), so
        that `sample` and the logits row 0 stand for what follows the last of them."""
        runtime = self._running()
        self.check_tokens(tokens)
        same = 0
        for ours, theirs in zip(self._history, tokens[:-1], strict=False):
            if ours != theirs:
                break
            same += 1
        same = reusable(self._planner.program, self._plan, same, self._written)
        del self._history[same:]
        if same == 0:
            self._written = 0  # only now: the history never claims more than was written
        step = self._plan.pass_tokens
        starts = range(same, len(tokens), step)
        runtime.plan([LAYERS] * len(starts) + [HEAD])
        for start in starts:
            part = list(tokens[start : start + step])
            self._written = max(self._written, start + len(part))
            with storage_errors():
                runtime.run(part, start, with_head=start + step >= len(tokens))
            self._show_trace(runtime)
            self._history.extend(part)

    def decode(self, token: int) -> None:
        """One step: append ``token``; logits row 0 stands for what follows it."""
        runtime = self._running()
        self.check_tokens([token])
        if len(self._history) >= self.ctx:
            raise UsageError(f"the context of {self.ctx} tokens is full")
        runtime.plan([LAYERS, HEAD])
        self._written = max(self._written, len(self._history) + 1)
        with storage_errors():
            runtime.run([token], len(self._history), with_head=True)
        self._history.append(token)
        self._show_trace(runtime)

    def _show_trace(self, runtime: Runtime) -> None:
        if self._trace is not None:
            self._trace(runtime.take_trace())

    def score_rows(self, tokens: Sequence[int], first: int) -> Iterator[tuple[int, int]]:
        """Run ``tokens`` from an empty context; yield (index, logits row) for every index >=
        ``first``.

        The row is valid until the iterator goes on.
        """
        self._running()
        self.check_tokens(tokens)
        self._history.clear()
        self._written = 0
        step, n_rows = self._plan.pass_tokens, self._plan.logit_rows
        work = []
        for start in range(0, len(tokens), step):
            end = min(start + step, len(tokens))
            heads = [(row, min(n_rows, end - row)) for row in range(max(start, first), end, n_rows)]
            work.append((start, end, heads))
        self._running().plan([s for _, _, heads in work for s in [LAYERS] + [HEAD] * len(heads)])
        for start, end, heads in work:
            part = list(tokens[start:end])
            self._written = max(self._written, end)
            with storage_errors():
                self._running().run(part, start, with_head=False)
            self._show_trace(self._running())
            self._history.extend(part)
            for row, count in heads:
                with storage_errors():
                    self._running().run_head(row - start, count)
                self._show_trace(self._running())
                for offset in range(count):
                    yield row + offset, offset

    def negative_log_likelihood(self, row: int, target: int) -> float:
        """-ln p(target) of a logits row that `score_rows` just yielded; raises `ModelError` where
        it is no numbers."""
        self._check_logits(row)
        return self._running().negative_log_likelihood(row, target)

    def _check_logits(self, row: int) -> None:
        if not self._running().logits_are_finite(row):
            raise self.source.fail(
                f"after {len(self._history)} tokens its logits are not finite: the weights are "
                "damaged (NaN, infinite or far too large)"
            )

    def logits_bytes(self, row: int = 0) -> bytes:
        """The float32 logits of a row as bytes (little-endian where we run)."""
        return self._running().logits_bytes(row)

    def sample(
        self,
        sampler: Sampler,
        sampling: Sampling,
        prompt: Sequence[int] = (),
        generated: Sequence[int] = (),
    ) -> int:
        """Draw the next token from logits row 0, which is changed by it; raises `ModelError` where
        it is no numbers."""
        runtime, arena = self._running(), self._arena
        if arena is None:  # closed meanwhile
            raise UsageError("the engine is closed")
        self._check_logits(0)
        window = sampling.penalty_window
        missing = window - len(generated)
        history = list(prompt[-missing:]) if missing > 0 else []
        if window:
            history.extend(generated[-window:])
        return runtime.sample(
            sampler,
            sampling.options(),
            history,
            list(sampling.logit_bias.items()),
            arena,
            self._plan.candidates_offset,
        )

    # -- requests -------------------------------------------------------------------------------

    def encode_prompt(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a prompt, with BOS where the model wants it."""
        with self.source.named():
            tokens = self.tokenizer.encode(text, special=special)
        bos = self.tokenizer.bos_id
        if self.tokenizer.add_bos and bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    def generate(
        self, prompt: str | Sequence[int], max_tokens: int = 128, **sampling: Any
    ) -> Completion:
        """Continue raw text (or token ids). Keyword arguments are those of `Sampling`."""
        return generation.collect(self.stream(prompt, max_tokens, **sampling))

    def stream(
        self, prompt: str | Sequence[int], max_tokens: int = 128, **sampling: Any
    ) -> generation.Stream:
        """Like `generate`, but an iterator over pieces of text; ``.completion`` is set at its
        end."""
        tokens = self.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        return generation.Stream(self, tokens, max_tokens, generation.sampling_from(sampling))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 512,
        tools: Sequence[Any] | None = None,
        *,
        template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> generation.Stream:
        """Answer a conversation: an iterator over pieces of the assistant's text.

        ``messages`` as in ``[{"role": "user", "content": "hi"}]``, through the model's own template
        or the source ``template``. ``tools``: JSON schemas of functions. ``template_args``: the
        template's variables, such as ``{"enable_thinking": False}``. BOS is added where the
        tokenizer wants it and the template has not written it.
        """
        arguments = dict(template_args or {})
        if taken := [name for name in arguments if name in RESERVED]:
            raise UsageError(f"{taken[0]} is no template argument: chat sets it itself")
        chosen = self.template(tools=bool(tools), source=template)
        text = chosen.render(messages, tools=tools, **arguments)
        tokens = self.encode_prompt(text, special=True)
        return generation.Stream(self, tokens, max_tokens, generation.sampling_from(sampling))

    def template(self, tools: bool = False, source: str | None = None) -> ChatTemplate:
        """The model's chat template, the one for ``tools`` if it has one, or one from ``source``.

        Raises `UsageError` if the model has none.
        """
        if source is None:
            source = find_template(self.source, tools)
        if source is None:
            raise UsageError("this model has no chat template: use generate with raw text")
        if self._template is None or self._template.source != source:
            self._template = None
            more = budget.template_bytes(source) - self._template_bytes
            if more > 0:  # one that the caller brought
                self._reserve(more, "a chat template")
                self._template_bytes += more
            self._template = ChatTemplate(source, **special_tokens(self.source, self.tokenizer))
        return self._template

    def iter_logits(self, tokens: Sequence[int]) -> Iterator[npt.NDArray[np.float32]]:
        """Teacher-forced: yield the float32 logits (n_vocab,) after each of ``tokens``.

        Starts from an empty context. NumPy's import and one row are charged to the budget.
        """
        n_bytes = 4 * self.n_vocab
        self._reserve_arrays(n_bytes)
        try:
            import numpy

            with self._exclusive():
                for _, row in self.score_rows(tokens, 0):
                    out = numpy.empty(self.n_vocab, numpy.float32)
                    self._running().copy_logits(row, out)
                    yield out
        finally:
            _release(weakref.ref(self), n_bytes)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Teacher-forced logits (len(tokens), n_vocab), float32, charged to the budget while
        alive."""
        self.check_tokens(tokens)
        n_bytes = 4 * len(tokens) * self.n_vocab
        self._reserve_arrays(n_bytes)
        import numpy

        result = numpy.empty((len(tokens), self.n_vocab), numpy.float32)
        weakref.finalize(result, _release, weakref.ref(self), n_bytes)
        with self._exclusive():
            for index, row in self.score_rows(tokens, 0):
                self._running().copy_logits(row, result[index])
        return result

    def _reserve_arrays(self, n_bytes: int) -> None:
        numpy = 0 if "numpy" in sys.modules else budget.NUMPY_BYTES
        self._reserve(n_bytes + numpy, "logits", "; iter_logits yields them row by row")

    def _reserve(self, n_bytes: int, what: str, advice: str = "") -> None:
        """Make room for what the caller will hold; residency shrinks if it must."""
        self._running()
        with self._exclusive():
            settings = replace(self._settings, reserved=self._settings.reserved + n_bytes)
            planned = sum(self._plan.roles.values())
            if planned + n_bytes <= self._settings.budget:
                self._settings = settings
                self._plan.roles["interpreter"] += n_bytes
                return
            try:
                self._replan(settings)
            except BudgetError as error:
                raise BudgetError(
                    f"{format_size(n_bytes)} of {what} do not fit the budget: {error}{advice}"
                ) from None


def _release(engine: weakref.ref[Engine], n_bytes: int) -> None:
    alive = engine()
    if alive is not None:
        alive._settings = replace(alive._settings, reserved=alive._settings.reserved - n_bytes)
        alive._plan.roles["interpreter"] -= n_bytes


def as_ours(error: BaseException) -> BaseException:
    """What the system refuses, as an error of ours; anything else as it is."""
    text = getattr(error, "strerror", None) or str(error)
    if text.startswith("cannot start a"):  # a thread: there are limits for users and cgroups
        return UsageError(f"{text} (ulimit -u, pids.max); --threads takes fewer")
    if isinstance(error, OSError) and not isinstance(error, EdgeRTError):
        return StorageError(text)
    if type(error) is MemoryError:
        return BudgetError(
            "the system refuses memory that the budget allows (ulimit -v, ulimit -d)"
        )
    return error


def _isa() -> str:
    wanted = os.environ.get("EDGE_RT_ISA", "auto")
    try:
        return isa_name(wanted)
    except ValueError as error:
        raise UsageError(f"EDGE_RT_ISA: {error}") from None
