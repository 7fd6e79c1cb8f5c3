"""The parts of a ``tokenizer.json`` that Hugging Face's tokenizers runs: its expressions have a
dialect and a Unicode of their own. Only a normalizer and a pre-tokenizer; the model stays ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from edge_rt.errors import ModelError
from edge_rt.loaders.gguf_cursor import clip
from edge_rt.tokenizer.added import MAX_GROWTH
from edge_rt.tokenizer.raw import components

_NORMALIZERS: Final = (
    "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "Strip", "StripAccents", "Replace", "Prepend",
    "BertNormalizer", "ByteLevel",
)  # fmt: skip
_PRE_TOKENIZERS: Final = (
    "ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "Metaspace",
    "CharDelimiterSplit", "BertPreTokenizer", "UnicodeScripts",
)  # fmt: skip
_EMPTY_MODEL: Final = {"type": "BPE", "vocab": {}, "merges": []}
# Expressions of known families: with them a word always ends after a letter that a space follows,
# and those of the second kind cut white space after its last newline too.
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASED: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|"
    r"\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTION: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_KNOWN_LINES: Final = {
    *(
        _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + numbers
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        for numbers in ("", "{1,3}")
    ),
    *(_CASED % (after, after, numbers) for after, numbers in (
        ("", ""), (_CONTRACTION + "?", "{1,3}"), (_CONTRACTION + "?", ""))),
    r"[!" + "\"" + r"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?"
    r"[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}  # fmt: skip
# What only cuts more, and looks at nothing but digits and single characters.
_KNOWN_CUTS: Final = {r"\p{N}{1,3}", r"\p{N}", r"\d", "[一-龥\u3040-ゟ゠-ヿ]+"}


class Library:
    """A normalizer and a pre-tokenizer; either may be None for none.

    Raises `ModelError` for what the library refuses, and for what it would not survive.
    """

    def __init__(self, normalizer: Any, pre_tokenizer: Any) -> None:
        _check(normalizer, pre_tokenizer)
        from tokenizers import Tokenizer

        text = json.dumps(
            {
                "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
                "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": None,
                "decoder": None, "model": _EMPTY_MODEL,
            }
        )  # fmt: skip
        with _guarded("is not supported"):
            tokenizer = Tokenizer.from_str(text)
        self._normalizer, self._pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
        self.ends_at_space, self.ends_at_line = _ends(normalizer, pre_tokenizer)

    def normalize(self, text: str, place: int) -> str:
        """``text`` as the normalizer makes it, wherever it stands."""
        if not self._normalizer:
            return text
        with _guarded("failed"):
            return str(self._normalizer.normalize_str(text))

    def words(self, text: str) -> Iterator[str]:
        """The words of a normalized text, in the byte-level alphabet."""
        with _guarded("failed"):
            found = self._pre_tokenizer.pre_tokenize_str(text)
        for word, _ in found:
            yield word


@contextmanager
def _guarded(what: str) -> Iterator[None]:
    """Makes what the library raises ours, pyo3's PanicException included, which is no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = " ".join(str(error)[:160].split())
        raise ModelError(f"its normalizer or pre-tokenizer {what}: {reason}") from None


def _check(normalizer: Any, pre_tokenizer: Any) -> None:
    """Refuse components that no byte-level tokenizer has: some make the library panic, which it
    prints, and a row of replacements can make a text of any length."""
    growth = 1
    for part in components(normalizer, "normalizers"):
        kind = part.get("type")
        if kind not in _NORMALIZERS:
            raise ModelError(f"its normalizer {clip(kind)} is not supported")
        for key in ("content", "prepend"):
            growth *= max(1, len(str(part.get(key, ""))))
    if growth > MAX_GROWTH:
        raise ModelError(f"its normalizer makes a text more than {MAX_GROWTH} times as long")
    for part in components(pre_tokenizer, "pretokenizers"):
        if part.get("type") not in _PRE_TOKENIZERS:
            raise ModelError(f"its pre-tokenizer {clip(part.get('type'))} is not supported")


def _ends(normalizer: Any, pre_tokenizer: Any) -> tuple[bool, bool]:
    """`PreTokenizer`'s properties for components that are known, else (False, False)."""
    nothing = (False, False)
    if any(part.get("type") != "NFC" for part in components(normalizer, "normalizers")):
        return nothing
    at_space, at_line = False, False
    for part in components(pre_tokenizer, "pretokenizers"):
        if part.get("type") == "ByteLevel":
            if part.get("add_prefix_space", True):
                return nothing
            at_space = at_space or part.get("use_regex", True)
        elif part.get("type") == "Split":
            pattern = part.get("pattern")
            regex = pattern.get("Regex") if isinstance(pattern, dict) else None
            if isinstance(regex, str):  # some files have the characters, some their escapes
                regex = regex.replace("\r", "\\r").replace("\n", "\\n")
            if part.get("behavior") != "Isolated" or part.get("invert"):
                return nothing
            if regex in _KNOWN_LINES:
                # The first of them decides; what follows only cuts its words.
                at_line = at_line or not at_space
                at_space = True
            elif regex == _GPT2:
                at_space = True
            elif regex not in _KNOWN_CUTS:
                return nothing
        elif part.get("type") != "Digits":
            return nothing
    return at_space, at_line
