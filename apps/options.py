"""Options that several commands share, and what they do together."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_rt.chat.template import MAX_SOURCE_BYTES
from edge_rt.demo import pull_demo
from edge_rt.errors import UsageError
from edge_rt.library import find_model
from edge_rt.process import available_bytes
from edge_rt.sizes import format_size, parse_size

if TYPE_CHECKING:
    from edge_rt.engine import Engine

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="a GGUF file (of a split one any part), a Hugging Face folder, or a name that "
        "`edge-rt list` shows; the demo model if omitted",
    ),
]
Ram = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="what the process may hold: 512MiB, 1.5GiB, 800M"),
]
Ctx = Annotated[int | None, typer.Option(metavar="N", help="context in tokens")]
Threads = Annotated[int | None, typer.Option(metavar="N", help="compute threads")]
Kv = Annotated[
    str,
    typer.Option(
        metavar="f16|f32|q8_0", help="elements of the KV cache; q8_0 takes half of f16's memory"
    ),
]
Io = Annotated[str, typer.Option(metavar="auto|uring|pread", help="how the drive is read")]
WeightCap = Annotated[
    str | None, typer.Option(metavar="SIZE", help="keep at most this much weight resident (tests)")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
Prompt = Annotated[str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="- reads stdin")]
PromptFile = Annotated[Path | None, typer.Option("-f", "--file", help="read the prompt here")]
MaxTokens = Annotated[int, typer.Option("-n", "--max-tokens", metavar="N", help="tokens to make")]
Temp = Annotated[float, typer.Option(metavar="T", help="temperature; 0 takes the likeliest")]
TopK = Annotated[int, typer.Option(metavar="K", help="sample from the K likeliest; 0 is off")]
TopP = Annotated[float, typer.Option(metavar="P", help="sample from this mass; 1 is off")]
MinP = Annotated[float, typer.Option(metavar="P", help="relative to the likeliest; 0 is off")]
RepeatPenalty = Annotated[float, typer.Option(metavar="X", help="1 is off")]
PresencePenalty = Annotated[float, typer.Option(metavar="X", help="0 is off")]
FrequencyPenalty = Annotated[float, typer.Option(metavar="X", help="0 is off")]
LogitBias = Annotated[
    list[str] | None, typer.Option(metavar="ID=X", help="add X to a token's logit; repeatable")
]
Seed = Annotated[int | None, typer.Option(metavar="S", help="makes sampling repeatable")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="end at TEXT; repeatable")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="go on after the end token")]
Template = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="a chat template (Jinja) instead of the model's own"),
]
TemplateArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=JSON",
        help="a variable of the chat template, as in enable_thinking=false; repeatable",
    ),
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="the system message")]


def catch_interrupt() -> None:
    """Make the next Ctrl-C a `KeyboardInterrupt`, and the one after it the end at once: ending in
    order waits for the drive, which may not answer."""

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def say(text: str) -> None:
    """A line for people: stderr, so that stdout stays clean."""
    print(text, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """``text`` without what would steer a terminal: names and messages come out of files."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def held(n_bytes: int | None) -> str:
    """A measured size, which not every system tells."""
    return "unknown" if n_bytes is None else format_size(n_bytes)


def print_json(value: object) -> None:
    """The one JSON object of ``--json``."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def model_path(model: str | None) -> str:
    """The path of the model to run, given by path or by name.

    Without one the demo model, offered on a terminal if it is not there.
    """
    try:
        return find_model(model)
    except UsageError:
        if model is not None or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        if not typer.confirm("The demo model is not here. Fetch it (93.8 MiB)?", err=True):
            raise
        return str(pull_demo())


def budget_of(ram: str | None) -> int:
    """``--ram``, or what is free now less a margin, said aloud."""
    if ram is not None:
        return parse_size(ram)
    budget = available_bytes() * 9 // 10
    say(f"no --ram given: using {format_size(budget)}, nine tenths of what is free now")
    return budget


def loading_progress() -> Callable[[int, int], None] | None:
    """A percentage on a terminal while weights are read; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None

    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(1, total)
        if percent != shown:
            text = f"loading {percent:3d} %" if done < total else " " * 13
            print(f"\r{text}\r", end="", file=sys.stderr, flush=True)
            shown = percent

    return show


def open_engine(path: str, ram: str | None, **settings: Any) -> Engine:
    """An `Engine` for ``--ram``, with its loading shown; ``settings`` as `Engine` takes them."""
    gc.disable()
    from edge_rt.engine import Engine

    gc.freeze()  # all that was imported: no collection looks at it again
    gc.enable()
    engine = Engine(path, budget_of(ram), progress=loading_progress(), **settings)
    if settings.get("io") == "uring" and engine.io != "uring":
        say(f"reading with {engine.io}: {engine.why_no_uring}")
    if engine.memory()["held"] is None:
        say("what is held cannot be measured (no /proc/self/status): planned with ceilings")
    return engine


def parse_bias(pairs: list[str] | None) -> dict[int, float]:
    """``["12=-5", "7=inf"]`` as a mapping from token id to bias."""
    bias = {}
    for pair in pairs or []:
        token, _, value = pair.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise UsageError(f"not a logit bias: {pair!r} (write ID=X, as in 12=-5.0)") from None
    return bias


def read_template(file: Path | None) -> str | None:
    """The text of ``--template``."""
    if file is None:
        return None
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_SOURCE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    if len(data) > MAX_SOURCE_BYTES:
        raise UsageError(f"{file} has more than {format_size(MAX_SOURCE_BYTES)}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8: {error.reason} at {error.start}") from None


def parse_template_args(pairs: list[str] | None) -> dict[str, Any]:
    """``["enable_thinking=false", 'date="today"']`` as a mapping from name to value."""
    found = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        try:
            if not (name.isidentifier() and equals):
                raise ValueError
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            raise UsageError(
                f"not a template argument: {pair[:200]!r} (write KEY=JSON, as in "
                "enable_thinking=false or 'name=\"text\"')"
            ) from None
    return found


def process_seconds() -> float:
    """Wall time since this process started, from the kernel's own record."""
    import time

    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError):
        return time.process_time()


def run_report(engine: Any, completion: Any) -> dict[str, Any]:
    """The object that ``generate --json`` prints."""
    stats, memory, counters = completion.stats, engine.memory(), engine.stats()
    return {
        "text": completion.text,
        "tokens": completion.tokens,
        "prompt_tokens": stats["prompt_tokens"],
        "generated_tokens": stats["generated_tokens"],
        "prefill_tok_s": stats["prefill_tok_s"],
        "decode_tok_s": stats["decode_tok_s"],
        "ttft_s": stats["ttft_s"],
        "load_s": engine.load_s,
        "process_s": process_seconds(),
        "budget_bytes": memory["budget"],
        "peak_rss_bytes": memory["peak"],
        "model_bytes": engine.source.file_size,
        "resident_bytes": engine.plan.resident_bytes,
        "io": engine.io,
        "flash_bytes_read": counters["flash_bytes"],
        "flash_bytes_per_token": stats["flash_bytes_per_token"],
        "cache": {"hits": counters["block_hits"], "misses": counters["block_misses"]},
        "stall_s": stats["stall_s"],
        "finish_reason": completion.finish_reason,
    }
