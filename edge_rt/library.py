"""Models by name: the demo model, the Hugging Face cache and Ollama's store, as they lie on disk.

A path that exists always wins. Otherwise, in this order: ``demo`` · ``org/repo`` or
``org/repo:Q4_K_M`` in the Hugging Face cache (``HF_HUB_CACHE``, ``HF_HOME/hub``,
``~/.cache/huggingface/hub``) · ``llama3.2``, ``llama3.2:1b`` or ``ollama:…`` in Ollama's store
(``OLLAMA_MODELS``, ``~/.ollama/models``, ``/usr/share/ollama/.ollama/models``). Nothing is fetched,
and neither of the two programs is needed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edge_rt.demo import FILE_NAME, cache_dir, demo_path, home_dir
from edge_rt.errors import EdgeRTError, ModelError, UsageError
from edge_rt.loaders.gguf_cursor import clip, list_folder, read_whole
from edge_rt.source import gguf_models, locate

_MAX_MODELS = 10_000  # looked at in one store
_WHOLE = (".safetensors", ".bin", ".pth")  # the latter two only to say why they are refused
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_REF_BYTES = 256
_OLLAMA_MODEL = "application/vnd.ollama.image."
_UNUSED_LAYERS = {"license", "messages", "params", "projector", "system", "template"}
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_NAME_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,255}")
# The quantization that a file's name ends in; unsloth puts UD- before theirs.
_QUANT = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q[1-8]_[0-9A-Z_]+|TQ[12]_0|MXFP4(?:_MOE)?|BF16|F16|F32|FP16|FP32))"
    r"(?=$|[-._])",
    re.IGNORECASE,
)


@dataclass
class Found:
    """A model on disk: the ``name`` to give, the ``store`` it is in, and what `locate` says of it.

    ``error`` says why it cannot be used; ``notes`` name what lies beside the weights and is not
    used.
    """

    name: str
    store: str
    kind: str = ""
    path: str = ""
    error: str = ""
    notes: list[str] = field(default_factory=list)


def find_model(model: str | os.PathLike[str] | None) -> str:
    """The path of a model given by path or by name (see above); None means the demo model.

    Raises `UsageError` with where was looked and what is there when nothing has that name.
    """
    if model is None or (model == "demo" and not os.path.lexists("demo")):
        return str(demo_path())
    name = os.fspath(model)
    if os.path.lexists(name):
        return name
    _, path = locate(name)
    if path != name:  # of a split model, without its number
        return path
    if not isinstance(model, str) or _is_path(name):
        raise UsageError(f"no such file: {clip(name, 1000) if chr(0) in name else name}")
    repo, _, tag = name.removeprefix("ollama:").partition(":")
    if all(_NAME_PART.fullmatch(part) for part in repo.split("/")):
        if not name.startswith("ollama:") and repo.count("/") <= 1:
            for cache in hugging_face_caches():
                folder = _in_any_case(cache, _repo_folder(repo))
                if os.path.isdir(folder):
                    return _in_repo(folder, _repo_name(folder.name), tag)
        for store in ollama_stores():
            if not _NAME_PART.fullmatch(tag or "latest"):
                continue
            manifest = _in_any_case(
                store / "manifests", *_ollama_folder(repo).split("/"), tag or "latest"
            )
            if os.path.isfile(manifest):
                return _read_manifest(store, manifest)[0]
    raise UsageError(_unknown(name))


def _in_any_case(folder: Path, *parts: str) -> Path:
    """The path below ``folder``; a part that is not there is one that differs only in case, if it
    is the only one. Ollama and the Hugging Face hub take names so too."""
    for part in parts:
        similar = [part]
        if not os.path.lexists(folder / part):
            similar = [name for name in _names(folder) if name.lower() == part.lower()]
        folder /= similar[0] if len(similar) == 1 else part
    return folder


def _is_path(name: str) -> bool:
    name = name.partition(":")[0]
    return (
        name.startswith((".", "/", "~"))
        or name.endswith((".gguf", ".safetensors", ".json", ".bin"))
        or name.count("/") > 2
        or "\0" in name
    )


def _unknown(name: str) -> str:
    here = [found.name for found in installed()]
    words = {w for w in re.split(r"[^a-z0-9]+", name.lower()) if len(w) > 2}
    similar = [n for n in here if any(w in n.lower() for w in words)]
    looked = ["this folder", *map(str, (cache_dir(), *hugging_face_caches(), *ollama_stores()))]
    message = f"no such file, and no model is called {clip(name)} in {', '.join(looked)}"
    if similar:
        return f"{message}; there is {', '.join(similar[:10])}"
    return message + ("; `edge-rt list` shows what is there" if here else "")


def installed() -> Iterator[Found]:
    """Every model in the stores, in the order in which a name is looked up."""
    yield from _in_our_cache()
    for cache in hugging_face_caches():
        yield from _in_cache(cache)
    for store in ollama_stores():
        yield from _in_store(store)


def _in_our_cache() -> Iterator[Found]:
    folder = cache_dir()
    for name in gguf_models(_names(folder)):
        path = str(folder / name)
        yield Found("demo" if name == FILE_NAME else path, "edge-rt", "gguf", path)


def _names(folder: Path) -> set[str]:
    """The names in ``folder``; none where it cannot be listed."""
    try:
        return list_folder(str(folder))
    except EdgeRTError:
        return set()


def _read_text(path: Path, limit: int) -> str:
    try:
        return read_whole(path, limit).decode()
    except UnicodeDecodeError:
        raise ModelError(f"{path} is not UTF-8") from None


# -- the Hugging Face cache ------------------------------------------------------------------------


def _expanded(path: str) -> Path:
    return Path(os.path.expanduser(path))  # leaves a ~ that nobody knows


def hugging_face_caches() -> list[Path]:
    """Where huggingface_hub keeps repositories (its ``HF_HUB_CACHE``)."""
    environ = os.environ
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(variable):
            return [_expanded(environ[variable])]
    home = environ.get("HF_HOME")
    if not home:
        base = environ.get("XDG_CACHE_HOME") or home_dir() / ".cache"
        home = str(Path(base) / "huggingface")
    return [_expanded(home) / "hub"]


def _repo_folder(repo: str) -> str:
    return "models--" + repo.replace("/", "--")


def _repo_name(folder: str) -> str:
    return folder.removeprefix("models--").replace("--", "/")


def _snapshots(folder: Path) -> list[Path]:
    """The snapshots of a repository: that of ``main`` first, then the newest."""
    try:
        main = _read_text(folder / "refs/main", _MAX_REF_BYTES).strip()
    except EdgeRTError:
        main = ""
    found = []
    for name in _names(folder / "snapshots"):
        path = folder / "snapshots" / name
        try:
            found.append((name != main, -path.stat().st_mtime_ns, path))
        except OSError:
            continue
    return [path for _, _, path in sorted(found)]


def _repo_models(folder: Path) -> tuple[str, dict[str, str]]:
    """A repository's folder of whole weights (or ""), and its GGUF models: tag -> path.

    Files of one quantization in one snapshot are told apart by their names.
    """
    whole, tagged = "", dict[str, str]()
    for snapshot in _snapshots(folder):
        names = _names(snapshot)
        if not whole and "config.json" in names and any(n.endswith(_WHOLE) for n in names):
            whole = str(snapshot)
        paths = [snapshot / name for name in gguf_models(names)]
        for below in sorted(n for n in names if os.path.isdir(snapshot / n)):
            paths += [snapshot / below / name for name in gguf_models(_names(snapshot / below))]
        tags = [quantization_in(path.name) for path in paths]
        for path, tag in zip(paths, tags, strict=True):
            tagged.setdefault(tag if tags.count(tag) == 1 else _stem(path.name), str(path))
    return whole, tagged


def quantization_in(name: str) -> str:
    """The tag that stands for a GGUF file: the quantization in its name, else the name."""
    found = _QUANT.findall(_stem(name))
    return found[-1].upper() if found else _stem(name)


def _stem(name: str) -> str:
    return re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", name, flags=re.IGNORECASE)


def _in_repo(folder: Path, repo: str, tag: str) -> str:
    whole, tagged = _repo_models(folder)
    if not tag and (whole or len(tagged) == 1):
        return whole or next(iter(tagged.values()))
    if not whole and not tagged:
        raise UsageError(f"{repo} in {folder.parent} holds no model: fetch its weights first")
    choices = ", ".join([repo] * bool(whole) + [f"{repo}:{name}" for name in tagged])
    if not tag:
        raise UsageError(f"{repo} holds {len(tagged)} models: give one of {choices}")
    for wanted in (tag.lower(), f"ud-{tag.lower()}"):
        for name, path in tagged.items():
            if wanted in (name.lower(), os.path.basename(path).lower()):
                return path
    raise UsageError(f"{repo} has no {clip(tag)} in {folder.parent}: there is {choices}")


def _in_cache(cache: Path) -> Iterator[Found]:
    for name in sorted(_names(cache))[:_MAX_MODELS]:
        if not name.startswith("models--"):
            continue
        repo = _repo_name(name)
        whole, tagged = _repo_models(cache / name)
        if whole:
            yield Found(repo, "huggingface", "safetensors", whole)
        for tag, path in sorted(tagged.items()):
            yield Found(f"{repo}:{tag}", "huggingface", "gguf", path)


# -- Ollama's store --------------------------------------------------------------------------------


def ollama_stores() -> list[Path]:
    """Where Ollama keeps its models: as a user's program, and as a service."""
    if chosen := os.environ.get("OLLAMA_MODELS"):
        return [_expanded(chosen)]
    return [home_dir() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]


def _ollama_folder(name: str) -> str:
    """Where the tags of a model lie: ``name``, ``user/name`` or ``host/user/name``."""
    parts = name.split("/")
    defaults = ["registry.ollama.ai", "library"]
    return "/".join([*defaults[: max(0, 3 - len(parts))], *parts])


def _ollama_name(parts: tuple[str, ...]) -> str:
    *folders, tag = parts
    if folders[:1] == ["registry.ollama.ai"]:
        folders = folders[2:] if folders[1:2] == ["library"] else folders[1:]
    name = "/".join(folders) if tag == "latest" else f"{'/'.join(folders)}:{tag}"
    return f"ollama:{name}" if len(folders) > 1 else name


def _read_manifest(store: Path, manifest: Path) -> tuple[str, list[str]]:
    """The blob that holds a model's weights, and the other layers by name."""

    def fail(reason: str) -> ModelError:
        return ModelError(f"{manifest}: {reason}")

    try:
        content = json.loads(_read_text(manifest, _MAX_MANIFEST_BYTES))
        layers = content["layers"]
        kinds = [(layer["mediaType"], layer["digest"]) for layer in layers]
        if not all(isinstance(text, str) for pair in kinds for text in pair):
            raise TypeError
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        if isinstance(error, EdgeRTError):
            raise
        raise fail("not a manifest of Ollama's") from None
    ours = [digest for kind, digest in kinds if kind == _OLLAMA_MODEL + "model"]
    others = {kind.removeprefix(_OLLAMA_MODEL) for kind, _ in kinds}
    if len(ours) != 1:
        raise fail(f"{len(ours)} layers hold weights as a GGUF, not one")
    if "adapter" in others:
        raise fail("an adapter (LoRA) belongs to it, which cannot be applied")
    digest = _DIGEST.fullmatch(ours[0])
    if not digest:
        raise fail(f"{clip(ours[0])} is no digest of a blob")
    return str(store / "blobs" / f"sha256-{digest[1]}"), sorted(others & _UNUSED_LAYERS)


def _manifests(folder: Path, depth: int) -> Iterator[Path]:
    for name in sorted(_names(folder)):
        if depth:
            yield from _manifests(folder / name, depth - 1)
        else:
            yield folder / name


def _in_store(store: Path) -> Iterator[Found]:
    root = store / "manifests"
    for count, manifest in enumerate(_manifests(root, 3)):
        if count >= _MAX_MODELS:
            return
        found = Found(_ollama_name(manifest.relative_to(root).parts), "ollama", "gguf")
        try:
            found.path, found.notes = _read_manifest(store, manifest)
        except EdgeRTError as error:
            found.path, found.error = str(manifest), str(error)
        yield found
