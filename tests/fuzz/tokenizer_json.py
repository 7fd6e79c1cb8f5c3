"""A folder's ``tokenizer.json`` and ``tokenizer_config.json``: build, encode, decode, stream.

The input are the two files and a text (`harness.join`).
"""

from __future__ import annotations

import json
import random
from typing import Any

from edge_rt.chat.source import find_template, special_tokens
from edge_rt.loaders.source import WeightSource
from edge_rt.sizes import MIB
from edge_rt.tokenizer import Tokenizer
from edge_rt.tokenizer.bpe import LETTER_OF_BYTE
from edge_rt.tokenizer.cost import tokenizer_bytes
from tests.fuzz.harness import bounded, join, raw_of, require, scratch_folder, split, text_of
from tests.fuzz.mutate import mutate_json_text, mutate_text, some_text
from tests.tokenizer_files import BYTE_LEVEL, LAST, RAW, added

_FOLDER = scratch_folder()
_NAMES = ("tokenizer.json", "tokenizer_config.json")
_WORDS = [
    "model", "vocab", "merges", "type", "BPE", "Unigram", "WordPiece",
    "added_tokens", "normalizer",
    "pre_tokenizer", "post_processor", "decoder", "truncation", "padding", "version", "id",
    "content", "special", "lstrip", "rstrip", "single_word", "normalized",
    "Sequence", "ByteLevel",
    "Metaspace", "Replace", "Prepend", "Split", "Digits", "Strip", "Fuse",
    "ByteFallback", "NFC",
    "NFKC", "NFD", "Lowercase", "Precompiled", "pattern", "String", "Regex", "prepend",
    "replacement", "prepend_scheme", "first", "always", "never",
    "add_prefix_space", "use_regex",
    "trim_offsets", "individual_digits", "behavior", "Isolated", "Removed",
    "MergedWithPrevious",
    "MergedWithNext", "Contiguous", "invert", "pretokenizers", "normalizers", "decoders",
    "processors", "TemplateProcessing", "single", "SpecialToken", "start", "stop", "dropout",
    "unk_token", "fuse_unk", "byte_fallback", "ignore_merges", "continuing_subword_prefix",
    "end_of_word_suffix", "bos_token", "eos_token", "add_bos_token", "add_eos_token",
    "added_tokens_decoder", "chat_template", "<s>", "</s>", "<unk>",
    "<|im_end|>", "a b", "ab c",
    r"\p{L}+", r"\s+(?!\S)", "(a*)*b", "((a|aa)+)+$", "[^a]{1,9999}", "(?<=a", r"\p{Zzz}", "",
]  # fmt: skip
# Texts that all kinds of rules have something to say about.
TEXTS = [
    "", "ab", " ab abc  ab\n\nab", "<s>ab</s> ab", "Hello, world! It's 12345.", 
    "e\u0301\u00e9 中文 😀", "\t \r\n\u00a0\u3000\u2028x",
    "\x00\x7f\u0080\ufffd\U0010ffff", "▁Ġab Ġ▁ <0x41>", "a" * 300,
    "ab " * 100, "한국어 ㄱㄴ \u200d\u200b", "aaaa\naaaa\n \n", "<|im_end|><|im_end|> <mask>x",
]  # fmt: skip


def _bpe(vocab: dict[str, int], merges: list[Any], **model: Any) -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "vocab": vocab, "merges": merges, **model,
    }  # fmt: skip


def _file(normalizer: Any, pre: Any, decoder: Any, extra: list[Any], model: Any) -> bytes:
    return json.dumps(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": extra,
            "normalizer": normalizer, "pre_tokenizer": pre,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
                "pair": [], "special_tokens": {},
            },
            "decoder": decoder, "model": model,
        },
        ensure_ascii=False,
    ).encode()  # fmt: skip


def _byte_level(name: str) -> bytes:
    normalizer, pre = BYTE_LEVEL[name]
    # Only some bytes have tokens: the others are left out of every text.
    vocab = {letter: i for i, letter in enumerate(LETTER_OF_BYTE[32:128] + LETTER_OF_BYTE[:11])}
    merges: list[Any] = ["a b", "ab c", "Ġ ab", ["l", "l"], "Ċ Ċ"]
    for merge in merges:
        vocab["".join(merge.split(" ") if isinstance(merge, str) else merge)] = len(vocab)
    n = len(vocab)
    extra = [
        added("<s>", n, True), added("<|im_end|>", n + 1, True, rstrip=True),
        added("<mask>", n + 2, False, lstrip=True, normalized=True),
        added("ab", vocab["ab"], False, single_word=True),
    ]  # fmt: skip
    return _file(normalizer, pre, LAST, extra, _bpe(vocab, merges, ignore_merges=True))


def _raw(name: str) -> bytes:
    normalizer, pre, decoders = RAW[name]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges = ["a b", "▁ ab", "▁ ▁", "\n \n"]
    for piece in ("▁", "a", "b", "\n", "ab", "▁ab", "▁▁", "\n\n"):
        vocab[piece] = len(vocab)
    extra = [added("<unk>", 0, True), added("<s>", 1, True), added("</s>", 2, True)]
    extra.append(added("▁ab▁", len(vocab), False, normalized=True))
    decoder = {"type": "Sequence", "decoders": decoders}
    model = _bpe(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return _file(normalizer, pre, decoder, extra, model)


_CONFIG: dict[str, Any] = {
    "bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"},
    "add_bos_token": True, "chat_template": "{{ messages[0].content }}",
    "added_tokens_decoder": {"1": {"content": "<s>", "special": True}},
}  # fmt: skip


def seeds() -> list[bytes]:
    config = json.dumps(_CONFIG).encode()
    files = [_byte_level(name) for name in BYTE_LEVEL] + [_raw(name) for name in RAW]
    return [
        join({
            "tokenizer.json": file, "tokenizer_config.json": config,
            "text": TEXTS[i % len(TEXTS)].encode(),
        })
        for i, file in enumerate(files)
    ]  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    files = split(data)
    name = rng.choice(("tokenizer.json",) * 6 + ("tokenizer_config.json", "text"))
    if name == "text":
        text = text_of(files.get(name, b""))
        files[name] = raw_of(mutate_text(text, rng, _WORDS))
    else:
        files[name] = mutate_json_text(files.get(name, b"{}"), rng, _WORDS)
    return join(files)


def run(data: bytes) -> None:
    files = split(data)
    for name in _NAMES:
        (_FOLDER / name).write_bytes(files.get(name, b""))
    if _NAMES[1] not in files:
        (_FOLDER / _NAMES[1]).unlink()
    source = WeightSource(str(_FOLDER), (), 0)
    source.folder = str(_FOLDER)
    with bounded():
        peak, steady = tokenizer_bytes(source)
        require(steady <= peak <= 400 * MIB, f"{peak} bytes to build it")
        tokenizer = Tokenizer.from_source(source)
        for tools in (False, True):
            find_template(source, tools)
        special_tokens(source, tokenizer)
        text = text_of(files.get("text", b""))
        rng = random.Random(len(data))
        for one in (text, rng.choice(TEXTS), some_text(rng)):
            check_text(tokenizer, one)
        for index in range(min(tokenizer.n_vocab, 400)):
            tokenizer.token_text(index)


def check_text(tokenizer: Tokenizer, text: str) -> None:
    """Encode, decode and stream: ids in range, the same text by piece, in parts and as a whole."""
    for special in (False, True):
        ids = tokenizer.encode(text, special)
        require(all(0 <= i < tokenizer.n_vocab for i in ids), f"ids of {text!r}: {ids}")
        parts = [text[: len(text) // 2], text[len(text) // 2 :]]
        require(list(tokenizer.iter_encode(parts, special)) == ids, f"in parts: {text!r}")
        decoded = tokenizer.decode(ids, special)
        stream = tokenizer.stream(special)
        pieces = [stream.push(index) for index in ids] + [stream.flush()]
        require("".join(pieces) == decoded, f"streamed: {text!r}")
        for piece in pieces:
            piece.encode()
