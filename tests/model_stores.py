"""Models as other programs leave them on disk, and none of those of this machine."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def no_models_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches below ``tmp_path``, which hold nothing yet; an empty current folder."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


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
