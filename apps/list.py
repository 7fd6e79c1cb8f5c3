"""``edge-rt list``: the models on this machine that need no fetching."""

from __future__ import annotations

from collections import Counter
from typing import Any

from edge_rt.apps import options as o
from edge_rt.demo import cache_dir
from edge_rt.errors import EdgeRTError
from edge_rt.library import Found, hugging_face_caches, installed, ollama_stores
from edge_rt.loaders.gguf import GGUFFile
from edge_rt.loaders.safetensors import SafetensorsFolder
from edge_rt.sizes import format_size
from edge_rt.source import why_no_model


def describe(found: Found) -> dict[str, Any]:
    """What ``list --json`` says of one model; reads the headers of its files."""
    row: dict[str, Any] = {
        "name": found.name,
        "store": found.store,
        "kind": found.kind,
        "architecture": None,
        "quantization": None,
        "bytes": None,
        "files": None,
        "path": found.path,
        "notes": found.notes,
        "error": found.error or None,
    }
    if found.error:
        return row
    try:
        model: GGUFFile | SafetensorsFolder
        if found.kind == "gguf":
            model = GGUFFile.open(found.path, allow_unsupported=True)
            tensors, architecture = model.tensors, model.metadata.get("general.architecture")
            row["error"] = why_no_model(model) or None
        else:
            model = SafetensorsFolder.open(found.path, allow_unsupported=True)
            tensors, architecture = model.raw, model.config.get("model_type")
            row["error"] = model.why_quantized() or None
        formats = Counter[str]()
        for t in tensors.values():
            formats[t.format_name] += t.n_bytes
        row["architecture"] = architecture if isinstance(architecture, str) else None
        row["quantization"] = formats.most_common(1)[0][0] if formats else None
        row["bytes"], row["files"] = model.file_size, len(model.parts)
    except EdgeRTError as error:
        row["error"] = str(error)
    return row


def list_models(as_json: o.AsJson = False) -> None:
    """List the models on this machine that need no fetching.

    Looks in this program's cache, the Hugging Face cache and Ollama's store.
    """
    rows = [describe(found) for found in installed()]
    searched = [str(p) for p in (cache_dir(), *hugging_face_caches(), *ollama_stores())]
    if as_json:
        o.print_json({"models": rows, "searched": searched})
        return
    if not rows:
        print(f"no models in {', '.join(searched)}\n`edge-rt pull demo` fetches a small one")
        return
    names = [o.printable(row["name"]) for row in rows]
    width = max(len("NAME"), *map(len, names))
    print(f"{'NAME':<{width}}  {'KIND':<11} {'ARCHITECTURE':<12} {'FORMAT':<8} {'SIZE':>10}  PATH")
    for name, row in zip(names, rows, strict=True):
        size = "" if row["bytes"] is None else format_size(row["bytes"])
        print(
            f"{name:<{width}}  {row['kind']:<11} {o.printable(row['architecture'] or ''):<12} "
            f"{row['quantization'] or '':<8} {size:>10}  {o.printable(row['path'])}"
        )
        if row["error"]:
            print(f"{'':<{width}}  cannot be used: {o.printable(row['error'])}")
