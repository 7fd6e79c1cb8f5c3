"""Promise 2 as a state machine: whatever an engine went through, the next logits are those of an
engine that computes the same tokens from scratch.

Tiny models of random shapes, with windows whose KV rings wrap, go through random sequences of
prompts, steps, rewinds, resizes, scores, interrupts and failing reads. The truth has every weight
resident, one thread, the scalar kernels, a whole KV cache, and starts from an empty one each time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

import edge_rt.planner as planner
import edge_rt.tiles as tiles
from edge_rt import Engine, StorageError
from edge_rt.flash_io._flash_io import Faults

from .conftest import load_script
from .invariance import frozen  # noqa: F401

CTX = 120
N_OPERATIONS = 45
SEED = int(os.environ.get("EDGE_RT_TEST_SEED") or random.randrange(1 << 30))
FAMILIES = ("llama", "gemma2", "gemma3_text", "olmo3", "phi3", "ministral3", "smollm3")


def write_model(rng: random.Random, family: str, path: Path) -> int:
    """A model of random sizes; returns its vocabulary."""
    maker = load_script("make_model")
    kv_heads = rng.randint(1, 3)
    heads = kv_heads * rng.randint(1, 2)
    head_dim = 32 if (packed := rng.random() < 0.5) else rng.choice([6, 10, 20, 34])
    config = maker.Config(
        arch=family, layers=rng.randint(2, 7), hidden=heads * head_dim, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, ffn=96 if packed else rng.randint(30, 130),
        vocab=rng.randint(300, 700), context=CTX, window=rng.randint(1, 40), rope_theta=10000.0,
        format=rng.choice(["Q4_0", "Q8_0", "Q5_1"]) if packed else rng.choice(["F32", "F16"]),
        tied=rng.random() < 0.5,
    )  # fmt: skip
    model = maker.build(config, rng.randrange(1 << 30))
    if family == "llama":
        model.add("llama.attention.sliding_window", config.window)
        model.add("llama.attention.sliding_window_pattern", rng.choice([0, 2, 3]))
    model.write(path)
    return int(config.vocab)


class Interrupting:
    """A Runtime whose next pass, once done, is as if Ctrl-C had ended it: nothing of it counts."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.armed = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def run(self, *arguments: Any, **options: Any) -> None:
        self._runtime.run(*arguments, **options)
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt


class Truth:
    """Logits of token sequences, each from an empty cache."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.engine = Engine(path, "4GiB", ctx=CTX, threads=1, **options)
        assert set(self.engine.plan.kv_positions) == {CTX} and not self.engine.plan.streamed_bytes

    def rows(self, tokens: list[int]) -> list[bytes]:
        return [self.engine.logits_bytes(row) for _, row in self.engine.score_rows(tokens, 0)]

    def last(self, tokens: list[int]) -> bytes:
        self.engine.forget()
        self.engine.prefill(tokens)
        return self.engine.logits_bytes()


class Walk:
    """Random operations on one engine, each checked against the truth."""

    def __init__(
        self,
        rng: random.Random,
        path: Path,
        n_vocab: int,
        truth: Truth,
        faults: Faults,
        options: dict[str, Any],
    ) -> None:
        self.rng, self.path, self.n_vocab, self.truth = rng, path, n_vocab, truth
        self.size = path.stat().st_size
        self.faults = faults
        self.options = options
        self.late = False  # reads ahead may have failed: one error may still come
        self.open()

    def open(self) -> None:
        self.engine = Engine(self.path, "1GiB", ctx=CTX, **self.options)
        self.floor = self.engine.plan.floor_bytes

    @property
    def known(self) -> list[int]:
        return self.engine._history

    def token(self) -> int:
        return self.rng.randrange(self.n_vocab)

    def prompt(self) -> list[int]:
        """A prefix of what is known and more: short and long steps back, now and then none."""
        n, rng = len(self.known), self.rng
        same = rng.choice([0, n, max(0, n - 2), rng.randint(0, n), rng.randint(0, n)])
        more = rng.choice([0, 1, 3, rng.randint(1, 40), rng.randint(1, CTX)])
        new = [self.token() for _ in range(more)]
        return (self.known[:same] + new)[:CTX] or [self.token()]

    def prefill(self) -> None:
        tokens = self.prompt()
        self.engine.prefill(tokens)
        assert self.known == tokens
        assert self.engine.logits_bytes() == self.truth.last(tokens)

    def decode(self) -> None:
        for _ in range(self.rng.choice([1, 2, 12])):
            if len(self.known) == CTX:
                break
            self.engine.decode(self.token())
            assert self.engine.logits_bytes() == self.truth.last(self.known)

    def generate(self) -> None:
        tokens, seed = self.prompt(), self.rng.randrange(1000)
        settings: dict[str, Any] = {"temperature": 0.8, "seed": seed, "ignore_eos": True}
        n = self.rng.randint(1, 9)
        expected = self.truth.engine.generate(tokens, n, **settings).tokens
        assert self.engine.generate(tokens, n, **settings).tokens == expected

    def resize(self) -> None:
        engine, weights = self.engine, self.engine._planner.weight_bytes
        kind = self.rng.randrange(4)
        if kind == 0:
            engine.resize(self.floor)
        elif kind == 1:
            engine.resize(self.rng.choice(["900MiB", "2GiB"]))
        else:  # parts of the weights: these models are smaller than the floor's rounding
            cap = self.rng.choice([None, 0, self.rng.randrange(weights)])
            engine._life.replan(weight_cap=cap)

    def forget(self) -> None:
        self.engine.forget()

    def score(self) -> None:
        tokens = self.prompt()
        first, expected = self.rng.randrange(len(tokens)), self.truth.rows(tokens)
        leave = self.rng.choice([None, self.rng.randrange(len(tokens))])
        for index, row in self.engine.score_rows(tokens, first):
            assert self.engine.logits_bytes(row) == expected[index]
            if index == leave:
                break

    def attempt(self) -> None:
        with contextlib.suppress(KeyboardInterrupt, StorageError):
            self.rng.choice([self.prefill, self.decode, self.score])()

    def interrupt(self) -> None:
        engine, runtime = self.engine, self.engine._life.runtime
        engine._life.runtime = Interrupting(runtime)  # type: ignore[assignment]
        self.attempt()
        engine._life.runtime = runtime

    def failing_reads(self) -> None:
        """The drive fails for a while; what was read ahead may still serve."""
        kind, value = self.rng.choice([("error", errno.EIO), ("error", errno.ENODEV), ("end", 0)])
        self.faults.add(kind, value, str(self.path), self.rng.randrange(self.size))
        try:
            self.attempt()
            if self.rng.random() < 0.2:
                self.resize()
        except StorageError:  # reading the weights again failed: the engine is closed
            assert self.engine._life.runtime is None
        finally:
            self.faults.clear()
        self.late = True
        if self.engine._life.runtime is None:
            self.open()

    def go(self) -> None:
        steps = [self.prefill] * 4 + [self.decode] * 3 + [self.resize] * 2
        steps += [self.generate, self.forget, self.score, self.interrupt, self.failing_reads]
        done: list[str] = []
        for _ in range(N_OPERATIONS):
            step = self.rng.choice(steps)
            done.append(step.__name__)
            try:
                step()
            except StorageError:
                assert self.late, (SEED, done)
                self.late = False
            except BaseException as error:
                error.add_note(f"EDGE_RT_TEST_SEED={SEED}, after {' '.join(done)}")
                raise
        self.engine.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_any_history_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults, family: str
) -> None:
    rng = random.Random(f"{SEED} {family}")
    path, whole = tmp_path / "model.gguf", tmp_path / "whole.gguf"
    n_vocab = write_model(rng, family, path)
    whole.write_bytes(path.read_bytes())
    kv = rng.choice(["f16", "f32", "q8_0"])
    monkeypatch.setenv("EDGE_RT_ISA", "ref")
    truth = Truth(whole, kv=kv)
    monkeypatch.setenv("EDGE_RT_ISA", "auto")
    # Short passes shorten the rings, too; small tiles stream although the model is tiny.
    longest = rng.choice([4, 8, 16, 32])
    monkeypatch.setattr(planner, "MIN_PASS_TOKENS", longest // rng.choice([1, 4]))
    monkeypatch.setattr(planner, "MAX_PASS_TOKENS", longest)
    monkeypatch.setattr(planner, "MIN_LOGIT_ROWS", 3)
    monkeypatch.setattr(tiles, "_MIN_TILE_BYTES", 4096)
    options = {"kv": kv, "threads": rng.choice([1, 2, 3]), "io": rng.choice(["uring", "pread"])}
    walk = Walk(rng, path, n_vocab, truth, faults, options)
    if any(layer.window for layer in walk.engine._planner.program.hyper.layers):
        assert min(walk.engine.plan.kv_positions) < CTX
    walk.go()
    truth.engine.close()
