"""Text to token ids and back, from a GGUF file's metadata or a ``tokenizer.json``."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from edge_rt.errors import ModelError, UsageError
from edge_rt.loaders.gguf import GGUFFile
from edge_rt.process import release_memory
from edge_rt.tokenizer_bpe import PRE_TOKENIZERS, BytePairModel
from edge_rt.tokenizer_json import JsonModel, read_settings
from edge_rt.tokenizer_spm import SentencePieceModel
from edge_rt.tokenizer_vocab import (
    CONTROL,
    MAX_TOKENS,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    left_neighbours,
    partition,
)

_KEY: Final = "tokenizer.ggml."
_MODELS: Final = ("gpt2", "llama")
_SLICE_LETTERS: Final = 8192  # encoded at once by iter_encode where there is a safe boundary
# Control tokens that end a turn whatever the file's metadata say.
_END_NAMES: Final = (
    b"<|im_end|>", b"<|eot_id|>", b"<|eom_id|>", b"<|end_of_text|>", b"<|endoftext|>", b"<|end|>",
    b"<end_of_turn>", b"<|return|>", b"<|call|>", b"<EOT>", b"<|end_of_turn|>",
)  # fmt: skip


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
            if raw[0] == 0x20 and self._tokenizer.is_ordinary(index):
                raw = raw[1:]
        return self._decoder.decode(raw)

    def flush(self) -> str:
        """The rest, U+FFFD for an incomplete character; the decoder starts anew."""
        rest = self._decoder.decode(b"", True)
        self._reset()
        return rest


class Tokenizer:
    """One vocabulary and its algorithm; `from_file` builds it.

    Not for concurrent encoding: the word cache and the library's switches are unguarded.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        model: BytePairModel | SentencePieceModel | JsonModel,
        *,
        bos_id: int | None,
        eos_ids: Iterable[int],
        add_bos: bool,
        add_eos: bool,
    ) -> None:
        self._vocabulary = vocabulary
        self._model = model
        self.bos_id = bos_id
        named = (vocabulary.find(name) for name in _END_NAMES)
        self.eos_ids = frozenset(eos_ids) | frozenset(
            index for index in named if index >= 0 and vocabulary.types[index] == CONTROL
        )
        self.add_bos = add_bos and bos_id is not None
        self.add_eos = add_eos
        self.strips_space = getattr(model, "add_space_prefix", False)
        self._unsafe = {right: self._unsafe_before(right) for right in (" ", "\n")}
        release_memory()  # what building needed

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Build from a .gguf, a tokenizer.json, or a folder that has the latter.

        Raises `UsageError` when there is no such file, `ModelError` when it cannot be used.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "tokenizer.json"
        if file.suffix == ".json":
            return cls._from_json(file)
        return cls.from_gguf(GGUFFile.open(file, allow_unsupported=True))

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Tokenizer:
        """Build from the metadata of an opened GGUF file; its weights are not touched."""
        kind = file.get_str(_KEY + "model")
        if kind not in _MODELS:
            raise ModelError(
                f"{file.path}: tokenizer model {kind[:40]!r} is not supported "
                f"(supported: {', '.join(_MODELS)})"
            )
        if kind == "gpt2":
            name = file.get_str(_KEY + "pre", "missing")
            pre = PRE_TOKENIZERS.get(name)
            if pre is None:
                raise ModelError(
                    f"{file.path}: pre-tokenizer {name[:40]!r} is not supported "
                    f"(supported: {', '.join(PRE_TOKENIZERS)})"
                )
        tokens = file.get_array(_KEY + "tokens", kind="string")
        n_tokens = len(tokens)
        kinds = file.get_array(_KEY + "token_type", None)
        scores = file.get_array(_KEY + "scores", None)
        for array, kind_wanted in ((kinds, "int32"), (scores, "float32")):
            if array is not None and (array.kind != kind_wanted or len(array) != n_tokens):
                raise ModelError(
                    f"{file.path}: {array.name} is {array!r}, not {n_tokens} x {kind_wanted}"
                )
        vocabulary = Vocabulary(tokens.raw(), n_tokens, kinds)
        # Where the file has no such key, llama.cpp's defaults for SentencePiece.
        defaults = {"unknown": 0, "bos": 1, "eos": 2} if kind == "llama" else {}

        def token_id(name: str) -> int | None:
            return _token_id(file, name, n_tokens, defaults.get(name))

        model: BytePairModel | SentencePieceModel
        if kind == "gpt2":
            assert pre is not None
            merges = file.get_array(_KEY + "merges", kind="string")
            if len(merges) > MAX_TOKENS:
                raise ModelError(f"{file.path}: {len(merges)} merges are not supported")
            model = BytePairModel(vocabulary, merges.raw(), len(merges), pre)
            add_bos = pre.add_bos
        else:
            prefix = file.get_bool(_KEY + "add_space_prefix", True)
            model = SentencePieceModel(vocabulary, scores, token_id("unknown"), prefix)
            add_bos = True
        ends = (token_id(name) for name in ("eos", "eot", "eom"))
        return cls(
            vocabulary,
            model,
            bos_id=token_id("bos"),
            eos_ids=[index for index in ends if index is not None],
            add_bos=file.get_bool(_KEY + "add_bos_token", add_bos),
            add_eos=file.get_bool(_KEY + "add_eos_token", False),
        )

    @classmethod
    def _from_json(cls, path: Path) -> Tokenizer:
        settings = read_settings(path.parent)
        model = JsonModel(path)

        def named(key: str) -> int | None:
            value = settings.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            index = model.vocabulary.find(text.encode()) if isinstance(text, str) else -1
            return index if index >= 0 else None

        end = named("eos_token")
        return cls(
            model.vocabulary,
            model,
            bos_id=named("bos_token"),
            eos_ids=[] if end is None else [end],
            add_bos=settings.get("add_bos_token") is True,
            add_eos=settings.get("add_eos_token") is True,
        )

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
        if self.is_ordinary(index):
            return self._model.token_bytes(index)
        return self._vocabulary.piece(index)

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

        The text is cut before a space or newline, where that provably changes nothing:

        * A special or user-defined token never spans the cut: none of them has the two
          characters around it as neighbours (``_unsafe``). So matching finds the same tokens,
          and whether a slice follows one is handed on (SentencePiece adds a space there).
        * Byte-pair encoding merges within words only, and a pre-tokenizer with
          ``cuts_at_space`` never makes a word across: each of its alternatives ends at the first
          white space after anything else. Matching runs from left to right without memory, so
          the right side splits as it would alone. The left side does too: the one look-ahead,
          ``\\s+(?!\\S)``, is about white space, and the left side ends with something else.
        * SentencePiece joins two neighbours only into a token of the vocabulary. When no token
          has the two characters around the cut as neighbours, no merge ever crosses it, and
          merges on the two sides do not affect each other.

        Where there is no such place (or for a tokenizer.json, whose splitting is not known) the
        slice grows until there is one.
        """
        pending, first, scanned = "", True, 0
        for text in texts:
            pending += text
            start = 0
            while len(pending) - start > _SLICE_LETTERS:
                cut = self._cut(pending, start, max(scanned, start + 1))
                if not cut:
                    break
                ids, first = self._encode_slice(pending[start:cut], special, first)
                yield from ids
                start = scanned = cut
            pending = pending[start:]
            scanned = max(len(pending) - 1, 0) if len(pending) > _SLICE_LETTERS else 0
        if pending:
            yield from self._encode_slice(pending, special, first)[0]

    def _unsafe_before(self, right: str) -> set[str] | None:
        if isinstance(self._model, JsonModel):
            return None
        inner = self._model.cuts(right)
        if inner is None:
            return None
        return inner | left_neighbours((s[0] for s in self._vocabulary.specials), right)

    def _cut(self, text: str, start: int, scanned: int) -> int:
        """The last safe place in a slice from ``start``, else the first one after; 0: none."""
        end = start + _SLICE_LETTERS
        at = end
        while (at := max(text.rfind(" ", start + 1, at), text.rfind("\n", start + 1, at))) > 0:
            if self._safe(text, at):
                return at
        for at in range(max(end, scanned), len(text)):
            if text[at] in " \n" and self._safe(text, at):
                return at
        return 0

    def _safe(self, text: str, at: int) -> bool:
        left, unsafe = text[at - 1], self._unsafe[text[at]]
        # Printable, because libraries disagree about which invisible characters are white space.
        return unsafe is not None and left.isprintable() and left != " " and left not in unsafe

    def _encode_slice(self, text: str, special: bool, first: bool) -> tuple[list[int], bool]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text is not Unicode: a lone surrogate at {error.start}"
            ) from None
        if isinstance(self._model, JsonModel):
            return self._model.encode(text, special), False
        ids: list[int] = []
        for fragment in partition(self._vocabulary.specials, text, special):
            if isinstance(fragment, int):
                ids.append(fragment)
                first = True
            else:
                ids.extend(self._model.encode(fragment, first))
                first = False
        return ids, first


def _token_id(file: GGUFFile, name: str, n_tokens: int, default: int | None) -> int | None:
    """The id at ``tokenizer.ggml.<name>_token_id``; -1 (or 2^32 - 1) is written for none."""
    key = f"{_KEY}{name}_token_id"
    value = file.get_int(key, None)
    if value is None:
        return default if default is not None and default < n_tokens else None
    if value in (0xFFFFFFFF, -1):
        return None
    return file.get_int(key, minimum=0, maximum=n_tokens - 1)
