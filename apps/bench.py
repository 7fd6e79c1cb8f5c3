"""``edge-rt bench``: speed of prompts and decoding, and the digest of the logits, by budget."""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_rt.apps import options as o
from edge_rt.errors import EdgeRTError, UsageError
from edge_rt.runtime._runtime import Sampler
from edge_rt.sampling import Sampling
from edge_rt.sizes import PAGE, align_up, format_size, parse_size

if TYPE_CHECKING:
    from edge_rt.engine import Engine

_PREFILL_SECONDS = 10.0  # more passes over the prompt are begun until then
_NPY_CODES = {"<i2": "h", "<u2": "H", "<i4": "i", "<u4": "I", "<i8": "q", "<u8": "Q"}


def read_ids(path: Path) -> list[int]:
    """Token ids of a one-dimensional integer .npy file, without importing NumPy."""
    import ast

    try:
        data = path.read_bytes()
        if data[:6] != b"\x93NUMPY" or data[6] not in (1, 2):
            raise ValueError("not an .npy file")
        wide = data[6] == 2
        (length,) = struct.unpack_from("<I" if wide else "<H", data, 8)
        start = (12 if wide else 10) + length
        header = ast.literal_eval(data[12 if wide else 10 : start].decode("latin-1"))
        ids = array(_NPY_CODES[header["descr"]])
        if len(header["shape"]) != 1:
            raise ValueError("not one-dimensional")
        ids.frombytes(data[start:])
        if len(ids) != header["shape"][0]:
            raise ValueError("truncated")
        return ids.tolist()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, IndexError, struct.error, SyntaxError, TypeError) as error:
        raise UsageError(f"{path} is not a list of token ids: {error}") from None


def budgets(text: str, floor: int, weight_bytes: int) -> list[int]:
    """``25%,1GiB`` as bytes: P % is the floor plus P % of the weights that can be resident."""
    found = []
    for part in text.split(","):
        part = part.strip()
        if part == "floor":
            found.append(floor)
        elif part.endswith("%"):
            try:
                share = float(part[:-1]) / 100
            except ValueError:
                raise UsageError(f"not a share: {part!r}") from None
            if not 0 <= share <= 100:
                raise UsageError(f"not a share: {part!r}")
            found.append(align_up(int(floor + share * weight_bytes), PAGE))
        else:
            found.append(parse_size(part))
    return found


def measure(
    engine: Engine, ids: list[int] | None, n_tokens: int, n_prompt: int, n_warm: int
) -> dict[str, Any]:
    """Time a prompt of ``n_prompt`` tokens, then ``n_warm`` steps that do not count and those that
    do: teacher-forced on ``ids``, else ``n_tokens`` greedy ones from the model's first token."""
    with engine._exclusive():
        report = _measure_prompt(engine, _made_up(engine, n_prompt)) if n_prompt else {}
        report |= _measure_decoding(engine, ids, n_tokens, n_warm)
    memory, settings = engine.memory(), engine.plan.settings
    return {
        "threads": engine.plan.n_threads,
        "ctx": settings.ctx,
        "ram_bytes": memory["budget"],
        "held_bytes": memory["peak"],
        "resident_bytes": engine.plan.resident_bytes,
        "load_s": engine.load_s,
        "hit_rate": None,
        **report,
    }


def _made_up(engine: Engine, n: int) -> list[int]:
    """``n`` ids all over the vocabulary: what a dense model computes does not depend on them."""
    return [i * 7919 % engine.n_vocab for i in range(1, n + 1)]


def _measure_prompt(engine: Engine, prompt: list[int]) -> dict[str, Any]:
    """The first pass over a prompt, and later ones, as far as they are quick, with their median."""
    seconds: list[float] = []
    report = _progress()
    while len(seconds) < 2 or (len(seconds) < 4 and sum(seconds) < _PREFILL_SECONDS):
        report(f"prompt of {len(prompt)} tokens, pass {len(seconds) + 1}")
        engine.forget()
        started = time.perf_counter()
        engine.prefill(prompt)
        engine.sample(Sampler(0), Sampling())
        seconds.append(time.perf_counter() - started)
    return {
        "prefill_tokens": len(prompt),
        "ttft_s": seconds[0],
        "prefill_tok_s": len(prompt) / _quantile(sorted(seconds[1:]), 0.5),
    }


def sha256() -> Any:
    """A SHA-256 of Python's own: hashlib's brings 4 MiB of OpenSSL, which no plan knows."""
    for module in ("_sha2", "_sha256"):  # since 3.12, and before
        with suppress(ImportError):
            return import_module(module).sha256()
    import hashlib

    return hashlib.sha256()


def _measure_decoding(
    engine: Engine, ids: list[int] | None, n_tokens: int, n_warm: int
) -> dict[str, Any]:
    from resource import RUSAGE_SELF, getrusage

    digest, sampler, greedy = sha256(), Sampler(0), Sampling()
    report = _progress()
    first = ids[0] if ids else engine.tokenizer.bos_id or 0
    engine.forget()
    for _ in range(n_warm):
        engine.decode(first)
    engine.forget()
    token, steps = first, len(ids) if ids else n_tokens
    token_ms = []
    before, faults, cpu = engine.stats(), getrusage(RUSAGE_SELF).ru_majflt, time.process_time()
    for index in range(steps):
        if ids:
            token = ids[index]
        begin = time.perf_counter()
        engine.decode(token)
        token_ms.append(1e3 * (time.perf_counter() - begin))
        digest.update(engine.logits_bytes())
        if not ids:
            token = engine.sample(sampler, greedy)
        report(f"token {index + 1} of {steps}")
    report("")
    cpu = time.process_time() - cpu
    after, seconds = engine.stats(), sum(token_ms) / 1e3
    stall = (after["stall_ns"] - before["stall_ns"]) / 1e9
    engine.learn(steps, seconds, stall)
    ordered = sorted(token_ms)
    return {
        "decode_tok_s": steps / seconds,
        "token_ms": [round(t, 3) for t in token_ms],
        "token_ms_quartiles": [round(_quantile(ordered, q / 4), 3) for q in (1, 2, 3)],
        "flash_bytes_per_token": (after["flash_bytes"] - before["flash_bytes"]) / steps,
        "stall_s": stall,
        "cpu_s_per_token": cpu / steps,
        "major_faults": getrusage(RUSAGE_SELF).ru_majflt - faults,
        "logits_sha256": digest.hexdigest(),
    }


def _quantile(ordered: list[float], share: float) -> float:
    """Between the two nearest of ``ordered`` values."""
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _progress() -> Callable[[str], None]:
    """What is being done, in one line of a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda text: None

    def show(text: str) -> None:
        print(f"\r{text:<40.40}\r", end="", file=sys.stderr, flush=True)

    return show


_COLUMNS = ("budget", "tok/s", "ms/token (quartiles)", "prompt tok/s", "first token", "flash/token",
            "waiting", "held", "logits")  # fmt: skip
_WIDTHS = (11, 8, 24, 12, 11, 12, 7, 11, 12)


def _print_line(cells: tuple[str, ...]) -> None:
    print("  ".join(f"{c:>{w}}" for c, w in zip(cells, _WIDTHS, strict=True)), flush=True)


def _print_row(row: dict[str, Any]) -> None:
    low, middle, high = row["token_ms_quartiles"]
    waited = row["stall_s"] / row["threads"] / (sum(row["token_ms"]) / 1e3)
    prompt = "prefill_tok_s" in row
    _print_line((
        format_size(row["ram_bytes"]),
        f"{row['decode_tok_s']:.2f}",
        f"{middle:.2f} ({low:.2f}-{high:.2f})",
        f"{row['prefill_tok_s']:.1f}" if prompt else "-",
        f"{row['ttft_s']:.3f} s" if prompt else "-",
        format_size(row["flash_bytes_per_token"]),
        f"{min(1.0, waited):.0%}",
        o.held(row["held_bytes"]),
        row["logits_sha256"][:12],
    ))  # fmt: skip


def bench(
    model: o.Model = None,
    ram: Annotated[str, typer.Option(metavar="LIST", help="25%,1GiB,floor")] = "25%,50%,100%",
    tokens: Annotated[
        Path | None, typer.Option(metavar="IDS.npy", help="teacher-force these token ids")
    ] = None,
    max_tokens: o.MaxTokens = 64,
    prompt: Annotated[
        int, typer.Option(metavar="N", help="time a prompt of N tokens (at most --ctx); 0 is off")
    ] = 512,
    warmup: Annotated[int, typer.Option(metavar="N", help="steps before those that count")] = 4,
    ctx: o.Ctx = None,
    threads: o.Threads = None,
    kv: o.Kv = "f16",
    io: o.Io = "auto",
    weight_cap: o.WeightCap = None,
    as_json: o.AsJson = False,
) -> None:
    """Measure a prompt and decoding at several budgets, a process for each."""
    if prompt < 0 or warmup < 0:
        raise UsageError("--prompt and --warmup must not be negative")
    path = o.model_path(model)
    from edge_rt.opening import make_settings, open_planner

    ids = read_ids(tokens) if tokens is not None else None
    if ids is not None and not ids:
        raise UsageError(f"{tokens} holds no token ids")
    n_tokens = len(ids) if ids else max_tokens
    if re.fullmatch(r"[^,%]+", ram) and ram.strip() != "floor":
        sizes = [parse_size(ram)]
    else:
        _, planner, _ = open_planner(path)
        floor, _ = planner.floor(make_settings(planner, 1 << 40, ctx, threads, kv))
        sizes = budgets(ram, floor, planner.weight_bytes)
        del planner
    rows: list[dict[str, Any]] = []
    for size in sizes:
        if len(sizes) > 1:
            row = _in_own_process(size)
        else:
            with o.open_engine(
                path, str(size), ctx=ctx, threads=threads, kv=kv, io=io, weight_cap=weight_cap
            ) as engine:
                for n in (n_tokens, warmup or 1):
                    if not 1 <= n <= engine.ctx:
                        raise UsageError(f"{n} tokens do not fit a context of {engine.ctx}")
                row = measure(engine, ids, n_tokens, min(prompt, engine.ctx), warmup)
        if not rows and not as_json:
            print(f"{path}: {row['threads']} threads, ctx {row['ctx']}, {n_tokens} tokens")
            _print_line(_COLUMNS)
        rows.append(row)
        if not as_json:
            _print_row(row)
    if as_json:
        o.print_json({"model": path, "kv": kv, "rows": rows})


def _in_own_process(size: int) -> dict[str, Any]:
    """Run this very command for one budget: held bytes are those of a process."""
    import subprocess

    arguments = sys.argv[1:]
    for at, argument in enumerate(arguments):
        if argument == "--ram":
            del arguments[at : at + 2]
            break
        if argument.startswith("--ram="):
            del arguments[at]
            break
    command = [sys.executable, "-m", "edge_rt.apps.cli", *arguments, "--ram", str(size)]
    if "--json" not in arguments:
        command.append("--json")
    # A folder named edge_rt where the user stands must not be taken for the package.
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode != 0:
        error = EdgeRTError(f"the run at {size} bytes failed")
        error.exit_code = done.returncode
        raise error
    row: dict[str, Any] = json.loads(done.stdout)["rows"][0]
    return row
