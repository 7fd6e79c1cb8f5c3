"""Ctrl-C at any moment: in requests, in loading, in closing, in commands."""

from __future__ import annotations

import os
import pty
import random
import select
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from edge_rt import Engine, UsageError
from edge_rt.flash_io._flash_io import Faults

from .life_cycle import (
    HANG_S,
    PROMPT,
    expected_tokens,  # noqa: F401
    frozen,  # noqa: F401
    interrupt_after,
    n_threads,
    opcodes,
    python,
    threads_end,
    tokens_of,
)


@pytest.mark.parametrize("io", ["uring", "pread"])
@pytest.mark.parametrize("skip", [0, 3, 12])
def test_interrupted_while_the_drive_hangs(
    stories_model: Path, faults: Faults, expected: list[int], skip: int, io: str
) -> None:
    """In embedding rows, in streamed blocks, in the next request, which waits for them, and in
    loading: Ctrl-C gets through at once, and afterwards all is well."""
    engine = Engine(stories_model, ram="4GiB", weight_cap="0", threads=2, io=io)
    faults.add("delay", int(HANG_S * 1000), skip=skip, count=1)
    with interrupt_after(0.1):
        while True:
            engine.forget()
            engine.generate(PROMPT, 4, ignore_eos=True)
    with interrupt_after(0.1):  # what hangs is waited for first
        engine.generate(PROMPT, 4, ignore_eos=True)
        raise KeyboardInterrupt  # where it need not wait
    assert tokens_of(engine) == expected
    faults.clear()
    faults.add("delay", int(HANG_S * 1000), skip=skip % 4, count=1)
    with interrupt_after(0.1):
        while True:
            engine.resize("3GiB")
            engine.resize("4GiB")
            engine.logits(PROMPT)


def test_closing_while_the_drive_hangs(stories_model: Path, faults: Faults) -> None:
    engine = Engine(stories_model, ram="4GiB", weight_cap="0", threads=2)
    faults.add("delay", int(HANG_S * 1000), skip=3, count=1)
    with interrupt_after(0.1):
        engine.generate(PROMPT, 100, ignore_eos=True)
    with interrupt_after(0.1):
        engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.generate(PROMPT)
    engine.close()
    assert engine._life.runtime is None


def use_all(engine: Engine) -> None:
    engine.resize("3GiB")
    engine.generate([1, 300], 2, ignore_eos=True)
    with closing(engine.stream(PROMPT, 8)) as stream:
        next(stream)
    engine.logits([1, 2])
    engine.generate(PROMPT, 2)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_between_any_two_steps(stories_model: Path, expected: list[int]) -> None:
    """The engine then answers rightly or is closed; it is never busy, and nothing is left."""
    modules = tuple(
        f"edge_rt/{name}.py" for name in ("engine", "life_cycle", "generation", "assemble")
    )
    rng = random.Random(int(os.environ.get("EDGE_RT_TEST_SEED") or random.randrange(2**32)))
    before = n_threads()

    def fresh() -> Engine:
        return Engine(stories_model, ram="4GiB", ctx=64, weight_cap="0", threads=2)

    engine = fresh()
    total = opcodes(partial(use_all, engine), 0, modules)
    n_closed = n_tried = 0
    for first in range(0, total, max(1, total // 150)):
        stop_at = min(total, first + rng.randrange(max(1, total // 150)) + 1)
        with pytest.raises(KeyboardInterrupt):
            opcodes(partial(use_all, engine), stop_at, modules)
            raise KeyboardInterrupt  # other counts: fewer tokens were new
        n_tried += 1
        try:
            assert tokens_of(engine) == expected, stop_at
        except UsageError as error:
            assert "closed" in str(error), stop_at
            n_closed += 1
            engine = fresh()
    assert 0 < n_closed < n_tried
    engine.close()
    total = opcodes(lambda: fresh().close(), 0, modules)
    for _ in range(40):
        with pytest.raises(KeyboardInterrupt):
            opcodes(lambda: fresh().close(), rng.randint(1, total), modules)
            raise KeyboardInterrupt
    del engine
    assert threads_end(before)


@pytest.mark.parametrize("command", ["generate", "chat", "ppl"])
def test_a_second_interrupt_ends_the_command_at_once(
    stories_model: Path, tmp_path: Path, command: str
) -> None:
    """The first Ctrl-C ends it in order, which waits for the drive; the second does not wait."""
    code = """
import sys
from edge_rt.apps.cli import main
from edge_rt.flash_io._flash_io import Faults
from edge_rt.flash_io.files import set_faults
faults = Faults()
set_faults(faults)
from edge_rt.engine import Engine
run = Engine._running
def hang(self):
    if self._gate_entered:
        faults.add("delay", 60000)
        print("now", flush=True)
        Engine._running = run
    return run(self)
def enter(self, inner=Engine._exclusive):
    self._gate_entered = True
    return inner(self)
Engine._gate_entered = False
Engine._exclusive = enter
Engine._running = hang
main()
"""
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a small rose. " * 20)
    template = tmp_path / "template"
    template.write_text("{{ messages[0].content }}")
    args: tuple[object, ...] = {
        "generate": ("-p", "Zoo"),
        "chat": ("--template", template),
        "ppl": ("--text", text, "--ctx", 64),
    }[command]
    child = python(code, command, stories_model, *args, "--ram", "2GiB", "--weight-cap", 0)
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(b"hello\n" * 3)
    child.stdin.flush()
    assert child.stdout.readline() == b"now\n"
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(2)
    child.send_signal(signal.SIGINT)
    child.wait(10)
    _, err = child.communicate(timeout=10)
    assert child.returncode == -signal.SIGINT and b"Traceback" not in err, err


def test_an_interrupt_in_chat_stops_the_answer_only(stories_model: Path, tmp_path: Path) -> None:
    """On a terminal: twice, and the third one, at the prompt, leaves."""
    code = """
import time
from edge_rt.apps.cli import main
from edge_rt.engine import Engine
def slow(self, token, decode=Engine.decode):
    time.sleep(0.05)
    decode(self, token)
Engine.decode = slow
main()
"""
    template = tmp_path / "template"
    template.write_text("Once upon a time")
    terminal, inner = pty.openpty()
    command = [sys.executable, "-c", code, "chat", stories_model, "--ram", "2GiB", "--template"]
    child = subprocess.Popen(
        [*map(str, command), str(template)], stdin=inner, stdout=inner, stderr=subprocess.PIPE
    )
    os.close(inner)
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        deadline = time.monotonic() + 30
        while text not in shown:
            assert time.monotonic() < deadline and child.poll() is None, shown
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 4096)
        shown = shown.partition(text)[2]

    try:
        for _ in range(2):
            until(b"> ")
            os.write(terminal, b"hello\n")
            until(b"hello\r\n")
            while len(shown) < 8:  # of the answer
                shown += os.read(terminal, 4096)
            child.send_signal(signal.SIGINT)
            until(b"(stopped)")
        until(b"> ")
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
        assert child.returncode == 130 and b"Traceback" not in err, err
    finally:
        child.kill()
        os.close(terminal)
