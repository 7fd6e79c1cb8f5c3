"""Perplexity by the protocol of llama-perplexity, in bounded memory.

The text is cut into windows of ``n_ctx`` tokens that do not overlap; where the model adds a BOS,
the first token of each window is replaced by it; only the second half of a window is scored, so
that every prediction has at least half a window of context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from edge_rt.engine import Engine
from edge_rt.errors import StorageError, UsageError
from edge_rt.generation import scored_nll

_READ_CHARACTERS = 16384


@dataclass(frozen=True)
class Perplexity:
    """``nll``: mean negative log-likelihood of the ``tokens`` scored, in nats."""

    ppl: float
    nll: float
    tokens: int
    chunks: int


def read_text(path: Path) -> Iterator[str]:
    """Yield a UTF-8 file piece by piece; raises `UsageError` if it is missing or not UTF-8."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            while piece := file.read(_READ_CHARACTERS):
                yield piece
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error.reason} at {error.start}") from None
    except OSError as error:
        raise StorageError(f"reading {path}: {error}") from error


def perplexity(
    engine: Engine,
    texts: Iterable[str],
    n_ctx: int = 512,
    chunks: int | None = None,
    progress: Callable[[Perplexity], object] | None = None,
) -> Perplexity:
    """Score ``texts`` (pieces of one text) over at most ``chunks`` windows.

    Raises `UsageError` if the text is shorter than one window or the window longer than the
    context.
    """
    if not 4 <= n_ctx <= engine.ctx:
        raise UsageError(f"windows of {n_ctx} tokens do not fit a context of {engine.ctx}")
    if chunks is not None and chunks < 1:
        raise UsageError(f"chunks is {chunks}: it must be at least 1")
    tokenizer = engine.tokenizer
    ids = tokenizer.iter_encode(texts)
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    if bos is not None:  # the text as a whole begins with one, too
        ids = _prepend(bos, ids)
    first, total, scored, done = n_ctx // 2, 0.0, 0, 0
    with engine.source.named(), engine._exclusive():
        while chunks is None or done < chunks:
            window = list(islice(ids, n_ctx))
            if len(window) < n_ctx:
                break
            if bos is not None:
                window[0] = bos
            for nll in scored_nll(engine, window, first):
                total += nll
                scored += 1
            done += 1
            if progress is not None:
                progress(_result(total, scored, done))
    if done == 0:
        raise UsageError(f"the text has fewer than {n_ctx} tokens: not one window")
    return _result(total, scored, done)


def _prepend(token: int, ids: Iterator[int]) -> Iterator[int]:
    yield token
    yield from ids


def _result(total: float, scored: int, chunks: int) -> Perplexity:
    nll = total / scored
    return Perplexity(math.exp(nll) if nll < 700 else math.inf, nll, scored, chunks)
