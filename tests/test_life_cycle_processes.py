"""Engines when the interpreter ends, and in forked children."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_rt import Engine

from .life_cycle import (
    PROMPT,
    expected_tokens,  # noqa: F401
    frozen,  # noqa: F401
    python,
    tokens_of,
)


@pytest.mark.parametrize("state", ["idle", "dropped", "streaming", "running", "loading"])
def test_the_interpreter_ends_with_an_open_engine(stories_model: Path, state: str) -> None:
    code = """
import sys, threading, time
from edge_rt import Engine
engine = Engine(sys.argv[1], ram="4GiB", weight_cap="0", threads=2)
def work():
    while True:
        if sys.argv[2] == "running": engine.generate([1, 300], 50, ignore_eos=True)
        else: engine.resize("3GiB")
if sys.argv[2] == "streaming":
    stream = engine.stream([1, 300], 50)
    next(stream)
elif sys.argv[2] in ("running", "loading"):
    threading.Thread(target=work, daemon=True).start()
    time.sleep(float(sys.argv[3]))
elif sys.argv[2] == "dropped":
    del engine
"""
    for _ in range(4 if state in ("running", "loading") else 1):
        child = python(code, stories_model, state, random.uniform(0, 0.1))
        out, err = child.communicate(timeout=60)
        # A daemon thread may still say, as far as it comes, that its engine was closed.
        fine = not err or err.startswith(b"Exception in thread")
        fine = fine and not any(word in err for word in (b"Fatal", b"terminate", b"leaked"))
        assert child.returncode == 0 and not out and fine, (child.returncode, err)


def test_the_end_does_not_wait_for_a_silent_drive(stories_model: Path) -> None:
    code = """
import signal, sys
from edge_rt import Engine
from edge_rt.flash_io._flash_io import Faults
from edge_rt.flash_io.files import set_faults
faults = Faults()
set_faults(faults)
engine = Engine(sys.argv[1], ram="4GiB", weight_cap="0", threads=1, io=sys.argv[2])
faults.add("delay", 60000, skip=3, count=1)
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    engine.generate([1, 403, 407, 261], 100, ignore_eos=True)
except KeyboardInterrupt:
    print("interrupted")
"""
    for io in ("pread", "uring"):
        done = subprocess.run(
            [sys.executable, "-c", code, stories_model, io],
            capture_output=True, text=True, timeout=40,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", ""), done


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_within_a_pass(stories_model: Path, expected: list[int]) -> None:
    with Engine(stories_model, ram="4GiB", weight_cap="0", threads=2) as engine:
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                assert tokens_of(engine) == expected

        thread = threading.Thread(target=work)
        thread.start()
        try:
            uses: list[tuple[Callable[[], object], int]] = [
                (engine.close, 0), (lambda: engine.generate(PROMPT), 7), (engine.forget, 0),
                (lambda: sys.exit(3), 3),
            ]  # fmt: skip
            for use, code in uses:
                time.sleep(random.uniform(0, 0.05))
                pid = os.fork()
                if pid == 0:
                    try:
                        use()
                        os._exit(0)
                    except RuntimeError:
                        os._exit(7)
                    except SystemExit:
                        os._exit(3)
                    finally:
                        os._exit(99)
                deadline = time.monotonic() + 20
                done = 0
                while not done and time.monotonic() < deadline:
                    done, status = os.waitpid(pid, os.WNOHANG)
                    time.sleep(0.01)
                if not done:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                assert done and os.waitstatus_to_exitcode(status) == code
        finally:
            stop.set()
            thread.join(30)
        assert tokens_of(engine) == expected
