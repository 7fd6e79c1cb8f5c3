"""Any text through every pre-tokenizer: decoding gives the text, and no way of cutting it into
slices, texts or pieces changes its ids.

The input are three bytes that choose (pre-tokenizer, size of slices, special tokens), then text.
"""

from __future__ import annotations

import functools
import random
import struct
from pathlib import Path

from edge_rt.tokenizer import Tokenizer, tokenizer
from edge_rt.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from tests import gguf_builder as g
from tests.fuzz.harness import bounded, raw_of, require, scratch_folder, text_of
from tests.fuzz.mutate import mutate_bytes, mutate_text

_PATH = scratch_folder() / "vocabulary.gguf"
_GOLDENS = Path(__file__).resolve().parent.parent / "goldens/tokenizers"
_NAMES = ["llama", *PRE_TOKENIZERS]
_KEY = g.string("tokenizer.ggml.pre") + struct.pack("<I", g.STRING)
_WORDS = [
    "the", " of", " 's", "'LL", "don't", "123", "1234567", "  ", "\n", "\n\n", " \n", "\r\n", "\t",
    "Ünï", "中文字", "カナ", "한국", "ไทย", "a\u0301", "<|im_end|>",
    "<s>", "</s>", "<mask>", "!!", "...", "…",
    "—", "$9", "A", "Ab", "aB", "ABC", "😀", "👍🏽", "\u200d", "\u00a0", "\u2028", "▁", "Ġ", 
    "<sentinel:1>", "IMGIMGAZ", "\xd2", "\xd1", "\x85", "_", "/", "x=1;",
]  # fmt: skip


@functools.cache
def _tokenizer(name: str) -> Tokenizer:
    if name == "llama":
        pieces: list[tuple[str | bytes, float, int]] = [("<unk>", 0.0, 2), ("<s>", 0.0, 3)]
        pieces += [("</s>", 0.0, 3)] + [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
        words = (
            "▁",
            "a",
            "b",
            "t",
            "h",
            "e",
            "th",
            "he",
            "the",
            "▁the",
            "▁t",
            "▁▁",
            "\n",
            "e\n",
            "▁a",
        )
        pieces += [(word, -float(i % 5), 1) for i, word in enumerate(words)]
        pieces += [("<mask>", 0.0, 4), ("a▁b", -3.0, 1), ("\n\n", -1.0, 1)]
        g.spm_vocabulary(pieces, bos_token_id=1, eos_token_id=2).write(_PATH)
    else:
        base = "raw.gguf" if PRE_TOKENIZERS[name].raw else "bytes.gguf"
        content = (_GOLDENS / base).read_bytes()
        at = content.index(_KEY) + len(_KEY)
        length = int.from_bytes(content[at : at + 8], "little")
        _PATH.write_bytes(content[:at] + g.string(name) + content[at + 8 + length :])
    return Tokenizer.from_file(_PATH)


def seeds() -> list[bytes]:
    rng = random.Random(8)
    return [
        bytes((i, 1 + i % 40, i % 2)) + raw_of("".join(rng.choice(_WORDS) for _ in range(12)))
        for i in range(len(_NAMES))
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.15:
        return bytes((rng.randrange(len(_NAMES)), rng.randrange(256), rng.randrange(2))) + data[3:]
    if rng.random() < 0.1:
        return data[:3] + mutate_bytes(data[3:], rng)
    return data[:3] + raw_of(mutate_text(text_of(data[3:]), rng, _WORDS))


def run(data: bytes) -> None:
    choice, size, special = (*data[:3], 0, 0, 0)[:3]
    name = _NAMES[choice % len(_NAMES)]
    found = _tokenizer(name)
    text, special = text_of(data[3:]), special & 1
    with bounded():
        ids = found.encode(text, bool(special))
        decoded = found.decode(ids, bool(special))
        wanted = text
        if name == "llama" or PRE_TOKENIZERS[name].raw:
            wanted = text.replace("▁", " ")
        # After a special token a SentencePiece text gets a space, as in llama.cpp.
        if name != "llama" or all(map(found.is_ordinary, ids)):
            require(decoded == wanted, f"{name}: {decoded!r} of {wanted!r}")
        whole, tokenizer._SLICE_LETTERS = tokenizer._SLICE_LETTERS, 1 + size % 64  # type: ignore[misc]
        try:
            cut = 1 + size % 7
            parts = [text[at : at + cut] for at in range(0, len(text), cut)]
            for texts in ([text], parts):
                sliced = list(found.iter_encode(texts, bool(special)))
                require(sliced == ids, f"{name}: {sliced} in slices, {ids} as a whole")
        finally:
            tokenizer._SLICE_LETTERS = whole  # type: ignore[misc]
