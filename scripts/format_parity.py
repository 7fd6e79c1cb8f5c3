"""Every block format against llama.cpp: the same random model and tokens, how far apart?

    python scripts/format_parity.py --peer-python PEER [--formats Q4_K,IQ2_XS] [--json FILE]

PEER is a Python that has llama-cpp-python (the ``bench`` extra). For each format a small model of
random blocks is made in a temporary folder and run by llama.cpp, with flash attention off and on,
by edge-rt, and, its weights dequantized to F32, by llama.cpp with float activations: the truth
that both approximate. KL is in nats, the mean over all positions. Exits with 1 unless
KL(llama.cpp || ours) <= max(0.002, 2 * KL(llama.cpp || llama.cpp with flash attention)) for all.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import compare_kl
import make_model
import numpy as np
import numpy.typing as npt

from edge_rt import Engine
from edge_rt.quant import blocks

Logits = npt.NDArray[np.float32]
Row = dict[str, object]

KL_FLOOR = 0.002  # nats that are always granted: int8 activations on both sides
OWN_FACTOR = 2.0
QUANTIZED = [fmt.name for fmt in blocks.FORMATS.values() if fmt.quantized]


def peer_logits(python: Path, model: Path, ids: Path, *options: str) -> Logits:
    """(tokens, vocab) of llama.cpp."""
    out = model.with_suffix(".npy")
    script = Path(__file__).with_name("peer_llama.py")
    window = str(len(np.load(ids)))
    command = [python, script, "logits", model, "--tokens", ids, "--window", window, "-o", out]
    done = subprocess.run([*map(str, command), *options], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"llama.cpp failed on {model.name}:\n{done.stderr.strip()}")
    return np.asarray(np.load(out))


def entropy_bits(logits: Logits) -> float:
    """Mean entropy of the next-token distributions."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    p = np.exp(x)
    total = p.sum(axis=1, keepdims=True)
    return float(((np.log(total) - x) * p / total).sum(axis=1).mean() / math.log(2))


def measure(fmt: str, folder: Path, python: Path, ids: npt.NDArray[np.int32], seed: int) -> Row:
    config = replace(make_model.PRESETS["small"], format=fmt)
    model = make_model.build(config, seed)
    path, wide, tokens = folder / f"{fmt}.gguf", folder / f"{fmt}-F32.gguf", folder / "ids.npy"
    model.write(path)
    make_model.dequantized(model).write(wide)
    np.save(tokens, ids)
    peer = peer_logits(python, path, tokens)
    flash = peer_logits(python, path, tokens, "--flash-attn")
    truth = peer_logits(python, wide, tokens, "--kv", "f32")
    with Engine(path, ram="1GiB", ctx=len(ids)) as engine:
        ours = engine.logits(ids.tolist()).copy()
    for leftover in folder.iterdir():
        leftover.unlink()

    def kl(p: Logits, q: Logits) -> float:
        return compare_kl.compare(p, q).kl_mean

    comparison = compare_kl.compare(peer, ours)
    own = kl(peer, flash)
    limit = max(KL_FLOOR, OWN_FACTOR * own)
    return {
        "format": fmt,
        "entropy_bits": entropy_bits(truth),
        "kl": comparison.kl_mean,
        "kl_own": own,
        "limit": limit,
        "kl_truth_ours": kl(truth, ours),
        "kl_truth_peer": kl(truth, peer),
        "same_top1_percent": comparison.same_top1_percent,
        "ok": comparison.kl_mean <= limit,
    }


def table(rows: list[Row]) -> Iterator[str]:
    """Markdown."""
    yield "| format | entropy, bits | ours | llama.cpp, flash on | truth: ours | truth: llama.cpp |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        values = (row[key] for key in ("kl", "kl_own", "kl_truth_ours", "kl_truth_peer"))
        cells = " | ".join(f"{value:.6f}" for value in values)
        verdict = "" if row["ok"] else " **too far**"
        yield f"| {row['format']} | {row['entropy_bits']:.2f} | {cells}{verdict} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer-python", type=Path, required=True, metavar="PEER")
    parser.add_argument("--formats", default=",".join(QUANTIZED), metavar="A,B")
    parser.add_argument("--tokens", type=int, default=256, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    names = args.formats.split(",")
    unknown = set(names) - set(QUANTIZED)
    if unknown or not 1 <= args.tokens <= 512:
        parser.error(f"unknown formats {sorted(unknown)}" if unknown else "N must be 1 to 512")
    vocab = make_model.PRESETS["small"].vocab
    ids = np.random.default_rng(args.seed).integers(3, vocab, args.tokens).astype(np.int32)
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, Path(folder), args.peer_python, ids, args.seed))
        print(f"{name}: KL {rows[-1]['kl']:.6f}, limit {rows[-1]['limit']:.6f}", file=sys.stderr)
    print("\n".join(table(rows)))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
