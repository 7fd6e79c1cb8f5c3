"""Files far larger than what they hold: real headers with bodies of zeros, and absurd claims.

A hole in a file takes no room on the drive and reads as zeros.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import gguf_builder as g
from ..gguf_builder import GGUFBuilder
from .case import BUDGET, EITHER, REFUSED, RUNS, Case, Make
from .small import KEYS, small, write_small_folder

GIB, TIB = 1 << 30, 1 << 40


def model(
    layers: int, hidden: int, ffn: int, rows: int = 8, heads: int = 8, ggml_id: int = 2
) -> tuple[bytes, int]:
    """A llama's header and the size of the whole file; matrices in ``ggml_id`` (Q4_0)."""
    builder = GGUFBuilder()
    keys: dict[str, tuple[int, Any]] = {
        **KEYS,
        "llama.block_count": (g.U32, layers), "llama.embedding_length": (g.U32, hidden),
        "llama.feed_forward_length": (g.U32, ffn), "llama.attention.head_count": (g.U32, heads),
        "llama.attention.head_count_kv": (g.U32, heads),
        "llama.attention.key_length": (g.U32, hidden // heads),
        "llama.rope.dimension_count": (g.U32, hidden // heads),
    }  # fmt: skip
    for key, value in keys.items():
        builder.add(key, *value)
    at = 0

    def tensor(name: str, *shape: int) -> None:
        nonlocal at
        builder.tensor(name, shape[::-1], 0 if len(shape) == 1 else ggml_id, offset=at)
        elements = 1
        for n in shape:
            elements *= n
        at += -(-(elements * 4 if len(shape) == 1 else elements // 32 * 18) // 32) * 32

    tensor("token_embd.weight", rows, hidden)
    for layer in range(layers):
        p = f"blk.{layer}."
        tensor(f"{p}attn_norm.weight", hidden)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"{p}{name}.weight", hidden, hidden)
        tensor(f"{p}ffn_norm.weight", hidden)
        tensor(f"{p}ffn_gate.weight", ffn, hidden)
        tensor(f"{p}ffn_up.weight", ffn, hidden)
        tensor(f"{p}ffn_down.weight", hidden, ffn)
    tensor("output_norm.weight", hidden)
    header = builder.header()
    return header, len(header) + -len(header) % 32 + at


def sparse(header: bytes, size: int) -> Make:
    """``header`` and zeros without room up to ``size``; skipped where the drive has no holes."""

    def make(folder: Path) -> Path:
        path = folder / "m.gguf"
        path.write_bytes(header)
        os.truncate(path, size)
        return path

    return make


def cases() -> Iterator[Case]:
    """All files of this family."""
    base = small().pack()
    for size in (1 << 20, GIB, 64 * GIB, TIB, 8 * TIB):
        yield Case("sparse", f"a small model with zeros up to {size}", RUNS, sparse(base, size))
        yield Case("sparse", f"nothing but {size} zeros", REFUSED, sparse(b"", size), REFUSED)
        yield Case(
            "sparse", f"magic and {size} zeros", REFUSED, sparse(b"GGUF\3\0\0\0", size), RUNS
        )
    for size in (64 * GIB, 8 * TIB):  # counts that such a file could hold
        for n_tensors, n_keys in (
            (65536, 0),
            (65537, 0),
            (0, 65536),
            (0, 65537),
            (2**32, 0),
            (0, 2**32),
            (2**35, 2**35),
            (2**63, 2**63),
            (65536, 65536),
        ):
            head = struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, n_keys)
            yield Case("sparse", f"{n_tensors} tensors and {n_keys} keys in {size} zeros", REFUSED,
                       sparse(head, size), REFUSED)  # fmt: skip
        for kind in (*range(13), 13):
            for count in (2**20, 2**22 + 1, 2**26, 2**32, 2**36, 2**40):
                head = small().header()[:24].replace(struct.pack("<Q", 19), struct.pack("<Q", 1))
                head = struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + g.string("array")
                head += struct.pack("<IIQ", g.ARRAY, kind, count)
                yield Case("sparse", f"an array of {count} zeros of type {kind} in {size}", REFUSED,
                           sparse(head, size), EITHER)  # fmt: skip
    # As large as they say: all zeros, so every logit is zero.
    for what, layers, hidden, ffn, ram, expect in (
        ("200 MiB", 4, 2048, 8192, "128M", RUNS),
        ("1 GiB", 10, 4096, 12288, "256M", RUNS),
        ("1 GiB and not the room", 10, 4096, 12288, "40M", BUDGET),
        ("4 GiB", 32, 4096, 12288, "256M", RUNS),
        ("40 GiB", 80, 8192, 32768, "64M", BUDGET),
        ("2 TiB", 100, 65536, 131072, "512M", BUDGET),
        ("6 TiB", 100, 1 << 17, 1 << 17, "900M", BUDGET),
        ("6 TiB in 1000 layers", 1000, 40960, 40960, "900M", BUDGET),
    ):
        heads = max(1, hidden // 128)
        if heads > 1024:
            heads = 1024
        header, size = model(layers, hidden, ffn, heads=heads)
        yield Case(
            "sparse",
            f"a whole model of {what} ({size} bytes)",
            expect,
            sparse(header, size),
            RUNS,
            ram,
            60.0,
        )
        yield Case(
            "sparse", f"a byte less than {what}", REFUSED, sparse(header, size - 1), REFUSED, ram
        )
    for rows, expect in (
        (1 << 20, RUNS),
        (1 << 24, BUDGET),
        (1 << 28, BUDGET),
        ((1 << 28) + 8, REFUSED),
        (1 << 36, REFUSED),
    ):
        header, size = model(1, 32, 32, rows, heads=1)
        yield Case(
            "sparse", f"{rows} rows of embedding", expect, sparse(header, size), RUNS, "128M", 20.0
        )
    for ctx in (1 << 20, 1 << 28):
        builder = small(**{"llama.context_length": (g.U32, ctx)})
        yield Case(
            "sparse", f"a context of {ctx}", RUNS, lambda f, b=builder: b.write(f / "m.gguf")
        )
    for size in (8 + 2, GIB, TIB):
        for length in (2, 8, 1 << 20, 100_000_000):

            def folder_of(folder: Path, size: int = size, length: int = length) -> Path:
                path = write_small_folder(folder / "m")
                (path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{")
                os.truncate(path / "model.safetensors", size)
                return path

            yield Case(
                "sparse",
                f"safetensors: {length} zeros of header in {size}",
                REFUSED,
                folder_of,
                REFUSED,
            )
    for name in ("config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json",
                 "model.safetensors.index.json"):  # fmt: skip
        for size in (GIB, TIB):
            for space in (b"", b" ", b"{", b'{"a":"'):

                def large(folder: Path, n: str = name, s: int = size, b: bytes = space) -> Path:
                    path = write_small_folder(folder / "m")
                    if n.endswith("index.json"):
                        (path / "model.safetensors").rename(
                            path / "model-00001-of-00001.safetensors"
                        )
                    (path / n).write_bytes(b)
                    os.truncate(path / n, s)
                    return path

                yield Case("sparse", f"{name}: {space!r} and zeros up to {size}", REFUSED, large)
