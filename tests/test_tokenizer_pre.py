"""Every pre-tokenizer, special token and end of generation against llama.cpp."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from edge_rt.errors import ModelError
from edge_rt.tokenizer import Tokenizer
from edge_rt.tokenizer.bpe import LETTER_OF_BYTE
from edge_rt.tokenizer.pre_tokenizers import PRE_TOKENIZERS, REFUSED
from edge_rt.tokenizer.unicode_classes import LETTER, MARK, NUMBER, PUNCTUATION, SYMBOL, collapse

from . import gguf_builder as g
from .conftest import load_script
from .tokenizer_texts import texts

GOLDENS = Path(__file__).parent / "goldens/tokenizers"


@functools.cache
def golden() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((GOLDENS / "pre.json").read_text())
    return value


def with_pre(content: bytes, name: str) -> bytes:
    """A GGUF file's ``content`` with another ``tokenizer.ggml.pre``."""
    key = g.string("tokenizer.ggml.pre")
    at = content.index(key) + len(key) + 4
    length = int.from_bytes(content[at : at + 8], "little")
    return content[:at] + g.string(name) + content[at + 8 + length :]


def named(tmp_path: Path, base: Path, name: str) -> Tokenizer:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(with_pre(base.read_bytes(), name))
    return Tokenizer.from_file(path)


def golden_base(name: str) -> Path:
    return GOLDENS / ("raw.gguf" if PRE_TOKENIZERS[name].raw else "bytes.gguf")


# --- goldens


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_goldens(tmp_path: Path, name: str) -> None:
    tokenizer = named(tmp_path, golden_base(name), name)
    places = golden()["names"][name]
    for text, lists, place in zip(golden()["texts"], golden()["ids"], places, strict=True):
        assert tokenizer.encode(text) == lists[int(place, 36)], text


def test_goldens_tell_names_apart() -> None:
    """A golden that every splitting passes would prove nothing."""
    assert set(golden()["names"]) == set(PRE_TOKENIZERS)
    assert len(golden()["texts"]) == 100
    assert len(set(golden()["names"].values())) > 25


@pytest.mark.parametrize("name", [*REFUSED, "", "qwen9"])
def test_what_is_not_known_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="not guessed") as caught:
        named(tmp_path, GOLDENS / "bytes.gguf", name)
    assert name in str(caught.value)


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", "plamo2", "none", "hybriddna", "new"])
def test_other_models_are_refused(tmp_path: Path, kind: str) -> None:
    path = g.GGUFBuilder().add("tokenizer.ggml.model", g.STRING, kind).write(tmp_path / "v.gguf")
    with pytest.raises(ModelError, match=f"model '{kind}'.* is not supported .supported: gpt2"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_slices_and_round_trips(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a long text is cut, its ids stay; words are the text and nothing else."""
    tokenizer = named(tmp_path, golden_base(name), name)
    rng = random.Random(name)
    raw = PRE_TOKENIZERS[name].raw
    for text in texts(rng.randrange(1 << 30), 60):
        whole = tokenizer.encode(text)
        # In raw pieces the "▁" of a text becomes a space.
        assert tokenizer.decode(whole) == (text.replace("▁", " ") if raw else text)
        monkeypatch.setattr("edge_rt.tokenizer.tokenizer._SLICE_LETTERS", rng.randint(1, 12))
        assert list(tokenizer.iter_encode([text])) == whole
        monkeypatch.undo()


def test_long_texts_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chinese has no spaces: lines are what bounds the memory for it."""
    seen = []
    encode = Tokenizer._encode_slice
    monkeypatch.setattr(
        Tokenizer,
        "_encode_slice",
        lambda s, text, *a: seen.append(len(text)) or encode(s, text, *a),
    )
    text = "天地玄黄，宇宙洪荒。\n日月盈昃，辰宿列张。\n" * 2000
    for name in ("qwen2", "llama-bpe", "gpt-4o", "deepseek-v3"):
        tokenizer = named(tmp_path, GOLDENS / "bytes.gguf", name)
        assert tokenizer.decode(tokenizer.iter_encode([text])) == text
    assert max(seen) <= 8192


def test_classes_agree_with_python() -> None:
    """Of characters that Python knows too, all classes are those of their categories."""
    names = {"L": LETTER, "N": NUMBER, "M": MARK, "P": PUNCTUATION, "S": SYMBOL}
    differing = 0
    for code in range(128, 0x110000):
        category = unicodedata.category(chr(code))
        if category[0] in names and not chr(code).isspace():
            differing += collapse(chr(code)) != names[category[0]]
    # Characters newer than Unicode 15.1, where Python is newer.
    assert differing == 0 or unicodedata.unidata_version > "15.1"
    assert re.fullmatch("\x0b+", collapse("\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"))


# --- special tokens and ends of generation


def vocabulary(
    tmp_path: Path, specials: dict[str, int], name: str = "", pre: str = "gpt-2", **ids: int
) -> Tokenizer:
    pieces = [*LETTER_OF_BYTE, *specials]
    builder = g.bpe_vocabulary(pieces, [], [1] * 256 + list(specials.values()), pre)
    builder.add("general.name", g.STRING, name)
    for key, value in ids.items():
        builder.add(f"tokenizer.ggml.{key}_token_id", g.U32, value)
    return Tokenizer.from_file(builder.write(tmp_path / "special.gguf"))


ENDS: list[tuple[dict[str, int], dict[str, int], set[str]]] = [
    ({"<|im_end|>": 3, "<|endoftext|>": 3, "<|x|>": 3}, {}, {"<|im_end|>", "<|endoftext|>"}),
    ({"<|x|>": 3, "<|y|>": 3}, {"eos": 256, "eot": 257}, {"<|x|>", "<|y|>"}),
    ({"<|x|>": 3}, {"eom": 256}, {"<|x|>"}),
    ({"<end_of_turn>": 1, "<eos>": 4}, {}, {"<end_of_turn>", "<eos>"}),
    (  # gpt-oss: <|end|> ends one message of several
        {"<|end|>": 3, "<|return|>": 3, "<|call|>": 3, "<|channel|>": 3},
        {},
        {"<|return|>", "<|call|>"},
    ),
    ({"<|end|>": 3, "<|call|>": 3}, {}, {"<|end|>", "<|call|>"}),
    ({"<|end|>": 3, "<|calls|>": 3, "<|flush|>": 3}, {}, {"<|calls|>", "<|flush|>"}),
    ({"</s>": 1, "<|tool_response>": 3}, {}, {"<|tool_response>"}),  # gemma 4: HTML
    ({"</s>": 3}, {}, {"</s>"}),
    ({"<|fim_pad|>": 3, "<|repo_name|>": 3, "<|file_sep|>": 3, "<|fim_prefix|>": 1}, {},
     {"<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"}),
    ({"[PAD]": 3, "<|q|>": 3}, {"fim_pad": 257}, {"<|q|>"}),
]  # fmt: skip


@pytest.mark.parametrize(("specials", "ids", "ends"), ENDS)
def test_ends_of_generation(
    tmp_path: Path, specials: dict[str, int], ids: dict[str, int], ends: set[str]
) -> None:
    tokenizer = vocabulary(tmp_path, specials, **ids)
    assert {tokenizer.token_text(i) for i in tokenizer.eos_ids} == ends


def test_names_settle_types(tmp_path: Path) -> None:
    tokenizer = vocabulary(tmp_path, {"<end_of_turn>": 1, "<|message|>": 3, "<|fim_prefix|>": 4})
    assert [tokenizer.is_control(i) for i in (256, 257, 258)] == [True, False, True]
    assert tokenizer.encode("<|message|>") == [257]
    assert len(tokenizer.encode("<|fim_prefix|>")) > 1


def test_special_tokens_take_white_space(tmp_path: Path) -> None:
    specials = {"<|user|>": 3, "<s>": 3, "<mask>": 3}
    text = " a \n<|user|>\n\t b <s>  c <mask> d"
    phi = vocabulary(tmp_path, specials, name="Phi-3 mini")
    kept = phi.decode(phi.encode(text, special=True), special=True)
    assert kept == " a \n<|user|>b <s>  c <mask>d"
    jina = vocabulary(tmp_path, specials, pre="jina-v2-code")
    kept = jina.decode(jina.encode(text, special=True), special=True)
    assert kept == " a \n<|user|>\n\t b <s>  c<mask> d"
    plain = vocabulary(tmp_path, specials)
    assert plain.decode(plain.encode(text, special=True), special=True) == text


@pytest.mark.parametrize("model", ["Phi-3", "other"])
def test_slices_with_tokens_that_take_white_space(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    specials = {"<|user|>": 3, "<mask>": 4, "ab": 3, "c\nd": 3}
    tokenizer = vocabulary(tmp_path, specials, name=model, pre="jina-v2-de")
    rng = random.Random(5)
    bits = [*specials, " ", "\n", "a", "b", "word", ".", "\t"]
    for _ in range(300):
        text = "".join(rng.choice(bits) for _ in range(30))
        whole = tokenizer.encode(text, special=True)
        monkeypatch.setattr("edge_rt.tokenizer.tokenizer._SLICE_LETTERS", rng.randint(1, 9))
        assert list(tokenizer.iter_encode([text], special=True)) == whole
        monkeypatch.undo()


def test_gemma4_is_its_own_model(tmp_path: Path) -> None:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "a", "▁a", "\n", "\n\n\n", "<bos>"]
    builder = g.GGUFBuilder().add("tokenizer.ggml.model", g.STRING, "gemma4")
    builder.add("tokenizer.ggml.tokens", g.ARRAY, g.Array(g.STRING, pieces))
    types = g.Array(g.I32, [6] * 256 + [1] * 5 + [3])
    builder.add("tokenizer.ggml.token_type", g.ARRAY, types)
    builder.add("tokenizer.ggml.merges", g.ARRAY, g.Array(g.STRING, ["▁ a"]))
    builder.add("tokenizer.ggml.bos_token_id", g.U32, 261)
    builder.add("tokenizer.ggml.add_bos_token", g.BOOL, False)
    tokenizer = Tokenizer.from_file(builder.write(tmp_path / "v.gguf"))
    assert tokenizer.add_bos and tokenizer.bos_id == 261
    text = "a a\n\n\n\n\né"
    ids = tokenizer.encode(text)
    assert ids == [257, 258, 259, 259, 259, 259, 259, 0xC3, 0xA9]
    assert tokenizer.encode("a\n\n\na") == [257, 260, 257]
    assert tokenizer.decode(ids) == text


# --- llama.cpp itself, with large vocabularies


def peer() -> str:
    python = os.environ.get("EDGE_RT_LLAMA_PYTHON", "")
    if not Path(python).is_file():
        pytest.skip("NO LLAMA.CPP: set EDGE_RT_LLAMA_PYTHON to a Python that has llama-cpp-python")
    return python


def by_llama(tmp_path: Path, request: dict[str, Any]) -> list[dict[str, Any]]:
    """What scripts/llama_tokenize.py answers."""
    python, script = peer(), Path(__file__).parent.parent / "scripts/llama_tokenize.py"
    asked, answered = tmp_path / "request.json", tmp_path / "response.json"
    asked.write_text(json.dumps(request))
    subprocess.run([python, str(script), str(asked), str(answered)], check=True)
    answer: list[dict[str, Any]] = json.loads(answered.read_text())
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("base", ["gpt-2", "qwen2"])
def test_every_name_equals_llama_cpp(
    tmp_path: Path, shared_data: Path, base: str, special: bool
) -> None:
    peer()
    path = shared_data / f"vocabs/ggml-vocab-{base}.gguf"
    names = [name for name, pre in PRE_TOKENIZERS.items() if not pre.raw]
    wanted = list(texts(random.randrange(1 << 30), 100))
    runs = [{"file": str(path), "pre": name} for name in names]
    found = by_llama(tmp_path, {"texts": wanted, "special": special, "runs": runs})
    for name, answer in zip(names, found, strict=True):
        tokenizer = named(tmp_path, path, name)
        assert sorted(tokenizer.eos_ids) == answer["ends"], name
        assert tokenizer.add_bos == answer["add_bos"], name
        for text, ids in zip(wanted, answer["ids"], strict=True):
            assert tokenizer.encode(text, special) == ids, (name, text)


@pytest.mark.slow
@pytest.mark.parametrize("special", [False, True])
def test_files_equal_llama_cpp(tmp_path: Path, shared_data: Path, special: bool) -> None:
    """SentencePiece and byte-pair files as they are, and the raw pieces of SentencePiece's."""
    peer()
    files = load_script("tokenizer_files", "tests")
    spm = shared_data / "vocabs/ggml-vocab-llama-spm.gguf"
    content = files.raw(spm, "gemma")
    vocab = content["model"]["vocab"]
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    builder = g.bpe_vocabulary(list(vocab), merges, files.tokens_of(spm)[1], "gemma4")
    builder.add("general.architecture", g.STRING, "llama")
    builder.add("tokenizer.ggml.bos_token_id", g.U32, 1)
    builder.add("tokenizer.ggml.eos_token_id", g.U32, 2)  # llama.cpp assumes 11 if there is none
    raw = builder.write(tmp_path / "raw.gguf")
    runs = [{"file": str(raw), "pre": name} for name, pre in PRE_TOKENIZERS.items() if pre.raw]
    names = ("llama-spm", "phi-3", "llama-bpe", "qwen2", "gpt-2")
    runs += [{"file": str(shared_data / f"vocabs/ggml-vocab-{n}.gguf"), "pre": None} for n in names]
    rng = random.Random()
    marks = ["<s>", "</s>", "<|user|>", "<|end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>"]
    wanted = [
        text[:at] + rng.choice(marks) + text[at:]
        for text in texts(rng.randrange(1 << 30), 300)
        for at in [rng.randint(0, len(text))]
    ]
    found = by_llama(tmp_path, {"texts": wanted, "special": special, "runs": runs})
    for run, answer in zip(runs, found, strict=True):
        path = Path(run["file"])
        tokenizer = named(tmp_path, path, run["pre"]) if run["pre"] else Tokenizer.from_file(path)
        assert sorted(tokenizer.eos_ids) == answer["ends"], run
        for text, ids in zip(wanted, answer["ids"], strict=True):
            assert tokenizer.encode(text, special) == ids, (run, text)
