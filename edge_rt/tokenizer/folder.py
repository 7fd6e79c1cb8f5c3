"""A `Tokenizer` from a Hugging Face folder: its ``tokenizer.json`` and the files beside it.

The model runs in the arrays that a GGUF file's becomes. The tokenizers library is not even imported
for the SentencePiece-like ones, whose normalizers and pre-tokenizers are a few replacements; for
the byte-level ones it normalizes and splits the text (`Library`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_rt.errors import ModelError, UsageError
from edge_rt.flash_io.files import File, is_file, is_there
from edge_rt.loaders.json_stream import JsonStream
from edge_rt.loaders.text_files import TextFiles
from edge_rt.tokenizer.added import AddedToken, AddedTokens, Normalize
from edge_rt.tokenizer.bpe import LETTER_OF_BYTE, BytePairModel, Merges, RawPairModel
from edge_rt.tokenizer.json_file import Layout, Pieces, added_token, pair, walk
from edge_rt.tokenizer.library import Library
from edge_rt.tokenizer.parts import Model, Parts
from edge_rt.tokenizer.raw import components, read_raw_text
from edge_rt.tokenizer.special import END_NAMES, exceptions
from edge_rt.tokenizer.spm import byte_ids
from edge_rt.tokenizer.vocab import BYTE, CONTROL, NORMAL, USER_DEFINED, Vocabulary


class _Reader:
    """Builds the vocabulary when its pieces and added tokens are known, then the merges."""

    def __init__(self, path: Path) -> None:
        self._path, self.pieces = path, Pieces()
        self.vocabulary: Vocabulary
        self.merges: Merges
        self.added: list[AddedToken]

    def take_merges(
        self, stream: JsonStream, layout: Layout, pairs: Iterator[tuple[bytes, bytes | None]]
    ) -> int:
        self.added = _settled(self._path, layout, self.pieces)
        self.vocabulary = vocabulary = self.pieces.vocabulary(self._path, self.added)
        del self.pieces
        if not layout.byte_level:
            for byte in range(256):
                index = vocabulary.find(b"<0x%02X>" % byte)
                if index >= 0 and vocabulary.types[index] == NORMAL:
                    vocabulary.types[index] = BYTE
        parts = (pair(stream, *one) for one in pairs)
        self.merges = Merges(vocabulary, parts, last_counts=True)
        return len(self.merges)


def _settled(path: Path, layout: Layout, pieces: Pieces) -> list[AddedToken]:
    """The added tokens whose ids are those that the library gives them; else `ModelError`."""
    wanted = {token.content.encode(): -1 for token in layout.added}
    for piece, index in pieces:
        if piece in wanted:
            wanted[piece] = index
    found: dict[str, AddedToken] = {}
    highest = -1
    for token in layout.added:
        if not token.content or token.content in found:
            continue
        index = wanted[token.content.encode()]
        if index < 0:
            index = max(highest + 1, layout.entries)
        if index != token.token_id:
            raise ModelError(
                f"{path}: added token {token.content[:40]!r} has the id {token.token_id}, "
                f"not {index}"
            )
        highest = max(highest, index)
        found[token.content] = token
    return list(found.values())


def read_folder(files: TextFiles, name: str = "tokenizer.json") -> Parts:
    """Build the parts of a `Tokenizer` from the files of a Hugging Face folder."""
    path, file = files.folder / name, tokenizer_file(files, name)
    reader = _Reader(path)
    layout = walk(file, reader.pieces.take, reader.take_merges)
    vocabulary = reader.vocabulary
    try:
        reader.added += _added_later(files, reader)
        model, normalize = _model(layout, reader)
        ids = _Ids(files, layout, vocabulary)
        return Parts(
            vocabulary,
            model,
            AddedTokens(reader.added, normalize),
            bos_id=ids.bos,
            eos_ids=ids.ends,
            add_bos=ids.add_bos,
            add_eos=ids.add_eos,
            strips_space=any(map(_strips, components(layout.parts["decoder"], "decoders"))),
        )
    except ModelError as error:
        if str(error).startswith(str(files.folder)):  # it says itself which file of the folder
            raise
        raise ModelError(f"{path}: {error}") from None


def _strips(decoder: dict[str, Any]) -> bool:
    """Whether a decoder takes the first space of a text away."""
    if decoder.get("type") == "Metaspace":
        return bool(decoder.get("prepend_scheme", "always") != "never")
    return decoder.get("type") == "Strip" and decoder.get("start") not in (None, 0)


def _added_later(files: TextFiles, reader: _Reader) -> list[AddedToken]:
    """Tokens that only tokenizer_config.json adds, as transformers does when it loads a folder."""
    file = files.get("tokenizer_config.json")
    if file is None:
        return []
    known = {token.content for token in reader.added}
    found = []
    with JsonStream.open(file) as stream:
        for key in stream.members():
            if key != "added_tokens_decoder" or stream.peek() != b"{":
                stream.skip()
                continue
            for name in stream.members():
                value = stream.value()
                if name.isdecimal() and len(name) <= 10 and isinstance(value, dict):
                    value["id"] = int(name)
                token = added_token(stream, value)
                if token.content in known:
                    continue
                index = reader.vocabulary.find(token.content.encode())
                if index < 0 or index != token.token_id:
                    raise stream.fail(
                        f"the token {token.content[:40]!r} is not in tokenizer.json with this id"
                    )
                reader.vocabulary.types[index] = CONTROL if token.special else USER_DEFINED
                found.append(token)
        stream.end()
    return found


def tokenizer_file(files: TextFiles, name: str = "tokenizer.json") -> File:
    """The file to read; raises when there is only another kind of tokenizer."""
    if file := files.get(name):
        return file
    folder, path = files.folder, files.folder / name
    if is_file(folder / "tokenizer.model"):
        raise ModelError(
            f"{path} is missing: SentencePiece's tokenizer.model alone is not supported; "
            "transformers' save_pretrained writes the missing file"
        )
    if is_there(path):
        raise ModelError(f"{path} is not a regular file, or a link to one that is not there")
    if is_file(folder / "config.json"):
        raise ModelError(f"{path} is missing: fetch it from where the model's other files are")
    raise UsageError(f"no such file: {path}")


def _model(layout: Layout, reader: _Reader) -> tuple[Model, Normalize]:
    vocabulary, settings, parts = reader.vocabulary, layout.model, layout.parts
    single = any(token.single_word for token in reader.added)
    whole_words = settings.get("ignore_merges") is True
    outside = frozenset(t.token_id for t in reader.added if t.token_id >= layout.entries)
    if layout.byte_level:
        pre = parts.get("pre_tokenizer")
        last = components(pre, "pretokenizers")[-1:]
        if not last or last[0].get("type") != "ByteLevel":
            raise ModelError("its pre-tokenizer does not end with ByteLevel, as its decoder does")
        missing = [one for one in LETTER_OF_BYTE if vocabulary.find(one.encode()) < 0]
        if missing and settings.get("unk_token") is not None:
            raise ModelError(f"it has an unknown token and none for {missing[0]!r}")
        library = Library(parts.get("normalizer"), pre)
        library.ends_at_space = library.ends_at_space and not single
        library.ends_at_line = library.ends_at_line and not single
        model = BytePairModel(
            vocabulary, reader.merges, library, whole_words, in_letters=True, outside=outside
        )
        return model, library.normalize
    if "ByteFallback" not in layout.kinds("decoder"):
        kinds = ", ".join(sorted(layout.kinds("decoder"))) or "none"
        raise ModelError(f"its decoder ({kinds}) has neither ByteLevel nor ByteFallback")
    if settings.get("byte_fallback") is not True or min(byte_ids(vocabulary)) < 0:
        raise ModelError("its model has no byte_fallback or not all byte tokens")
    if whole_words:
        raise ModelError("ignore_merges is not supported for its kind of pieces")
    raw = read_raw_text(parts.get("normalizer"), parts.get("pre_tokenizer"))
    raw.splitter.ends_at_space = not single
    return RawPairModel(
        vocabulary,
        reader.merges,
        raw.splitter,
        prepare=raw.prepare,
        outside=outside,
        all_escaped=True,
    ), raw.normalize


class _Ids:
    """Ids that other files of the folder name, and whether a prompt gets them."""

    def __init__(self, files: TextFiles, layout: Layout, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        asked = ("bos_token", "eos_token", "add_bos_token", "add_eos_token")
        config = read_settings(files, "tokenizer_config.json", asked)
        named = {**read_settings(files, "special_tokens_map.json", asked), **config}
        before, after = _template(layout.parts.get("post_processor"))
        self.bos = self._token(named.get("bos_token"))
        if self.bos is None and before:
            self.bos = self._token(before[0])
        names = {name for name in END_NAMES if self._is_control(name)}
        ends = {vocabulary.find(name.encode()) for name in names}
        ends -= {index for index, _ in exceptions(vocabulary, ends)}
        end = self._token(named.get("eos_token"))
        ends |= set() if end is None else {end}
        for name in ("generation_config.json", "config.json"):
            settings = read_settings(files, name, ("eos_token_id", "text_config"))
            inner = settings.get("text_config")
            for one in (settings, inner if isinstance(inner, dict) else {}):
                ends |= self._numbers(files.folder / name, one.get("eos_token_id"))
        self.ends = frozenset(ends)
        bos, eos = config.get("add_bos_token"), config.get("add_eos_token")
        self.add_bos = bos if isinstance(bos, bool) else bool(before)
        self.add_eos = eos if isinstance(eos, bool) else bool(after)

    def _token(self, value: Any) -> int | None:
        text = value.get("content") if isinstance(value, dict) else value
        index = self._vocabulary.find(text.encode()) if isinstance(text, str) and text else -1
        return index if index >= 0 else None

    def _is_control(self, name: str) -> bool:
        index = self._vocabulary.find(name.encode())
        return index >= 0 and self._vocabulary.types[index] == CONTROL

    def _numbers(self, path: Path, value: Any) -> set[int]:
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int):
                raise ModelError(f"eos_token_id in {path.name} is {str(value)[:60]}")
            if not 0 <= number < len(self._vocabulary):
                raise ModelError(
                    f"eos_token_id in {path.name} is {number}, not in 0 to "
                    f"{len(self._vocabulary) - 1}"
                )
        return set(numbers)


def _template(post_processor: Any) -> tuple[list[str], list[str]]:
    """Names of the special tokens that a TemplateProcessing puts before and after one text."""
    for part in components(post_processor, "processors"):
        single = part.get("single")
        if part.get("type") == "TemplateProcessing" and isinstance(single, list):
            found: tuple[list[str], list[str]] = [], []
            behind = False
            for one in single:
                special = one.get("SpecialToken") if isinstance(one, dict) else None
                if isinstance(special, dict) and isinstance(special.get("id"), str):
                    found[behind].append(special["id"])
                else:
                    behind = True
            return found
    return [], []


def read_settings(files: TextFiles, name: str, wanted: tuple[str, ...]) -> dict[str, Any]:
    """The ``wanted`` members of a JSON object, none when there is no such file.

    The rest is not kept: gemma's tokenizer_config.json has more than 1 MiB of added tokens.
    """
    found: dict[str, Any] = {}
    if file := files.get(name):
        with JsonStream.open(file) as stream:
            for key in stream.members():
                if key in wanted:
                    found[key] = stream.value()
                else:
                    stream.skip()
            stream.end()
    return found
