"""How a text is cut into words before byte-pair merging: every ``tokenizer.ggml.pre`` of llama.cpp.

llama.cpp applies the expressions of a name one after the other, each within the pieces that the
ones before left; what an expression does not match is a piece too. It matches in one of two ways,
which are kept here because they decide what a text becomes:

* with ``\\p{..}`` in it, on a text whose characters beyond ASCII are replaced by one letter for
  their class (`collapse`), so upper and lower case are the same there beyond ASCII;
* else on the text itself, where only white space beyond ASCII is replaced (`plain_spaces`).

``\\s`` is ASCII's white space and the replacements. Some expressions stand for code of llama.cpp
that does the same by hand; where that code differs from the expression, it is what counts.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from edge_rt.tokenizer.unicode_classes import collapse, collapse_han, plain_spaces

# Members of a class in a collapsed text, for use inside [].
_MEMBERS: Final = {
    "{L}": "A-Za-z\xd2", "{N}": "0-9\xd1", "{M}": "\xd4", "{s}": " \\t-\\r",
    "{P}": "!-#%-*,-/:;?@\\[-\\]_{}\xd3", "{S}": "$+<=>^`|~\xd5",
    "{Upper}": "A-Z\xd2", "{Lower}": "a-z\xd2", "{l}": "A-Za-z\xd2",
}  # fmt: skip
View = Callable[[str], str]


@dataclass(frozen=True)
class Stage:
    """One expression and the text that it is matched on."""

    pattern: str
    view: View = collapse

    def compiled(self) -> re.Pattern[str]:
        pattern = self.pattern
        for name, members in _MEMBERS.items():
            pattern = pattern.replace(name, members)
        return re.compile(pattern)


@dataclass(frozen=True)
class PreTokenizer:
    """What a name means.

    ``whole_words``: a word that is a token is not built by merges (ignore_merges). ``raw``: pieces
    are UTF-8 with "▁" for a space and byte tokens <0x00> to <0xFF>, not the byte-level alphabet.
    ``newline_runs``: a run of newlines that is a token is one. ``needs_merges``: a file without
    merges is damaged. ``always_bos``: even where the file says no.

    Two properties say where a long text may be cut without changing a word (`Tokenizer`):
    ``ends_at_space``: no word has a letter and then a space or a newline in it, and what follows
    the letter does not matter to the words before (for ``raw`` ones: no cut there changes what can
    be merged). ``ends_at_line``: the same for a newline and then a letter, whatever white space
    the newline ends.
    """

    stages: tuple[Stage, ...]
    add_bos: bool = False
    whole_words: bool = False
    ends_at_space: bool = True
    ends_at_line: bool = False
    raw: bool = False
    newline_runs: bool = False
    needs_merges: bool = True
    always_bos: bool = False


class StagedSplitter:
    """Cuts texts into words; holds the compiled expressions of one `PreTokenizer`."""

    def __init__(self, pre: PreTokenizer) -> None:
        self._stages = [(stage.compiled(), stage.view) for stage in pre.stages]
        self.ends_at_space, self.ends_at_line = pre.ends_at_space, pre.ends_at_line

    def words(self, text: str) -> Iterator[str]:
        """The words of ``text`` in order; together they are the text."""
        if not text:
            return
        views: dict[View, str] = {}
        ends = array("I", [len(text)])
        for pattern, view in self._stages:
            if view not in views:
                views[view] = view(text)
            ends = _cut(pattern, views[view], ends)
        start = 0
        for end in ends:
            yield text[start:end]
            start = end


def _cut(pattern: re.Pattern[str], text: str, ends: array[int]) -> array[int]:
    """Where the pieces end when those that end at ``ends`` are cut by ``pattern``."""
    found = array("I")
    add = found.append
    start = 0
    for end in ends:
        for match in pattern.finditer(text, start, end):
            left, right = match.span()
            if left > start:
                add(left)
            if right > left:
                add(right)
            start = right
        if start < end:
            add(end)
        start = end
    return found


def _one(*patterns: str, **properties: bool) -> PreTokenizer:
    return PreTokenizer(tuple(map(Stage, patterns)), **properties)


_CONTRACTION = "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_TAIL = "[{s}]+(?![^{s}])|[{s}]+"
_LINES = "[{s}]*[\r\n]+|" + _TAIL
_MARKS_AND_LINES = " ?[^{s}{L}{N}]+[\r\n]*|" + _LINES
_WORD = "[^\r\n{L}{N}]?[{L}]+"
_GPT2 = "'(?:[stmd]|re|ve|ll)| ?[{L}]+| ?[{N}]+| ?[^{s}{L}{N}]+|" + _TAIL
_LLAMA3 = f"{_CONTRACTION}|{_WORD}|[{{N}}]{{1,3}}|{_MARKS_AND_LINES}"
_QWEN2 = f"{_CONTRACTION}|{_WORD}|[{{N}}]|{_MARKS_AND_LINES}"
# ASCII punctuation and letters, words with their marks, punctuation: DeepSeek-V3 and others.
_PUNCTUATED = "[!-/:-@\\[-`{-~][A-Za-z]+|[^\r\n{L}{P}{S}]?[{L}{M}]+| ?[{P}{S}]+"
_CJK = Stage("[\u4e00-\u9fa5\u3040-\u30ff]+", plain_spaces)
_NEWLINES = Stage("[^\n]+|\n+", plain_spaces)
_SINGLE_NEWLINES = Stage("[\r\n]", plain_spaces)
_DEEPSEEK_CJK = Stage("[\u0800-\u9fa5\uac00-\ud7ff]+", plain_spaces)
# From the right in threes; the text before goes with the first group, as in llama.cpp's code.
_THREES_FROM_RIGHT = Stage("[^{N}]*[{N}]{1,3}(?=(?:[{N}]{3})*(?![{N}]))|[^{N}]+")


def _cased(upper: str, lower: str, after: str = "") -> str:
    """Words whose capitals come first: GPT-4o's and its kin's, ``after`` as their suffix."""
    head = "[^\r\n{L}{N}]?"
    return f"{head}[{upper}]*[{lower}]+{after}|{head}[{upper}]+[{lower}]*{after}"


def _cased_words(number: str, upper: str, lower: str, after: str = "") -> str:
    return f"{_cased(upper, lower, after)}|{number}| ?[^{{s}}{{L}}{{N}}]+[\r\n/]*|{_LINES}"


_gpt2 = _one(_GPT2)
_digits = _one("[{N}]", _GPT2)
_llama3 = _one(_LLAMA3, ends_at_line=True)
_qwen2 = _one(_QWEN2, ends_at_line=True)
_bloom = PreTokenizer((Stage("(?: ?[^( \t-\r|.,!?…。，、।۔،)]+)", plain_spaces),))
_gpt4o = _one(
    _cased_words("[{N}]{1,3}", "{Upper}", "{Lower}", f"(?:{_CONTRACTION})?"), ends_at_line=True
)
_deepseek_v3 = PreTokenizer(
    (Stage("[{N}]{1,3}"), _CJK, Stage(f"{_PUNCTUATED}[\r\n]*|{_LINES}")), ends_at_line=True
)
_bailing = _one(
    f"{_CONTRACTION}|{_WORD}|[{{N}}]| ?[^{{s}}{{L}}{{N}}]+[\r\n]*|[{{s}}]*[\r\n]|{_TAIL}",
    ends_at_line=True,
)
_tiny_aya = PreTokenizer(
    (
        _THREES_FROM_RIGHT,
        Stage(_cased_words("[{N}]{1,3}", "{L}{M}", "{L}{M}", f"(?:{_CONTRACTION})?")),
    ),
    ends_at_line=True,
)
_gemma4 = PreTokenizer((_NEWLINES,), ends_at_line=True, raw=True, newline_runs=True)
# The letters that DeepSeek LLM's expression lists, and no others.
_DEEPSEEK_LETTERS: Final = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134"
    "\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)

_GROUPS: Final[dict[str, PreTokenizer]] = {
    "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert "
    "jina-v1-en jina-v2-code roberta-bpe exaone4 mpt olmo jais trillion granite-docling": _gpt2,
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": _digits,
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": replace(
        _llama3, add_bos=True, whole_words=True
    ),
    "dbrx smaug-bpe chatglm-bpe": _llama3,
    "glm4 glm5": replace(_llama3, whole_words=True),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": _qwen2,
    "qwen35": _one(
        f"{_CONTRACTION}|[^\r\n{{L}}{{N}}]?[{{L}}{{M}}]+|[{{N}}]"
        f"| ?[^{{s}}{{L}}{{M}}{{N}}]+[\r\n]*|{_LINES}",
        ends_at_line=True,
    ),
    "ufakzeka": _one(f"{_WORD}|[{{N}}]|{_MARKS_AND_LINES}", ends_at_line=True),
    "laguna": PreTokenizer((_NEWLINES, Stage(_QWEN2)), ends_at_line=True),
    "seed-coder": _one(
        f"{_CONTRACTION}|{_WORD}|[{{N}}]| ?[^{{s}}{{L}}{{N}}]+|{_LINES}", ends_at_line=True
    ),
    "minicpm5": _one(
        "[{N}]{1,3}",
        f"{_CONTRACTION}|{_WORD}|[{{N}}]+|{_MARKS_AND_LINES}",
        whole_words=True,
        ends_at_line=True,
    ),
    "bailingmoe bailingmoe2 llada-moe": _bailing,
    # Cascading runs of white space.
    "jais-2": _one(
        f"{_CONTRACTION}|{_WORD}|[{{N}}]{{1,3}}| ?[^{{s}}{{L}}{{N}}]+[\r\n]*|[{{s}}]*[\r\n]+|"
        + "".join(f"[{{s}}]{{{n}}}(?![^{{s}}])|" for n in (512, 256, 128, 64, 32, 16, 8, 4))
        + "[{s}]{1,2}(?![^{s}])|[{s}]",
        ends_at_line=True,
    ),
    # A word may have spaces between its letters.
    "exaone-moe": _one(
        f"{_CONTRACTION}|[^\r\n{{L}}{{N}}]?[{{L}}][{{L}}{{M}}]*(?: [{{L}}][{{L}}{{M}}]*)*|[{{N}}]"
        f"| ?[^{{s}}{{L}}{{N}}]+[\r\n/]?|[{{s}}]*[\r\n]|{_TAIL}",
        ends_at_space=False,
        ends_at_line=True,
    ),
    "tekken": _one(
        _cased_words("[{N}]", "{Upper}", "{Lower}"),
        add_bos=True,
        whole_words=True,
        ends_at_line=True,
    ),
    "gpt-4o llama4 kanana2 talkie minimax-m2": _gpt4o,
    "granite-embed-multi-97m": _one(
        _cased_words("[{N}]{1,3}", "{Upper}{M}", "{Lower}{M}", f"(?:{_CONTRACTION})?"),
        whole_words=True,
        ends_at_line=True,
    ),
    "tiny_aya cohere2moe": _tiny_aya,
    "youtu": PreTokenizer(
        (
            Stage(
                "[\uac00-\ud7a3\u3131-\u318e]+|[！…“”‘’—：；，\u3001-\u303f\ufe30-\ufe4f]+"
                "|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u30ff]+",
                plain_spaces,
            ),
            Stage(_cased_words("[{N}]", "{L}{M}", "{L}{M}", f"(?:{_CONTRACTION})?")),
        ),
        whole_words=True,
        ends_at_line=True,
    ),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": _deepseek_v3,
    "spark2_5": PreTokenizer(
        (Stage("[{N}]{1,3}"), _CJK, Stage(f"{_PUNCTUATED}|[\r\n]|{_TAIL}"), Stage("[{N}]"))
    ),
    "deepseek-coder": PreTokenizer(
        (
            _SINGLE_NEWLINES,
            Stage("[{s}]?[{L}]+"),
            Stage("[{s}]?[{P}]+"),
            _DEEPSEEK_CJK,
            Stage("[{N}]"),
        )
    ),
    # A letter that is not listed stays with the space after it.
    "deepseek-llm": PreTokenizer(
        (
            _SINGLE_NEWLINES,
            Stage(f"[ \t-\r]?[{_DEEPSEEK_LETTERS}]+", plain_spaces),
            Stage("[ \t-\r]?[!-/:-~！-／：-～‘-‟\u3000-。]+", plain_spaces),
            Stage("[ \t-\r]+\\Z", plain_spaces),
            _DEEPSEEK_CJK,
            Stage("[{N}]+"),
        ),
        ends_at_space=False,
    ),
    "afmoe": PreTokenizer(
        (
            _THREES_FROM_RIGHT,
            Stage(
                "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
                "\u0e40-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
                "\u1100-\u11ff]+",
                plain_spaces,
            ),
            Stage(f"{_PUNCTUATED}[\r\n]*|{_LINES}"),
        ),
        ends_at_line=True,
    ),
    # Han characters are words of their own, \xd6 and \xd7; the other letters are {l}.
    "kimi-k2": PreTokenizer(
        (
            Stage(
                f"[\xd6\xd7]+|[^\r\n{{l}}\xd6{{N}}]?[{{l}}]+(?:{_CONTRACTION})?|[{{N}}]{{1,3}}"
                f"| ?[^{{s}}{{l}}\xd6{{N}}]+[\r\n]*|{_LINES}",
                collapse_han,
            ),
        ),
        ends_at_line=True,
        needs_merges=False,
    ),
    "falcon": _one("[{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "default": _one("[{P}$+<=>^~|]+", _GPT2, "[{N}]+", "[0-9][0-9][0-9]"),
    "poro-chat bloom gpt3-finnish": _bloom,
    "viking": replace(_bloom, stages=(*_bloom.stages, Stage("[{N}]"))),
    "chameleon": PreTokenizer(
        (
            Stage("<sentinel:[0-9]+>", plain_spaces),
            Stage("IMGIMG[A-I]{1,4}Z", plain_spaces),
            Stage("[\t\n]|    |  ", plain_spaces),
            Stage("[{N}]"),
            Stage("[{P}!-/:-@\\[-`{-~]"),
            Stage(_GPT2),
        ),
        add_bos=True,
    ),
    "superbpe": PreTokenizer(
        (Stage("[{N}]+"), Stage("(?=(?:[0-9]{3})+(?![0-9]))", plain_spaces)), ends_at_space=False
    ),
    "gemma4 granite-embed-multi-311m": replace(_gemma4, always_bos=True),
    "sarvam-moe": replace(_gemma4, newline_runs=False),
}
# Known to llama.cpp and refused, with the reason.
REFUSED: Final = {"whitespace": "of an encoder; llama.cpp aborts where a text has two spaces"}
# tokenizer.ggml.pre -> what it means.
PRE_TOKENIZERS: Final = {
    name: meaning for names, meaning in _GROUPS.items() for name in names.split()
}
