"""What the invariance tests share: engines of one model, and the reference bytes of its logits."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edge_rt.planner as planner
from edge_rt import Engine, UsageError

CTX = 96


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """Every engine collects garbage: torch's and pytest's objects would take most of the time."""
    gc.freeze()
    yield
    gc.unfreeze()


def ids(n: int) -> list[int]:
    """A prompt of ``n`` tokens, all below 512."""
    return [1, *((i * 97 + 11) % 500 + 3 for i in range(n - 1))]


def open_engine(path: Path, **options: Any) -> Engine:
    return Engine(path, **{"ram": "4GiB", "ctx": CTX, "threads": 2} | options)


def rows(path: Path, n_tokens: int, **options: Any) -> bytes:
    """The logits (n_tokens, n_vocab) float32 of the prompt."""
    with open_engine(path, **options) as engine:
        return engine.logits(ids(n_tokens)).tobytes()


@functools.cache
def reference(path: Path, n_tokens: int) -> bytes:
    """`rows` with everything resident, two threads and the best ISA."""
    return rows(path, n_tokens)


def reference_row(path: Path, n_tokens: int, index: int) -> bytes:
    found = reference(path, n_tokens)
    size = len(found) // n_tokens
    return found[size * index :][:size]


def rows_on(monkeypatch: pytest.MonkeyPatch, isa: str, *args: Any, **options: Any) -> bytes:
    """`rows` with the kernels ``isa``; skips where this machine has none."""
    monkeypatch.setenv("EDGE_RT_ISA", isa)
    try:
        return rows(*args, **options)
    except UsageError as error:
        pytest.skip(f"NO {isa} KERNELS HERE: {error}")


def set_pass(monkeypatch: pytest.MonkeyPatch, pass_tokens: int) -> None:
    """Short passes also make the KV rings of windowed layers shorter than the prompt."""
    monkeypatch.setattr(planner, "MIN_PASS_TOKENS", pass_tokens)
    monkeypatch.setattr(planner, "MAX_PASS_TOKENS", pass_tokens)
    monkeypatch.setattr(planner, "MIN_LOGIT_ROWS", min(3, pass_tokens))
