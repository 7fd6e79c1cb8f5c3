"""Regenerate what llama.cpp says about the demo model and about tiny models of each architecture.

    EDGE_RT_SHARED=../shared python scripts/make_goldens.py demo MODEL [--full-logits OUT.npy]
    python -m tests.parity DIR               # where torch and transformers are installed
    python scripts/make_goldens.py architectures DIR

Runs where llama-cpp-python is installed. tests/goldens/smollm2_llama_cpp.npz holds, for the first 8
windows of 512 tokens of the WikiText-2 test text (S = 255 scored positions 256..510, each
predicting the next token):

    ids         (8, 512) uint16   tokens, by llama.cpp's own tokenizer
    nll         (8, 255) float32  -log p(next token)
    top1        (8, 255) uint16   likeliest next token
    ppl         (8,)     float64  perplexity after each window
    kl_index    (256,)   uint16   rows of the flattened (8 * 255) kept in detail
    kl_ids      (256, 32) uint16  their 32 likeliest tokens, likeliest first
    kl_logp     (256, 32) float16 and log-probabilities
    prompt_ids  (3, P)   int32    greedy prompts, padded with -1; texts in ``settings``
    greedy_ids  (3, 48)  uint16   their greedy continuations
    settings    JSON text         how llama.cpp was set up, and on which instruction sets

tests/goldens/architectures_llama_cpp.npz holds, for each variant of tests/parity/variants.py that
can be a GGUF, ``<variant>`` (rows, vocabulary / 2) float32, the logits of even tokens, and in
``settings`` per variant ``rows``, the ``sha256`` of the GGUF and ``noise``, the largest difference
between llama.cpp and transformers over all rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from peer_llama import Ids, Peer, log_softmax, scored_positions, windows

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests/goldens/smollm2_llama_cpp.npz"
OUT_ARCHITECTURES = ROOT / "tests/goldens/architectures_llama_cpp.npz"
N_WINDOWS, N_CTX, N_DETAIL, N_TOP, N_GREEDY = 8, 512, 256, 32, 48
MAX_BYTES = 400 << 10
PROMPTS = (
    "Once upon a time, in a village by the sea,",
    "The capital of France is",
    "def fibonacci(n):\n    ",
)


def wiki_text() -> bytes:
    shared = Path(os.environ.get("EDGE_RT_SHARED") or ROOT.parent / "shared")
    data = shared / "data" if (shared / "data").is_dir() else shared
    return (data / "texts/wiki.test.raw").read_bytes()


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def score(peer: Peer, ids: Ids) -> dict[str, np.ndarray]:
    """Everything that comes from the scored positions of the windows."""
    n_scored = len(scored_positions(N_CTX))
    total = N_WINDOWS * n_scored
    detail = np.linspace(0, total - 1, N_DETAIL).astype(int)
    wanted = {int(row): i for i, row in enumerate(detail)}
    nll = np.empty(total, np.float32)
    exact = np.empty(total)
    top1 = np.empty(total, np.uint16)
    kl_ids = np.empty((N_DETAIL, N_TOP), np.uint16)
    kl_logp = np.empty((N_DETAIL, N_TOP), np.float16)
    row = 0
    for window in windows(peer, ids, N_CTX, N_WINDOWS):
        for first, logits in peer.window(window, scored_positions(N_CTX)):
            for i, logp in enumerate(log_softmax(logits)):
                exact[row] = -logp[window[first + i + 1]]
                top1[row] = logp.argmax()
                if row in wanted:
                    best = np.argsort(-logp, kind="stable")[:N_TOP]
                    kl_ids[wanted[row]], kl_logp[wanted[row]] = best, logp[best]
                row += 1
    assert row == total
    nll[:] = exact
    per_window = exact.reshape(N_WINDOWS, n_scored).sum(axis=1).cumsum()
    ppl = np.exp(per_window / (n_scored * np.arange(1, N_WINDOWS + 1)))
    return {
        "nll": nll.reshape(N_WINDOWS, n_scored),
        "top1": top1.reshape(N_WINDOWS, n_scored),
        "ppl": ppl,
        "kl_index": detail.astype(np.uint16),
        "kl_ids": kl_ids,
        "kl_logp": kl_logp,
    }


def greedy(peer: Peer) -> dict[str, np.ndarray]:
    prompts = [peer.tokenize(text.encode()) for text in PROMPTS]
    padded = np.full((len(prompts), max(map(len, prompts))), -1, np.int32)
    for row, ids in zip(padded, prompts, strict=True):
        row[: len(ids)] = ids
    out = [peer.greedy(ids, N_GREEDY) for ids in prompts]
    return {"prompt_ids": padded, "greedy_ids": np.array(out, np.uint16)}


def dump_logits(peer: Peer, ids: Ids, path: Path, dtype: str) -> None:
    """(8 * 512, vocab) logits of every position, for scripts/compare_kl.py."""
    shape = (N_WINDOWS * N_CTX, peer.n_vocab)
    out = np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
    for w, window in enumerate(windows(peer, ids, N_CTX, N_WINDOWS)):
        for first, logits in peer.window(window, range(N_CTX)):
            start = w * N_CTX + first
            out[start : start + len(logits)] = logits
    out.flush()


def demo(args: argparse.Namespace) -> int:
    """The demo model, SmolLM2-135M-Instruct.Q4_1.gguf."""
    with Peer(args.model, n_ctx=N_CTX) as peer:
        ids = peer.tokenize(wiki_text())
        kept = np.stack(list(windows(peer, ids, N_CTX, N_WINDOWS)))
        if args.ids:
            np.save(args.ids, kept)
        if args.full_logits:
            dump_logits(peer, ids, args.full_logits, args.dtype)
            return 0
        arrays = {"ids": kept.astype(np.uint16), **score(peer, ids), **greedy(peer)}
        settings = {
            **peer.settings,
            "model_sha256": sha256(args.model),
            "system": llama_cpp.llama_print_system_info().decode(),
            "text": "WikiText-2 raw test",
            "prompts": PROMPTS,
        }
    print(f"perplexities {np.round(arrays['ppl'], 4).tolist()}")
    return save(args.out or OUT, settings, arrays)


def architectures(args: argparse.Namespace) -> int:
    """Every model of DIR, as ``python -m tests.parity DIR`` writes them."""
    arrays, about = {}, {}
    for folder in sorted(p.parent for p in args.folder.glob("*/model.gguf")):
        ids, expected = np.load(folder / "ids.npy"), np.load(folder / "gguf_logits.npy")
        facts = json.loads((folder / "about.json").read_text())
        n = facts["llama_cpp_rows"] or len(ids)
        with Peer(folder / "model.gguf", n_ctx=256, kv="f32", repack=False) as peer:
            ((_, logits),) = peer.window(ids, range(len(ids)))
            error = np.abs(logits - expected)
            rows = sorted({1, min(n, 24) - 1, min(n, 34) - 1, n // 2, n - 1})
            arrays[folder.name] = logits[rows, ::2]
            settings = {**peer.settings, "model": "tests/parity/variants.py"}
        about[folder.name] = {
            "rows": rows,
            "sha256": sha256(folder / "model.gguf"),
            "noise": float(error[:n].max()),
            "note": facts["llama_cpp_note"],
        }
        rest = f", then {error[n:].max():.1e}: {facts['llama_cpp_note']}" if n < len(ids) else ""
        print(f"{folder.name:24} {error[:n].max():.1e} in {n} rows{rest}")
    system = llama_cpp.llama_print_system_info().decode()
    settings |= {"system": system, "variants": about}
    return save(args.out or OUT_ARCHITECTURES, settings, arrays)


def save(out: Path, settings: dict[str, object], arrays: dict[str, np.ndarray]) -> int:
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, settings=json.dumps(settings), **arrays)
    size = out.stat().st_size
    print(f"{out.name}: {size:,} bytes")
    if size > MAX_BYTES:
        print(f"larger than {MAX_BYTES:,} bytes", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (demo, architectures):
        sub = commands.add_parser(command.__name__, help=(command.__doc__ or "").split("\n")[0])
        sub.set_defaults(run=command)
        sub.add_argument("-o", "--out", type=Path)
        if command is architectures:
            sub.add_argument("folder", type=Path, metavar="DIR")
            continue
        sub.add_argument("model", type=Path)
        sub.add_argument("--full-logits", type=Path, metavar="OUT.npy", help="only dump all logits")
        sub.add_argument("--ids", type=Path, metavar="OUT.npy", help="also write the window ids")
        sub.add_argument("--dtype", choices=["float16", "float32"], default="float32")
    args = parser.parse_args()
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
