"""llama.cpp as a peer: decode speed, logits and perplexity under settings that are stated.

Runs where llama-cpp-python 0.3.36 is installed (the ``bench`` extra); it does not import edge-rt.

    python scripts/peer_llama.py decode MODEL --n 64 [--tokens IDS.npy] [--no-mmap] [--no-repack]
    python scripts/peer_llama.py prompt MODEL --n 512
    python scripts/peer_llama.py first  MODEL --text TEXT
    python scripts/peer_llama.py logits MODEL --tokens IDS.npy -o OUT.npy [--window 512]
    python scripts/peer_llama.py ppl    MODEL --text FILE --chunks 8
    python scripts/peer_llama.py quantize MODEL --type Q4_K_M -o OUT.gguf

Fixed: CPU, n_batch = n_ubatch = 512; flash attention is off unless asked for. Everything goes
through the C API: the Python class has no switch for weight repacking (``use_extra_bufts``) and
copies logits.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

KV_TYPES = {"f32": 0, "f16": 1}  # ggml type ids
Ids = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]


def _quiet(level: int, text: bytes, user_data: Any) -> None:
    if level == 4:  # errors; 5 continues a line of any level
        sys.stderr.write(text.decode(errors="replace"))


_LOG = llama_cpp.llama_log_callback(_quiet)  # kept alive: C holds only its address


class Peer:
    """One model and one context of llama.cpp; ``settings`` says how it was set up."""

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = 512,
        n_threads: int = 2,
        mmap: bool = True,
        repack: bool = True,
        kv: str = "f16",
        flash_attn: bool = False,
    ) -> None:
        llama_cpp.llama_log_set(_LOG, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        started = time.perf_counter()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        model.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if mmap else llama_cpp.LLAMA_LOAD_MODE_NONE
        model.use_extra_bufts = repack
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = n_ctx
        context.n_batch = context.n_ubatch = 512
        context.n_threads = context.n_threads_batch = n_threads
        context.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if flash_attn
            else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        context.type_k = context.type_v = KV_TYPES[kv]
        context.offload_kqv = context.op_offload = False
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot make a context of {n_ctx}")
        self.load_s = time.perf_counter() - started
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(self.vocab))
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.settings = {
            "llama_cpp_python": llama_cpp.__version__,
            "model": path.name,
            "n_ctx": n_ctx,
            "n_batch": 512,
            "n_ubatch": 512,
            "n_threads": n_threads,
            "flash_attn": flash_attn,
            "kv": kv,
            "mmap": mmap,
            "repack": repack,
        }

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def tokenize(self, text: bytes, *, add_special: bool = False) -> Ids:
        ids = (ctypes.c_int32 * (len(text) + 16))()
        n = llama_cpp.llama_tokenize(self.vocab, text, len(text), ids, len(ids), add_special, False)
        if n < 0:
            raise ValueError("more tokens than bytes")
        return np.array(ids[:n], np.int32)

    @property
    def bos(self) -> int | None:
        """The token that starts a sequence, where the model wants one."""
        if not llama_cpp.llama_vocab_get_add_bos(self.vocab):
            return None
        return int(llama_cpp.llama_vocab_bos(self.vocab))

    def eval(self, ids: Sequence[int] | Ids, past: int, scored: range) -> Logits:
        """Decode at most 512 ``ids`` after ``past`` positions; (n, vocab) logits of ``scored``.

        The array is llama.cpp's own memory: valid until the next call.
        """
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i] = int(token)
            batch.pos[i] = past + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = past + i in scored
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        n = sum(past + i in scored for i in range(len(ids)))
        if n == 0:
            return np.empty((0, self.n_vocab), np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (n, self.n_vocab))

    def window(self, ids: Ids, scored: range) -> Iterator[tuple[int, Logits]]:
        """Forget everything, run ``ids``; yields (first position, (n, vocab) logits) pieces."""
        self.clear()
        for start in range(0, len(ids), 512):
            piece = ids[start : start + 512]
            logits = self.eval(piece, start, scored)
            if len(logits):
                yield max(start, scored.start), logits

    def greedy(self, ids: Ids, n: int) -> list[int]:
        """``n`` greedy tokens after ``ids``, end of text ignored."""
        self.clear()
        out: list[int] = []
        past, feed = 0, ids
        while len(out) < n:
            logits = self.eval(feed, past, range(past + len(feed) - 1, past + len(feed)))
            past += len(feed)
            out.append(int(logits[0].argmax()))
            feed = np.array(out[-1:], np.int32)
        return out


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """(n, vocab) float64 log-probabilities."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def windows(peer: Peer, ids: Ids, n_ctx: int, n: int | None) -> Iterator[Ids]:
    """llama-perplexity's chunks: disjoint, the first token replaced by BOS where there is one."""
    count = len(ids) // n_ctx
    for i in range(count if n is None else min(n, count)):
        window = ids[i * n_ctx : (i + 1) * n_ctx].copy()
        if peer.bos is not None:
            window[0] = peer.bos
        yield window


def scored_positions(n_ctx: int) -> range:
    """Positions whose prediction of the next token counts: the second half, less the last."""
    return range(n_ctx // 2, n_ctx - 1)


def read_ids(path: Path) -> Ids:
    return np.ascontiguousarray(np.load(path), np.int32).reshape(-1)


def max_rss_bytes() -> int:
    """VmHWM: unlike ru_maxrss it does not survive an exec."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split(None, 1)[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def usage() -> tuple[int, int, float]:
    """Bytes read from drives, major faults and processor seconds of this process so far."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return 512 * spent.ru_inblock, spent.ru_majflt, spent.ru_utime + spent.ru_stime


def decode(args: argparse.Namespace, peer: Peer) -> dict[str, object]:
    """One token per step: teacher-forced on ``--tokens``, else greedy from ``--start``.

    ``--warmup`` steps before them do not count.
    """
    forced = read_ids(args.tokens) if args.tokens else None
    n = args.n if forced is None else min(args.n, len(forced))
    token = int(forced[0]) if forced is not None else (peer.bos or args.start)
    peer.clear()
    for i in range(args.warmup):
        peer.eval([token], i, range(i, i + 1))
    peer.clear()
    times, argmax = [], []
    before = usage()
    for i in range(n):
        started = time.perf_counter()
        logits = peer.eval([token], i, range(i, i + 1))
        best = int(logits[0].argmax())
        times.append(time.perf_counter() - started)
        argmax.append(best)
        last = i + 1 >= n
        token = best if forced is None or last else int(forced[i + 1])
    flash, faults, cpu = (b - a for a, b in zip(before, usage(), strict=True))
    return {
        "tok_s": n / sum(times),
        "flash_bytes_per_token": flash / n,
        "major_faults": faults,
        "cpu_s_per_token": cpu / n,
        "token_ms": [round(1e3 * t, 3) for t in times],
        "tokens": argmax,
        "n": n,
        "load_s": peer.load_s,
        "max_rss_bytes": max_rss_bytes(),
    }


def prompt(args: argparse.Namespace, peer: Peer) -> dict[str, object]:
    """``--n`` made-up ids in one go: the first time after loading, and later ones."""
    ids = np.array([i * 7919 % peer.n_vocab for i in range(1, args.n + 1)], np.int32)
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 4 and sum(seconds) < 10.0):
        started = time.perf_counter()
        peer.greedy(ids, 1)
        seconds.append(time.perf_counter() - started)
    later = sorted(seconds[1:])
    return {
        "prompt_tokens": args.n,
        "ttft_s": seconds[0],
        "prefill_tok_s": args.n / float(np.median(later)),
        "load_s": peer.load_s,
        "max_rss_bytes": max_rss_bytes(),
    }


def first(args: argparse.Namespace, peer: Peer) -> dict[str, object]:
    """Print the first token after ``--text``: the time of that byte is the caller's to take."""
    ids = peer.tokenize(args.text.encode(), add_special=True)
    token = peer.greedy(ids, 1)[0]
    piece = ctypes.create_string_buffer(256)
    n = llama_cpp.llama_token_to_piece(peer.vocab, token, piece, len(piece), 0, True)
    sys.stdout.buffer.write(piece.raw[: max(n, 0)] + b"\n")
    sys.stdout.buffer.flush()
    return {"token": token, "load_s": peer.load_s, "max_rss_bytes": max_rss_bytes()}


def logits(args: argparse.Namespace, peer: Peer) -> dict[str, object]:
    """(n, vocab) logits of every position of ``--tokens``, each window starting afresh."""
    ids = read_ids(args.tokens)
    out = np.lib.format.open_memmap(
        args.out, "w+", dtype=args.dtype, shape=(len(ids), peer.n_vocab)
    )
    for start in range(0, len(ids), args.window):
        window = ids[start : start + args.window]
        for first, rows in peer.window(window, range(len(window))):
            out[start + first : start + first + len(rows)] = rows
    out.flush()
    return {"out": str(args.out), "shape": list(out.shape), "dtype": args.dtype}


def ppl(args: argparse.Namespace, peer: Peer) -> dict[str, object]:
    n_ctx = args.ctx
    ids = peer.tokenize(args.text.read_bytes())
    total, count, after = 0.0, 0, []
    for window in windows(peer, ids, n_ctx, args.chunks):
        for first, rows in peer.window(window, scored_positions(n_ctx)):
            targets = window[first + 1 : first + 1 + len(rows)]
            total -= float(log_softmax(rows)[np.arange(len(rows)), targets].sum())
            count += len(rows)
        after.append(round(math.exp(total / count), 4))
    return {
        "ppl": math.exp(total / count),
        "nll": total / count,
        "tokens": count,
        "chunks": len(after),
        "ppl_after_chunk": after,
    }


def quantize(source: Path, target: Path, kind: str) -> dict[str, object]:
    """Write ``target`` as llama-quantize does with ``--allow-requantize``, without an imatrix."""
    llama_cpp.llama_log_set(_LOG, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.allow_requantize = True
    options.nthread = 2
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(options)
    )
    if code:
        raise SystemExit(f"llama.cpp cannot quantize {source} to {kind}")
    return {"out": str(target), "type": kind, "bytes": target.stat().st_size}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (decode, prompt, first, logits, ppl):
        sub = commands.add_parser(command.__name__, help=(command.__doc__ or "").split("\n")[0])
        sub.set_defaults(run=command)
        sub.add_argument("model", type=Path)
        sub.add_argument("--threads", type=int, default=2)
        sub.add_argument("--kv", choices=KV_TYPES, default="f16")
        sub.add_argument("--mmap", action=argparse.BooleanOptionalAction, default=True)
        sub.add_argument("--repack", action=argparse.BooleanOptionalAction, default=True)
        sub.add_argument("--flash-attn", action=argparse.BooleanOptionalAction, default=False)
        if command is decode:
            sub.add_argument("--n", type=int, default=64)
            sub.add_argument("--tokens", type=Path, metavar="IDS.npy")
            sub.add_argument("--start", type=int, default=1, help="first token without a BOS")
            sub.add_argument("--warmup", type=int, default=4, help="steps that do not count")
            sub.add_argument("--ctx", type=int, default=512)
        elif command is prompt:
            sub.add_argument("--n", type=int, default=512)
            sub.add_argument("--ctx", type=int, default=512)
        elif command is first:
            sub.add_argument("--text", required=True)
            sub.add_argument("--ctx", type=int, default=512)
        elif command is logits:
            sub.add_argument("--tokens", type=Path, metavar="IDS.npy", required=True)
            sub.add_argument("--window", type=int, default=512)
            sub.add_argument("--dtype", choices=["float16", "float32"], default="float32")
            sub.add_argument("-o", "--out", type=Path, required=True)
        else:
            sub.add_argument("--text", type=Path, required=True)
            sub.add_argument("--chunks", type=int)
            sub.add_argument("--ctx", type=int, default=512)
    sub = commands.add_parser("quantize", help="requantize a GGUF")
    sub.add_argument("model", type=Path)
    sub.add_argument("--type", required=True, help="as llama-quantize names it: Q4_K_M, IQ4_XS")
    sub.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "quantize":
        print(json.dumps(quantize(args.model, args.out, args.type)))
        return 0
    n_ctx = args.window if args.command == "logits" else args.ctx
    if args.command in ("decode", "prompt"):
        n_ctx = max(n_ctx, args.n)
    with Peer(
        args.model,
        n_ctx=n_ctx,
        n_threads=args.threads,
        mmap=args.mmap,
        repack=args.repack,
        kv=args.kv,
        flash_attn=args.flash_attn,
    ) as peer:
        result = args.run(args, peer)  # `first` has written a line of its own
        print(json.dumps({**result, "settings": peer.settings}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
