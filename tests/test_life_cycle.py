"""Engines that are closed, dropped or resized at the wrong moment."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edge_rt import BudgetError, Engine, StorageError, UsageError, life_cycle
from edge_rt.flash_io._flash_io import Faults

from .life_cycle import (
    HANG_S,
    NOTICED_S,
    PROMPT,
    expected_tokens,  # noqa: F401
    frozen,  # noqa: F401
    interrupt_after,
    n_threads,
    threads_end,
    tokens_of,
)


@pytest.mark.parametrize("use", ["generate", "logits", "resize"])
def test_closing_from_another_thread(stories_model: Path, use: str) -> None:
    """The request ends with a clear error, and once close() is back nothing is held."""
    before = n_threads()
    for _ in range(8):
        engine = Engine(stories_model, ram="4GiB", weight_cap="0", threads=2)
        errors: list[BaseException] = []

        def work(engine: Engine = engine, errors: list[BaseException] = errors) -> None:
            try:
                while True:
                    if use == "resize":
                        engine.resize("3GiB")
                    elif use == "logits":
                        engine.logits(PROMPT * 20)
                    else:
                        engine.generate(PROMPT, 100, ignore_eos=True)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(random.uniform(0, 0.1))
        engine.close()
        assert engine._life.runtime is None and engine._life.arena is None
        thread.join(30)
        assert not thread.is_alive()
        assert isinstance(errors[0], UsageError) and "closed" in str(errors[0])
    errors.clear()
    assert threads_end(before)


def test_closing_in_a_callback(stories_model: Path) -> None:
    engine = Engine(stories_model, ram="4GiB")
    engine._life.progress = lambda *_: engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.resize("3GiB")
    with pytest.raises(UsageError, match="closed"):
        engine.generate(PROMPT)


def test_closing_in_a_signal_handler(stories_model: Path) -> None:
    engine = Engine(stories_model, ram="4GiB", weight_cap="0")
    handler = signal.signal(signal.SIGALRM, lambda *_: engine.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(UsageError, match="closed"):
            while True:
                engine.generate(PROMPT, 100, ignore_eos=True)
    finally:
        signal.signal(signal.SIGALRM, handler)


def test_closing_in_a_signal_handler_that_raises(stories_model: Path, faults: Faults) -> None:
    """What the handler raises goes before the end of the request that it closed."""
    for skip in range(12):  # in rows, in streamed blocks, in the head
        engine = Engine(stories_model, ram="4GiB", weight_cap="0", threads=1, io="pread")
        faults.add("delay", 300, skip=skip, count=1)

        def end(*_: object, engine: Engine = engine) -> None:
            engine.close()
            sys.exit(130)

        handler = signal.signal(signal.SIGALRM, end)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(SystemExit):
                while True:
                    engine.generate(PROMPT, 100, ignore_eos=True)
        finally:
            signal.signal(signal.SIGALRM, handler)
        faults.clear()


def test_closing_while_closing(stories_model: Path, faults: Faults) -> None:
    engine = Engine(stories_model, ram="4GiB", weight_cap="0", threads=1)
    faults.add("delay", int(HANG_S * 1000), skip=3, count=1)
    with interrupt_after(0.1):
        engine.generate(PROMPT, 100, ignore_eos=True)
    met = []

    def close(*_: object) -> None:
        engine.close()
        met.append(time.monotonic())
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, close)
    started = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            engine.close()
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert met and met[0] - started < NOTICED_S
    engine.close()


def test_engines_that_are_dropped_on_a_silent_drive(
    stories_model: Path, faults: Faults, expected: list[int]
) -> None:
    """Nobody waits for the drive, no other thread either, and nothing stays when it answers."""
    before, beats, stop = n_threads(), [time.monotonic()], threading.Event()

    def beat() -> None:
        while not stop.wait(0.005):
            beats.append(time.monotonic())

    thread = threading.Thread(target=beat)
    thread.start()
    gc.disable()
    try:
        for skip in (0, 8):
            weights = stories_model.stat().st_size // 2  # headers are read in Python's own time
            faults.add("delay", int(HANG_S * 1000), begin=weights, skip=skip, count=1)
            with interrupt_after(0.1):
                while True:  # as it is built, or in its first request
                    tokens_of(Engine(stories_model, ram="4GiB", weight_cap="64KiB", threads=1))
            faults.clear()
        alive = filter(None, [life() for life in life_cycle._alive])
        assert not [life for life in alive if life.runtime is not None]
        with Engine(stories_model, ram="4GiB") as engine:
            assert tokens_of(engine) == expected
    finally:
        gc.enable()
        stop.set()
        thread.join()
    assert max(b - a for a, b in pairwise(beats)) < NOTICED_S
    assert life_cycle._unanswered
    time.sleep(HANG_S)
    with Engine(stories_model, ram="4GiB"):
        assert not life_cycle._unanswered
    assert threads_end(before)


def test_a_request_within_a_request(stories_model: Path, expected: list[int]) -> None:
    """A signal handler that uses the engine within its own pass is refused."""
    met: list[BaseException] = []
    with Engine(stories_model, ram="4GiB", weight_cap="0") as engine:

        def use(*_: object) -> None:
            for call in (lambda: engine.generate(PROMPT), lambda: engine.logits(PROMPT)):
                try:
                    call()
                except UsageError as error:
                    met.append(error)

        handler = signal.signal(signal.SIGALRM, use)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            while not met:
                engine.logits(PROMPT * 30)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
        assert all("busy" in str(error) for error in met)
        assert tokens_of(engine) == expected


def test_progress_that_raises(stories_model: Path, expected: list[int]) -> None:
    before = n_threads()
    for failing_call in range(6):
        calls = 0

        def progress(*_: object, failing_call: int = failing_call) -> None:
            nonlocal calls
            calls += 1
            if calls > failing_call:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            Engine(stories_model, ram="4GiB", progress=progress)
            raise ZeroDivisionError  # it loaded in fewer calls
    assert threads_end(before)
    with Engine(stories_model, ram="4GiB") as engine:
        assert tokens_of(engine) == expected


def test_streams_that_go_away(stories_model: Path, expected: list[int]) -> None:
    with Engine(stories_model, ram="4GiB", weight_cap="0") as engine:
        with pytest.raises(ZeroDivisionError):
            for _ in engine.stream(PROMPT, 20):
                raise ZeroDivisionError
        assert tokens_of(engine) == expected
        cycle: list[Any] = [engine.stream(PROMPT, 20)]
        next(cycle[0])
        cycle.append(cycle)
        del cycle
        gc.collect()
        assert tokens_of(engine) == expected
        stream = engine.stream(PROMPT, 20)
        next(stream)
        with pytest.raises(UsageError, match="busy"):
            engine.generate(PROMPT)
        with pytest.raises(UsageError, match="busy"):
            engine.resize("3GiB")
        stream.close()
        assert tokens_of(engine) == expected


def test_nothing_grows(stories_model: Path) -> None:
    def held() -> tuple[int, int, int, int]:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        maps = Path("/proc/self/maps").read_text().count("\n")
        return n_threads(), len(os.listdir("/proc/self/fd")), maps, pages * 4096

    def use() -> None:
        engine = Engine(stories_model, ram="4GiB", ctx=64, weight_cap="0", threads=2)
        tokens_of(engine, 2)
        engine.close()

    for _ in range(20):
        use()
    before = held()
    for _ in range(200):
        use()
    assert threads_end(before[0])
    after = held()
    assert after[:2] == before[:2]
    assert after[2] <= before[2] + 8 and after[3] <= before[3] + (8 << 20), (before, after)


def test_a_resize_that_fails(stories_model: Path, faults: Faults) -> None:
    engine = Engine(stories_model, ram="4GiB")
    floor = engine.memory()["floor"]
    with pytest.raises(BudgetError):
        engine.resize(floor - (1 << 20))
    faults.add("error", 5)
    with pytest.raises(StorageError):
        engine.resize("3GiB")
    faults.clear()
    for call in (lambda: engine.resize("3GiB"), lambda: engine.generate(PROMPT)):
        with pytest.raises(UsageError, match="closed"):
            call()
    assert engine._life.arena is None
