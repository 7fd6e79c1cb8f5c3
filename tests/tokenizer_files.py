"""``tokenizer.json`` files of every kind that is supported, made of a GGUF file's vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge_rt.loaders.gguf import GGUFFile

CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + CONTRACTION
    + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    + CONTRACTION
    + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LAST = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def family(number: str) -> dict[str, Any]:
    words = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + number + TAIL
    return sequence(split(words), LAST)


BYTE_LEVEL: dict[str, tuple[Any, Any]] = {  # name -> (normalizer, pre_tokenizer)
    "gpt-2": (None, LAST | {"use_regex": True}),
    "gpt-2 with a space before": (None, LAST | {"use_regex": True, "add_prefix_space": True}),
    "qwen2": ({"type": "NFC"}, family("")),
    "llama-3": (None, family("{1,3}")),
    "smollm": (
        None,
        sequence({"type": "Digits", "individual_digits": True}, LAST | {"use_regex": True}),
    ),
    "gpt-4o": (None, sequence(split(CASED), LAST)),
    "deepseek-v3": (
        {"type": "Sequence", "normalizers": []},
        sequence(
            split(r"\p{N}{1,3}"),
            split("[一-龥\u3040-ゟ゠-ヿ]+"),
            split(
                "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
                "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
            ),
            LAST,
        ),
    ),
    "any": ({"type": "NFKC"}, sequence(split(r"\w+|\W"), LAST)),
}
ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
METASPACE = {"type": "Metaspace", "replacement": "▁"}
FALLBACK = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
RAW: dict[str, tuple[Any, Any, list[dict[str, Any]]]] = {  # normalizer, pre_tokenizer, decoders
    "llama-2": (
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, ESCAPE]},
        None,
        [*FALLBACK, STRIP],
    ),
    "gemma": (
        ESCAPE,
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
         "invert": False},
        FALLBACK,
    ),
    "mistral": (None, METASPACE | {"prepend_scheme": "first", "split": False}, [*FALLBACK, STRIP]),
    "always": (None, METASPACE | {"prepend_scheme": "always", "split": True}, [*FALLBACK, STRIP]),
    "never": (None, METASPACE | {"prepend_scheme": "never", "split": False}, FALLBACK),
    "old": (None, METASPACE | {"add_prefix_space": True}, [*FALLBACK, STRIP]),
}  # fmt: skip


def added(content: str, token_id: int, special: bool, **flags: bool) -> dict[str, Any]:
    """An entry of added_tokens."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **plain, **flags, "special": special}


def tokens_of(gguf: Path) -> tuple[list[str], list[int]]:
    file = GGUFFile.open(gguf, allow_unsupported=True)
    tokens = file.get_array("tokenizer.ggml.tokens").raw()
    return [t.decode() for t in tokens], list(file.get_array("tokenizer.ggml.token_type"))


def merges_in(gguf: Path) -> list[Any]:
    file = GGUFFile.open(gguf, allow_unsupported=True)
    return [merge.decode() for merge in file.get_array("tokenizer.ggml.merges").raw()]


def byte_level(gguf: Path, name: str, as_pairs: bool = False, **model: Any) -> dict[str, Any]:
    """The content of a byte-level tokenizer.json with the vocabulary and merges of ``gguf``."""
    normalizer, pre_tokenizer = BYTE_LEVEL[name]
    tokens, kinds = tokens_of(gguf)
    merges: list[Any] = merges_in(gguf)
    if as_pairs:
        merges = [m.split(" ") for m in merges]
    vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == 1}
    extra = [
        added(t, i, kind == 3)
        for i, (t, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != 1
    ]
    return content(
        normalizer, pre_tokenizer, LAST, extra, vocab, merges,
        fuse_unk=False, byte_fallback=False, **{"ignore_merges": False, **model},
    )  # fmt: skip


def merges_of(tokens: list[str], scores: list[float]) -> list[list[str]]:
    """All ways to join two tokens, the best token first, as converters make them."""
    known = dict(zip(tokens, scores, strict=True))
    found = [
        (-score, token, at)
        for token, score in known.items()
        for at in range(1, len(token))
        if token[:at] in known and token[at:] in known
        if not (token[:at].startswith("<0x") or token[at:].startswith("<0x"))
    ]
    return [[token[:at], token[at:]] for _, token, at in sorted(found)]


def raw(gguf: Path, name: str, as_pairs: bool = True, **model: Any) -> dict[str, Any]:
    """The content of a tokenizer.json in the manner of SentencePiece."""
    normalizer, pre_tokenizer, decoders = RAW[name]
    tokens, kinds = tokens_of(gguf)
    scores = list(GGUFFile.open(gguf).get_array("tokenizer.ggml.scores"))
    normal = [(t, s) for t, s, k in zip(tokens, scores, kinds, strict=True) if k == 1]
    merges: list[Any] = merges_of(*map(list, zip(*normal, strict=True)))
    if not as_pairs:
        merges = [" ".join(m) for m in merges]
    vocab = {t: i for i, t in enumerate(tokens)}
    extra = [added(t, i, k != 4) for i, (t, k) in enumerate(zip(tokens, kinds, strict=True))
             if k in (2, 3, 4)]  # fmt: skip
    return content(
        normalizer, pre_tokenizer, {"type": "Sequence", "decoders": decoders}, extra, vocab,
        merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True, **model,
    )  # fmt: skip


def content(
    normalizer: Any,
    pre_tokenizer: Any,
    decoder: Any,
    extra: list[dict[str, Any]],
    vocab: dict[str, int],
    merges: list[Any],
    **model: Any,
) -> dict[str, Any]:
    plain = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": extra,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": None,
        "decoder": decoder,
        "model": {**plain, "end_of_word_suffix": None, **model, "vocab": vocab, "merges": merges},
    }  # fmt: skip


def write(folder: Path, value: dict[str, Any], **dump: Any) -> Path:
    """Write tokenizer.json into ``folder``; ``dump`` goes to ``json.dumps``."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(value, **dump))
    return folder
