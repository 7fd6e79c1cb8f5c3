"""Special tokens of a GGUF file: which end a generation, and where they stand in a text.

Both follow llama.cpp, which knows more than the file says: names that end a turn in one family or
another, names that control-looking tokens of a wrong type have, and families whose special tokens
take the white space after them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from edge_rt.errors import ModelError
from edge_rt.tokenizer.vocab import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary

MAX_SPECIALS: Final = 16384  # each is a Python object and sought in every text; gemma has 6415
_SPECIAL_TYPES: Final = re.compile(b"[%c%c%c]" % (UNKNOWN, CONTROL, USER_DEFINED))
WHITE_SPACE: Final = " \t\n\v\f\r"  # C's isspace

# Unicode's White_Space, which Rust's \\s is (Python's has four control characters more).
UNICODE_SPACE: Final = (
    WHITE_SPACE
    + "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    + "\u2028\u2029\u202f\u205f\u3000"
)
# Where a piece of text stands: it continues another, follows a special token or starts it all.
INSIDE, AFTER_TOKEN, AT_START = 0, 1, 2

# Tokens that end a generation wherever a vocabulary has them.
END_NAMES: Final = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip
# Keys of token ids and the names that stand for them in a file without the key. Those of a fill in
# the middle are control tokens; three of them end a generation.
_ROLES: Final = {
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>",
                "▁<PRE>", "<|code_prefix|>", "<|prefix|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>",
                "▁<SUF>", "<|code_suffix|>", "<|suffix|>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>",
                "▁<MID>", "<|code_middle|>", "<|middle|>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
_ENDING_ROLES: Final = ("fim_pad", "fim_rep", "fim_sep")
ROLE_KEYS: Final = (*_ROLES, "eos", "eot", "eom")
# gpt-oss: text to its users, so always found and shown.
_SHOWN: Final = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


def settle_ends(vocabulary: Vocabulary, roles: dict[str, int]) -> frozenset[int]:
    """The ids that end a generation; types of ``vocabulary`` are put right on the way.

    ``roles``: ids by `ROLE_KEYS`, as far as the file names them.
    """
    types = vocabulary.types

    def having(names: Iterable[str]) -> list[int]:
        found = (vocabulary.find(name.encode()) for name in names)
        return [index for index in found if index >= 0]

    ends = set()
    for role, names in _ROLES.items():
        # llama.cpp takes the first in the order of its hash table; the lowest id is as good.
        index = roles.get(role)
        if index is None:
            index = min(having(names), default=None)
            if index is not None:
                types[index] = CONTROL
        if index is not None and role in _ENDING_ROLES:
            ends.add(index)
    for index in having(END_NAMES):
        ends.add(index)
        types[index] = CONTROL
    for index in having(_SHOWN):
        types[index] = USER_DEFINED
    ends.update(roles[role] for role in ("eos", "eot", "eom") if role in roles)
    for index, kind in exceptions(vocabulary, ends):
        ends.discard(index)
        types[index] = kind
    return frozenset(ends)


def exceptions(vocabulary: Vocabulary, ends: set[int]) -> Iterator[tuple[int, int]]:
    """(id, type) of those of ``ends`` that end nothing beside others of them."""

    def has(*names: str) -> bool:
        return any(vocabulary.find(name.encode()) in ends for name in names)

    # In gpt-oss and solar-open it ends one message of several.
    if has("<|end|>") and has("<|call|>", "<|calls|>") and has("<|return|>", "<|flush|>"):
        yield vocabulary.find(b"<|end|>"), USER_DEFINED
    # A tag of HTML for gemma 4 and PLaMo.
    if has("</s>") and has("<|tool_response>", "<|plamo:eos|>"):
        yield vocabulary.find(b"</s>"), NORMAL


class Special(NamedTuple):
    """A token that is found in a text before anything else.

    ``always``: also where only the user's own text is expected. ``lstrip``, ``rstrip``: it takes
    the white space before or after it.
    """

    text: str
    token_id: int
    always: bool
    lstrip: bool
    rstrip: bool


def special_tokens(vocabulary: Vocabulary, model_name: str, pre: str, arch: str) -> list[Special]:
    """The special tokens, the longest first; ``model_name`` and the others as in the file."""
    lstrip, rstrip, exempt = "", False, frozenset[str]()
    name = model_name.lower()
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
        part in arch for part in ("nomic-bert-moe", "jina-bert-v3")
    ):
        lstrip = "<mask>"
    elif "phi-3" in name or "phi3" in name:
        rstrip, exempt = True, frozenset(("<unk>", "<s>", "<|endoftext|>"))
    elif "modern-bert" in name:
        lstrip = "[MASK]"
    found = []
    for match in _SPECIAL_TYPES.finditer(vocabulary.types):
        index = match.start()
        text = vocabulary.piece(index).decode(errors="replace")
        always = vocabulary.types[index] == USER_DEFINED
        strips = rstrip and text not in exempt
        found.append(Special(text, index, always, text == lstrip, strips))
        if len(found) > MAX_SPECIALS:
            raise ModelError(f"more than {MAX_SPECIALS} special tokens are not supported")
    found.sort(key=lambda item: -len(item.text.encode()))
    return found


class Specials:
    """Finds the special tokens of a GGUF file in a text, the longest first."""

    def __init__(self, tokens: list[Special]) -> None:
        self._tokens = tokens
        self.texts = [token.text for token in tokens]
        # What a cut of a text must not part from the white space that a token takes.
        self.rstrip_ends = {token.text[-1] for token in tokens if token.rstrip}
        self.any_lstrip = any(token.lstrip for token in tokens)

    def fragments(self, text: str, special: bool, place: int) -> Iterator[int | tuple[str, int]]:
        """Cut ``text`` at its special tokens: ids, and texts with their places.

        User-defined tokens are always found, control tokens only when ``special``. As in llama.cpp
        a longer token wins over a shorter one, wherever they are.
        """
        letters = set(text)
        fragments: list[str | int] = [text] if text else []
        for token in self._tokens:
            piece = token.text
            if not (special or token.always) or piece[0] not in letters or piece not in text:
                continue
            cut: list[str | int] = []
            for fragment in fragments:
                if isinstance(fragment, int):
                    cut.append(fragment)
                else:
                    cut.extend(_around(token, fragment.split(piece)))
            fragments = cut
        for fragment in fragments:
            if isinstance(fragment, int):
                yield fragment
                place = AFTER_TOKEN
            else:
                yield fragment, place
                place = INSIDE


def _around(token: Special, parts: list[str]) -> Iterator[str | int]:
    """``token`` between ``parts``, without the white space that it takes."""
    for number, part in enumerate(parts):
        if number:
            yield token.token_id
            if token.rstrip:
                part = part.lstrip(WHITE_SPACE)
        if token.lstrip and number < len(parts) - 1:
            part = part.rstrip(WHITE_SPACE)
        if part:
            yield part
