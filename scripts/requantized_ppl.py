"""Requantize a model with llama.cpp and compare both runtimes' perplexity on every file.

    python scripts/requantized_ppl.py --source SMOLLM2.gguf --text wiki.test.raw --chunks 40 \
        --peer-python BENCH/bin/python --folder DIR [--types Q8_0,Q4_K_M] [--json OUT.json]

The files are made once and kept in ``--folder``. Same text, windows and scored positions in both
(llama-perplexity's protocol, f16 KV). Exits with 1 if a file differs by more than ``--limit``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS")
PEER = Path(__file__).resolve().with_name("peer_llama.py")


def _json_of(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def formats(path: Path) -> str:
    """The formats of the matrices in ``path`` with their numbers of tensors."""
    from edge_rt.loaders.gguf import GGUFFile

    tensors = GGUFFile.open(path, allow_unsupported=True).tensors.values()
    count = Counter(t.format_name for t in tensors if len(t.shape) > 1)
    return " ".join(f"{name}x{n}" for name, n in count.most_common())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--ram", default="512MiB")
    parser.add_argument("--limit", type=float, default=0.5, help="percent")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    protocol = ["--text", str(args.text), "--chunks", str(args.chunks)]
    rows = []
    print(f"{'type':8}{'MB':>7}{'llama.cpp':>11}{'edge-rt':>10}{'diff %':>9}  formats")
    for kind in args.types.split(","):
        path = args.folder / f"{args.source.stem}.requantized.{kind}.gguf"
        if not path.exists():
            half = path.with_suffix(".part")
            making = [args.peer_python, str(PEER), "quantize", str(args.source), "--type", kind]
            _json_of([*making, "-o", str(half)])
            os.replace(half, path)
        cached = path.with_suffix(f".llama.{args.chunks}.json")
        if not cached.exists():
            found = _json_of([args.peer_python, str(PEER), "ppl", str(path), *protocol])
            cached.write_text(json.dumps(found))
        theirs = json.loads(cached.read_text())
        command = [sys.executable, "-m", "edge_rt.apps.cli", "ppl", str(path), "--json"]
        ours = _json_of([*command, "--ctx", "512", "--ram", args.ram, *protocol])
        if ours["tokens"] != theirs["tokens"]:
            raise SystemExit(f"{kind}: {ours['tokens']} and {theirs['tokens']} tokens scored")
        row = {
            "type": kind,
            "bytes": path.stat().st_size,
            "llama_cpp": theirs["ppl"],
            "edge_rt": ours["ppl"],
            "difference_percent": 100 * (ours["ppl"] / theirs["ppl"] - 1),
            "formats": formats(path),
            "chunks": args.chunks,
        }
        rows.append(row)
        print(
            f"{kind:8}{row['bytes'] / 1e6:7.1f}{row['llama_cpp']:11.4f}{row['edge_rt']:10.4f}"
            f"{row['difference_percent']:9.3f}  {row['formats']}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    return int(any(abs(row["difference_percent"]) > args.limit for row in rows))


if __name__ == "__main__":
    sys.exit(main())
