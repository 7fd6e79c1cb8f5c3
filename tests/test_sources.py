"""Models as people have them: split GGUFs, folders, and what is none."""

from __future__ import annotations

import json
import os
import random
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_rt import EdgeRTError, Engine, ModelError, Tokenizer, UsageError
from edge_rt.flash_io.files import File
from edge_rt.loaders.gguf import GGUFFile
from edge_rt.loaders.source import PART_ALIGNMENT
from edge_rt.opening import open_planner
from edge_rt.source import locate, open_source

from . import gguf_builder as g
from .fresh import peak
from .gguf_builder import Array, GGUFBuilder
from .model_stores import cache_repo, no_models_of_this_machine  # noqa: F401
from .safetensors_builder import Safetensors, write_folder
from .test_cli import edge_rt, one_object
from .test_hostile_models import tiny

# --- split GGUFs ----------------------------------------------------------------------------------


def split(builder: GGUFBuilder, count: int) -> list[GGUFBuilder]:
    """As llama.cpp's gguf-split does: all keys in the first part."""
    parts = []
    for k in range(count):
        part = GGUFBuilder(keys=list(builder.keys) if k == 0 else [])
        part.tensors = builder.tensors[k::count]
        part.add("split.no", g.U16, k).add("split.count", g.U16, count)
        parts.append(part.add("split.tensors.count", g.I32, len(builder.tensors)))
    return parts


def write_split(folder: Path, parts: list[GGUFBuilder], stem: str = "m") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return [
        part.write(folder / f"{stem}-{k:05}-of-{len(parts):05}.gguf")
        for k, part in enumerate(parts, 1)
    ]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_split_model_has_the_tensors_of_all_parts(tmp_path: Path, count: int) -> None:
    builder = tiny()
    paths = write_split(tmp_path / "s", split(builder, count))
    whole = GGUFFile.open(builder.write(tmp_path / "whole.gguf"))
    found = GGUFFile.open(paths[0])
    assert found.parts == tuple(map(str, paths))
    assert found.file_size == sum(path.stat().st_size for path in paths)
    assert {n: t.shape for n, t in found.tensors.items()} == {
        n: t.shape for n, t in whole.tensors.items()
    }
    assert list(whole.metadata) == [k for k in found.metadata if not k.startswith("split.")]
    assert all(start % PART_ALIGNMENT == 0 for start in found.starts)
    content, file = Path(whole.path).read_bytes(), File(list(found.parts))
    for name, t in found.tensors.items():
        there = whole.tensors[name].offset
        assert file.read(t.offset, t.n_bytes) == content[there : there + t.n_bytes], name
    for path in (*paths[1:], tmp_path / "s", tmp_path / "s/m"):
        again = open_source(path)
        assert (again.path, again.tensors) == (found.path, found.tensors)


@pytest.mark.parametrize("settings", [{}, {"weight_cap": "0"}, {"weight_cap": "20K"}])
def test_a_split_model_gives_the_same_logits(tmp_path: Path, settings: dict[str, Any]) -> None:
    builder = tiny(ggml_id=0)
    paths = write_split(tmp_path, split(builder, 5))
    whole = builder.write(tmp_path / "whole.gguf")
    tokens = [1, 5, 200, 7, 299]
    rows = []
    for path in (whole, paths[2]):
        with Engine(path, ram="4GiB", ctx=16, threads=2, **settings) as engine:
            rows.append(engine.logits(tokens).tobytes())
    assert rows[0] == rows[1]


def change(part: GGUFBuilder, key: str, value: int) -> None:
    part.keys = [(k, kind, value if k == key else v) for k, kind, v in part.keys]


def test_damaged_splits(tmp_path: Path) -> None:
    def refuse(words: str, at: int = 0) -> None:
        with pytest.raises(ModelError, match=words):
            open_source(paths[at])

    for case in range(9):
        folder = tmp_path / str(case)
        parts = split(tiny(), 3)
        if case == 0:
            change(parts[1], "split.no", 2)
        elif case == 1:
            change(parts[2], "split.count", 4)
        elif case == 2:
            parts[2].tensors.append(parts[0].tensors[0])
        elif case == 3:
            for part in parts:
                change(part, "split.tensors.count", 5)
        elif case == 4:
            parts[1].keys = []
        elif case == 5:
            change(parts[0], "split.count", 60000)
        elif case == 6:
            change(parts[0], "split.no", 3)
        paths = write_split(folder, parts)
        if case == 0:
            refuse(r"named as part 2 of 3, but .* are 2 \(from 0\) and 3")
        elif case == 1:
            refuse(r"named as part 3 of 3, but .* are 2 \(from 0\) and 4")
        elif case == 2:
            refuse(r"is in .*00003.* again")
        elif case == 3:
            refuse(r"have 20 tensors, not 5")
        elif case == 4:
            refuse(r"named as part 2 of 3, but .* are None \(from 0\) and None")
        elif case == 5:
            refuse(r"split.count")
        elif case == 6:
            refuse(r"split.no")
        elif case == 7:
            paths[1].unlink()
            for at in (0, 2):
                refuse(r"part 2 of 3 is missing: .*m-00002-of-00003.gguf", at)
        else:
            paths[1].rename(folder / "second.gguf")
            paths[1] = folder / "second.gguf"
            refuse(r"its name must end in -00002-of-00003.gguf", 1)
    with pytest.raises(UsageError, match=r"m-00001-of-00003"):
        open_source(write_split(tmp_path / "x", split(tiny(), 3))[0].unlink() or tmp_path / "x/m")


# --- what a path means ----------------------------------------------------------------------------


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    fake = SimpleNamespace(huggingface_source=lambda raw: seen.append(raw) or raw)
    monkeypatch.setitem(sys.modules, "edge_rt.models.huggingface", fake)
    folder = write_folder(tmp_path / "m", [Safetensors().add("w", (2, 3))])
    for path in (folder, folder / "config.json", folder / "model.safetensors"):
        open_source(path)
        assert (seen[-1].folder, list(seen[-1].raw)) == (str(folder), ["w"])
    monkeypatch.chdir(folder)
    assert locate("config.json") == ("safetensors", ".")
    model = tiny().write(folder / "m.gguf")
    assert locate(f"{folder}/") == ("safetensors", str(folder))
    (folder / "model.safetensors").unlink()
    assert locate(str(folder)) == ("gguf", str(model))
    for name in ("mmproj-m-f16", "m.mmproj", "m.imatrix", "imatrix_m"):
        tiny().write(folder / f"{name}.gguf")
    assert locate(str(folder)) == ("gguf", str(model))
    tiny().write(folder / "n.gguf")
    with pytest.raises(UsageError, match=r"holds 2 models, give one: .m.gguf, n.gguf"):
        open_source(folder)
    with pytest.raises(UsageError, match="a folder without a model"):
        open_source(tmp_path / "here")
    with pytest.raises(UsageError, match="no such file"):
        open_source(tmp_path / "none/config.json")


@pytest.mark.parametrize(
    ("builder", "words"),
    [
        (GGUFBuilder().add("general.architecture", g.STRING, "clip"), "a vision projector"),
        (GGUFBuilder().add("general.type", g.STRING, "mmproj"), "a vision projector"),
        (GGUFBuilder().add("general.type", g.STRING, "adapter"), "an adapter.*merge it"),
        (GGUFBuilder().add("general.type", g.STRING, "imatrix"), "an importance matrix"),
        (
            GGUFBuilder().add("tokenizer.ggml.tokens", g.ARRAY, Array(g.STRING, ["a"])),
            "only a vocabulary",
        ),
        (GGUFBuilder(), "no tensors"),
    ],
)
def test_other_kinds_of_gguf_are_refused_by_name(
    tmp_path: Path, builder: GGUFBuilder, words: str
) -> None:
    if "tensors" not in words and "vocabulary" not in words:
        builder.tensor("t", (256,), 14, bytes(210))  # Q6_K: the kind is said, not the format
    path = builder.write(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=words):
        open_source(path)
    found = one_object(edge_rt("inspect", path, "--json")[0])
    assert words.split(".")[0] in found["error"]


def test_what_is_no_model_file(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "fifo.gguf")
    (tmp_path / "link.gguf").symlink_to("nowhere")
    for name in ("folder.gguf", "fifo.gguf", "link.gguf", "none.gguf", "nul\0.gguf"):
        start = time.perf_counter()
        with pytest.raises(UsageError):
            open_planner(str(tmp_path / name))
        assert time.perf_counter() - start < 2


# --- what is in the files -------------------------------------------------------------------------


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [(LFS, "git lfs pull"), (b"<!DOCTYPE html>" + b" " * 99, "a web page"), (b"", "it is empty")],
    ids=["lfs", "html", "empty"],
)
def test_what_a_download_leaves_instead(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=words):
        open_source(path)
    folder = write_folder(tmp_path / "m", [Safetensors().add("a", (2,))], {"model_type": "llama"})
    if content:
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=words):
            open_source(folder)
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=words):
        Tokenizer.from_file(folder)


@pytest.mark.parametrize("kind", [1, 3, 4], ids=["normal", "control", "user"])
def test_tokens_beyond_the_embedding(tmp_path: Path, kind: int) -> None:
    """gemma-3-1b-it has one more added token, an image's, than its embedding has rows."""
    model = tiny()
    for name, extra in (("tokens", "<image>"), ("scores", 0.0), ("token_type", kind)):
        (array,) = (v for k, _, v in model.keys if k == f"tokenizer.ggml.{name}")
        array.values.append(extra)
    path = model.write(tmp_path / "m.gguf")
    if kind == 1:
        for command in (("plan", path), ("generate", path, "-p", "a")):
            _, err = edge_rt(*command, "--ram", "128MiB", code=4)
            assert "tokens, the embedding" in err
        return
    assert "forecast" in edge_rt("plan", path, "--ram", "128MiB")[0]
    with Engine(path, "1GiB") as engine:
        assert engine.tokenizer.n_vocab == engine.n_vocab + 1
        assert len(engine.generate("w5", 2, temperature=0.0).tokens) <= 2
        tokens = engine.tokenizer.encode("<image>", special=True)
        assert engine.n_vocab in tokens
        with pytest.raises(UsageError, match="is not in the vocabulary"):
            engine.generate(tokens, 2)


# --- inspect --------------------------------------------------------------------------------------


def test_inspect_a_split_model(tmp_path: Path) -> None:
    paths = write_split(tmp_path / "s", split(tiny(), 3))
    found = one_object(edge_rt("inspect", tmp_path / "s/m", "--json")[0])
    assert found["parts"] == [str(path) for path in paths]
    assert found["kind"] == "gguf" and found["error"] is None and len(found["tensors"]) == 20
    for path, part in zip(paths, range(3), strict=True):
        own = {t.name: t.offset for t in GGUFFile._open_one(str(path)).tensors.values()}
        assert {t["name"]: t["offset"] for t in found["tensors"] if t["part"] == part} == own
    assert "part " + str(paths[2]) in edge_rt("inspect", paths[1])[0]


def test_inspect_a_folder(tmp_path: Path) -> None:
    config = {"model_type": "llama", "limits": [0.5, float("inf")]}
    shards = [Safetensors().add("a", (2, 3), "BF16"), Safetensors().add("b", (4,), "I64")]
    folder = write_folder(tmp_path / "m", shards, config)
    found = one_object(edge_rt("inspect", folder, "--json")[0])
    assert found["config"] == {"model_type": "llama", "limits": [0.5, "Infinity"]}
    assert found["generation_config"] == {"eos_token_id": 2} and len(found["parts"]) == 2
    for t, shard, size in zip(found["tensors"], shards, (12, 32), strict=True):
        assert (t["offset"], t["n_bytes"]) == (8 + len(shard.header()), size)
    assert [t["part"] for t in found["tensors"]] == [0, 1]
    assert [t["supported"] for t in found["tensors"]] == [True, False]
    text, _ = edge_rt("inspect", folder)
    assert "2 tensors: 1 BF16, 1 I64" in text and "(not supported)" in text
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    assert "gptq" in one_object(edge_rt("inspect", folder, "--json")[0])["error"]
    edge_rt("inspect", folder / "model-00001-of-00002.safetensors")
    edge_rt("inspect", folder / "tokenizer.json", code=2)
    (folder / "tokenizer.json").write_text("{}")
    assert (
        "  generation_config.eos_token_id = 2\n" in edge_rt("inspect", folder / "tokenizer.json")[0]
    )
    edge_rt("inspect", tmp_path / "here", code=2)


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"\xff.gguf")
    Path(os.fsdecode(path)).write_bytes(tiny().pack())
    found = one_object(edge_rt("inspect", os.fsdecode(path), "--json")[0])
    assert found["path"] == os.fsdecode(path)
    assert "\\udcff.gguf" in edge_rt("inspect", os.fsdecode(path))[0]
    args = ("generate", os.fsdecode(path), "-p", "a", "-n", 2, "--ram", "128MiB", "--json")
    assert len(one_object(edge_rt(*args)[0])["tokens"]) <= 2


def test_names_that_steer_a_terminal(tmp_path: Path) -> None:
    model = GGUFBuilder().add("general.architecture", g.STRING, "llama\x1b[31m")
    model.tensor("a\x1b[2Jb", (4,), 0, bytes(16))
    path = cache_repo(tmp_path, "org/x", {"\x1b[1m.gguf": model.pack()}) / "\x1b[1m.gguf"
    for out, err in (
        edge_rt("list"), edge_rt("inspect", path), edge_rt("plan", path, "--ram", "1GiB", code=4),
    ):  # fmt: skip
        assert "\x1b" not in out + err and "\\x1b[" in out + err


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_inspecting_the_largest_models_stays_small(tmp_path: Path, kind: str) -> None:
    n = 60_000
    if kind == "gguf":
        builder = GGUFBuilder()
        for i in range(n):
            builder.tensor(f"blk.{i // 768}.experts.{i:05}.weight", (4, 2), 0, bytes(32))
        path = builder.write(tmp_path / "m.gguf")
    else:
        file = Safetensors()
        for i in range(n):
            name = f"model.layers.{i // 768}.mlp.experts.{i:05}.down_proj.weight"
            entry = {"dtype": "BF16", "shape": [2, 4], "data_offsets": [16 * i, 16 * i + 16]}
            file.entries[name] = entry
        file.data = bytes(16 * n)
        path = write_folder(tmp_path / "m", [file])
    program = (
        "import sys\nfrom edge_rt.apps.cli import make_app\n"
        "make_app(['inspect'])(['inspect', sys.argv[1], '--json'], standalone_mode=False)"
    )
    out, held = peak(program, path)
    assert len(json.loads(out)["tensors"]) == n
    assert held <= 64 << 20


# --- damage ---------------------------------------------------------------------------------------


def test_mutated_splits_raise_only_our_errors(tmp_path: Path) -> None:
    """200 mutations of the small second part's header."""
    parts = split(tiny(), 2)
    paths = write_split(tmp_path, parts)
    content, header = parts[1].pack(), len(parts[1].header())
    refused = 0
    for salt in range(200):
        rng = random.Random(salt)
        data = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(header)] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        if rng.random() < 0.2:
            at = data.index(b"split.")
            struct.pack_into("<Q", data, at - 8, rng.choice((0, 2**63, 2**64 - 1)))
        paths[1].write_bytes(data)
        start = time.perf_counter()
        try:
            found = open_source(paths[0])
            size = found.parts and sum(os.path.getsize(p) for p in found.parts)
            assert found.file_size == size
        except EdgeRTError as error:
            refused += 1
            assert isinstance(error, ModelError)
        assert time.perf_counter() - start < 2
    assert refused > 100
