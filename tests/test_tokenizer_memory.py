"""Tokenizers stay under their declared ceilings, from GGUF files and from tokenizer.json."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from edge_rt.loaders.gguf import GGUFFile
from edge_rt.loaders.source import WeightSource
from edge_rt.tokenizer.bpe import LETTER_OF_BYTE
from edge_rt.tokenizer.cost import tokenizer_bytes

from . import gguf_builder as g
from . import tokenizer_files as f
from .fresh import run_fresh

STORIES = Path(__file__).parent / "data/stories260K-F32.gguf"
MEASURE = """
import sys
from edge_rt.tokenizer import Tokenizer
from edge_rt.process import release_memory
release_memory()
before = status("VmRSS")
tokenizer = Tokenizer.from_file(sys.argv[1])
peak = status("VmHWM") - before
release_memory()
after = status("VmRSS") - before
words = iter(range(10**9))
texts = (f" word{next(words)} and {chr(97 + i % 26) * (i % 29)} Täxt" for i in range(8000))
n = sum(1 for _ in tokenizer.iter_encode(texts))
release_memory()
assert "numpy" not in sys.modules
print(peak, after, status("VmRSS") - before, status("VmHWM") - before)
"""


def folder_source(path: Path) -> WeightSource:
    source = WeightSource(str(path), (), 0)
    source.folder = str(path)
    return source


def measure(path: Path) -> list[int]:
    done = run_fresh(MEASURE, path, MALLOC_ARENA_MAX="1", TOKENIZERS_PARALLELISM="false")
    return [int(n) for n in done.stdout.split()]


def check_ceilings(path: Path) -> tuple[int, int]:
    """Measured (highest, steady) are below the ceilings, and more than a fourth of them."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    source = folder_source(path) if path.is_dir() else GGUFFile.open(path, allow_unsupported=True)
    high, low = tokenizer_bytes(source)
    assert tokenizer_bytes(source) == (high, low)
    peak, after, used, highest = measure(path)
    print(f"{path.name}: peak {peak} of {high}, after {after}, used {used}, {highest} of {low}")
    assert max(peak, highest) <= high
    assert max(after, used) <= low
    return max(peak, highest), max(after, used)


def large_bytes() -> tuple[list[str], list[str]]:
    """A byte-level vocabulary of 151 936 tokens and its merges."""
    return grown(list(LETTER_OF_BYTE), 151_936)


def large_raw() -> tuple[list[str], list[str]]:
    """One in the manner of SentencePiece, of 262 144 tokens."""
    letters = [chr(c) for c in (*range(33, 127), *range(0x4E00, 0x5200))]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces, merges = grown(["▁", *letters], 262_144 - len(special))
    return special + pieces, merges


def grown(pieces: list[str], count: int) -> tuple[list[str], list[str]]:
    """``pieces`` and what joins two of them, at random, with the merges that do."""
    rng = random.Random(3)
    known, pieces, merges = set(pieces), list(pieces), []
    while len(pieces) < count:
        left, right = rng.choice(pieces), rng.choice(pieces[:300])
        if left + right not in known and len(left) < 14 and not left.startswith("<0x"):
            known.add(left + right)
            pieces.append(left + right)
            merges.append(f"{left} {right}")
    return pieces, merges


def raw_gguf(tmp_path: Path, pieces: list[str]) -> Path:
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259)
    entries: list[Any] = [
        (p, -float(i), k) for i, (p, k) in enumerate(zip(pieces, kinds, strict=True))
    ]
    return g.spm_vocabulary(entries).write(tmp_path / "raw.gguf")


def test_demo_model(demo_model: Path) -> None:
    highest, _ = check_ceilings(demo_model)
    assert highest < 6 << 20  # Hugging Face's own model peaks at 35 MiB


def test_stories() -> None:
    check_ceilings(STORIES)


@pytest.mark.parametrize("name", ["qwen2", "llama-spm", "llama-bpe", "gpt-2", "phi-3"])
def test_others(shared_data: Path, name: str) -> None:
    check_ceilings(shared_data / f"vocabs/ggml-vocab-{name}.gguf")


def test_many_specials(tmp_path: Path) -> None:
    pieces: list[Any] = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)] + [("▁", -1.0, 1)]
    pieces += [(f"<special token {i}>", 0.0, 4) for i in range(16000)]
    check_ceilings(g.spm_vocabulary(pieces).write(tmp_path / "v.gguf"))


def test_large_byte_level(tmp_path: Path) -> None:
    pieces, merges = large_bytes()
    path = g.bpe_vocabulary(pieces, merges, pre="qwen2").write(tmp_path / "v.gguf")
    assert check_ceilings(path)[0] < 12 << 20
    vocab = {piece: i for i, piece in enumerate(pieces)}
    for value in (merges, [merge.split(" ") for merge in merges]):
        content = f.content(*f.BYTE_LEVEL["qwen2"], f.LAST, [], vocab, value)
        assert check_ceilings(f.write(tmp_path / "f", content))[0] < 24 << 20


def test_large_raw_pieces(tmp_path: Path) -> None:
    pieces, merges = large_raw()
    assert check_ceilings(raw_gguf(tmp_path, pieces))[0] < 14 << 20
    normalizer, pre_tokenizer, decoders = f.RAW["gemma"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    extra = [f.added(piece, i, True) for i, piece in enumerate(pieces[:3])]
    decoder = {"type": "Sequence", "decoders": decoders}
    content = f.content(
        normalizer, pre_tokenizer, decoder, extra, vocab, [m.split(" ") for m in merges],
        unk_token="<unk>", fuse_unk=True, byte_fallback=True,
    )  # fmt: skip
    assert check_ceilings(f.write(tmp_path / "f", content))[0] < 28 << 20


def test_many_added_tokens(tmp_path: Path) -> None:
    """Gemma has 6415 of them."""
    letters = list(LETTER_OF_BYTE)
    extra = [f.added(f"<unused token {i}>", 256 + i, True) for i in range(16000)]
    vocab = {letter: i for i, letter in enumerate(letters)}
    content = f.content(*f.BYTE_LEVEL["gpt-2"], f.LAST, extra, vocab, [])
    check_ceilings(f.write(tmp_path / "f", content))
