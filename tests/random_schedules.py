"""Random schedules of what may happen to engines; run by test_schedules.py, or again by hand:

    python tests/random_schedules.py --seed SEED --first I --count 1 MODEL...

A schedule is a few operations on one engine: requests, streams that are dropped, Ctrl-C at any
microsecond, another thread that closes or intrudes, other budgets, drives that fail or hesitate.
After it the engine answers rightly or says that it is closed. Now and then all engines are closed
and nothing of theirs may be left: threads, open files, mappings, memory. A deadlock ends the
process with all stacks printed.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import faulthandler
import gc
import hashlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from edge_rt import BudgetError, Engine, StorageError, UsageError
from edge_rt.flash_io._flash_io import Faults
from edge_rt.flash_io.files import set_faults

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's own threads would be counted
WATCHDOG_S = 120
CTX = 48
CHECK_EVERY = 50
MAX_GROWTH = 24 << 20  # of resident memory: what malloc and Python keep for later

_armed = False


def _on_alarm(*_: object) -> None:
    if _armed:
        raise KeyboardInterrupt


def interrupted_after(seconds: float, inner: Callable[[], None]) -> None:
    """Run ``inner``, which may end with `KeyboardInterrupt` after ``seconds``."""
    global _armed
    try:
        _armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds)
        inner()
        _armed = False
    except KeyboardInterrupt:
        pass
    finally:
        _armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)


class Truth:
    """What a model answers when nothing happens."""

    def __init__(self, path: str, rng: random.Random) -> None:
        self.path = path
        with Engine(path, ram="4GiB", ctx=CTX, threads=1) as engine:
            self.prompts = [
                [rng.randrange(3, engine.n_vocab) for _ in range(rng.randint(1, CTX - 14))]
                for _ in range(6)
            ]
            self.tokens = []
            self.texts = []
            self.logits = []
            for prompt in self.prompts:
                done = engine.generate(prompt, 10, ignore_eos=True)
                self.tokens.append(done.tokens)
                self.texts.append(done.text)
                self.logits.append(_digest(engine.logits(prompt)))


def _digest(array: Any) -> bytes:
    return hashlib.sha256(array.tobytes()).digest()


class Schedule:
    """Operations on one engine; a new one is made when it was closed."""

    def __init__(self, rng: random.Random, truths: list[Truth], faults: Faults) -> None:
        self.rng, self.truths, self.faults = rng, truths, faults
        self.engine: Engine | None = None
        self.streams: list[Any] = []
        self.threads: list[threading.Thread] = []
        self.unexpected: list[BaseException] = []
        self.may_fail = False  # of what was read ahead when the drive failed
        self.progress_left = -1  # calls of the progress callback until it raises; -1: it does not
        self.done: list[str] = []

    def run(self) -> None:
        for _ in range(self.rng.randint(2, 7)):
            self.step()
        self.settle()

    def step(self) -> None:
        operation = self.rng.choice(
            [
                self.generate, self.part_of_a_stream, self.part_of_a_stream, self.interrupt,
                self.interrupt, self.close_from_another_thread, self.resize, self.failing_reads,
                self.slow_reads, self.logits, self.intrude, self.new_engine, self.drop_streams,
                self.raise_in_consumer, self.raise_in_progress, self.cancel_from_another_thread,
            ]
        )  # fmt: skip
        self.done.append(operation.__name__)
        self.attempt(operation)

    def attempt(self, operation: Callable[[], None]) -> None:
        try:
            operation()
        except KeyboardInterrupt:
            pass  # it came while another exception was on its way
        except StorageError:
            assert self.may_fail, "a drive that is well failed"
        except UsageError as error:
            if "closed" in str(error):
                self.engine = None
            else:
                assert "busy" in str(error) and self.streams, error

    # -- operations ------------------------------------------------------------------------------

    def open(self) -> Engine:
        engine = self.engine
        if engine is None or engine._life.closed:
            self.truth = self.rng.choice(self.truths)
            self.streams.clear()
            engine = self.engine = Engine(
                self.truth.path,
                ram=self.rng.choice(["4GiB", "1GiB"]),
                ctx=self.rng.choice([CTX, CTX + 16]),
                threads=self.rng.randint(1, 4),
                io=self.rng.choice(["uring", "pread"]),
                weight_cap=self.rng.choice(["0", "100KiB", None]),
                progress=self.on_progress,
            )
        return engine

    def on_progress(self, done: int, total: int) -> None:
        assert 0 <= done <= total
        if self.progress_left >= 0:
            self.progress_left -= 1
            if self.progress_left < 0:
                raise ZeroDivisionError

    def new_engine(self) -> None:
        if self.engine is not None and self.rng.random() < 0.5:
            self.engine.close()
        self.engine = None  # or dropped, with whatever it does
        self.open()

    def generate(self) -> None:
        engine, i = self.open(), self.rng.randrange(6)
        n = self.rng.randint(1, 10)
        done = engine.generate(self.truth.prompts[i], n, ignore_eos=True)
        assert done.tokens == self.truth.tokens[i][:n]

    def part_of_a_stream(self) -> None:
        engine, i = self.open(), self.rng.randrange(6)
        stream = engine.stream(self.truth.prompts[i], 10, ignore_eos=True)
        text = ""
        for _ in range(self.rng.randint(0, 6)):
            text += next(stream, "")
        assert self.truth.texts[i].startswith(text)
        end = self.rng.randrange(3)
        if end == 0:
            stream.close()
        elif end == 1:
            self.streams.append(stream)  # keeps the engine busy

    def drop_streams(self) -> None:
        self.streams.clear()

    def raise_in_consumer(self) -> None:
        engine, i = self.open(), self.rng.randrange(6)
        with contextlib.suppress(ZeroDivisionError):
            for _ in engine.stream(self.truth.prompts[i], 10, ignore_eos=True):
                raise ZeroDivisionError

    def raise_in_progress(self) -> None:
        """While it loads, at first or again: the engine is then closed."""
        engine = self.open()
        self.progress_left = self.rng.randint(0, 4)
        try:
            if self.rng.random() < 0.5:
                self.resize()
            else:
                self.new_engine()
        except ZeroDivisionError:
            if self.engine is engine:
                assert engine._life.closed
            self.engine = None
        finally:
            self.progress_left = -1

    def logits(self) -> None:
        engine, i = self.open(), self.rng.randrange(6)
        assert _digest(engine.logits(self.truth.prompts[i])) == self.truth.logits[i]

    def resize(self) -> None:
        engine = self.open()
        floor = engine.memory()["floor"]
        ram = self.rng.choice([floor, floor + (2 << 20), "4GiB", "1GiB", floor - (1 << 20)])
        try:
            engine.resize(ram)
            assert ram != floor - (1 << 20)
        except BudgetError:
            assert ram == floor - (1 << 20)

    def interrupt(self) -> None:
        self.open()
        inner = self.rng.choice(
            [self.generate, self.part_of_a_stream, self.logits, self.resize, self.new_engine]
        )
        interrupted_after(10 ** self.rng.uniform(-5.5, -1.3), inner)

    def close_from_another_thread(self) -> None:
        engine = self.open()
        delay = 10 ** self.rng.uniform(-5, -1.5)
        inner = self.rng.choice([self.generate, self.part_of_a_stream, self.logits, self.resize])

        def close() -> None:
            time.sleep(delay)
            try:
                engine.close()
            except BaseException as error:
                self.unexpected.append(error)

        thread = threading.Thread(target=close)
        self.threads.append(thread)
        thread.start()
        inner()

    def cancel_from_another_thread(self) -> None:
        """`Runtime.cancel`, as `close` begins; the request ends, and then the engine is closed."""
        engine = self.open()
        delay = 10 ** self.rng.uniform(-5, -1.5)

        def cancel() -> None:
            time.sleep(delay)
            runtime = engine._life.runtime
            if runtime is not None:
                runtime.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            self.rng.choice([self.generate, self.part_of_a_stream, self.logits])()
        finally:
            thread.join()
            engine.close()

    def intrude(self) -> None:
        """Another thread uses the engine at the same time: it is refused, or served alone."""
        engine, i = self.open(), self.rng.randrange(6)

        def use() -> None:
            try:
                done = engine.generate(self.truth.prompts[i], 4, ignore_eos=True)
                assert done.tokens == self.truth.tokens[i][:4]
            except (UsageError, StorageError):
                pass
            except BaseException as error:
                self.unexpected.append(error)

        thread = threading.Thread(target=use)
        self.threads.append(thread)
        thread.start()
        with contextlib.suppress(UsageError):
            self.generate()
        thread.join()

    def failing_reads(self) -> None:
        self.open()
        self.may_fail = True
        kind, value = self.rng.choice([("error", errno.EIO), ("error", errno.ENODEV), ("end", 0)])
        skip, count = self.rng.randint(0, 60), self.rng.randint(1, 30)
        self.faults.add(kind, value, skip=skip, count=count)
        try:
            self.rng.choice([self.generate, self.part_of_a_stream, self.logits, self.resize])()
        finally:
            self.faults.clear()

    def slow_reads(self) -> None:
        """The drive hesitates; whatever is done next meets that."""
        self.open()
        self.faults.add("delay", self.rng.randint(1, 30), skip=self.rng.randint(0, 60), count=2)
        self.rng.choice([self.interrupt, self.close_from_another_thread, self.generate])()

    # -- afterwards ------------------------------------------------------------------------------

    def settle(self) -> None:
        """Whatever was: the engine answers rightly, or is closed and a new one does."""
        self.streams.clear()
        for thread in self.threads:
            thread.join()
        self.faults.clear()
        if self.unexpected:
            raise self.unexpected[0]
        for attempt in range(3):
            try:
                self.generate()
                self.may_fail = False
                break
            except StorageError:
                assert self.may_fail and attempt == 0, "the drive is well again"
            except UsageError as error:
                assert "closed" in str(error) and attempt < 2, error
                self.engine = None
        self.threads.clear()
        self.done.clear()

    def end(self) -> None:
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.close()


def held() -> tuple[int, int, int, int]:
    """Threads, open files, mappings and resident bytes of this process."""
    gc.collect()
    deadline = time.monotonic() + 2
    while len(os.listdir("/proc/self/task")) > 2 and time.monotonic() < deadline:
        time.sleep(0.001)  # a thread that was joined may not quite be gone
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * 4096
    with open("/proc/self/maps") as file:
        mappings = sum(1 for _ in file)
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), mappings, resident


def thread_names() -> list[str]:
    names = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm") as file:
            names.append(file.read().strip())
    return names


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--unmeasured", action="store_true", help="sanitizers hold things, too")
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, _on_alarm)
    faults = Faults()
    set_faults(faults)
    truths = [Truth(path, random.Random(args.seed)) for path in args.models]
    before: tuple[int, int, int, int] | None = None  # two threads: this one and the watchdog
    schedule = Schedule(random.Random(), truths, faults)
    for index in range(args.first, args.first + args.count):
        faulthandler.dump_traceback_later(WATCHDOG_S, exit=True)
        schedule.rng = random.Random(f"{args.seed}/{index}")
        if index % 10 == 0:
            schedule.end()
        try:
            schedule.run()
        except BaseException:
            print(f"schedule {index}: {schedule.done}", file=sys.stderr)
            raise
        if (index + 1) % CHECK_EVERY == 0 or index + 1 == args.first + args.count:
            schedule.end()
            now = held()
            if args.unmeasured:
                continue
            assert now[0] == 2, thread_names()
            if before is not None:
                ok = now[1] <= before[1] and now[2] <= before[2] + 12
                assert ok and now[3] <= before[3] + MAX_GROWTH, (index, before, now)
            else:
                before = now
    faulthandler.cancel_dump_traceback_later()
    set_faults(None)
    print(f"{args.count} schedules of seed {args.seed}; held before and after: {before} {held()}")


if __name__ == "__main__":
    main()
