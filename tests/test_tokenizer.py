"""Tokenizers: llama.cpp's vectors, plain references, memory and hostile vocabularies."""

from __future__ import annotations

import functools
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edge_rt.tokenizer.tokenizer as module
from edge_rt.errors import EdgeRTError, ModelError, UsageError
from edge_rt.loaders.gguf import GGUFFile
from edge_rt.tokenizer import Tokenizer
from edge_rt.tokenizer.bpe import LETTER_OF_BYTE

from . import gguf_builder as g
from .tokenizer_texts import texts

GOLDENS = Path(__file__).parent / "goldens/vocabs"
STORIES = Path(__file__).parent / "data/stories260K-F32.gguf"
relaxed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXTS = st.text(max_size=40) | st.text("ab ▁\n.'1<>|é", max_size=40)


@functools.cache
def tokenizer_of(path: Path) -> Tokenizer:
    return Tokenizer.from_file(path)


@pytest.fixture
def smollm(demo_model: Path) -> Tokenizer:
    return tokenizer_of(demo_model)


@pytest.fixture
def stories() -> Tokenizer:
    if not STORIES.is_file():
        pytest.skip("NO STORIES MODEL: tests/data/stories260K-F32.gguf is missing")
    return tokenizer_of(STORIES)


def vectors(stem: Path) -> list[tuple[str, list[int]]]:
    texts = Path(f"{stem}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    ids = Path(f"{stem}.out").read_text().split("\n")
    assert len(texts) == len(ids) > 40
    return [(t, [int(n) for n in line.split()]) for t, line in zip(texts, ids, strict=True)]


def shared_vocabulary(name: str) -> Path:
    folder = os.environ.get("EDGE_RT_SHARED")
    path = Path(folder or "/nonexistent") / "data/vocabs" / name
    if not path.is_file():
        pytest.skip(f"NO SHARED DATA: set EDGE_RT_SHARED to the folder with data/vocabs/{name}")
    return path


# --- llama.cpp's vectors


FAMILIES = ["llama-bpe", "qwen2", "gpt-2", "llama-spm", "phi-3", "smollm"]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A vocabulary and the stem of its vectors."""
    name = f"ggml-vocab-{request.param}.gguf"
    if request.param == "smollm":
        return request.getfixturevalue("demo_model"), GOLDENS / name
    return shared_vocabulary(name), shared_vocabulary(name)


def test_vectors(family: tuple[Path, Path]) -> None:
    path, stem = family
    for text, ids in vectors(stem):
        assert tokenizer_of(path).encode(text) == ids, text
        assert tokenizer_of(path).decode(ids) == text


def test_round_trips(family: tuple[Path, Path]) -> None:
    """10 000 texts each: decode(encode(x)) = x, and streaming gives the same, whole characters."""
    tokenizer = tokenizer_of(family[0])
    raw = "spm" in family[0].name or "phi" in family[0].name
    # SmolLM has no tokens for six control characters and for the first bytes of planes 4 to 11,
    # where no character is assigned; everyone leaves such bytes out.
    lost = (
        re.compile("[\x04\x06\x13\x14\x16\x1d\U00040000-\U000bffff]")
        if "smollm" in family[1].name
        else None
    )
    seed = random.randrange(1 << 30)
    for text in texts(seed, 10_000):
        if raw:  # SentencePiece writes spaces so
            text = text.replace("▁", "_")
        if lost:
            text = lost.sub("?", text)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text, (seed, text)
        stream = tokenizer.stream()
        parts = [stream.push(index) for index in ids]
        assert "".join(parts) == text and not stream.flush(), (seed, text)
        assert "\ufffd" in text or not any("\ufffd" in part for part in parts), (seed, text)


def test_stories(stories: Tokenizer) -> None:
    text = "Once upon a time, there was a little girl named Lily."
    ids = [403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426]
    assert stories.encode(text) == ids
    assert stories.decode([1, *ids]) == text
    assert stories.decode([1, *ids], special=True) == "<s> " + text
    assert stories.decode(ids[1:], continues=True) == text[4:]
    assert (stories.n_vocab, stories.bos_id, stories.eos_ids) == (512, 1, frozenset({2}))
    assert stories.add_bos and not stories.add_eos


def test_smollm_surface(smollm: Tokenizer) -> None:
    assert (smollm.n_vocab, smollm.bos_id, smollm.add_bos) == (49152, 1, False)
    assert smollm.eos_ids == {0, 2, 4}  # <|endoftext|>, <|im_end|> and, as in llama.cpp, <reponame>
    assert smollm.encode("<|im_end|>", special=True) == [2]
    assert len(smollm.encode("<|im_end|>")) > 1
    assert smollm.encode("a<|im_start|>b", special=True)[1] == 1
    assert smollm.decode([1, *smollm.encode("hé"), 2]) == "hé"
    assert smollm.decode([1, *smollm.encode("hé"), 2], special=True) == "<|im_start|>hé<|im_end|>"
    assert smollm.token_text(2) == "<|im_end|>"
    assert smollm.token_bytes(smollm.encode(" world")[0]) == b" world"
    for wrong in (-1, 49152):
        for call in (smollm.token_bytes, smollm.token_text, lambda i: smollm.decode([i])):
            with pytest.raises(UsageError, match="not in 0 to 49151"):
                call(wrong)
    with pytest.raises(UsageError, match="surrogate"):
        smollm.encode("a\udc80")


# --- against references


def reference_spm(file: GGUFFile, text: str) -> list[int]:
    """llama.cpp's llm_tokenizer_spm in its own terms: symbols, and the best bigram each time."""
    pieces = {p: i for i, p in enumerate(file.get_array("tokenizer.ggml.tokens").raw())}
    scores = list(file.get_array("tokenizer.ggml.scores"))
    if not text:
        return []
    if file.get_bool("tokenizer.ggml.add_space_prefix", True):
        text = " " + text
    symbols = [c.encode() for c in text.replace(" ", "▁")]
    while True:
        best: tuple[float, int] | None = None
        for left in range(len(symbols) - 1):
            index = pieces.get(symbols[left] + symbols[left + 1])
            if index is not None and (best is None or -scores[index] < best[0]):
                best = (-scores[index], left)
        if best is None:
            break
        symbols[best[1] : best[1] + 2] = [symbols[best[1]] + symbols[best[1] + 1]]
    ids = []
    for symbol in symbols:
        if symbol in pieces:
            ids.append(pieces[symbol])
        else:
            ids += [pieces[b"<0x%02X>" % byte] for byte in symbol]
    return ids


@relaxed
@given(TEXTS | st.text("Once upna time,Lily. ", max_size=60))
def test_stories_equal_the_reference(stories: Tokenizer, text: str) -> None:
    assert stories.encode(text) == reference_spm(GGUFFile.open(STORIES), text)


BYTES = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]


@settings(relaxed, max_examples=50)
@given(
    st.lists(st.text("ab▁", min_size=1, max_size=5), unique=True, max_size=20),
    st.lists(st.integers(-3, 0), min_size=20, max_size=20),
    st.text("ab ", max_size=300),
    st.booleans(),
)
def test_ties_and_unreachable_pieces(
    tmp_path: Path, words: list[str], scores: list[int], text: str, prefix: bool
) -> None:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *BYTES]
    pieces += [(w, float(s), 1) for w, s in zip(words, scores, strict=False)]
    path = g.spm_vocabulary(pieces, add_space_prefix=prefix).write(tmp_path / "v.gguf")
    tokenizer = Tokenizer.from_file(path)
    ids = tokenizer.encode(text)
    assert ids == reference_spm(GGUFFile.open(path), text)
    if "▁" in words:  # else it is written with byte tokens, which stay what they are
        assert tokenizer.decode(ids) == text


def hugging_face_bpe(file: GGUFFile) -> Any:
    from tokenizers import Tokenizer as HF
    from tokenizers import models, pre_tokenizers

    vocab = {t: i for i, t in enumerate(file.get_array("tokenizer.ggml.tokens"))}
    merges = [tuple(m.split(" ")) for m in file.get_array("tokenizer.ggml.merges")]
    tokenizer = HF(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return tokenizer


@functools.cache
def reference_bpe(path: Path) -> Any:
    return hugging_face_bpe(GGUFFile.open(path))


@relaxed
@given(TEXTS | st.text("the qu1ck br'sown\n f", max_size=200))
def test_smollm_equals_hugging_face(smollm: Tokenizer, demo_model: Path, text: str) -> None:
    assert smollm.encode(text) == reference_bpe(demo_model).encode(text).ids


def test_long_words_equal_hugging_face(smollm: Tokenizer, demo_model: Path) -> None:
    rng = random.Random(7)
    for letters in ("a", "ab", "thequickbrown", "=-", "中文字", " "):
        for n in (127, 128, 129, 1000):
            text = "".join(rng.choice(letters) for _ in range(n))
            assert smollm.encode(text) == reference_bpe(demo_model).encode(text).ids


@relaxed
@given(
    st.lists(st.text("abc", min_size=2, max_size=4), unique=True, max_size=12),
    st.randoms(use_true_random=False),
    st.text("abc", max_size=300),
)
def test_any_merges_equal_hugging_face(
    tmp_path: Path, words: list[str], rng: random.Random, text: str
) -> None:
    words = sorted({w[:i] for w in words for i in range(2, 5)} - {"a", "b", "c"})
    merges = [f"{w[:i]} {w[i:]}" for w in words for i in range(1, len(w))]
    pieces = [*LETTER_OF_BYTE, *words]
    merges = [m for m in merges if all(p in pieces for p in m.split(" "))]
    rng.shuffle(merges)
    path = g.bpe_vocabulary(pieces, merges).write(tmp_path / "v.gguf")
    assert (
        Tokenizer.from_file(path).encode(text)
        == hugging_face_bpe(GGUFFile.open(path)).encode(text).ids
    )


# --- streams and slices


@pytest.mark.parametrize("name", ["smollm", "stories"])
@pytest.mark.parametrize("special", [False, True])
@relaxed
@given(data=st.data())
def test_streams_equal_decode(
    request: pytest.FixtureRequest, name: str, special: bool, data: st.DataObject
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    few = min(300, tokenizer.n_vocab)  # where the control and byte tokens are
    one = st.integers(0, few - 1) | st.integers(0, tokenizer.n_vocab - 1)
    ids = data.draw(st.lists(one, max_size=30))
    stream = tokenizer.stream(special)
    parts = [stream.push(i) for i in ids]
    whole = tokenizer.decode(ids, special)
    assert "".join(parts) + stream.flush() == whole
    kept = [i for i in ids if special or not tokenizer.is_control(i)]
    raw = b"".join(map(tokenizer.token_bytes, kept))
    if tokenizer.strips_space:
        raw = raw.removeprefix(b" ")
    assert whole == raw.decode(errors="replace")


def test_a_character_in_pieces_stays_whole(smollm: Tokenizer) -> None:
    ids = smollm.encode("🦙")
    assert len(ids) > 1
    stream = smollm.stream()
    assert [stream.push(i) for i in ids] == [""] * (len(ids) - 1) + ["🦙"]
    assert stream.push(ids[0]) == "" and stream.flush() == "\ufffd"


@pytest.mark.parametrize("name", ["smollm", "stories"])
@pytest.mark.parametrize("special", [False, True])
@relaxed
@given(data=st.data())
def test_slices_change_nothing(
    request: pytest.FixtureRequest, name: str, special: bool, data: st.DataObject
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    bits = st.sampled_from(
        [" ", "  ", "\n", " \n", "\t", "a", "Once", " upon", "1", ".", "'s", "'", "é", "中", "\x85",
         "\u180e", "\u200b", "\xa0", "▁", "<|im_end|>", "<s>", "</s>", "<unk>", "🦙"]
    )  # fmt: skip
    texts = data.draw(st.lists(bits, max_size=60))
    old = module._SLICE_LETTERS
    try:
        whole = tokenizer.encode("".join(texts), special)
        module._SLICE_LETTERS = data.draw(st.integers(1, 9))
        assert list(tokenizer.iter_encode(texts, special)) == whole
        assert list(tokenizer.iter_encode(["".join(texts)], special)) == whole
    finally:
        module._SLICE_LETTERS = old


def test_slices_are_really_cut(smollm: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    encode = Tokenizer._encode_slice
    monkeypatch.setattr(
        Tokenizer,
        "_encode_slice",
        lambda s, text, *a: seen.append(len(text)) or encode(s, text, *a),
    )
    text = "Some words, 12 numbers\nand lines. " * 3000
    assert smollm.decode(smollm.iter_encode([text])) == text
    assert max(seen) <= 8192 and len(seen) < 20


@pytest.mark.parametrize("kind", [3, 4])
def test_user_defined_tokens_with_spaces(tmp_path: Path, kind: int) -> None:
    pieces = [*LETTER_OF_BYTE, "a b", "<x>"]
    types = [1] * 256 + [kind, 4]
    path = g.bpe_vocabulary(pieces, [], types).write(tmp_path / "v.gguf")
    tokenizer = Tokenizer.from_file(path)
    assert (256 in tokenizer.encode("xa b")) == (kind == 4)
    assert 256 in tokenizer.encode("xa b", special=True)
    assert 257 in tokenizer.encode("x<x>y")
    assert not tokenizer._safe("a b", 1) and tokenizer._safe("c b", 1)


def test_text_after_a_special_token_gets_a_space(stories: Tokenizer) -> None:
    word = stories.encode("Once")
    assert stories.encode("<s>Once</s>Once", special=True) == [1, *word, 2, *word]
    assert stories.encode("Once", special=True) == word


def test_the_first_of_equal_merges_counts(tmp_path: Path) -> None:
    pieces = [*LETTER_OF_BYTE, "ab", "bc"]
    path = g.bpe_vocabulary(pieces, ["a b", "b c", "a b"]).write(tmp_path / "v.gguf")
    assert Tokenizer.from_file(path).encode("abc") == [256, ord("c")]


# --- hostile vocabularies


GOOD = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *BYTES, ("▁", -1.0, 1)]


def spm(*extra: tuple[str | bytes, float, int], **keys: Any) -> g.GGUFBuilder:
    return g.spm_vocabulary([*GOOD, *extra], **keys)


def without(builder: g.GGUFBuilder, name: str, value: g.Array | None = None) -> g.GGUFBuilder:
    key = f"tokenizer.ggml.{name}"
    builder.keys = [k for k in builder.keys if k[0] != key]
    return builder.add(key, g.ARRAY, value) if value else builder


@pytest.mark.parametrize(
    ("builder", "words"),
    [
        (g.GGUFBuilder(), "tokenizer.ggml.model' is missing"),
        (g.GGUFBuilder().add("tokenizer.ggml.model", g.STRING, "bert"), "supported: gpt2, llama"),
        (g.GGUFBuilder().add("tokenizer.ggml.model", g.U32, 1), "not a string"),
        (g.bpe_vocabulary(["a"], [], pre="qwen9"), "'qwen9' is not supported"),
        (g.bpe_vocabulary([], []), "0 tokens"),
        (g.bpe_vocabulary(["a", "b", "ab"], ["a c"]), "merge 0"),
        (g.bpe_vocabulary(["a", "b"], ["a b"]), "merge 0"),
        (g.bpe_vocabulary(["a", "b"], ["ab"]), "merge 0"),
        (g.bpe_vocabulary(["a", "b"], [""]), "merge 0"),
        (g.bpe_vocabulary(["a", "b", "a"], []), "token 2 b'a' occurs twice"),
        (g.bpe_vocabulary(["a", "b"], [], [1]), "token_type"),
        (g.bpe_vocabulary(["a", "b"], [], [1, 7]), "type is not one of"),
        (g.bpe_vocabulary(["a", "b"], [], [1, -1]), "type is not one of"),
        (without(g.bpe_vocabulary(["a"], []), "tokens", g.Array(g.U32, [1])), "array of uint32"),
        (without(g.bpe_vocabulary(["a"], []), "token_type", g.Array(g.F32, [1])), "token_type"),
        (without(g.bpe_vocabulary(["a"], []), "merges"), "merges' is missing"),
        (spm(("<0x-1>", 0.0, 6)), "byte token 260"),
        (spm(("<0x1FF>", 0.0, 6)), "byte token 260"),
        (spm(("<0xab>", 0.0, 6)), "byte token 260"),
        (spm(("x", float("nan"), 1)), "not a number"),
        (without(spm(), "scores", g.Array(g.F32, [1.0])), "scores"),
        (spm(eos_token_id=260), "eos_token_id' is 260, not in 0 to 259"),
        (spm(bos_token_id=2**31), "bos_token_id"),
        (spm(unknown_token_id=999), "unknown_token_id"),
        (spm(*[(f"<{i}>", 0.0, 3) for i in range(17000)]), "16384 special tokens"),
    ],
)
def test_hostile_vocabularies(tmp_path: Path, builder: g.GGUFBuilder, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        Tokenizer.from_file(builder.write(tmp_path / "v.gguf"))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@relaxed
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutations_raise_only_our_errors(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    for builder in (spm(("ab", -1.0, 1)), g.bpe_vocabulary([*LETTER_OF_BYTE, "ab"], ["a b"])):
        content = bytearray(builder.pack())
        for at, value in edits:
            content[at % len(content)] = value
        path = tmp_path / "v.gguf"
        path.write_bytes(content)
        try:
            tokenizer = Tokenizer.from_file(path)
            tokenizer.decode(tokenizer.encode("ab é\n", special=True))
        except EdgeRTError:
            pass


def test_missing_bytes_are_unknown_or_refused(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁", -1.0, 1), ("a", 0.0, 1)]
    path = g.spm_vocabulary(pieces).write(tmp_path / "v.gguf")
    assert Tokenizer.from_file(path).encode("aéa") == [3, 4, 0, 4]
    path = g.spm_vocabulary(pieces, unknown_token_id=2**32 - 1).write(tmp_path / "w.gguf")
    with pytest.raises(ModelError, match="no token for 'é'"):
        Tokenizer.from_file(path).encode("é")
