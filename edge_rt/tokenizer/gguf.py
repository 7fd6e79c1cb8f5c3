"""What a GGUF file's metadata say of its tokenizer."""

from __future__ import annotations

from typing import Final

from edge_rt.errors import ModelError
from edge_rt.loaders.gguf_cursor import LazyArray
from edge_rt.loaders.source import WeightSource
from edge_rt.tokenizer.bpe import BytePairModel, Merges, RawPairModel
from edge_rt.tokenizer.parts import Parts
from edge_rt.tokenizer.pre_tokenizers import PRE_TOKENIZERS, REFUSED, PreTokenizer, StagedSplitter
from edge_rt.tokenizer.special import ROLE_KEYS, Specials, settle_ends, special_tokens
from edge_rt.tokenizer.spm import SentencePieceModel
from edge_rt.tokenizer.vocab import Vocabulary

_KEY: Final = "tokenizer.ggml."
_MODELS: Final = ("gpt2", "llama", "gemma4")
# Those of llama.cpp that are no byte-pair encoding and not SentencePiece's.
_OTHER_MODELS: Final = {
    "bert": "WordPiece, of encoders",
    "t5": "Unigram, of encoder-decoders",
    "rwkv": "the greedy one of RWKV",
    "plamo2": "the one of PLaMo-2",
    "hybriddna": "the one of HybriDNA",
    "whitespace": "the one of whitespace-separated words",
    "none": "no tokenizer at all",
    "no_vocab": "no tokenizer at all",
}
# Where the file has no such key, llama.cpp's defaults for SentencePiece. Its default of 11 for
# byte-pair encoding is a guess about one family of old files.
_SPM_DEFAULTS: Final = {"unknown": 0, "bos": 1, "eos": 2}


def read_gguf(file: WeightSource) -> Parts:
    """Build the parts of a `Tokenizer`; raises `ModelError`. Weights are not touched."""
    kind = file.get_str(_KEY + "model")
    if kind not in _MODELS:
        known = f" ({_OTHER_MODELS[kind]})" if kind in _OTHER_MODELS else ""
        raise ModelError(
            f"{file.path}: tokenizer model {kind[:40]!r}{known} is not supported "
            f"(supported: {', '.join(_MODELS)})"
        )
    pre_name = "gemma4" if kind == "gemma4" else file.get_str(_KEY + "pre", "")
    pre = None if kind == "llama" else _pre_tokenizer(file, pre_name)
    tokens = file.get_array(_KEY + "tokens", kind="string")
    n_tokens = len(tokens)
    vocabulary = Vocabulary(tokens, n_tokens, _numbers(file, "token_type", n_tokens, "int32"))

    def token_id(name: str) -> int | None:
        default = _SPM_DEFAULTS.get(name) if kind == "llama" else None
        return _token_id(file, name, n_tokens, default)

    roles = {name: index for name in ROLE_KEYS if (index := token_id(name)) is not None}
    for old, name in (("prefix", "fim_pre"), ("suffix", "fim_suf"), ("middle", "fim_mid")):
        if (index := token_id(old)) is not None:
            roles[name] = index
    ends = settle_ends(vocabulary, roles)
    arch = file.get_str("general.architecture", "")
    specials = special_tokens(vocabulary, file.get_str("general.name", ""), pre_name, arch)
    model: BytePairModel | RawPairModel | SentencePieceModel
    if pre is None:
        scores = _numbers(file, "scores", n_tokens, "float32", "int32")
        prefix = file.get_bool(_KEY + "add_space_prefix", True)
        model = SentencePieceModel(vocabulary, scores, token_id("unknown"), prefix)
        add_bos = True
    else:
        model, prefix = _pair_model(file, vocabulary, pre), False
        add_bos = pre.add_bos
    add_bos = file.get_bool(_KEY + "add_bos_token", add_bos)
    if pre is not None and pre.always_bos:
        add_bos = True
    return Parts(
        vocabulary,
        model,
        Specials(specials),
        bos_id=token_id("bos"),
        eos_ids=ends,
        add_bos=add_bos,
        add_eos=file.get_bool(_KEY + "add_eos_token", False),
        strips_space=prefix,
    )


def _pre_tokenizer(file: WeightSource, name: str) -> PreTokenizer:
    pre = PRE_TOKENIZERS.get(name)
    if pre is None:
        reason = f" ({REFUSED[name]})" if name in REFUSED else ""
        what = f"pre-tokenizer {name[:40]!r}{reason} is not supported"
        if not name:
            what = "it names no pre-tokenizer"
        raise ModelError(f"{file.path}: {what}, and how its text must be split is not guessed")
    return pre


def _pair_model(
    file: WeightSource, vocabulary: Vocabulary, pre: PreTokenizer
) -> BytePairModel | RawPairModel:
    array = file.get_array(_KEY + "merges", None, kind="string")
    if array is None and pre.needs_merges:
        array = file.get_array(_KEY + "merges", kind="string")  # raises
    merges = Merges(vocabulary, array if array is not None else ())
    splitter = StagedSplitter(pre)
    if pre.raw:
        return RawPairModel(vocabulary, merges, splitter, newline_runs=pre.newline_runs)
    return BytePairModel(vocabulary, merges, splitter, pre.whole_words)


def _numbers(file: WeightSource, name: str, n_tokens: int, *kinds: str) -> LazyArray | None:
    found = file.get_array(_KEY + name, None)
    if found is not None and (found.kind not in kinds or len(found) != n_tokens):
        raise ModelError(f"{file.path}: {found.name} is {found!r}, not {n_tokens} x {kinds[0]}")
    return found


def _token_id(file: WeightSource, name: str, n_tokens: int, default: int | None) -> int | None:
    """The id at ``tokenizer.ggml.<name>_token_id``; -1 (or 2^32 - 1) is written for none."""
    key = f"{_KEY}{name}_token_id"
    value = file.get_int(key, None)
    if value is None:
        return default if default is not None and default < n_tokens else None
    if value in (0xFFFFFFFF, -1):
        return None
    return file.get_int(key, minimum=0, maximum=n_tokens - 1)
