"""The generation loop: prefill, then sample and decode until something ends it."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from edge_rt.errors import UsageError
from edge_rt.runtime._runtime import Sampler
from edge_rt.sampling import Sampling
from edge_rt.stop import StopStrings

if TYPE_CHECKING:
    from edge_rt.engine import Engine


@dataclass
class Completion:
    """What a request gave. ``stats`` holds the measured fields of ``generate --json``."""

    text: str
    tokens: list[int]
    finish_reason: str  # "stop": end of generation or a stop string, "length": a limit
    stats: dict[str, Any] = field(default_factory=dict)


def sampling_from(arguments: dict[str, Any]) -> Sampling:
    """`Sampling` from keyword arguments; raises `UsageError` for unknown ones."""
    unknown = set(arguments) - {f.name for f in fields(Sampling)}
    if unknown:
        raise UsageError(f"unknown sampling option {', '.join(sorted(unknown))}")
    return Sampling(**arguments)


def collect(stream: Stream) -> Completion:
    """Run a stream to its end."""
    for _ in stream:
        pass
    assert stream.completion is not None
    return stream.completion


class Stream:
    """An iterator over pieces of generated text; ``completion`` is set when it is exhausted.

    The engine is busy from the first piece until the stream ends, is closed, or is dropped.
    """

    def __init__(
        self, engine: Engine, tokens: list[int], max_tokens: int, sampling: Sampling
    ) -> None:
        if max_tokens < 0:
            raise UsageError(f"max_tokens is {max_tokens}: it must not be negative")
        if not tokens:
            raise UsageError("the prompt is empty, and this model has no token to begin with")
        if len(tokens) > engine.ctx:
            raise UsageError(
                f"the prompt has {len(tokens)} tokens: they do not fit a context of {engine.ctx}"
            )
        engine.check_tokens(tokens)
        self.prompt_tokens = len(tokens)
        # The generator must not know this object: a cycle would keep the engine busy until the next
        # garbage collection after the stream was dropped.
        self._result: list[Completion] = []
        self._pieces = _generate(engine, tokens, max_tokens, sampling, self._result)

    @property
    def completion(self) -> Completion | None:
        """The whole answer with its statistics, once the stream has ended by itself."""
        return self._result[0] if self._result else None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End the answer here and free the engine; what was said stays in its KV cache."""
        self._pieces.close()


def _generate(
    engine: Engine,
    prompt: list[int],
    max_tokens: int,
    sampling: Sampling,
    result: list[Completion],
) -> Generator[str, None, None]:
    with engine._exclusive():
        timer = _Timer(engine)
        generated: list[int] = []
        text: list[str] = []
        finish = "length"
        if max_tokens > 0:
            engine.prefill(prompt)
            timer.prefilled()
            seed = sampling.seed
            sampler = Sampler(int.from_bytes(os.urandom(8), "little") if seed is None else seed)
            # A leading space belongs to the text unless nothing was before it.
            tokenizer = engine.tokenizer
            continues = not all(map(tokenizer.is_control, prompt))
            decoder = tokenizer.stream(continues=continues)
            stop = StopStrings(sampling.stop)
            while True:
                token = engine.sample(sampler, sampling, prompt, generated)
                timer.token()
                if token in tokenizer.eos_ids and not sampling.ignore_eos:
                    finish = "stop"
                    break
                generated.append(token)
                if piece := stop.push(decoder.push(token)):
                    text.append(piece)
                    yield piece
                if stop.found:
                    finish = "stop"
                    break
                if len(generated) == max_tokens or len(prompt) + len(generated) > engine.ctx:
                    break
                engine.decode(token)
            if piece := stop.push(decoder.flush()) + stop.flush():
                text.append(piece)
                yield piece
        stats = timer.stats(len(prompt), len(generated))
        result.append(Completion("".join(text), generated, finish, stats))


class _Timer:
    """Measures one request on an open engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._start = time.perf_counter()
        self._before = engine.stats()
        self._after_prefill = self._before
        self._prefill_s = 0.0
        self._times: list[float] = []

    def prefilled(self) -> None:
        self._prefill_s = time.perf_counter() - self._start
        self._after_prefill = self._engine.stats()

    def token(self) -> None:
        self._times.append(time.perf_counter())

    def stats(self, n_prompt: int, n_generated: int) -> dict[str, Any]:
        now, times = self._engine.stats(), self._times
        steps = now["passes"] - self._after_prefill["passes"]
        decode_s = times[-1] - times[0] if len(times) > 1 else 0.0
        prefilled = self._after_prefill["tokens"] - self._before["tokens"]
        flash = now["flash_bytes"] - self._after_prefill["flash_bytes"]
        decode_stall = (now["stall_ns"] - self._after_prefill["stall_ns"]) / 1e9
        self._engine.learn(steps, decode_s, decode_stall)
        return {
            "prompt_tokens": n_prompt,
            "generated_tokens": n_generated,
            "prefill_tok_s": prefilled / self._prefill_s if self._prefill_s else 0.0,
            "decode_tok_s": (len(times) - 1) / decode_s if decode_s else 0.0,
            "ttft_s": times[0] - self._start if times else 0.0,
            "flash_bytes_per_token": flash / steps if steps else 0.0,
            "stall_s": (now["stall_ns"] - self._before["stall_ns"]) / 1e9,
        }


def scored_nll(engine: Engine, tokens: Sequence[int], targets_from: int) -> Iterator[float]:
    """-ln p of each of ``tokens[targets_from + 1 ..]`` given all before it, from an empty
    context."""
    last = len(tokens) - 1
    for index, row in engine.score_rows(tokens[:last], targets_from):
        yield engine.negative_log_likelihood(row, tokens[index + 1])
