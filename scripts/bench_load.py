"""How long a model with a large vocabulary and many tensors takes to open, with every check on.

    python scripts/bench_load.py                      # 151 936 tokens, 1001 tensors
    python scripts/bench_load.py --vocab qwen2.gguf --runs 9 --json load.json

Writes a random model of many small layers with a byte-level vocabulary (made up, or that of
``--vocab``), then opens it in one fresh process, ``--runs`` times in turn, and prints the median
and the least of each phase, in wall time and in this process's CPU time (which a busy machine
does not change much). "engine" is what a user waits for: `Engine(path)` in a running process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = {
    "source": "header of the file, every check",
    "tokenizer": "vocabulary and merges",
    "plan": "header, step program and plan",
    "engine": "all of it, with arena and weights",
}


def made_up(n_tokens: int) -> tuple[list[str], list[str]]:
    """A byte-level vocabulary and its merges: pieces of two to fourteen letters."""
    from edge_rt.tokenizer.bpe import LETTER_OF_BYTE

    rng = random.Random(3)
    pieces, merges = list(LETTER_OF_BYTE), []
    known = set(pieces)
    while len(pieces) < n_tokens:
        left, right = rng.choice(pieces), rng.choice(pieces[:300])
        if left + right not in known and len(left) < 14:
            known.add(left + right)
            pieces.append(left + right)
            merges.append(f"{left} {right}")
    return pieces, merges


def vocabulary_of(path: Path) -> tuple[list[bytes], list[bytes], str]:
    from edge_rt.loaders.gguf import GGUFFile

    file = GGUFFile.open(path, allow_unsupported=True)
    tokens, merges = (file.get_array(f"tokenizer.ggml.{key}") for key in ("tokens", "merges"))
    return list(tokens.raw()), list(merges.raw()), file.get_str("tokenizer.ggml.pre")


def write_model(path: Path, n_tokens: int, layers: int, vocab: Path | None) -> dict[str, int]:
    """Write the model; returns how large it is in tokens, merges and tensors."""
    import make_model
    import numpy as np

    if vocab is not None:
        pieces, merges, pre = vocabulary_of(vocab)
    else:
        pieces, merges, pre = *made_up(n_tokens), "qwen2"  # type: ignore[assignment]
    config = make_model.Config(
        layers=layers, hidden=64, ffn=64, heads=2, kv_heads=2, head_dim=32, vocab=len(pieces),
        format="Q4_0", tied=True,
    )  # fmt: skip
    model = make_model.build(config, 1)
    model.metadata = [key for key in model.metadata if not key[8:].startswith(b"tokenizer.")]
    model.add("tokenizer.ggml.model", "gpt2")
    model.add("tokenizer.ggml.pre", pre)
    model.add("tokenizer.ggml.tokens", pieces)
    model.add("tokenizer.ggml.token_type", np.ones(len(pieces), np.int32))
    model.add("tokenizer.ggml.merges", merges)
    model.add("tokenizer.ggml.eos_token_id", 0)
    model.write(path)
    return {"tokens": len(pieces), "merges": len(merges), "tensors": len(model.tensors)}


def measure(path: str, runs: int) -> dict[str, list[list[float]]]:
    """(wall, CPU) seconds of each phase, ``runs`` times, one phase after the other."""
    from edge_rt.engine import Engine
    from edge_rt.opening import make_settings, open_planner
    from edge_rt.source import open_source
    from edge_rt.tokenizer import Tokenizer

    def plan() -> None:
        planner = open_planner(path)[1]
        assert planner.plan(make_settings(planner, "4GiB")).fits

    source = open_source(path)
    work: dict[str, Callable[[], object]] = {
        "source": lambda: open_source(path),
        "tokenizer": lambda: Tokenizer.from_source(source),
        "plan": plan,
        "engine": lambda: Engine(path, "4GiB").close(),
    }
    found: dict[str, list[list[float]]] = {phase: [] for phase in work}
    for _ in range(runs + 1):
        for phase, function in work.items():
            started, cpu = time.perf_counter(), time.process_time()
            function()
            found[phase].append([time.perf_counter() - started, time.process_time() - cpu])
    return {phase: times[1:] for phase, times in found.items()}  # the first run warms up


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, default=151_936)
    parser.add_argument("--layers", type=int, default=111, help="nine tensors each")
    parser.add_argument("--vocab", type=Path, help="a GGUF to take a byte-level vocabulary from")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:  # in a process without NumPy
        print(json.dumps(measure(args.measure, args.runs)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        report: dict[str, Any] = write_model(path, args.tokens, args.layers, args.vocab)
        command = [sys.executable, __file__, "--measure", str(path), "--runs", str(args.runs)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report["seconds"] = json.loads(done.stdout)
    print("{tokens} tokens, {merges} merges, {tensors} tensors".format(**report))
    print(f"{'phase':<10} {'median s':>9} {'least s':>9} {'CPU s':>9}")
    for phase, what in PHASES.items():
        wall, cpu = zip(*report["seconds"][phase], strict=True)
        median, used = statistics.median(wall), statistics.median(cpu)
        print(f"{phase:<10} {median:>9.3f} {min(wall):>9.3f} {used:>9.3f}  {what}")
    if args.json:
        args.json.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
