"""Text to token ids and back, from a GGUF file's metadata or a ``tokenizer.json``."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from edge_rt.errors import ModelError, UsageError
from edge_rt.flash_io.files import is_folder
from edge_rt.loaders.gguf import GGUFFile
from edge_rt.loaders.source import WeightSource
from edge_rt.loaders.text_files import TextFiles
from edge_rt.process import release_memory
from edge_rt.tokenizer.gguf import read_gguf
from edge_rt.tokenizer.parts import Parts
from edge_rt.tokenizer.special import AFTER_TOKEN, AT_START, INSIDE, UNICODE_SPACE
from edge_rt.tokenizer.unicode_classes import is_letter
from edge_rt.tokenizer.vocab import CONTROL, UNKNOWN, USER_DEFINED
from edge_rt.tokenizer.words import left_neighbours

_SLICE_LETTERS: Final = 8192  # encoded at once by iter_encode where there is a safe boundary


def _read_folder(files: TextFiles, *names: str) -> Parts:
    # Imported here: it takes as long as all that a GGUF file's tokenizer needs.
    from edge_rt.tokenizer.folder import read_folder

    return read_folder(files, *names)


class StreamDecoder:
    """Decodes ids as they come; never splits a character.

    The strings of all `push` and the `flush` that ends them are what `Tokenizer.decode` gives.
    """

    def __init__(self, tokenizer: Tokenizer, special: bool, continues: bool) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._continues = continues
        self._reset()

    def _reset(self) -> None:
        self._strip = self._tokenizer.strips_space and not self._continues
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        """The text that became complete with token ``index``, often empty."""
        if not self._special and self._tokenizer.is_control(index):
            return ""
        raw = self._tokenizer.token_bytes(index)
        if self._strip and raw:
            self._strip = False
            raw = raw.removeprefix(b" ")
        return self._decoder.decode(raw)

    def flush(self) -> str:
        """The rest, U+FFFD for an incomplete character; the decoder starts anew."""
        rest = self._decoder.decode(b"", True)
        self._reset()
        return rest


class Tokenizer:
    """One vocabulary and its algorithm; `from_file` builds it.

    Not for concurrent encoding: the word cache is unguarded.
    """

    def __init__(self, parts: Parts) -> None:
        self._vocabulary, self._model, self._matcher = parts.vocabulary, parts.model, parts.matcher
        self.bos_id = parts.bos_id
        self.eos_ids = parts.eos_ids
        self.add_bos = parts.add_bos and parts.bos_id is not None
        self.add_eos = parts.add_eos
        self.strips_space = parts.strips_space
        matcher = parts.matcher
        strips = matcher.rstrip_ends | set(
            UNICODE_SPACE if matcher.any_lstrip or matcher.rstrip_ends else ""
        )
        self._unsafe = {
            right: left_neighbours(matcher.texts, right) | strips for right in (" ", "\n")
        }
        self._cuts_lines = (
            parts.model.ends_at_line
            and not matcher.any_lstrip
            and not any("\n" in text[:-1] for text in matcher.texts)
        )
        release_memory()  # what building needed

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Build from a .gguf, a tokenizer.json, or a folder that has the latter.

        Raises `UsageError` when there is no such file, `ModelError` when it cannot be used.
        """
        file = Path(path)
        if is_folder(file):
            return cls(_read_folder(TextFiles(file)))
        if file.suffix == ".json":
            return cls(_read_folder(TextFiles(file.parent), file.name))
        return cls.from_source(GGUFFile.open(file, allow_unsupported=True))

    @classmethod
    def from_source(cls, source: WeightSource, n_rows: int | None = None) -> Tokenizer:
        """Build for an opened model: a GGUF file's metadata, or the folder of any other source.

        ``n_rows``: of the embedding. Only added tokens, which text without them does not give, may
        lie beyond it, as an image's do in text-only models; other ones raise `ModelError`.
        """
        with source.named():
            in_folder = source.folder is not None
            found = cls(_read_folder(source.texts) if in_folder else read_gguf(source))
            n = found.n_vocab
            beyond = range(n if n_rows is None else n_rows, n)
            if any(map(found.is_ordinary, beyond)):
                raise ModelError(f"the tokenizer has {n} tokens, the embedding {n_rows}")
        return found

    @property
    def n_vocab(self) -> int:
        """Number of tokens; ids are below it."""
        return len(self._vocabulary)

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self._vocabulary):
            raise UsageError(f"token {index} is not in 0 to {len(self._vocabulary) - 1}")

    def is_control(self, index: int) -> bool:
        """Whether the token is no text: control and unknown ones."""
        self._check(index)
        return self._vocabulary.types[index] in (CONTROL, UNKNOWN)

    def is_ordinary(self, index: int) -> bool:
        """Whether the token is text that is not matched before encoding."""
        self._check(index)
        return self._vocabulary.types[index] not in (CONTROL, UNKNOWN, USER_DEFINED)

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token stands for, a control token's name included."""
        self._check(index)
        return self._model.token_bytes(index)

    def token_text(self, index: int) -> str:
        """The token as text, U+FFFD for what is not whole characters."""
        return self.token_bytes(index).decode(errors="replace")

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of ``text``, no BOS added; ``special``: control tokens in it are found."""
        return list(self.iter_encode((text,), special))

    def decode(self, ids: Iterable[int], special: bool = False, *, continues: bool = False) -> str:
        """The text of ``ids``; ``special``: with the names of control tokens.

        ``continues``: the ids follow others, so a SentencePiece text keeps its first space.
        """
        stream = self.stream(special, continues=continues)
        parts = [stream.push(index) for index in ids]
        return "".join(parts) + stream.flush()

    def stream(self, special: bool = False, *, continues: bool = False) -> StreamDecoder:
        """A decoder that takes one id at a time; the options are those of `decode`."""
        return StreamDecoder(self, special, continues)

    def iter_encode(self, texts: Iterable[str], special: bool = False) -> Iterator[int]:
        """Encode the concatenation of ``texts`` in bounded memory; same ids as all at once.

        The text is cut before a space or newline, or after a newline, where that provably changes
        nothing:

        * A special token never spans the cut: none of them has the two characters around it as
          neighbours, and none that takes white space loses any (``_unsafe``). So matching finds
          the same tokens, and where a slice stands (after one, inside of a text) is handed on.
        * Words that are merged on their own (`PreTokenizer`): a word always ends after a letter
          that a space or newline follows. Matching runs from left to right without memory, so the
          right side splits as it would alone. The left side does too: the only look-aheads are
          about white space and digits, and the left side ends with a letter. The same holds after
          a newline before a letter where a run of white space is cut after its last newline.
        * SentencePiece and its like: no token of the vocabulary has the two characters around the
          cut as neighbours, so no merge ever crosses it (`Unspanned`).

        Where there is no such place the slice grows until there is one.
        """
        pending, place, scanned = "", AT_START, 0
        for text in texts:
            pending += text
            start = 0
            while len(pending) - start > _SLICE_LETTERS:
                cut = self._cut(pending, start, max(scanned, start + 1))
                if not cut:
                    break
                ids, place = self._encode_slice(pending[start:cut], special, place)
                yield from ids
                start = scanned = cut
            pending = pending[start:]
            scanned = max(len(pending) - 1, 0) if len(pending) > _SLICE_LETTERS else 0
        if pending:
            yield from self._encode_slice(pending, special, place)[0]

    def _cut(self, text: str, start: int, scanned: int) -> int:
        """The last safe place in a slice from ``start``, else the first one after; 0: none."""
        at = end = start + _SLICE_LETTERS
        while (at := max(text.rfind(" ", start + 1, at), text.rfind("\n", start + 1, at))) > 0:
            for place in (at + 1, at):
                if self._safe(text, place):
                    return place
        return next((at for at in range(max(end, scanned), len(text)) if self._safe(text, at)), 0)

    def _safe(self, text: str, at: int) -> bool:
        left, right = text[at - 1], text[at]
        if right in self._unsafe:
            return left not in self._unsafe[right] and self._model.may_cut(left, right)
        return self._cuts_lines and left == "\n" and is_letter(right)

    def _encode_slice(self, text: str, special: bool, place: int) -> tuple[list[int], int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text is not Unicode: a lone surrogate at {error.start}"
            ) from None
        ids: list[int] = []
        for fragment in self._matcher.fragments(text, special, place):
            if isinstance(fragment, int):
                ids.append(fragment)
                place = AFTER_TOKEN
            else:
                ids.extend(self._model.encode(*fragment))
                place = INSIDE
        return ids, place
