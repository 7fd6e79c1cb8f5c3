"""What callers hold on top of a plan is charged while they hold it, whatever ends that."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_rt import BudgetError, Engine, UsageError, budget
from edge_rt.runtime._runtime import Charges
from edge_rt.sizes import MIB

from .life_cycle import (
    PROMPT,
    expected_tokens,  # noqa: F401
    frozen,  # noqa: F401
    opcodes,
    python,
    tokens_of,
)

N_STORMS = 160
MODULES = ("edge_rt/engine.py", "edge_rt/life_cycle.py", "/weakref.py")


@pytest.fixture(scope="module")
def engine(stories_model: Path) -> Iterator[Engine]:
    with Engine(stories_model, ram="4GiB", ctx=64, threads=1) as opened:
        yield opened


def charged(engine: Engine) -> tuple[int, dict[str, int]]:
    memory = engine.memory()
    assert memory["planned"] == sum(memory["roles"].values()) <= memory["budget"]
    return memory["planned"], memory["roles"]


# --- the objects --------------------------------------------------------------------------------


def test_charges_add_up() -> None:
    charges, rng = Charges(), random.Random()
    held: list[Any] = []
    for _ in range(400):
        end = rng.randrange(5)
        if end == 0 or not held:
            held.append(charges.add(rng.choice([0, 1, rng.randrange(1 << 40)])))
        elif end == 1:
            del held[rng.randrange(len(held))]
        elif end == 2:
            charge = rng.choice(held)
            part = rng.randint(0, charge.n_bytes)
            whole = charge.n_bytes
            held.append(charge.split(part))
            assert (charge.n_bytes, held[-1].n_bytes) == (whole - part, part)
            del charge
        elif end == 3:
            rng.choice(held).release()  # twice now and then
        else:
            with charges.add(1000):
                assert charges.held == sum(c.n_bytes for c in held) + 1000
        assert charges.held == sum(c.n_bytes for c in held)
    last = charges.add(7)
    held.clear()
    assert charges.held == 7
    del charges
    assert last.split(3).n_bytes == 3  # it outlives what it is charged to


def test_rows_take_the_charge_with_them() -> None:
    charges = Charges()
    charge = charges.add(4 * 6)
    for n_cols in (0, 4, 5, 7, 1 << 62):
        with pytest.raises(ValueError, match="whole rows"):
            charge.rows(n_cols)
    for n_bytes in (-1, 25):
        with pytest.raises(ValueError, match="part"):
            charge.split(n_bytes)
    assert charges.held == charge.n_bytes == 24
    memory = charge.rows(3)
    assert (memory.shape, memory.format, memory.readonly) == ((2, 3), "f", False)
    assert charge.n_bytes == 0 and charges.held == 24
    with pytest.raises(ValueError, match="whole rows"):
        charge.rows(3)
    charge.release()
    del charge
    assert charges.held == 24
    view = np.asarray(memory)[1:]
    del memory
    assert charges.held == 24  # a view keeps all of it
    del view
    assert charges.held == 0


# --- arrays -------------------------------------------------------------------------------------


def drop(held: list[Any]) -> None:
    held.clear()


def drop_in_a_thread(held: list[Any]) -> None:
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()


def drop_in_a_cycle(held: list[Any]) -> None:
    held.append(held[:])
    held[-1].append(held[-1])
    held.clear()
    gc.collect()


def drop_views_last(held: list[Any]) -> None:
    views = [array[-1, 3:] for array in held]
    held.clear()
    assert all(np.isfinite(view).all() for view in views)
    views.clear()


@pytest.mark.parametrize("end", [drop, drop_in_a_thread, drop_in_a_cycle, drop_views_last])
def test_arrays_are_charged_while_alive(engine: Engine, end: Callable[[list[Any]], None]) -> None:
    before = charged(engine)
    held = [engine.logits(PROMPT[:n]) for n in (3, 1)]
    n_bytes = sum(array.nbytes for array in held)
    planned, roles = charged(engine)
    assert planned == before[0] + n_bytes
    assert roles == before[1] | {"interpreter": before[1]["interpreter"] + n_bytes}
    end(held)
    assert charged(engine) == before


def test_arrays_outlive_their_engine(stories_model: Path) -> None:
    engine = Engine(stories_model, ram="4GiB", ctx=64)
    array = engine.logits(PROMPT)
    copy, gone = array.copy(), weakref.ref(engine._life)
    engine.close()
    del engine
    assert gone() is None
    assert array.tobytes() == copy.tobytes()
    array += 1.0
    del array


def test_requests_that_end_early_are_not_charged_on(
    stories_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(stories_model, ram="4GiB") as engine:
        before = charged(engine)
        for _ in range(3):
            assert len(list(engine.iter_logits([1, 2, 3]))) == 3
            assert charged(engine) == before
            rows = engine.iter_logits([1, 2, 3])
            next(rows)
            assert charged(engine)[0] == before[0] + 4 * engine.n_vocab
            rows.close()
            assert charged(engine) == before

        def interrupted(*_: object) -> Iterator[tuple[int, int]]:
            yield 0, 0
            raise KeyboardInterrupt

        engine.prefill([1])
        monkeypatch.setattr(engine, "score_rows", interrupted)
        for call in (engine.logits, lambda ids: list(engine.iter_logits(ids))):
            with pytest.raises(KeyboardInterrupt):
                call([1, 2, 3])
            assert charged(engine) == before


# --- what does not fit --------------------------------------------------------------------------


def test_what_does_not_fit_changes_nothing(stories_model: Path, expected: list[int]) -> None:
    with Engine(stories_model, ram="4GiB") as engine:
        engine.resize(engine.memory()["floor"])
        engine.prefill(PROMPT)
        before, plan = charged(engine), engine.plan
        held, errors = [], []
        for _ in range(3):  # the floor is rounded up to a MiB
            try:
                held.append(engine.logits([1] * 500))  # 1 MiB
            except BudgetError as error:
                errors.append(error)  # its traceback keeps what its frames hold
        assert errors and "iter_logits" in str(errors[0]) and len(held) < 2
        held.clear()
        with pytest.raises(BudgetError, match="chat template") as caught:
            engine.template(source="{{ a(b)|upper }}" * 480)
        assert charged(engine) == before and engine.plan is plan
        assert tokens_of(engine) == expected
        del caught


def test_residency_makes_room_and_comes_back(long_model: Path) -> None:
    """Arrays take the place of resident weights; `resize` gives it back once they are gone."""
    with Engine(long_model, ram="4GiB", ctx=640) as engine:
        floor, whole = engine.memory()["floor"], engine.plan.resident_bytes
        ram = floor + 5 * MIB // 2
        engine.resize(ram)
        resident = engine.plan.resident_bytes
        assert resident < whole
        expected = engine.generate(PROMPT, 8).tokens
        held = []
        for n in (60, 40, 36):
            held.append(engine.logits(PROMPT * (n // 4)))
            charged(engine)
        n_bytes = sum(array.nbytes for array in held)
        assert n_bytes > MIB  # the floor is rounded up by less
        assert engine.plan.resident_bytes < resident and engine.plan.settings.reserved == n_bytes
        with pytest.raises(BudgetError):
            engine.resize(floor)  # not with what is held
        assert engine.generate(PROMPT, 8).tokens == expected
        full = charged(engine)[0]
        held.clear()
        assert charged(engine)[0] == full - n_bytes
        engine.resize(ram)
        assert engine.plan.resident_bytes == resident and engine.plan.settings.reserved == 0


def test_numpy_is_charged_once(stories_model: Path) -> None:
    """And is not imported where its import does not fit."""
    code = """
import sys
from edge_rt import BudgetError, Engine
engine = Engine(sys.argv[1], ram="4GiB", ctx=64)
def planned(): return engine.memory()["planned"]
engine.resize(engine.memory()["floor"])
before, plan = planned(), engine.plan
for call in (engine.logits, lambda ids: next(engine.iter_logits(ids))):
    try: call([1])
    except BudgetError: pass
    else: raise SystemExit("it fits")
    assert "numpy" not in sys.modules and planned() == before and engine.plan is plan
engine.resize("4GiB")
before = planned()
for _ in range(3):
    array = engine.logits([1, 2])
    rows = list(engine.iter_logits([1]))
    print(planned() - before - array.nbytes)
    del array
print(planned() - before)
"""
    out, err = python(code, stories_model).communicate(timeout=60)
    assert out.split() == [str(budget.NUMPY_BYTES).encode()] * 4, err


# --- Ctrl-C -------------------------------------------------------------------------------------


@pytest.fixture
def ignored(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Python dropped because nobody was there to be told."""
    found: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: found.append(repr(what.exc_value)))
    return found


def use(engine: Engine) -> None:
    array = engine.logits([1, 2])
    del array
    for _ in engine.iter_logits([1]):
        pass


def test_interrupted_between_any_two_steps_nothing_stays_charged(
    engine: Engine, ignored: list[Any]
) -> None:
    use(engine)
    before = charged(engine)
    total = opcodes(lambda: use(engine), 0, MODULES)
    assert total > 200
    for stop_at in range(1, total + 1):
        with pytest.raises(KeyboardInterrupt):
            opcodes(lambda: use(engine), stop_at, MODULES)
        assert charged(engine) == before, stop_at
    assert not ignored
    assert engine.generate(PROMPT, 1).tokens


def test_a_storm_of_interrupts(engine: Engine, ignored: list[Any]) -> None:
    """Ctrl-C while arrays are made and freed: each gets through, and no charge is left."""
    rng = random.Random(int(os.environ.get("EDGE_RT_TEST_SEED") or random.randrange(2**32)))
    before = charged(engine)
    times = []
    for _ in range(10):
        times.append(time.perf_counter())
        use(engine)
    longest = max(b - a for a, b in pairwise(times))
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    met = 0
    try:
        for round_ in range(N_STORMS):
            arrays: list[Any] = []
            if round_ % 2:  # most of the time is that of freeing
                arrays = [engine.logits([1]) for _ in range(8)]
            with suppress(KeyboardInterrupt):
                limit = 100e-6 if arrays else longest
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, limit))
                arrays.clear()
                if not round_ % 2:
                    use(engine)
                time.sleep(5)
                met -= 1  # somebody swallowed it
            met += 1
            arrays.clear()
            assert charged(engine) == before, round_
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert met == N_STORMS and not ignored


def test_a_busy_engine_charges_nothing(engine: Engine) -> None:
    stream = engine.stream(PROMPT, 8)
    next(stream)
    before = charged(engine)
    with pytest.raises(UsageError, match="busy"):
        engine.logits([1])
    assert charged(engine) == before
    stream.close()


def test_arrays_are_the_rows(long_model: Path) -> None:
    """An array of many rows is what the rows one by one are."""
    with Engine(long_model, ram="4GiB", ctx=640) as engine:
        tokens = [1, *(random.randrange(3, engine.n_vocab) for _ in range(150))]
        array = engine.logits(tokens)
        assert array.nbytes > MIB and array.flags.writeable and array.flags.c_contiguous
        assert np.stack(list(engine.iter_logits(tokens))).tobytes() == array.tobytes()
