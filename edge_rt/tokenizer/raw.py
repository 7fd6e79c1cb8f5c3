"""What a ``tokenizer.json`` does to a text whose spaces become "▁": read, not left to a library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from edge_rt.errors import ModelError
from edge_rt.tokenizer.added import Normalize, native_normalizer
from edge_rt.tokenizer.special import AT_START, INSIDE
from edge_rt.tokenizer.words import SPACE

_MAX_PREFIX: Final = 64  # letters; known ones are "▁"
_BEFORE_SPACE: Final = re.compile(f"(?={SPACE})")


class Whole:
    """Splits nothing."""

    ends_at_space, ends_at_line = True, False

    def words(self, text: str) -> Iterator[str]:
        """The text, if there is one."""
        if text:
            yield text


class BeforeSpaces(Whole):
    """Splits before each "▁"."""

    def words(self, text: str) -> Iterator[str]:
        """What starts with a "▁" each, and what stands before the first."""
        yield from filter(None, _BEFORE_SPACE.split(text))


@dataclass(frozen=True)
class RawText:
    """``normalize`` is done before added tokens are sought a second time, ``prepare`` after."""

    normalize: Normalize
    prepare: Normalize
    splitter: Whole


def read_raw_text(normalizer: Any, pre_tokenizer: Any) -> RawText:
    """From the components as the file has them; raises `ModelError` for others than these."""
    steps = [_step(part) for part in components(normalizer, "normalizers")]
    escaped = any(old == " " and new == SPACE for old, new in steps)
    prepare, splitter = native_normalizer([]), Whole()
    for part in components(pre_tokenizer, "pretokenizers"):
        kind, pattern = part.get("type"), part.get("pattern")
        if kind == "Metaspace" and part.get("replacement") == SPACE:
            prepare = _metaspace(part)
            escaped = True
            if part.get("split", True):
                splitter = BeforeSpaces()
        elif not (kind == "Split" and pattern == {"String": " "} and escaped):
            # A Split at a space that is none any more does nothing.
            raise ModelError(f"its pre-tokenizer {str(part)[:80]} is not supported")
    if not escaped:
        raise ModelError('nothing makes its spaces to "▁", which is not supported')
    return RawText(native_normalizer(steps), prepare, splitter)


def components(component: Any, key: str) -> list[dict[str, Any]]:
    """The components of a Sequence, which has them at ``key``, or the only one."""
    if component is None:
        return []
    if not isinstance(component, dict):
        raise ModelError(f"{str(component)[:80]} is not a component")
    if component.get("type") != "Sequence":
        return [component]
    inner = component.get(key)
    if not isinstance(inner, list):
        raise ModelError(f"{str(component)[:80]} is not a sequence")
    return [part for one in inner for part in components(one, key)]


def _step(part: dict[str, Any]) -> tuple[str, str]:
    pattern = part.get("pattern")
    if part.get("type") == "Prepend" and isinstance(part.get("prepend"), str):
        if len(part["prepend"]) > _MAX_PREFIX:
            raise ModelError(f"its normalizer puts more than {_MAX_PREFIX} letters before a text")
        return "", part["prepend"]
    if part.get("type") == "Replace" and isinstance(pattern, dict):
        old, new = pattern.get("String"), part.get("content")
        if isinstance(old, str) and isinstance(new, str) and old:
            return old, new
    raise ModelError(f"its normalizer {str(part)[:80]} is not supported")


def _metaspace(part: dict[str, Any]) -> Normalize:
    scheme = part.get("prepend_scheme")
    if scheme is None:
        scheme = "always" if part.get("add_prefix_space", True) else "never"
    if scheme not in ("always", "first", "never"):
        raise ModelError(f"its pre-tokenizer {str(part)[:80]} is not supported")

    def prepare(text: str, place: int) -> str:
        text = text.replace(" ", SPACE)
        wanted = place == AT_START if scheme == "first" else place != INSIDE
        if scheme != "never" and wanted and not text.startswith(SPACE):
            text = SPACE + text
        return text

    return prepare
