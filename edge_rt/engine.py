"""The engine: one model, one budget, one conversation's KV cache."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edge_rt import budget, generation
from edge_rt.chat.source import find_template, special_tokens
from edge_rt.chat.template import RESERVED, ChatTemplate
from edge_rt.errors import UsageError
from edge_rt.flash_io.files import storage_errors
from edge_rt.forecast import learn
from edge_rt.generation import Completion
from edge_rt.kv_cache import reusable
from edge_rt.life_cycle import LifeCycle, Progress, free_answered
from edge_rt.opening import chosen_isa, make_settings, open_planner
from edge_rt.plan import Plan
from edge_rt.process import peak_resident_bytes, resident_bytes
from edge_rt.program import HEAD, LAYERS, Operation
from edge_rt.runtime._runtime import Charge, Hold, Runtime, Sampler
from edge_rt.sampling import Sampling
from edge_rt.sizes import parse_size
from edge_rt.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


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
        free_answered()
        isa = chosen_isa()
        self.source, self._planner, file = open_planner(model)
        settings = make_settings(self._planner, ram, ctx, threads, kv, weight_cap)
        settings = replace(settings, trace=trace is not None)
        name = os.path.basename(self.source.path)
        self._life = LifeCycle(name, self._planner, file, settings, isa, io, progress)
        self._trace = trace
        self._history: list[int] = []
        self._written = 0  # positions stored since the last empty cache, rewound ones included
        self._template: ChatTemplate | None = None
        self._template_charges: list[Charge] = []
        self._numpy_charge: Charge | None = None
        self.tokenizer = Tokenizer.from_source(self.source, self.n_vocab)
        self._life.start()
        self.load_s = time.perf_counter() - started

    # -- life cycle -----------------------------------------------------------------------------

    def close(self) -> None:
        """Give all memory back. Closing twice does nothing.

        May be called from any thread: a request that runs in another one ends with `UsageError`
        before its memory is freed. Waits for reads that the drive has not answered; Ctrl-C ends
        that wait with the engine closed but its memory held until `close` is called again.
        """
        self._life.end()
        self._history.clear()  # its KV cache is gone

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
            self._life.replan(budget=parse_size(ram))

    # -- what it is -----------------------------------------------------------------------------

    @property
    def ctx(self) -> int:
        """Positions of the KV cache."""
        return self.plan.settings.ctx

    @property
    def plan(self) -> Plan:
        """The decision in force."""
        return self._life.plan

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
        plan, roles = self.plan, self._life.roles()
        return {
            "budget": plan.settings.budget,
            "floor": plan.floor_bytes,
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
        learn(self._planner, self.plan, position, steps, seconds, stall_s)

    # -- passes ---------------------------------------------------------------------------------

    def _exclusive(self) -> Hold:
        return self._life.enter()

    def _running(self) -> Runtime:
        return self._life.running()

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
        same = reusable(self._planner.program, self.plan, same, self._written)
        del self._history[same:]
        if same == 0:
            self._written = 0  # only now: the history never claims more than was written
        step = self.plan.pass_tokens
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
        step, n_rows = self.plan.pass_tokens, self.plan.logit_rows
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
        runtime, arena = self._running(), self._life.arena
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
            self.plan.candidates_offset,
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
            charged = self._planner.template_bytes + sum(c.n_bytes for c in self._template_charges)
            more = budget.template_bytes(source) - charged
            if more > 0:  # one that the caller brought
                self._template_charges.append(self._life.reserve(more, "a chat template"))
            self._template = ChatTemplate(source, **special_tokens(self.source, self.tokenizer))
        return self._template

    def iter_logits(self, tokens: Sequence[int]) -> Iterator[npt.NDArray[np.float32]]:
        """Teacher-forced: yield the float32 logits (n_vocab,) after each of ``tokens``.

        Starts from an empty context. NumPy's import and one row are charged to the budget.
        """
        with self._reserve_arrays(4 * self.n_vocab):
            import numpy

            with self._exclusive():
                for _, row in self.score_rows(tokens, 0):
                    out = numpy.empty(self.n_vocab, numpy.float32)
                    self._running().copy_logits(row, out)
                    yield out

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Teacher-forced logits (len(tokens), n_vocab), float32, charged to the budget while
        alive."""
        self.check_tokens(tokens)
        charge = self._reserve_arrays(4 * len(tokens) * self.n_vocab)
        import numpy

        result = numpy.asarray(charge.rows(self.n_vocab))
        with self._exclusive():
            for index, row in self.score_rows(tokens, 0):
                self._running().copy_logits(row, result[index])
        return result

    def _reserve_arrays(self, n_bytes: int) -> Charge:
        """A charge for arrays; NumPy's import is charged once and for good."""
        new = self._numpy_charge is None and "numpy" not in sys.modules
        numpy = budget.NUMPY_BYTES if new else 0
        advice = "; iter_logits yields them row by row"
        charge = self._life.reserve(n_bytes + numpy, "logits", advice)
        if numpy:
            self._numpy_charge = charge.split(numpy)
        return charge
