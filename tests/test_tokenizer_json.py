"""tokenizer.json: equal to Hugging Face's tokenizers, and what must be refused."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_rt.errors import EdgeRTError, ModelError, UsageError
from edge_rt.loaders.json_stream import JsonStream
from edge_rt.loaders.source import WeightSource
from edge_rt.loaders.text_files import TextFiles
from edge_rt.tokenizer import Tokenizer
from edge_rt.tokenizer.json_file import Pieces, scan
from edge_rt.tokenizer.unicode_classes import OTHER, collapse

from . import tokenizer_files as f
from .tokenizer_texts import texts

GOLDENS = Path(__file__).parent / "goldens/tokenizers"
BYTES, RAW = GOLDENS / "bytes.gguf", GOLDENS / "raw.gguf"
relaxed = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def raw_file(name: str, **model: Any) -> dict[str, Any]:
    """A tokenizer.json of the small raw vocabulary, whose merges are its own."""
    normalizer, pre_tokenizer, decoders = f.RAW[name]
    tokens, _ = f.tokens_of(RAW)
    merges = f.merges_in(RAW)
    vocab = {token: index for index, token in enumerate(tokens)}
    extra = [f.added("<bos>", len(tokens) - 1, True)]
    extra += [f.added("<|user|>", len(tokens), True, rstrip=True)]
    extra += [
        f.added("▁▁▁", vocab.get("▁▁▁", len(tokens) + 1), False, normalized=name != "llama-2")
    ]
    decoder = {"type": "Sequence", "decoders": decoders}
    plain = {"unk_token": "<bos>", "fuse_unk": True, "byte_fallback": True}
    return f.content(normalizer, pre_tokenizer, decoder, extra, vocab, merges, **{**plain, **model})


def bytes_file(name: str, **model: Any) -> dict[str, Any]:
    """The same of the small byte-level one, with added tokens of every kind."""
    value = f.byte_level(BYTES, name, **model)
    n = 1 + max(entry["id"] for entry in value["added_tokens"])
    value["added_tokens"] += [
        f.added("<|im_end|>", n, True),
        f.added("<tool>", n + 1, False, lstrip=True),
        f.added("<tool>er", n + 2, False, rstrip=True),
        f.added("word", n + 3, False, single_word=True),
        f.added("<norm>", n + 4, False, normalized=True),
    ]
    return value


def library(folder: Path) -> Any:
    from tokenizers import Tokenizer as Library

    return Library.from_file(str(folder / "tokenizer.json"))


def agree(folder: Path, wanted: list[str], ours: Tokenizer | None = None) -> None:
    """Our ids and texts are the library's, with special tokens and without."""
    ours, theirs = ours or Tokenizer.from_file(folder), library(folder)
    assert ours.n_vocab >= theirs.get_vocab_size()
    for special in (False, True):
        theirs.encode_special_tokens = not special
        for text in wanted:
            ids = theirs.encode(text, add_special_tokens=False).ids
            assert ours.encode(text, special) == ids, text
            assert ours.decode(ids, special) == theirs.decode(
                ids, skip_special_tokens=not special
            ), text


def mixed(value: dict[str, Any], seed: int, count: int) -> list[str]:
    """Texts with added tokens in them, with white space around."""
    rng = random.Random(seed)
    names = [entry["content"] for entry in value["added_tokens"]][-8:]
    spaces = ["", "", " ", "\n", " \u3000\n"]
    found = []
    for text in texts(seed, count):
        # The library's Unicode is newer than ours, which decides what a single word is.
        text = "".join(
            c for c in text if collapse(c) != OTHER or unicodedata.category(c) in ("Cf", "Co")
        )
        for _ in range(rng.randint(0, 3)):
            at = rng.randint(0, len(text))
            token = rng.choice(spaces) + rng.choice(names) + rng.choice(spaces)
            text = text[:at] + token + text[at:]
        found.append(text)
    return found


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("name", f.BYTE_LEVEL)
def test_byte_level_equals_the_library(tmp_path: Path, name: str, whole_words: bool) -> None:
    value = bytes_file(name, ignore_merges=whole_words)
    agree(f.write(tmp_path, value), mixed(value, random.randrange(1 << 30), 150))


@pytest.mark.parametrize("name", f.RAW)
def test_raw_pieces_equal_the_library(tmp_path: Path, name: str) -> None:
    value = raw_file(name)
    agree(f.write(tmp_path, value), mixed(value, random.randrange(1 << 30), 150))


@pytest.mark.parametrize("name", ["qwen2", "llama-3", "gpt-4o", "gpt-2"])
@pytest.mark.parametrize("base", ["qwen2", "llama-bpe"])
def test_large_byte_level(tmp_path: Path, shared_data: Path, base: str, name: str) -> None:
    value = f.byte_level(shared_data / f"vocabs/ggml-vocab-{base}.gguf", name, as_pairs=True)
    agree(f.write(tmp_path, value), mixed(value, random.randrange(1 << 30), 150))


@pytest.mark.parametrize("name", f.RAW)
@pytest.mark.parametrize("base", ["llama-spm", "phi-3"])
def test_large_raw_pieces(tmp_path: Path, shared_data: Path, base: str, name: str) -> None:
    value = f.raw(shared_data / f"vocabs/ggml-vocab-{base}.gguf", name, as_pairs=False)
    agree(f.write(tmp_path, value), mixed(value, random.randrange(1 << 30), 150))


@pytest.mark.parametrize("name", [*f.BYTE_LEVEL, *f.RAW])
def test_slices_and_streams(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = bytes_file(name) if name in f.BYTE_LEVEL else raw_file(name)
    if name in ("qwen2", "llama-3"):  # with single_word no text is cut
        value["added_tokens"] = [t for t in value["added_tokens"] if not t["single_word"]]
        for number, entry in enumerate(value["added_tokens"]):
            entry["id"] = value["added_tokens"][0]["id"] + number
    tokenizer = Tokenizer.from_file(f.write(tmp_path, value))
    rng = random.Random(name)
    for text in mixed(value, 11, 60):
        for special in (False, True):
            whole = tokenizer.encode(text, special)
            monkeypatch.setattr("edge_rt.tokenizer.tokenizer._SLICE_LETTERS", rng.randint(1, 12))
            assert list(tokenizer.iter_encode([text], special)) == whole
            monkeypatch.undo()
            stream = tokenizer.stream(special)
            parts = [stream.push(index) for index in whole]
            assert "".join(parts) + stream.flush() == tokenizer.decode(whole, special)
            assert "\ufffd" in text or not any("\ufffd" in part for part in parts)


def test_the_library_is_not_imported_for_raw_pieces(tmp_path: Path) -> None:
    """Its import is 6 MiB of the budget."""
    import subprocess
    import sys

    for value, imported in ((raw_file("gemma"), False), (bytes_file("gpt-2"), True)):
        folder = f.write(tmp_path, value)
        code = (
            "import sys; from edge_rt import Tokenizer\n"
            "Tokenizer.from_file(sys.argv[1]).encode('a b')\n"
            "print('tokenizers' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True
        )
        assert done.stdout.split() == [str(imported)]


# --- the reader


@pytest.mark.parametrize(
    "dump", [{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}]
)
def test_every_way_to_write_it(tmp_path: Path, dump: dict[str, Any]) -> None:
    value = raw_file("gemma")
    agree(f.write(tmp_path, value, **dump), list(texts(3, 20)))


def test_any_order(tmp_path: Path) -> None:
    """Merges before the vocabulary, the model before the rest, ids in any order."""
    value = bytes_file("smollm")
    wanted = list(texts(4, 30))
    ids = [Tokenizer.from_file(f.write(tmp_path, value)).encode(text) for text in wanted]
    model = value["model"]
    entries = list(model["vocab"].items())
    random.Random(5).shuffle(entries)
    model["vocab"] = dict(entries)
    value["model"] = dict(reversed(list(model.items())))
    turned = Tokenizer.from_file(f.write(tmp_path, dict(reversed(list(value.items())))))
    assert [turned.encode(text) for text in wanted] == ids


@relaxed
@given(st.dictionaries(st.text(max_size=12), st.integers(0, 10**9), max_size=30), st.booleans())
def test_json_strings(tmp_path: Path, value: dict[str, int], plain: bool) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": [1, {"b": "}]"}], "v": value}, ensure_ascii=plain))
    with JsonStream.open(path) as stream:
        found: dict[str, int] = {}
        for key in stream.members():
            if key == "v":
                found = {stream.text(raw): number for raw, number in stream.numbers()}
            else:
                stream.skip()
    assert found == value


def test_chunks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = f.write(tmp_path, bytes_file("gpt-2"), indent=1)
    ids = Tokenizer.from_file(folder).encode("Some text, and more.")
    counts = scan(folder / "tokenizer.json")
    for size in (7, 64, 1000):
        monkeypatch.setattr("edge_rt.loaders.gguf_cursor.CHUNK_BYTES", size)
        monkeypatch.setattr("edge_rt.loaders.gguf_cursor.PAGE", 1)
        assert Tokenizer.from_file(folder).encode("Some text, and more.") == ids
        assert scan(folder / "tokenizer.json") == counts
    value = json.loads((folder / "tokenizer.json").read_text())
    assert counts.merges == len(value["model"]["merges"])
    assert counts.tokens >= len(value["model"]["vocab"])


# --- ends, beginnings and the files beside


def test_files_beside_it(tmp_path: Path) -> None:
    value = bytes_file("gpt-2")
    value["post_processor"] = {
        "type": "Sequence",
        "processors": [
            f.LAST,
            {"type": "TemplateProcessing", "pair": [], "special_tokens": {},
             "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}}]},
        ],
    }  # fmt: skip
    folder = f.write(tmp_path, value)
    ids = {entry["content"]: entry["id"] for entry in value["added_tokens"]}
    first = Tokenizer.from_file(folder)
    assert (first.bos_id, first.add_bos, first.add_eos) == (ids["<bos>"], True, False)
    assert first.eos_ids == {ids["<|im_end|>"]}
    for name, eos in (("generation_config.json", [1, 2]), ("config.json", 3)):
        (folder / name).write_text(json.dumps({"eos_token_id": eos}))
    config = {"add_bos_token": False, "bos_token": {"content": "<tool>"}, "eos_token": "word"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    second = Tokenizer.from_file(folder)
    assert (second.bos_id, second.add_bos) == (ids["<tool>"], False)
    assert second.eos_ids == {1, 2, 3, ids["<|im_end|>"], ids["word"]}
    (folder / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 9}}))
    assert 9 in Tokenizer.from_file(folder / "tokenizer.json").eos_ids

    source = WeightSource(str(tmp_path), (), 0)
    source.folder, source.texts = str(tmp_path), TextFiles(tmp_path)
    assert Tokenizer.from_source(source).eos_ids == Tokenizer.from_file(folder).eos_ids
    for wrong in (10**6, "x", -1, [True]):
        (folder / "config.json").write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(ModelError, match=r"eos_token_id in config\.json is"):
            Tokenizer.from_file(folder)


def test_tokens_that_only_the_config_adds(tmp_path: Path) -> None:
    """And a config larger than any single value may be, as gemma's is."""
    value = bytes_file("gpt-2")
    piece, index = next(p for p in value["model"]["vocab"].items() if len(p[0]) > 3)
    entries = {entry["id"]: dict(entry) for entry in value["added_tokens"]}
    entries[index] = f.added(piece, 0, True)
    for entry in entries.values():
        del entry["id"]
    config = {"notes": ["x" * 1000] * 2000, "added_tokens_decoder": entries, "eos_token": piece}
    folder = f.write(tmp_path, value)
    assert index not in Tokenizer.from_file(folder).eos_ids
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_file(folder)
    assert tokenizer.is_control(index) and index in tokenizer.eos_ids
    assert tokenizer.encode(f"a{piece}", special=True)[1:] == [index]
    config["added_tokens_decoder"] = {"99999": f.added("<elsewhere>", 0, True)}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"'<elsewhere>' is not in tokenizer\.json"):
        Tokenizer.from_file(folder)


def test_ends_of_gpt_oss(tmp_path: Path) -> None:
    value = f.byte_level(BYTES, "gpt-4o")
    n = 1 + value["added_tokens"][-1]["id"]
    names = ("<|end|>", "<|return|>", "<|call|>", "<|start|>")
    value["added_tokens"] += [f.added(name, n + i, True) for i, name in enumerate(names)]
    folder = f.write(tmp_path, value)
    assert Tokenizer.from_file(folder).eos_ids == {n + 1, n + 2}


def test_folders_without_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"tokenizer.json is missing: SentencePiece's"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer.json is missing: fetch it"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(ModelError, match=r"tokenizer.json is not a regular file"):
        Tokenizer.from_file(tmp_path)


# --- hostile files


def change(value: Any, *path: Any) -> Any:
    """``value`` with the last of ``path`` at the place that the others lead to."""
    inner = value
    for key in path[:-2]:
        inner = inner[key]
    inner[path[-2]] = path[-1]
    return value


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("model", 1), "not an object"),
        (("model", "type", "Unigram"), "model 'Unigram' is not supported"),
        (("model", "vocab", []), "is not supported .supported: BPE"),
        (("model", "vocab", {}), "has the id 2000, not 0"),
        (("model", "vocab", {"a": 1.5}), "not a string and its number"),
        (("model", "vocab", {"a": "b"}), "not a string and its number"),
        (("model", "vocab", {"a": -1}), "not a string and its number"),
        (("model", "vocab", {"a": 9999999999}), "too large"),
        (("model", "merges", ["a"]), "not a merge"),
        (("model", "merges", ["a b c"]), "not a merge"),
        (("model", "merges", [["a"]]), "not a string or a pair"),
        (("model", "merges", {}), r"'\{' instead of '\['"),
        (("model", "merges", ["Ġ no"]), "merge 0"),
        (("model", "dropout", 0.1), "dropout"),
        (("model", "end_of_word_suffix", "</w>"), "end_of_word_suffix"),
        (("decoder", None), "neither ByteLevel nor"),
        (("decoder", {"type": "WordPiece"}), "neither ByteLevel nor"),
        (("pre_tokenizer", None), "does not end with ByteLevel"),
        (("pre_tokenizer", {"type": "Nothing"}), "does not end with ByteLevel"),
        (("pre_tokenizer", {"type": "Sequence", "pretokenizers": 1}), "not a sequence"),
        (("normalizer", {"type": "Nothing"}), "not supported"),
        (("added_tokens", [1]), "not an added token"),
        (("added_tokens", [{"id": 1, "content": 2}]), "not an added token"),
        (("added_tokens", [{"id": "1", "content": "a"}]), "not an added token"),
        (("added_tokens", [f.added("<new>", 5, True)]), "has the id 5, not"),
    ],
)
def test_what_is_refused(tmp_path: Path, path: tuple[Any, ...], words: str) -> None:
    folder = f.write(tmp_path, change(bytes_file("gpt-2"), *path))
    with pytest.raises(ModelError, match=words) as caught:
        Tokenizer.from_file(folder)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("model", "byte_fallback", False), "byte_fallback"),
        (("model", "ignore_merges", True), "ignore_merges"),
        (("normalizer", {"type": "NFC"}), "normalizer"),
        (("normalizer", None), "pre-tokenizer"),
        (("normalizer", {"type": "Prepend", "prepend": "x"}), "pre-tokenizer"),
        (("pre_tokenizer", {"type": "Whitespace"}), "pre-tokenizer"),
    ],
)
def test_raw_pieces_that_are_refused(tmp_path: Path, path: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Tokenizer.from_file(f.write(tmp_path, change(raw_file("gemma"), *path)))


@pytest.mark.parametrize(
    ("vocab", "words"),
    [
        ({"a": 1000000}, "have ids up to 1000000"),
        ({"a": 1, "b": 1}, "two tokens have the id 1"),
        ({}, "1 to|0 tokens"),
    ],
)
def test_ids_that_are_refused(tmp_path: Path, vocab: dict[str, int], words: str) -> None:
    value = change(bytes_file("gpt-2"), "model", "vocab", vocab) | {"added_tokens": []}
    with pytest.raises(ModelError, match=words):
        Tokenizer.from_file(f.write(tmp_path, value))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"{}", b'{"model":{', b'{"model":{"vocab":{"a":1',
        b'{"model":{"vocab":{"',
        b'{"model":{"vocab":{"\xff":1},"merges":[]}}',
        b'{"model":{"vocab":{"\\ud800":1},"merges":[]}}',
        b'{"model":{"vocab":{"a":1,"a":2},"merges":[]}}', b'{"model":{"vocab":{"a":0},"vocab":{}}}',
        b'{"a":' + b"[" * 100000, b'{"a":"' + b"x" * 3_000_000, b'{"a":1}{', b'{"model":{}}',
        b'{"a":]}', b'{"model":{"vocab":{"a":0},"merges":["' + b"\\\\" * 700_000,
    ],
)  # fmt: skip
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        Tokenizer.from_file(tmp_path)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    "piece", [b"\xff", b"\xed\xa0\x80", b"a\xc3", b"\\n\xff", b"\\ud800", b"\xf5\x80\x80\x80"]
)
def test_pieces_that_are_no_characters(tmp_path: Path, piece: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"\xc3\xa9": 1, "\\u00e9x": 2, "%s": 3}' % piece)
    pieces = Pieces()
    with (
        JsonStream.open(path) as stream,
        pytest.raises(ModelError, match="not a string of characters"),
    ):
        pieces.take(stream, stream.numbers())
    assert list(pieces) == [("é".encode(), 1), ("éx".encode(), 2)]


@settings(relaxed, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutations_raise_only_our_errors(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    for value in (bytes_file("qwen2"), raw_file("llama-2")):
        content = bytearray(json.dumps(value).encode())
        for at, byte in edits:
            content[at % len(content)] = byte
        (tmp_path / "tokenizer.json").write_bytes(content)
        try:
            tokenizer = Tokenizer.from_file(tmp_path)
            tokenizer.decode(tokenizer.encode("ab é\n <|im_end|>", special=True))
        except EdgeRTError:
            pass
