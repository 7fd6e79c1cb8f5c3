"""What the tests of engines' lives share: a small engine's answers, Ctrl-C at chosen moments."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np  # noqa: F401  its threads are there before ours are counted
import pytest

from edge_rt import Engine

PROMPT = [1, 403, 407, 261]
HANG_S = 2.5
NOTICED_S = 1.0  # 0.1 s by design; machines that test are busy


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """Every engine collects garbage: torch's and pytest's objects would take most of the time."""
    gc.freeze()
    yield
    gc.unfreeze()


def tokens_of(engine: Engine, n: int = 6) -> list[int]:
    return engine.generate(PROMPT, n, ignore_eos=True).tokens


@pytest.fixture(scope="module", name="expected")
def expected_tokens(stories_model: Path) -> list[int]:
    with Engine(stories_model, ram="4GiB", threads=1) as engine:
        return tokens_of(engine)


def n_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def threads_end(before: int) -> bool:
    """Whether no more are left than ``before``; one that was joined may not quite be gone."""
    gc.collect()
    deadline = time.monotonic() + 2
    while n_threads() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    return n_threads() <= before


@contextmanager
def interrupt_after(seconds: float) -> Iterator[None]:
    """Ctrl-C, by an alarm; it is noticed soon, wherever the block waits."""
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    started = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
        assert time.perf_counter() - started < seconds + NOTICED_S
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def opcodes(code: Callable[[], object], stop_at: int, modules: tuple[str, ...]) -> int:
    """Run ``code``, raising `KeyboardInterrupt` before the ``stop_at``-th bytecode that is executed
    in ``modules``; how many there were."""
    seen = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.endswith(modules):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == stop_at:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        code()
    finally:
        sys.settrace(None)
    return seen


def python(code: str, *args: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
