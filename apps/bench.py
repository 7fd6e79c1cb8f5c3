"""``edge-rt bench``: decode speed and the digest of the logits at several budgets."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from array import array
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_rt.apps import options as o
from edge_rt.errors import EdgeRTError, UsageError
from edge_rt.sizes import PAGE, align_up, format_size, parse_size

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


def measure(engine: Any, ids: list[int] | None, n_tokens: int) -> dict[str, Any]:
    """Decode and time each step; teacher-forced on ``ids``, else greedily from the first token."""
    import hashlib  # brings 4 MiB of OpenSSL with it

    digest = hashlib.sha256()
    token_ms = []
    tokenizer = engine.tokenizer
    token = ids[0] if ids else tokenizer.bos_id if tokenizer.bos_id is not None else 0
    before = engine.stats()
    with engine._exclusive():
        from edge_rt.runtime._runtime import Sampler
        from edge_rt.sampling import Sampling

        sampler, greedy = Sampler(0), Sampling()
        engine.forget()
        started = time.perf_counter()
        for index in range(len(ids) if ids else n_tokens):
            if ids:
                token = ids[index]
            begin = time.perf_counter()
            engine.decode(token)
            token_ms.append(1e3 * (time.perf_counter() - begin))
            digest.update(engine.logits_bytes())
            if not ids:
                token = engine.sample(sampler, greedy)
        seconds = time.perf_counter() - started
    after = engine.stats()
    steps = len(token_ms)
    stall = (after["stall_ns"] - before["stall_ns"]) / 1e9
    engine.learn(steps, seconds, stall)
    return {
        "ram_bytes": engine.memory()["budget"],
        "decode_tok_s": steps / (sum(token_ms) / 1e3),
        "prefill_tok_s": _prefill_speed(engine, ids, token),
        "token_ms": [round(t, 3) for t in token_ms],
        "hit_rate": None,
        "flash_bytes_per_token": (after["flash_bytes"] - before["flash_bytes"]) / steps,
        "stall_s": stall,
        "resident_bytes": engine.plan.resident_bytes,
        "held_bytes": engine.memory()["peak"],
        "logits_sha256": digest.hexdigest(),
    }


def _prefill_speed(engine: Any, ids: list[int] | None, token: int) -> float:
    prompt = (ids or [token] * 64)[: min(128, engine.ctx)]
    with engine._exclusive():
        engine.forget()
        started = time.perf_counter()
        engine.prefill(prompt)
        seconds = time.perf_counter() - started
    return len(prompt) / seconds


def bench(
    model: o.Model = None,
    ram: Annotated[str, typer.Option(metavar="LIST", help="25%,1GiB,floor")] = "25%,50%,100%",
    tokens: Annotated[
        Path | None, typer.Option(metavar="IDS.npy", help="teacher-force these token ids")
    ] = None,
    max_tokens: o.MaxTokens = 64,
    ctx: o.Ctx = None,
    threads: o.Threads = None,
    kv: o.Kv = "f16",
    io: o.Io = "auto",
    weight_cap: o.WeightCap = None,
    as_json: o.AsJson = False,
) -> None:
    """Measure decoding at several budgets, a process for each."""
    path = o.model_path(model)
    from edge_rt.engine import make_settings, open_planner

    ids = read_ids(tokens) if tokens is not None else None
    if ids is not None and not ids:
        raise UsageError(f"{tokens} holds no token ids")
    sizes = [ram]
    if "," in ram or "%" in ram or ram == "floor":
        _, planner, _ = open_planner(path)
        settings = make_settings(planner, 1 << 40, ctx, threads, kv)
        floor, _ = planner.floor(settings)
        sizes = [str(n) for n in budgets(ram, floor, planner.weight_bytes)]
        del planner
    if len(sizes) > 1:
        rows = [_in_own_process(size) for size in sizes]
    else:
        with o.open_engine(
            path, sizes[0], ctx=ctx, threads=threads, kv=kv, io=io, weight_cap=weight_cap
        ) as engine:
            count = len(ids) if ids else max_tokens
            if not 1 <= count <= engine.ctx:
                raise UsageError(f"{count} tokens do not fit a context of {engine.ctx}")
            rows = [measure(engine, ids, max_tokens)]
    if as_json:
        o.print_json({"rows": rows})
        return
    print(f"{'budget':>12} {'tok/s':>8} {'prefill':>8} {'flash/token':>12} {'held':>12}  logits")
    for row in rows:
        print(
            f"{format_size(row['ram_bytes']):>12} {row['decode_tok_s']:8.2f}"
            f" {row['prefill_tok_s']:8.1f} {format_size(row['flash_bytes_per_token']):>12}"
            f" {o.held(row['held_bytes']):>12}  {row['logits_sha256'][:16]}"
        )


def _in_own_process(size: str) -> dict[str, Any]:
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
    command = [sys.executable, "-m", "edge_rt.apps.cli", *arguments, "--ram", size]
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
