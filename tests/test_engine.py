"""The Python surface: `Engine`, its requests, its plan and its errors."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_rt import BudgetError, Engine, StorageError, UsageError
from edge_rt.sizes import MIB
from edge_rt.stop import StopStrings

EOS = 2


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Every engine collects garbage: torch's and pytest's objects would take most of the time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def engine(stories_model: Path) -> Iterator[Engine]:
    with Engine(stories_model, ram="4GiB", weight_cap="0", threads=2) as opened:
        yield opened


def argmax(row: np.ndarray) -> int:
    return int(row.argmax())


# --- stop strings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "pieces", "shown", "found"),
    [
        ([], ["ab", "c"], "abc", False),
        (["STOP"], ["one STOP two"], "one ", True),
        (["STOP"], ["one S", "T", "OP two", "three"], "one ", True),
        (["STOP"], ["one ST", "ep"], "one STep", False),
        (["STOP"], ["one STO"], "one STO", False),
        (["aab"], ["aa", "ab", "c"], "a", True),
        (["ab", "b"], ["xa", "b"], "x", True),
        (["long stop", "st"], ["a long ", "stop"], "a ", True),
        (["é"], ["caf", "é", "!"], "caf", True),
    ],
)
def test_stop_strings(stop: list[str], pieces: list[str], shown: str, found: bool) -> None:
    watch = StopStrings(stop)
    out = "".join(watch.push(piece) for piece in pieces) + watch.flush()
    assert (out, watch.found) == (shown, found)


def test_stop_strings_hold_back_only_what_might_match() -> None:
    watch = StopStrings(["</s>"])
    assert [watch.push(p) for p in ("a<", "b", "c</", "s")] == ["a", "<b", "c", ""]
    assert watch.flush() == "</s"


def test_stop_strings_against_find() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        text = "".join(rng.choices("ab", k=rng.randrange(12)))
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        cuts = sorted(rng.choices(range(len(text) + 1), k=3))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        watch = StopStrings(stops)
        shown = "".join(map(watch.push, pieces)) + watch.flush()
        assert watch.found == any(s in text for s in stops)
        if watch.found:
            assert text.startswith(shown) and not any(s in shown for s in stops)
        else:
            assert shown == text


# --- requests -----------------------------------------------------------------------------------


def test_stream_and_generate_agree(engine: Engine) -> None:
    stream = engine.stream("Zoo", max_tokens=40)
    text = "".join(stream)
    done = engine.generate("Zoo", max_tokens=40)
    assert stream.completion is not None
    assert text == stream.completion.text == done.text
    assert stream.completion.tokens == done.tokens and len(done.tokens) == 40
    assert engine.tokenizer.decode(done.tokens).strip() == done.text.strip()
    assert done.stats["prompt_tokens"] == len(engine.encode_prompt("Zoo"))


def test_zero_and_one_token(engine: Engine) -> None:
    nothing = engine.generate("Zoo", max_tokens=0)
    assert (nothing.text, nothing.tokens, nothing.finish_reason) == ("", [], "length")
    one = engine.generate("Zoo", max_tokens=1)
    assert one.tokens == engine.generate("Zoo", max_tokens=5).tokens[:1]
    assert one.finish_reason == "length"


def test_greedy_takes_the_largest_logit(engine: Engine) -> None:
    prompt = engine.encode_prompt("Zoo")
    done = engine.generate("Zoo", max_tokens=12)
    logits = engine.logits(prompt + done.tokens)
    assert [argmax(row) for row in logits[len(prompt) - 1 : -1]] == done.tokens


def test_token_ids_as_prompt(engine: Engine) -> None:
    ids = engine.encode_prompt("Zoo")
    assert engine.generate(ids, max_tokens=8).tokens == engine.generate("Zoo", max_tokens=8).tokens


def test_stop_string_across_pieces(engine: Engine) -> None:
    whole = engine.generate("Zoo", max_tokens=40)
    stop = "girl named"  # several tokens
    assert stop in whole.text
    stream = engine.stream("Zoo", max_tokens=40, stop=["never", stop])
    text = "".join(stream)
    assert text == whole.text[: whole.text.index(stop)]
    assert stream.completion is not None and stream.completion.text == text
    assert stream.completion.finish_reason == "stop"
    assert whole.tokens[: len(stream.completion.tokens)] == stream.completion.tokens


def test_end_of_generation_and_ignore_eos(engine: Engine) -> None:
    assert EOS in engine.tokenizer.eos_ids
    force = {EOS: 1e6}
    ended = engine.generate("Zoo", max_tokens=5, logit_bias=force)
    assert (ended.tokens, ended.text, ended.finish_reason) == ([], "", "stop")
    going = engine.generate("Zoo", max_tokens=5, logit_bias=force, ignore_eos=True)
    assert (going.tokens, going.finish_reason) == ([EOS] * 5, "length")


def test_logit_bias_forces_and_forbids(engine: Engine) -> None:
    first = engine.generate("Zoo", max_tokens=1).tokens[0]
    assert engine.generate("Zoo", max_tokens=3, logit_bias={300: 1e6}).tokens == [300] * 3
    row = engine.logits(engine.encode_prompt("Zoo"))[-1].copy()
    row[first] = -np.inf
    forbidden = engine.generate("Zoo", max_tokens=1, logit_bias={first: -np.inf})
    assert forbidden.tokens == [argmax(row)] != [first]


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("bias", [1e6, float("inf")])
def test_a_forced_token_is_drawn_at_any_temperature(
    engine: Engine, options: dict, bias: float
) -> None:
    done = engine.generate("Zoo", 4, temperature=1.0, seed=1, logit_bias={300: bias}, **options)
    assert done.tokens == [300] * 4


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}], ids=str)
def test_the_narrowest_sampling_is_greedy(engine: Engine, options: dict) -> None:
    greedy = engine.generate("Zoo", max_tokens=20).tokens
    assert engine.generate("Zoo", 20, temperature=1.0, seed=3, **options).tokens == greedy


def test_seed_repeats(engine: Engine) -> None:
    def draw(seed: int | None) -> tuple[int, ...]:
        return tuple(engine.generate("Zoo", 24, temperature=1.5, seed=seed).tokens)

    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(6)}) > 3
    assert len({draw(None) for _ in range(6)}) > 3


def test_sampling_follows_the_distribution(stories_model: Path) -> None:
    """1000 first tokens against softmax(logits / T), within 4.5 standard deviations."""
    options = {"temperature": 1.3, "ignore_eos": True}
    with Engine(stories_model, ram="4GiB", threads=1) as engine:
        prompt = engine.encode_prompt("One day, she")
        row = engine.logits(prompt)[-1].astype(np.float64) / options["temperature"]
        drawn = [engine.generate(prompt, 1, seed=s, **options).tokens[0] for s in range(1000)]
    p = np.exp(row - row.max())
    p /= p.sum()
    counts = np.bincount(drawn, minlength=len(p))
    likely = p > 0.02
    assert likely.sum() >= 3
    error = np.abs(counts[likely] / 1000 - p[likely])
    assert (error < 4.5 * np.sqrt(p[likely] / 1000)).all()


@pytest.mark.parametrize(
    "penalty", ["repeat_penalty", "presence_penalty", "frequency_penalty"], ids=str
)
def test_penalties_change_the_output(engine: Engine, penalty: str) -> None:
    plain = engine.generate("Zoo", max_tokens=60).tokens
    other = engine.generate("Zoo", max_tokens=60, **{penalty: 1.5}).tokens
    assert other != plain
    assert len(set(other)) > len(set(plain))


def test_a_full_context_ends_with_length(engine: Engine) -> None:
    prompt = [1] + [300] * (engine.ctx - 5)
    done = engine.generate(prompt, max_tokens=1000, ignore_eos=True)
    # The last position's logits still give one token, which itself takes no place.
    assert (len(done.tokens), done.finish_reason) == (engine.ctx - len(prompt) + 1, "length")
    full = engine.generate([1] * engine.ctx, max_tokens=1000, ignore_eos=True)
    assert (len(full.tokens), full.finish_reason) == (1, "length")


def test_prompts_that_cannot_be(engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"513 tokens.*context of 512"):
        engine.generate([1] * 513)
    with pytest.raises(UsageError, match="empty"):
        engine.generate([])
    with pytest.raises(UsageError, match="negative"):
        engine.generate("Zoo", max_tokens=-1)
    for tokens in ([1] * 513, []):
        with pytest.raises(UsageError, match="context of 512"):
            engine.logits(tokens)
    assert engine.generate("Zoo", max_tokens=1).tokens


@pytest.mark.parametrize("token", [512, -1, 2**31 - 1, 2**40])
def test_tokens_outside_the_vocabulary(engine: Engine, token: int) -> None:
    for call in (engine.logits, lambda ids: engine.generate(ids, max_tokens=2)):
        with pytest.raises(UsageError, match=str(token)):
            call([1, token])
    assert engine.generate("Zoo", max_tokens=1).tokens


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": float("nan")}, {"temperature": -1.0}, {"temperature": float("inf")},
        {"top_k": -1}, {"top_p": -0.1}, {"top_p": 1.1}, {"min_p": float("nan")}, {"min_p": 2.0},
        {"repeat_penalty": 0.0}, {"repeat_penalty": -1.0}, {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")}, {"penalty_window": -1}, {"seed": -1}, {"seed": 2**64},
        {"logit_bias": {3: float("nan")}}, {"stop": "text"}, {"stop": ["a", ""]},
        {"temprature": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_bad_sampling_values(engine: Engine, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).replace("_", ".")):
        engine.generate("Zoo", max_tokens=1, **options)


def test_chat_needs_a_template(engine: Engine) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        engine.chat([{"role": "user", "content": "hi"}])


def test_chat_is_the_template_then_generate(long_model: Path) -> None:
    with Engine(long_model, ram="4GiB", ctx=256) as engine:
        messages = [{"role": "system", "content": "one "}, {"role": "user", "content": "two"}]
        stream = engine.chat(messages, max_tokens=6)
        text = "".join(stream)
        ids = engine.encode_prompt("one two", special=True)
        done = engine.generate(ids, max_tokens=6)
        assert stream.completion is not None and stream.completion.tokens == done.tokens
        assert stream.prompt_tokens == len(ids)
        assert text == done.text


def test_logits_and_iter_logits(engine: Engine) -> None:
    ids = [1, 403, 407, 261]
    logits = engine.logits(ids)
    assert logits.shape == (4, engine.n_vocab) and logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert np.stack(list(engine.iter_logits(ids))).tobytes() == logits.tobytes()


# --- life cycle ---------------------------------------------------------------------------------


def test_memory_report(engine: Engine) -> None:
    memory = engine.memory()
    assert set(memory["roles"]) == {
        "interpreter", "tokenizer", "weights", "ring", "kv", "activations", "io", "kernel", "slack",
    }  # fmt: skip
    assert memory["planned"] == sum(memory["roles"].values()) <= memory["budget"] == 4 << 30
    assert 0 < memory["held"] <= memory["peak"]
    assert memory["floor"] <= memory["budget"]


def test_closed_engine(stories_model: Path) -> None:
    engine = Engine(stories_model, ram="4GiB")
    engine.close()
    engine.close()
    for call in (
        lambda: engine.generate("Zoo"),
        lambda: engine.logits([1]),
        lambda: list(engine.iter_logits([1])),
        lambda: engine.prefill([1]),
        lambda: engine.decode(1),
        lambda: engine.resize("4GiB"),
        engine.stats,
    ):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_closing_under_a_stream(stories_model: Path) -> None:
    engine = Engine(stories_model, ram="4GiB")
    stream = engine.stream("Zoo", max_tokens=50)
    next(stream)
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        list(stream)


def test_one_request_at_a_time(engine: Engine) -> None:
    stream = engine.stream("Zoo", max_tokens=20)
    first = next(stream)
    errors: list[BaseException] = []

    def intrude() -> None:
        for call in (
            lambda: engine.generate("Zoo", max_tokens=1),
            lambda: engine.logits([1]),
            lambda: engine.resize("3GiB"),
        ):
            try:
                call()
            except UsageError as error:
                errors.append(error)

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join(30)
    assert len(errors) == 3 and all("busy" in str(error) for error in errors)
    assert first + "".join(stream) == engine.generate("Zoo", max_tokens=20).text


def test_abandoned_streams(engine: Engine) -> None:
    expected = engine.generate("Zoo", max_tokens=20).tokens
    stream = engine.stream("Zoo", max_tokens=20)
    next(stream)
    del stream
    assert engine.generate("Zoo", max_tokens=20).tokens == expected
    for _ in engine.stream("Zoo", max_tokens=20):
        break
    engine.stream("Zoo")  # never begun
    assert engine.generate("Zoo", max_tokens=20).tokens == expected


def test_resize(long_model: Path) -> None:
    with Engine(long_model, ram="4GiB", ctx=64) as engine:
        expected = engine.generate("zoo", max_tokens=30).tokens
        floor, everything = engine.memory()["floor"], engine.plan.resident_bytes
        engine.resize(floor)
        assert engine.memory()["budget"] == floor and engine.plan.resident_bytes <= everything
        assert engine.generate("zoo", max_tokens=30).tokens == expected
        with pytest.raises(BudgetError, match="smallest budget"):
            engine.resize(floor - MIB)
        with pytest.raises(UsageError, match="not a size"):
            engine.resize("much")
        assert engine.memory()["budget"] == floor
        assert engine.generate("zoo", max_tokens=30).tokens == expected
        engine.resize("4GiB")
        assert engine.plan.resident_bytes == everything
        assert engine.generate("zoo", max_tokens=30).tokens == expected


def test_interrupted_prefill(long_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C arrives within a long pass; the engine goes on and its answers are right."""
    ids = [1, *((i * 97) % 2000 + 3 for i in range(600))]
    with Engine(long_model, ram="4GiB", ctx=640) as engine:
        engine.prefill(ids)
        expected = engine.logits_bytes()
    monkeypatch.setenv("EDGE_RT_ISA", "ref")  # slow enough to be interrupted
    with Engine(long_model, ram="4GiB", ctx=640, weight_cap="0") as engine:
        handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            started = time.perf_counter()
            with pytest.raises(KeyboardInterrupt):
                engine.prefill(ids)
            assert time.perf_counter() - started < 5
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
        assert len(engine._history) < len(ids)
        engine.prefill(ids)
        assert engine.logits_bytes() == expected


def in_child(work: Any, timeout_s: float = 30.0) -> int:
    """Exit status of ``work()`` in a forked child; -1 if it hangs."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("use", ["generate", "logits", "prefill", "resize", "close"])
def test_a_forked_child_is_refused(stories_model: Path, use: str) -> None:
    with Engine(stories_model, ram="4GiB", weight_cap="0") as engine:
        calls = {
            "generate": lambda: engine.generate("Zoo", max_tokens=1),
            "logits": lambda: engine.logits([1, 2]),
            "prefill": lambda: engine.prefill([1, 2]),
            "resize": lambda: engine.resize("3GiB"),
            "close": engine.close,  # must only not hang: the threads are the parent's
        }

        def work() -> int:
            try:
                calls[use]()
            except RuntimeError as error:
                return 7 if "fork" in str(error) else 8
            return 0

        assert in_child(work, 5) == (0 if use == "close" else 7)
        assert engine.generate("Zoo", max_tokens=1).tokens  # the parent is as it was


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_may_make_its_own_engine(stories_model: Path) -> None:
    def work() -> int:
        child = Engine(stories_model, ram="4GiB", weight_cap="0")
        return 0 if len(child.generate("Zoo", max_tokens=3).tokens) == 3 else 1

    assert in_child(work, 5) == 0


# --- the file under an open engine --------------------------------------------------------------


def test_truncated_while_open(long_model: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(long_model, tmp_path / "model.gguf"))
    with Engine(path, ram="4GiB", ctx=128, weight_cap="0") as engine:
        assert engine.generate([1, 2, 3], max_tokens=2).tokens
        os.truncate(path, path.stat().st_size // 3)
        for _ in range(2):
            with pytest.raises(StorageError):
                engine.generate([1, 5, 9], max_tokens=8)
        with pytest.raises(StorageError):
            engine.resize("3GiB")  # reads the vectors again
    shutil.copy(long_model, path)


def test_a_failed_restart_forgets_the_conversation(long_model: Path, tmp_path: Path) -> None:
    """If loading fails, the KV cache is gone: a later engine state must not reuse it."""
    path = Path(shutil.copy(long_model, tmp_path / "model.gguf"))
    data = path.read_bytes()
    with Engine(path, ram="4GiB", ctx=128, weight_cap="0") as engine:
        engine.prefill([1, 2, 3, 4])
        expected = engine.logits_bytes()
        os.truncate(path, len(data) // 3)
        with pytest.raises(StorageError):
            engine.resize("3GiB")
        path.write_bytes(data)  # the same inode, whole again
        try:
            engine.resize("4GiB")
            engine.prefill([1, 2, 3, 4])
        except UsageError:
            return  # closed for good is fine, too
        assert engine.logits_bytes() == expected


def test_replaced_while_open(long_model: Path, stories_model: Path, tmp_path: Path) -> None:
    """A rename leaves the open file as it was: the answers stay those of the model we opened."""
    path = Path(shutil.copy(long_model, tmp_path / "model.gguf"))
    with Engine(path, ram="4GiB", ctx=128, weight_cap="0") as engine:
        expected = engine.generate([1, 2, 3], max_tokens=8, ignore_eos=True).tokens
        other = shutil.copy(stories_model, tmp_path / "other.gguf")
        os.replace(other, path)
        engine.forget()
        assert engine.generate([1, 2, 3], max_tokens=8, ignore_eos=True).tokens == expected
