"""The parts of a ``tokenizer.json`` that Hugging Face's tokenizers runs: its expressions have a
dialect and a Unicode of their own. Only a normalizer and a pre-tokenizer; the model stays ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from edge_rt.errors import ModelError
from edge_rt.tokenizer.raw import components

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
    """A normalizer and a pre-tokenizer; either may be None for none."""

    def __init__(self, normalizer: Any, pre_tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        text = json.dumps(
            {
                "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
                "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": None,
                "decoder": None, "model": _EMPTY_MODEL,
            }
        )  # fmt: skip
        with _library_errors("its normalizer or pre-tokenizer is not supported"):
            tokenizer = Tokenizer.from_str(text)
        self._normalizer, self._pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
        self.ends_at_space, self.ends_at_line = _ends(normalizer, pre_tokenizer)

    def normalize(self, text: str, place: int) -> str:
        """``text`` as the normalizer makes it, wherever it stands."""
        if self._normalizer is None:
            return text
        with _library_errors("its normalizer cannot take this text"):
            return str(self._normalizer.normalize_str(text))

    def words(self, text: str) -> Iterator[str]:
        """The words of a normalized text, in the byte-level alphabet."""
        # Its expressions may backtrack without end; the library gives up after 10^7 steps.
        with _library_errors("its pre-tokenizer cannot take this text"):
            words = self._pre_tokenizer.pre_tokenize_str(text)
        for word, _ in words:
            yield word


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    """What the library raises as a ModelError, pyo3's PanicException (no Exception) included."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{what}: {str(error)[:160]}") from None


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
