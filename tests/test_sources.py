"""Models as people have them: split GGUFs, folders, the Hugging Face cache, Ollama's store."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_rt import EdgeRTError, Engine, ModelError, Tokenizer, UsageError
from edge_rt.engine import open_planner
from edge_rt.flash_io.files import File
from edge_rt.library import find_model, installed, quantization_in
from edge_rt.loaders.gguf import GGUFFile
from edge_rt.loaders.source import PART_ALIGNMENT
from edge_rt.source import locate, open_source

from . import gguf_builder as g
from .gguf_builder import Array, GGUFBuilder
from .safetensors_builder import Safetensors, write_folder
from .test_cli import EDGE_RT, edge_rt, one_object
from .test_hostile_models import tiny


@pytest.fixture(autouse=True)
def _no_models_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


# --- split GGUFs --------------------------------------------------------------------------------


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


# --- what a path means --------------------------------------------------------------------------


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


# --- the Hugging Face cache ---------------------------------------------------------------------


def cache_repo(
    tmp_path: Path, repo: str, files: dict[str, bytes], revision: str = "a1b2", main: bool = True
) -> Path:
    """A repository as huggingface_hub lays it out: blobs, and links to them in a snapshot."""
    folder = tmp_path / "hf/hub" / ("models--" + repo.replace("/", "--"))
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = folder / "snapshots" / revision / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs/main").write_text(revision)
    return folder / "snapshots" / revision


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


def test_gguf_repositories(tmp_path: Path) -> None:
    model = tiny().pack()
    snapshot = cache_repo(
        tmp_path,
        "org/Tiny-GGUF",
        {
            "Tiny-Q4_K_M.gguf": model, "tiny-q8_0.gguf": model, "Tiny.F16.gguf": model,
            "UD-Q2_K_XL/Tiny-UD-Q2_K_XL-00001-of-00002.gguf": b"", "mmproj-F32.gguf": model,
            "UD-Q2_K_XL/Tiny-UD-Q2_K_XL-00002-of-00002.gguf": b"", "README.md": b"x",
        },
    )  # fmt: skip
    for name, file in (
        ("Q4_K_M", "Tiny-Q4_K_M.gguf"), ("q4_k_m", "Tiny-Q4_K_M.gguf"), ("Q8_0", "tiny-q8_0.gguf"),
        ("F16", "Tiny.F16.gguf"), ("Tiny.F16.gguf", "Tiny.F16.gguf"),
        ("Q2_K_XL", "UD-Q2_K_XL/Tiny-UD-Q2_K_XL-00001-of-00002.gguf"),
    ):  # fmt: skip
        assert find_model(f"org/Tiny-GGUF:{name}") == str(snapshot / file)
    for name in ("org/Tiny-GGUF", "org/Tiny-GGUF:Q5_0"):
        with pytest.raises(UsageError, match=r"org/Tiny-GGUF:F16, .*org/Tiny-GGUF:UD-Q2_K_XL"):
            find_model(name)
    assert GGUFFile.open(find_model("org/Tiny-GGUF:Q8_0")).tensors
    with Engine("org/Tiny-GGUF:Q8_0", ram="4GiB", ctx=8, threads=1) as engine:
        assert engine.generate([1, 2], max_tokens=2, ignore_eos=True).tokens


def test_repositories_of_one_model(tmp_path: Path) -> None:
    cache_repo(tmp_path, "org/one", {"model.gguf": b"x"}, "c0")
    assert find_model("org/one").endswith("snapshots/c0/model.gguf")
    cache_repo(tmp_path, "gpt2", {"config.json": b"{}", "model.safetensors": b"x"}, "d0")
    assert find_model("gpt2").endswith("models--gpt2/snapshots/d0")
    with pytest.raises(UsageError, match=r"no 'Q4_0' in .*there is gpt2"):
        find_model("gpt2:Q4_0")
    both = {"a-Q4_0.gguf": b"a", "b-Q4_0.gguf": b"b"}
    snapshot = cache_repo(tmp_path, "org/two", both)
    with pytest.raises(UsageError, match="org/two:a-Q4_0, org/two:b-Q4_0"):
        find_model("org/two")
    assert find_model("org/two:b-q4_0") == str(snapshot / "b-Q4_0.gguf")
    cache_repo(tmp_path, "org/none", {"README.md": b""})
    with pytest.raises(UsageError, match="holds no model"):
        find_model("org/none")
    with pytest.raises(ModelError, match="a pickle"):
        cache_repo(tmp_path, "org/old", {"config.json": b"{}", "pytorch_model.bin": b"x"})
        open_source(find_model("org/old"))


def test_the_revision_of_main_goes_first(tmp_path: Path) -> None:
    cache_repo(tmp_path, "org/m", {"m-Q4_0.gguf": b"old", "m-Q8_0.gguf": b"only"}, "aaaa")
    new = cache_repo(tmp_path, "org/m", {"m-Q4_0.gguf": b"new"}, "0000")
    for revision in ("aaaa", "0000"):
        (tmp_path / "hf/hub/models--org--m/refs/main").write_text(revision)
        assert find_model("org/m:Q4_0") == str(new.parent / revision / "m-Q4_0.gguf")
        assert find_model("org/m:Q8_0") == str(new.parent / "aaaa/m-Q8_0.gguf")
    for content in (b"", b"../../..", b"\xff", b"x" * 9999):
        (tmp_path / "hf/hub/models--org--m/refs/main").write_bytes(content)
        assert find_model("org/m:Q8_0") == str(new.parent / "aaaa/m-Q8_0.gguf")


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_repo(tmp_path, "org/m", {"m.gguf": b"x"})
    (tmp_path / "hf").rename(tmp_path / "cache_home")
    for variable, value in (
        ("HF_HUB_CACHE", "cache_home/hub"), ("HUGGINGFACE_HUB_CACHE", "cache_home/hub"),
        ("HF_HOME", "cache_home"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(tmp_path / value))
            assert find_model("org/m").endswith("/m.gguf")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "cache_home").rename(tmp_path / "huggingface")
    assert find_model("org/m").endswith("/m.gguf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache").mkdir()
    (tmp_path / "huggingface").rename(tmp_path / ".cache/huggingface")
    assert find_model("org/m").endswith("/m.gguf")


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"), ("SmolLM2.Q4_1.gguf", "Q4_1"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"), ("m-IQ4_XS.gguf", "IQ4_XS"),
        ("m-UD-Q4_K_XL-00001-of-00003.gguf", "UD-Q4_K_XL"), ("m-bf16.gguf", "BF16"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"), ("m-Q8_0-F16.gguf", "F16"), ("Q4_0.gguf", "Q4_0"),
        ("whatever.gguf", "whatever"), ("m-TQ1_0.gguf", "TQ1_0"), ("M.Q6_K.GGUF", "Q6_K"),
    ],
)  # fmt: skip
def test_the_quantization_in_a_name(name: str, tag: str) -> None:
    assert quantization_in(name) == tag


# --- Ollama's store -----------------------------------------------------------------------------


def ollama(tmp_path: Path, name: str, layers: Any, model: bytes | None = None) -> Path:
    """A model as Ollama lays it out; ``name`` is a path below manifests."""
    store = tmp_path / "ollama"
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    (store / "blobs").mkdir(exist_ok=True)
    digest = hashlib.sha256(model or b"").hexdigest()
    if model is not None:
        (store / "blobs" / f"sha256-{digest}").write_bytes(model)
    if isinstance(layers, list):
        layers = {
            "schemaVersion": 2,
            "layers": [
                {
                    "mediaType": f"application/vnd.ollama.image.{kind}",
                    "digest": f"sha256:{digest}" if kind == "model" else "sha256:" + "0" * 64,
                }
                for kind in layers
            ],
        }
    manifest.write_text(layers if isinstance(layers, str) else json.dumps(layers))
    return store / "blobs" / f"sha256-{digest}"


LIBRARY = "registry.ollama.ai/library"


def test_ollama_names(tmp_path: Path) -> None:
    model = tiny().pack()
    latest = ollama(tmp_path, f"{LIBRARY}/llama3.2/latest", ["model", "template"], model)
    small = ollama(tmp_path, f"{LIBRARY}/llama3.2/1b", ["model", "projector"], model + b"\0" * 32)
    mine = ollama(tmp_path, "registry.ollama.ai/me/m/v1", ["model"], model + b"\0" * 64)
    hub = ollama(tmp_path, "hf.co/org/repo/Q4_0", ["model"], model + b"\0" * 96)
    for name, blob in (
        ("llama3.2", latest), ("ollama:llama3.2", latest), ("llama3.2:1b", small),
        ("ollama:llama3.2:1b", small), ("ollama:me/m:v1", mine), ("me/m:v1", mine),
        ("ollama:hf.co/org/repo:Q4_0", hub), ("hf.co/org/repo:Q4_0", hub),
    ):  # fmt: skip
        assert find_model(name) == str(blob), name
    names = {found.name: found for found in installed()}
    assert list(names) == [
        "ollama:hf.co/org/repo:Q4_0",
        "llama3.2:1b",
        "llama3.2",
        "ollama:me/m:v1",
    ]
    for name, found in names.items():
        assert find_model(name) == found.path
    assert names["llama3.2:1b"].notes == ["projector"]
    assert open_source(find_model("llama3.2:1b")).tensors
    with pytest.raises(UsageError, match=r"there is llama3.2:1b, llama3.2$"):
        find_model("llama3.2:70b")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "0 layers hold"), (["template"], "0 layers hold"), (["model", "model"], "2 layers"),
        (["model", "adapter"], "an adapter"), ("", "not a manifest"), ("[]", "not a manifest"),
        ({"layers": 5}, "not a manifest"), ({"layers": [5]}, "not a manifest"),
        ({"layers": [{"mediaType": 5, "digest": "x"}]}, "not a manifest"),
        ("[" * 100_000, "not a manifest"), (" " * (2 << 20), "bytes"),
        ({"layers": [{"mediaType": "application/vnd.ollama.image.model",
                      "digest": "sha256:../../../etc/passwd"}]}, "no digest"),
        ({"layers": [{"mediaType": "application/vnd.ollama.image.model",
                      "digest": "sha256:" + "A" * 64}]}, "no digest"),
    ],
    ids=range(13),
)  # fmt: skip
def test_damaged_manifests(tmp_path: Path, layers: Any, words: str) -> None:
    ollama(tmp_path, f"{LIBRARY}/bad/latest", layers)
    with pytest.raises(ModelError, match=words):
        find_model("bad")
    (found,) = installed()
    assert found.name == "bad" and words in found.error


# --- names --------------------------------------------------------------------------------------


def test_the_order_in_which_a_name_is_looked_up(tmp_path: Path) -> None:
    model = tiny().pack()
    blob = ollama(tmp_path, f"{LIBRARY}/m/latest", ["model"], model)
    assert find_model("m") == str(blob)
    snapshot = cache_repo(tmp_path, "m", {"x.gguf": model})
    assert find_model("m") == str(snapshot / "x.gguf")
    assert find_model("ollama:m") == str(blob)
    write_split(Path(), split(tiny(), 2))
    assert find_model("m") == "m-00001-of-00002.gguf"
    Path("m").write_bytes(model)
    assert find_model("m") == "m"
    assert find_model(Path("m")) == "m"
    with pytest.raises(UsageError, match="edge-rt pull demo"):
        find_model("demo")
    Path("demo").write_bytes(model)
    assert find_model("demo") == "demo"


def test_names_in_any_case(tmp_path: Path) -> None:
    blob = ollama(tmp_path, f"{LIBRARY}/Phi/3B", ["model"], tiny().pack())
    snapshot = cache_repo(tmp_path, "Org/Repo-GGUF", {"m-Q4_0.gguf": b"", "m-F32.gguf": b""})
    for name in ("Phi:3B", "phi:3b", "PHI:3B", "ollama:phi:3b"):
        assert find_model(name) == str(blob), name
    for name in ("Org/Repo-GGUF:F32", "org/repo-gguf:f32"):
        assert find_model(name) == str(snapshot / "m-F32.gguf"), name
    with pytest.raises(UsageError, match="give one of Org/Repo-GGUF:F32, Org/Repo-GGUF:Q4_0"):
        find_model("org/repo-gguf")
    other = cache_repo(tmp_path, "org/REPO-gguf", {"m-F32.gguf": b""})
    assert find_model("org/REPO-gguf:F32") == str(other / "m-F32.gguf")
    with pytest.raises(UsageError, match="there is Org/Repo-GGUF:F32"):
        find_model("org/repo-gguf:F32")  # either could be meant


@pytest.mark.parametrize(
    "name",
    ["nothing", "org/nothing", "org/nothing:Q4_0", "nothing:latest", "ollama:nothing", "a/b/c/d",
     "../x", "org/..", "ollama:..", "x:..", "", ":", "/", "org/", "a b", "x" * 5000, "nul\0", "ü",
     "ollama:", "ollama:/etc/passwd", "m:../../../../x", "x.gguf", "~/x"],
)  # fmt: skip
def test_unknown_names_say_where_was_looked(tmp_path: Path, name: str) -> None:
    cache_repo(tmp_path, "org/thing", {"x.gguf": b""})
    with pytest.raises(UsageError) as caught:
        open_planner(name)
    assert len(str(caught.value)) < 6000
    if name == "org/nothing:Q4_0":
        assert str(tmp_path / "hf/hub") in str(caught.value)
        assert str(tmp_path / "ollama") in str(caught.value)
        assert "there is org/thing" in str(caught.value)
    if name == "nothing":
        assert "edge-rt list" in str(caught.value)


def test_names_on_the_command_line(tmp_path: Path) -> None:
    cache_repo(tmp_path, "org/tiny", {"m-F32.gguf": tiny().pack()})
    out, _ = edge_rt(
        "generate", "org/tiny:F32", "-p", "a", "-n", 2, "--ram", "128MiB", "--ctx", 16, "--json"
    )
    assert len(one_object(out)["tokens"]) <= 2
    assert "org/tiny" in edge_rt("plan", "org/tinny", "--ram", "1GiB", code=2)[1]
    assert one_object(edge_rt("plan", "org/tiny", "--ram", "128MiB", "--json")[0])["fits"]


# --- list ---------------------------------------------------------------------------------------


def test_list(tmp_path: Path) -> None:
    assert one_object(edge_rt("list", "--json")[0])["models"] == []
    assert "edge-rt pull demo" in edge_rt("list")[0]
    model = tiny(ggml_id=0).pack()
    cache_repo(tmp_path, "org/tiny", {"m-F32.gguf": model, "m-Q4_0.gguf": model[:-100]})
    parts = {f"s-0000{k}-of-00002.gguf": p.pack() for k, p in enumerate(split(tiny(), 2), 1)}
    cache_repo(tmp_path, "org/split", parts)
    raw = Safetensors().add("w", (64, 3), "BF16").add("norm", (5,), "F32")
    files = {"config.json": b'{"model_type": "qwen2"}', "model.safetensors": raw.pack()}
    cache_repo(tmp_path, "org/whole", files)
    files["config.json"] = b'{"quantization_config": {"quant_method": "awq"}}'
    cache_repo(tmp_path, "org/awq", files)
    cache_repo(tmp_path, "org/gone", {"m.gguf": b"gone"})
    for path in (tmp_path / "hf/hub/models--org--gone/blobs").iterdir():
        path.unlink()
    ollama(tmp_path, f"{LIBRARY}/m/latest", ["model", "params"], model)
    ollama(tmp_path, f"{LIBRARY}/bad/latest", "{")
    (tmp_path / "cache/edge-rt").mkdir(parents=True)
    tiny().write(tmp_path / "cache/edge-rt/mine.gguf")
    found = one_object(edge_rt("list", "--json")[0])
    rows = {row["name"]: row for row in found["models"]}
    assert set(rows) == {
        str(tmp_path / "cache/edge-rt/mine.gguf"), "org/tiny:F32", "org/tiny:Q4_0", "org/split:s",
        "org/whole", "org/awq", "org/gone:m", "m", "bad",
    }  # fmt: skip
    assert found["searched"][-1] == str(tmp_path / "ollama")
    whole = rows["org/whole"]
    assert (whole["kind"], whole["architecture"], whole["quantization"], whole["bytes"]) == (
        "safetensors", "qwen2", "BF16", len(raw.pack()),
    )  # fmt: skip
    assert (rows["org/split:s"]["files"], rows["org/split:s"]["architecture"]) == (2, "llama")
    assert rows["org/split:s"]["bytes"] == sum(map(len, parts.values()))
    assert rows["m"]["notes"] == ["params"] and rows["m"]["quantization"] == "F32"
    for name, words in (
        ("org/tiny:Q4_0", "file ends at"), ("org/awq", "awq"), ("org/gone:m", "no such file"),
        ("bad", "not a manifest"),
    ):  # fmt: skip
        assert words in rows[name]["error"]
    usable = {name for name, row in rows.items() if row["error"] is None}
    for name in usable - {"org/whole"}:
        assert open_source(find_model(name)).tensors
    text, _ = edge_rt("list")
    assert text.count("cannot be used") == 4 and "org/whole" in text


def test_list_is_quick_and_small(tmp_path: Path) -> None:
    """50 models of a large vocabulary; the interpreter's start is not counted."""
    words = Array(g.STRING, [f"word {i}" for i in range(130_000)])
    builder = GGUFBuilder().add("general.architecture", g.STRING, "llama")
    builder.add("tokenizer.ggml.tokens", g.ARRAY, words)
    builder.add("tokenizer.ggml.merges", g.ARRAY, words)
    for i in range(300):
        builder.tensor(f"t{i}", (32,), 2, bytes(18))
    model = builder.pack()
    for i in range(50):
        cache_repo(tmp_path, f"org/m{i}", {"m-Q4_0.gguf": model})

    def run(*args: str) -> tuple[float, int]:
        start = time.perf_counter()
        program = (
            "import sys\nfrom edge_rt.apps.cli import app\n"
            "app(sys.argv[1:], standalone_mode=False)\n"
            "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        )
        done = subprocess.run(
            [EDGE_RT[0], "-c", program, *args], capture_output=True, text=True, check=True
        )
        return time.perf_counter() - start, int(done.stdout.split()[-1])

    start, _ = run("inspect", str(tmp_path / "hf/hub/models--org--m0/snapshots/a1b2"))
    seconds, kib = min(run("list", "--json") for _ in range(2))
    assert seconds - start < 4  # 1 s on an idle machine; CI machines are not
    assert kib < 64 * 1024


# --- inspect ------------------------------------------------------------------------------------


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
        "import sys\nfrom edge_rt.apps.cli import app\n"
        "app(['inspect', sys.argv[1], '--json'], standalone_mode=False)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr)"
    )
    done = subprocess.run(
        [EDGE_RT[0], "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert len(json.loads(done.stdout)["tensors"]) == n
    assert int(done.stderr.split()[-1]) <= 64 * 1024


# --- damage -------------------------------------------------------------------------------------


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
