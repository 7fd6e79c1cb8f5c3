"""What holds an engine's memory, from loading to the end of the engine, the interpreter or, in a
forked child, of all that was the parent's."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from edge_rt.assemble import assemble
from edge_rt.errors import BudgetError, ForkError, UsageError, as_ours
from edge_rt.flash_io.files import File
from edge_rt.opening import with_baseline
from edge_rt.plan import Plan, Settings
from edge_rt.planner import Planner
from edge_rt.process import resident_bytes
from edge_rt.runtime._runtime import (
    Arena,
    Charge,
    Charges,
    Gate,
    Hold,
    Kept,
    Runtime,
    begin_exit,
    calls_in_progress,
    forget_calls,
    keep_forever,
    set_leak_warnings,
)
from edge_rt.sizes import format_size

Progress = Callable[[int, int], object]

_EXIT_SECONDS = 5.0  # for callbacks and drives that do not return
_ABANDON_SECONDS = 0.1  # for a drive that does not answer while loading is given up
_alive: list[weakref.ref[LifeCycle]] = []  # no WeakSet: its callbacks would swallow a Ctrl-C
# Their engines are gone, but the drive has not answered: to free them, and the arenas and files
# that they keep, would wait for it under the GIL.
_unanswered: list[Runtime] = []


def free_answered() -> None:
    """Give back what the drive has answered for by now, and forget engines that are gone."""
    for dropped in [life for life in _alive if life() is None]:
        with suppress(ValueError):  # another thread was faster
            _alive.remove(dropped)
    _unanswered[:] = [runtime for runtime in _unanswered if not runtime.close(0.0)]


@atexit.register
def _end_all() -> None:
    """At the interpreter's end, while other threads still run: a daemon thread within a pass would
    be ended there, and the memory freed under the others of its team."""
    begin_exit()
    deadline = time.monotonic() + _EXIT_SECONDS
    for life in filter(None, [alive() for alive in _alive]):
        # What a signal handler raises here must not keep the others from being closed.
        with suppress(BaseException):
            life.end(max(0.0, deadline - time.monotonic()))
        life.abandon()
    while calls_in_progress() > 0 and time.monotonic() < deadline:
        time.sleep(0.001)  # a thread that is ended on its way back to Python aborts the process
    free_answered()
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


class LifeCycle:
    """The memory of one engine: a plan, the arena and the runtime that it says, and what callers
    hold on top. ``name`` is for errors, ``progress(done, total)`` is called while loading.

    What must not be lost between two steps of Python, where a signal handler may raise, belongs to
    objects of C++: the right to use it (`Hold`), the runtime (`Kept`), what is charged (`Charge`).
    Raises `BudgetError` if the model does not fit; nothing is loaded before `start`.
    """

    def __init__(
        self,
        name: str,
        planner: Planner,
        file: File,
        settings: Settings,
        isa: str,
        io: str,
        progress: Progress | None,
    ) -> None:
        self.progress = progress
        self.closed = False
        self.arena: Arena | None = None
        self._name, self._planner, self._file = name, planner, file
        self._isa, self._io = isa, io
        self._pid = os.getpid()
        self._gate = Gate()
        self._charges = Charges()
        self._kept = Kept(_unanswered)
        self._ready = False
        self.plan = planner.plan(settings)
        self.plan.require_fit(name)
        _alive.append(weakref.ref(self))

    # -- use ------------------------------------------------------------------------------------

    @property
    def runtime(self) -> Runtime | None:
        """Of `plan`, and loaded, while `_ready`."""
        return self._kept.runtime

    @runtime.setter
    def runtime(self, runtime: Runtime | None) -> None:
        self._kept.runtime = runtime

    def running(self) -> Runtime:
        """The runtime; raises `UsageError` where it was closed, `ForkError` in a child process."""
        self._check_process()
        runtime = self.runtime
        if runtime is None or not self._ready:
            raise UsageError("the engine is closed")
        return runtime

    def enter(self) -> Hold:
        """The right to use it, for a ``with``; raises `UsageError` where another has it."""
        self._check_process()
        return self._gate.enter()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkError(
                "this engine was made before a fork: make a new one in the child process"
            )

    # -- loading --------------------------------------------------------------------------------

    def start(self) -> None:
        """Load. What the process holds before the arena exists counts, whoever allocated it."""
        plan = self._planner.plan(with_baseline(self.plan.settings))
        plan.require_fit(
            f"{self._name} in a process that already holds {format_size(resident_bytes())}"
        )
        self._load(plan)

    def replan(self, **changes: Any) -> None:
        """Load again with some `Settings` changed, and with what callers hold now. Raises
        `BudgetError`, with everything as it was, if that does not fit."""
        changes["reserved"] = self._charges.held
        plan = self._planner.plan(replace(self.plan.settings, **changes))
        plan.require_fit(self._name)
        self._load(plan)

    def _load(self, plan: Plan) -> None:
        """Make the arena as ``plan`` says and load the resident weights; keeps the KV cache.

        Whatever ends it, an exception in ``progress`` or between any two steps included, either all
        has become as planned, or it is closed.
        """
        try:
            self._ready = False
            runtime = self.runtime
            if runtime is not None:
                runtime.close()  # its threads end before its memory changes
            self.runtime = runtime = None
            self.plan = plan
            arena = self.arena
            if arena is None:
                self.arena = arena = Arena(plan.arena_bytes, plan.kv_bytes)
            else:
                arena.resize(plan.arena_bytes, kept=plan.kv_bytes)
            runtime = assemble(self._planner, plan, arena, self._file, self._isa, self._io)
            self.runtime = runtime
            if self.closed:  # by another thread, which may not have seen this runtime
                raise UsageError("the engine is closed")
            runtime.load(
                [(run.file_offset, run.n_bytes, run.arena_offset) for run in plan.runs],
                self.progress,
            )
            if self.progress is not None:
                self.progress(1, 1)
            if self.closed:
                raise UsageError("the engine is closed")
            self._ready = True
        except BaseException as error:
            runtime = arena = None  # a traceback would keep them
            self.end(_ABANDON_SECONDS)
            ours = as_ours(error)
            try:
                raise ours from (None if ours is error else error)
            finally:
                del ours  # or it holds this frame, which holds it

    # -- what callers hold ----------------------------------------------------------------------

    def roles(self) -> dict[str, int]:
        """Bytes of the plan's roles, with what callers hold now."""
        plan = self.plan
        more = self._charges.held - plan.settings.reserved
        return plan.roles | {"interpreter": plan.roles["interpreter"] + more}

    def reserve(self, n_bytes: int, what: str, advice: str = "") -> Charge:
        """Make room for ``what`` the caller will hold until the charge is dropped; residency
        shrinks if it must. Raises `BudgetError`, with everything as it was, if it does not fit."""
        self.running()
        with self.enter():
            charge = self._charges.add(n_bytes)
            if sum(self.roles().values()) > self.plan.settings.budget:
                try:
                    self.replan()
                except BudgetError as error:
                    charge.release()  # the traceback keeps it
                    raise BudgetError(
                        f"{format_size(n_bytes)} of {what} do not fit the budget: {error}{advice}"
                    ) from None
            return charge

    # -- the end --------------------------------------------------------------------------------

    def end(self, seconds: float | None = None) -> None:
        """Give all memory back; after ``seconds`` the waiting is over, and what reads of the drive
        still use stays until it is ended again."""
        self.closed = True
        self._ready = False
        runtime = self.runtime
        if os.getpid() == self._pid and runtime is not None and not runtime.close(seconds):
            return
        self.runtime = runtime = None
        self.arena = None

    def abandon(self) -> None:
        """Leave the memory to `free_answered` if the drive still uses it."""
        self._kept.abandon()
