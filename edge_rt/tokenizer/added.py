"""Normalizing and added tokens of a ``tokenizer.json``, as Hugging Face's tokenizers does them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from edge_rt.errors import ModelError
from edge_rt.tokenizer.special import AFTER_TOKEN, AT_START, INSIDE, MAX_SPECIALS, UNICODE_SPACE
from edge_rt.tokenizer.unicode_classes import is_letter

_SPACE_BEFORE: Final = re.compile(f"[{UNICODE_SPACE}]*\\Z")
_SPACE_AFTER: Final = re.compile(f"[{UNICODE_SPACE}]*")
# Of a text by its normalizer; those that are known replace one character by another one.
MAX_GROWTH: Final = 8
_MAX_GROWN: Final = 1024  # letters more
Normalize = Callable[[str, int], str]


class AddedToken(NamedTuple):
    """A token beside the model's; the flags are those of the file."""

    content: str
    token_id: int
    special: bool
    lstrip: bool
    rstrip: bool
    single_word: bool
    normalized: bool


def _is_word(character: str) -> bool:
    """Rust's \\w: alphabetic, marks, decimal numbers, connectors and joiners."""
    if is_letter(character) or character in "\u200c\u200d":
        return True
    code = ord(character)
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Nd", "Nl", "Pc") or (
        0x24B6 <= code <= 0x24E9  # circled letters, and squared ones
        or 0x1F130 <= code <= 0x1F149
        or 0x1F150 <= code <= 0x1F169
        or 0x1F170 <= code <= 0x1F189
    )


class _Finder:
    """The leftmost of some texts in another one, the longest where several start."""

    def __init__(self, tokens: dict[str, AddedToken]) -> None:
        self._tokens = tokens
        lengths: dict[str, set[int]] = {}
        for text in tokens:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        firsts = "".join(map(re.escape, lengths))
        self._firsts = re.compile(f"[{firsts}]") if firsts else None

    def matches(self, text: str) -> Iterator[tuple[AddedToken, int, int]]:
        """(token, start, end), from left to right, without overlaps."""
        at = 0
        while self._firsts and (match := self._firsts.search(text, at)):
            start = match.start()
            at = start + 1
            for length in self._lengths[text[start]]:
                token = self._tokens.get(text[start : start + length])
                if token:
                    at = start + length
                    yield token, start, at
                    break


class AddedTokens:
    """Cuts a text at the added tokens and normalizes what lies between them."""

    def __init__(self, tokens: list[AddedToken], normalize: Normalize) -> None:
        assert len(tokens) <= MAX_SPECIALS
        self._normalize = normalize
        as_they_are = {token.content: token for token in tokens if not token.normalized}
        normalized = (token for token in tokens if token.normalized)
        by_text = {normalize(token.content, AT_START): token for token in normalized}
        by_text.pop("", None)
        self._plain, self._normalized = _Finder(as_they_are), _Finder(by_text)
        self.texts = [*as_they_are, *by_text, *(token.content for token in by_text.values())]
        stripping = [token.content for token in tokens if token.rstrip]
        self.rstrip_ends = {
            text[-1] for one in stripping for text in (one, normalize(one, AT_START)) if text
        }
        self.any_lstrip = any(token.lstrip for token in tokens)

    def fragments(self, text: str, special: bool, place: int) -> Iterator[int | tuple[str, int]]:
        """Ids of added tokens (of special ones only if ``special``), and normalized texts."""
        for fragment in _split(self._plain, text, special):
            if isinstance(fragment, int):
                yield fragment
                place = AFTER_TOKEN
                continue
            for piece in _split(self._normalized, self._normalize(fragment, place), special):
                if isinstance(piece, int):
                    yield piece
                    place = AFTER_TOKEN
                else:
                    yield piece, place
                    place = INSIDE


def _split(finder: _Finder, text: str, special: bool) -> Iterator[int | str]:
    done = 0
    for token, start, end in finder.matches(text):
        if token.special and not special:
            continue
        if token.single_word and (
            (start > 0 and _is_word(text[start - 1])) or (end < len(text) and _is_word(text[end]))
        ):
            continue
        if token.lstrip:
            before = _SPACE_BEFORE.search(text, 0, start)
            start = max(before.start() if before else start, done)
        if token.rstrip:
            after = _SPACE_AFTER.match(text, end)
            end = after.end() if after else end
        if done < start:
            yield text[done:start]
        yield token.token_id
        done = end
    if done < len(text):
        yield text[done:]


def native_normalizer(steps: list[tuple[str, str]]) -> Normalize:
    """Steps are ("", prefix) to prepend, or (text, replacement); the normalizer raises `ModelError`
    for steps that make a text many times longer, as a few of them in a row can."""

    def normalize(text: str, place: int) -> str:
        limit = MAX_GROWTH * len(text) + _MAX_GROWN
        for old, new in steps:
            if old:
                more = text.count(old) * (len(new) - len(old)) if len(new) > len(old) else 0
                if len(text) + more > limit:
                    raise ModelError(
                        f"its normalizer makes a text more than {MAX_GROWTH} times as long"
                    )
                text = text.replace(old, new)
            elif text and place != INSIDE:
                text = new + text
        return text

    return normalize
