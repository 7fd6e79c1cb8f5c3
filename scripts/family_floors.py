"""The floor of each model family at its real size, and what it is made of.

    python scripts/family_floors.py [--families gemma-3-1b,...] [--ctx 512] [--run] [--json OUT]

Writes models with the published shapes and vocabularies of the real size, but weights of zeros in
a sparse file (nothing here depends on their values), and prints the floor by role. `--run`
generates at the floor inside a memory cgroup of exactly that size (needs root).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_rt.quant.blocks import F32, FORMATS, BlockFormat
from edge_rt.sizes import MIB

STRING, ARRAY, U32, I32, F32_KEY, BOOL = 8, 9, 4, 5, 6, 7


@dataclass(frozen=True)
class Family:
    """Published sizes; ``pre``: the byte-level pre-tokenizer, empty for SentencePiece."""

    arch: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    pre: str = ""
    tied: bool = True
    keys: tuple[tuple[str, object], ...] = ()


FAMILIES = {
    "smollm2-135m": Family("llama", 30, 576, 1536, 9, 3, 64, 49152, "smollm"),
    "llama-3.2-1b": Family("llama", 16, 2048, 8192, 32, 8, 64, 128256, "llama-bpe"),
    "llama-2-7b": Family("llama", 32, 4096, 11008, 32, 32, 128, 32000, tied=False),
    "mistral-7b": Family("llama", 32, 4096, 14336, 32, 8, 128, 32768, tied=False),
    "qwen2.5-1.5b": Family("qwen2", 28, 1536, 8960, 12, 2, 128, 151936, "qwen2"),
    "qwen3-1.7b": Family("qwen3", 28, 2048, 6144, 16, 8, 128, 151936, "qwen2"),
    "qwen3-8b": Family("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, "qwen2", tied=False),
    "gemma-2-2b": Family(
        "gemma2", 26, 2304, 9216, 8, 4, 256, 256000,
        keys=(("attention.sliding_window", 4096), ("attn_logit_softcapping", 50.0),
              ("final_logit_softcapping", 30.0)),
    ),
    "gemma-3-1b": Family(
        "gemma3", 26, 1152, 6912, 4, 1, 256, 262144, keys=(("attention.sliding_window", 512),)
    ),
    "gemma-3-4b": Family(
        "gemma3", 34, 2560, 10240, 8, 4, 256, 262144,
        keys=(("attention.sliding_window", 1024), ("rope.scaling.type", "linear"),
              ("rope.scaling.factor", 8.0)),
    ),
    "phi-3.5-mini": Family("phi3", 32, 3072, 8192, 32, 32, 96, 32064, tied=False),
    "smollm3-3b": Family("smollm3", 36, 2048, 11008, 16, 4, 128, 128256, "smaug-bpe"),
    "olmo-2-1b": Family("olmo2", 16, 2048, 8192, 16, 16, 128, 100352, "dbrx", tied=False),
    "granite-3.3-2b": Family(
        "granite", 40, 2048, 8192, 32, 8, 64, 49159, "refact",
        keys=(("attention.scale", 0.015625), ("embedding_scale", 12.0),
              ("residual_scale", 0.22), ("logit_scale", 8.0)),
    ),
    "ministral-3-3b": Family(
        "mistral3", 26, 3072, 9216, 32, 8, 128, 131072, "tekken",
        keys=(("rope.scaling.type", "yarn"), ("rope.scaling.factor", 16.0),
              ("rope.scaling.original_context_length", 16384),
              ("rope.scaling.yarn_log_multiplier", 1.0),
              ("attention.temperature_scale", 0.1)),
    ),
}  # fmt: skip


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _key(name: str, value: object) -> bytes:
    if isinstance(value, bool):
        body = struct.pack("<IB", BOOL, value)
    elif isinstance(value, int):
        body = struct.pack("<II", U32, value)
    elif isinstance(value, float):
        body = struct.pack("<If", F32_KEY, value)
    elif isinstance(value, str):
        body = struct.pack("<I", STRING) + _string(value)
    else:
        assert isinstance(value, list)
        kind = {str: STRING, int: I32, float: F32_KEY}[type(value[0])]
        body = struct.pack("<IIQ", ARRAY, kind, len(value))
        if kind == STRING:
            body += b"".join(map(_string, value))
        else:
            body += struct.pack(f"<{len(value)}{'i' if kind == I32 else 'f'}", *value)
    return _string(name) + body


def byte_level_vocabulary(n: int) -> tuple[list[str], list[str]]:
    """``n`` tokens and the merges that make them, about as long as real ones."""
    from edge_rt.tokenizer.bpe import LETTER_OF_BYTE

    rng = random.Random(n)
    tokens, merges = list(LETTER_OF_BYTE), []
    known = set(tokens)
    while len(tokens) < n:
        left, right = rng.choice(tokens), rng.choice(tokens[:4096])
        if len(left) + len(right) <= 12 and left + right not in known:
            known.add(left + right)
            tokens.append(left + right)
            merges.append(f"{left} {right}")
    return tokens, merges


def sentencepiece_vocabulary(n: int) -> tuple[list[str], list[int]]:
    rng = random.Random(n)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3] + [6] * 256
    known = set(tokens)
    while len(tokens) < n:
        word = "".join(rng.choices("▁abcdefghijklmnopqrstuvwxyzé漢字", k=rng.randint(1, 10)))
        if word not in known:
            known.add(word)
            tokens.append(word)
            types.append(1)
    return tokens, types


def tensors(f: Family, weights: BlockFormat) -> list[tuple[str, tuple[int, ...], BlockFormat]]:
    """(name, NumPy shape, format) of every tensor that the architecture has."""
    q, kv = f.heads * f.head_dim, f.kv_heads * f.head_dim
    found: list[tuple[str, tuple[int, ...], BlockFormat]] = [
        ("token_embd.weight", (f.vocab, f.hidden), weights)
    ]

    def vector(name: str, n: int) -> None:
        found.append((name, (n,), F32))

    def matrix(name: str, rows: int, columns: int) -> None:
        found.append((name, (rows, columns), weights))

    for i in range(f.layers):
        b = f"blk.{i}."
        if f.arch != "olmo2":
            vector(f"{b}attn_norm.weight", f.hidden)
            vector(f"{b}ffn_norm.weight", f.hidden)
        if f.arch in ("gemma2", "gemma3", "olmo2"):
            vector(f"{b}post_attention_norm.weight", f.hidden)
            vector(f"{b}post_ffw_norm.weight", f.hidden)
        if f.arch in ("qwen3", "gemma3", "olmo2"):
            vector(f"{b}attn_q_norm.weight", q if f.arch == "olmo2" else f.head_dim)
            vector(f"{b}attn_k_norm.weight", kv if f.arch == "olmo2" else f.head_dim)
        if f.arch == "phi3":
            matrix(f"{b}attn_qkv.weight", q + 2 * kv, f.hidden)
            matrix(f"{b}ffn_up.weight", 2 * f.ffn, f.hidden)
        else:
            for name, rows in (("q", q), ("k", kv), ("v", kv)):
                matrix(f"{b}attn_{name}.weight", rows, f.hidden)
                if f.arch == "qwen2":
                    vector(f"{b}attn_{name}.bias", rows)
            matrix(f"{b}ffn_gate.weight", f.ffn, f.hidden)
            matrix(f"{b}ffn_up.weight", f.ffn, f.hidden)
        matrix(f"{b}attn_output.weight", f.hidden, q)
        matrix(f"{b}ffn_down.weight", f.hidden, f.ffn)
    vector("output_norm.weight", f.hidden)
    if not f.tied:
        matrix("output.weight", f.vocab, f.hidden)
    return found


def write(path: Path, f: Family, weights: BlockFormat) -> None:
    """A GGUF whose weights are holes."""
    keys: dict[str, Any] = {
        "general.architecture": f.arch,
        f"{f.arch}.block_count": f.layers,
        f"{f.arch}.context_length": 32768,
        f"{f.arch}.embedding_length": f.hidden,
        f"{f.arch}.feed_forward_length": f.ffn,
        f"{f.arch}.attention.head_count": f.heads,
        f"{f.arch}.attention.head_count_kv": f.kv_heads,
        f"{f.arch}.attention.key_length": f.head_dim,
        f"{f.arch}.attention.value_length": f.head_dim,
        f"{f.arch}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{f.arch}.rope.dimension_count": f.head_dim,
        f"{f.arch}.rope.freq_base": 10000.0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    keys |= {f"{f.arch}.{name}": value for name, value in f.keys}
    if f.pre:
        tokens, merges = byte_level_vocabulary(f.vocab)
        keys |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": f.pre}
        keys |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges}
        keys["tokenizer.ggml.token_type"] = [1] * f.vocab
    else:
        tokens, types = sentencepiece_vocabulary(f.vocab)
        keys |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens}
        keys["tokenizer.ggml.scores"] = [-float(i) for i in range(f.vocab)]
        keys["tokenizer.ggml.token_type"] = types
    entries, at = [], 0
    for name, shape, block in tensors(f, weights):
        n_bytes = block.row_bytes(shape[-1]) * (shape[0] if len(shape) > 1 else 1)
        dims = shape[::-1]
        entry = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, block.ggml_id, at)
        entries.append(_string(name) + entry)
        at += -(-n_bytes // 32) * 32
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(entries), len(keys))
    head = header + b"".join(_key(k, v) for k, v in keys.items()) + b"".join(entries)
    with path.open("wb") as out:
        out.write(head)
        out.truncate(-(-len(head) // 32) * 32 + at)


def measure(path: Path, ctx: int, run: bool) -> dict[str, Any]:
    from edge_rt.opening import make_settings, open_planner

    _, planner, _ = open_planner(path)
    floor, roles = planner.floor(make_settings(planner, 1 << 50, ctx, 2))
    row: dict[str, Any] = {"floor_bytes": floor, "roles": roles}
    row["tokenizer_peak"] = planner.tokenizer_peak
    # What has a cause of its own: the process, the text, a ring of one block, the context, norms.
    explained = ("interpreter", "tokenizer", "ring", "kv", "weights", "slack")
    row["rest_bytes"] = sum(roles.values()) - sum(roles[name] for name in explained)
    if run:
        import cgroup

        command = [sys.executable, "-m", "edge_rt.apps.cli", "generate", str(path), "-p", "hello"]
        command += ["-n", "2", "--ram", str(floor), "--ctx", str(ctx), "--threads", "2"]
        done = cgroup.run([*command, "--ignore-eos", "--json"], floor, model=path, cold=True)
        if done.rc or done.oom_killed:
            raise SystemExit(f"{path.name}: exit {done.rc}: {done.stderr[-300:]}")
        row["held_bytes"] = done.held_bytes
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--format", default="Q4_0")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    weights = next(f for f in FORMATS.values() if f.name == args.format)
    names = ("interpreter", "tokenizer", "ring", "kv", "weights", "slack")
    names += ("activations", "io", "kernel")
    print(
        f"{'family':16}{'floor':>6}{'held':>7}{'tok peak':>9}" + "".join(f"{n:>12}" for n in names)
    )
    rows = {}
    for name in args.families.split(","):
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            path = Path(folder) / f"{name}.gguf"
            write(path, FAMILIES[name], weights)
            row = rows[name] = measure(path, args.ctx, args.run)
        print(
            f"{name:16}{row['floor_bytes'] / MIB:6.0f}{row.get('held_bytes', 0) / MIB:7.1f}"
            f"{row['tokenizer_peak'] / MIB:9.1f}"
            + "".join(f"{row['roles'][n] / MIB:12.1f}" for n in names)
            + f"  rest {row['rest_bytes'] / MIB:.1f}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
