"""A GGUF file's tokenizer: any tokens, types, scores, merges and ids; then any text through it.

The input are a vocabulary-only GGUF file and a text (`harness.join`).
"""

from __future__ import annotations

import random

from edge_rt.chat.source import special_tokens
from edge_rt.loaders.gguf import GGUFFile
from edge_rt.sizes import MIB
from edge_rt.tokenizer import Tokenizer
from edge_rt.tokenizer.bpe import LETTER_OF_BYTE
from edge_rt.tokenizer.cost import tokenizer_bytes
from edge_rt.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from edge_rt.tokenizer.special import _ROLES, END_NAMES, ROLE_KEYS
from tests import gguf_builder as g
from tests.fuzz.harness import bounded, join, raw_of, require, scratch_folder, split, text_of
from tests.fuzz.mutate import mutate_gguf, mutate_text, some_text
from tests.fuzz.tokenizer_json import TEXTS, check_text

_PATH = scratch_folder() / "vocabulary.gguf"
_NAMES = [name for names in _ROLES.values() for name in names]
_WORDS = [
    *(f"tokenizer.ggml.{key}" for key in (
        "model", "pre", "tokens", "scores", "token_type", "merges", "add_bos_token",
        "add_eos_token", "add_space_prefix", "bos_token_id", "eos_token_id", "unknown_token_id",
        "padding_token_id", "seperator_token_id", "mask_token_id", "prefix_token_id",
        "suffix_token_id", "middle_token_id", *(f"{key}_token_id" for key in ROLE_KEYS))),
    "general.name", "general.architecture", "phi-3", "modern-bert", "jina-v2-de", "jina-bert-v3",
    "nomic-bert-moe", "llama", "gpt2", "gemma4", "bert", "t5", "none", *PRE_TOKENIZERS, *END_NAMES,
    *_NAMES, "<mask>", "[MASK]", "<|channel|>", "<|message|>", "<|plamo:eos|>", "<0x00>", "<0xFF>",
    "<0xff>", "<0x-1>", "<0x0A>", "▁", "▁▁", "▁a", "a▁", "a\nb", "\n", "\n\n", " ", "a b", " b",
    "a ", "ab", "Ġ", "Ġa", "Ċ", *LETTER_OF_BYTE[:40],
]  # fmt: skip


def seeds() -> list[bytes]:
    spm = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    spm += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(0, 256, 3)]
    spm += [(p, -float(i), 1) for i, p in enumerate(("▁", "a", "b", "ab", "▁ab", "▁▁", "\n"))]
    spm += [("<mask>", 0.0, 4), ("unused", 0.0, 5)]
    letters = [LETTER_OF_BYTE[byte] for byte in (*b" \n'abcdefst0123<|>_", 0xC3, 0xA9)]
    pieces = [*letters, "ab", "abc", "Ġab", "ĠĠ", "ĊĊ", "'s", "<|im_end|>", "<|end|>", "<mask>"]
    types = [*[1] * (len(pieces) - 3), 3, 3, 4]
    merges = ["a b", "ab c", "Ġ ab", "Ġ Ġ", "Ċ Ċ", "' s"]
    raw = ["<pad>", "<eos>", "<bos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw += ["▁", "a", "b", "ab", "▁ab", "\n", "\n\n", "▁▁"]
    files = [
        g.spm_vocabulary(spm, bos_token_id=1, eos_token_id=2, unknown_token_id=0),
        g.spm_vocabulary(spm, add_space_prefix=False, eot_token_id=2),
        *(g.bpe_vocabulary(pieces, merges, types, pre) for pre in (
            "gpt-2", "llama-bpe", "qwen2", "smollm", "deepseek-v3", "tekken", "exaone-moe", "bloom",
            "superbpe", "kimi-k2", "youtu", "afmoe")),
    ]  # fmt: skip
    gemma = g.GGUFBuilder().add("tokenizer.ggml.model", g.STRING, "gemma4")
    gemma.add("tokenizer.ggml.tokens", g.ARRAY, g.Array(g.STRING, list(raw)))
    kinds = [*[3] * 3, *[6] * 256, *[1] * (len(raw) - 259)]
    gemma.add("tokenizer.ggml.token_type", g.ARRAY, g.Array(g.I32, kinds))
    gemma.add("tokenizer.ggml.merges", g.ARRAY, g.Array(g.STRING, ["a b", "▁ ab", "▁ ▁"]))
    phi = g.spm_vocabulary(spm).add("general.name", g.STRING, "Phi-3 mini")
    return [
        join({"model.gguf": file.pack(), "text": raw_of(TEXTS[i % len(TEXTS)])})
        for i, file in enumerate([*files, gemma, phi])
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    files = split(data)
    if rng.random() < 0.2:
        files["text"] = raw_of(mutate_text(text_of(files.get("text", b"")), rng, _WORDS))
    else:
        files["model.gguf"] = mutate_gguf(files.get("model.gguf", b""), rng, _WORDS)
    return join(files)


def run(data: bytes) -> None:
    files = split(data)
    _PATH.write_bytes(files.get("model.gguf", b""))
    with bounded():
        source = GGUFFile.open(_PATH, allow_unsupported=True)
        peak, steady = tokenizer_bytes(source)
        require(steady <= peak <= 400 * MIB, f"{peak} bytes to build it")
        tokenizer = Tokenizer.from_source(source)
        special_tokens(source, tokenizer)
        rng = random.Random(len(data))
        for text in (text_of(files.get("text", b"")), rng.choice(TEXTS), some_text(rng, _WORDS)):
            check_text(tokenizer, text)
        for index in range(min(tokenizer.n_vocab, 400)):
            tokenizer.token_text(index)
        require(all(0 <= i < tokenizer.n_vocab for i in tokenizer.eos_ids), "an end beyond all ids")
