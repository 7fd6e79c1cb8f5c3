"""``edge-rt inspect``: what is in a model's files; reads no weights."""

from __future__ import annotations

import bisect
import json
from collections import Counter
from typing import Annotated, Any

import typer

from edge_rt.apps import options as o
from edge_rt.library import find_model
from edge_rt.loaders.gguf import GGUFFile
from edge_rt.loaders.gguf_cursor import LazyArray
from edge_rt.loaders.safetensors import SafetensorsFolder
from edge_rt.loaders.source import TensorInfo
from edge_rt.sizes import format_size
from edge_rt.source import locate, why_no_model

_SHOWN_CHARACTERS = 200


def _shown(value: object) -> Any:
    if isinstance(value, LazyArray):
        return {"array": value.kind, "length": len(value)}
    if isinstance(value, str) and len(value) > _SHOWN_CHARACTERS:
        return value[:_SHOWN_CHARACTERS] + "…"
    return value


def _tensor(t: TensorInfo, starts: list[int]) -> dict[str, Any]:
    """One tensor: ``offset`` counts from the beginning of its part."""
    part = bisect.bisect_right(starts, t.offset) - 1
    return {
        "name": t.name,
        "shape": t.shape,
        "format": t.format_name,
        "part": part,
        "offset": t.offset - starts[part],
        "n_bytes": t.n_bytes,
        "supported": t.format is not None,
    }


def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="a GGUF file, a Hugging Face folder (or a file in it), or a name"
        ),
    ],
    as_json: o.AsJson = False,
) -> None:
    """List a model's metadata and tensors."""
    kind, path = locate(find_model(file))
    head: dict[str, Any] = {"path": path, "kind": kind}
    model: GGUFFile | SafetensorsFolder
    if kind == "gguf":
        model = GGUFFile.open(path, allow_unsupported=True)
        tensors, reason = model.tensors, why_no_model(model)
        head |= {"version": model.version, "alignment": model.alignment}
        title = f"GGUF v{model.version}"
        described = {"metadata": {key: _shown(value) for key, value in model.metadata.items()}}
    else:
        model = SafetensorsFolder.open(path, allow_unsupported=True)
        tensors, reason = model.raw, model.why_quantized()
        title = "safetensors"
        described = {"config": model.config, "generation_config": model.generation_config}
    head |= {"file_bytes": model.file_size, "parts": model.parts, "error": reason or None}
    if as_json:
        # NaN and infinity, which JSON does not have, as strings.
        shown = json.loads(json.dumps(head | described), parse_constant=str)
        # By tensor: all of them as one object would take more memory than the directory itself.
        print(json.dumps(shown, ensure_ascii=False)[:-1], end=', "tensors": [')
        for number, t in enumerate(tensors.values()):
            print(", " if number else "", end="")
            print(json.dumps(_tensor(t, model.starts), ensure_ascii=False), end="")
        print("]}", flush=True)
        return
    print(f"{o.printable(path)}: {title}, {format_size(model.file_size)}")
    if reason:
        print(f"  cannot be used: {o.printable(reason)}")
    if len(model.parts) > 1:
        for part in model.parts:
            print(f"  part {o.printable(part)}")
    for name, values in described.items():
        prefix = "generation_config." if name == "generation_config" else ""
        for key, value in values.items():
            print(f"  {prefix}{o.printable(key)} = {_shown(value)!r}")
    counts = Counter(t.format_name for t in tensors.values())
    kinds = ", ".join(f"{n} {name}" for name, n in counts.most_common())
    print(f"{len(tensors)} tensors: {kinds or 'none'}")
    width = min(64, max((len(name) for name in tensors), default=0))
    for t in tensors.values():
        note = "" if t.format is not None else "  (not supported)"
        shape = " x ".join(map(str, t.shape))
        print(
            f"  {o.printable(t.name):<{width}} {t.format_name:<6} {shape:>16} "
            f"{format_size(t.n_bytes):>12}{note}"
        )
