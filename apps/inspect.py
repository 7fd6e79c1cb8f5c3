"""``edge-rt inspect``: what is in a model file; reads no weights."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from edge_rt.apps import options as o
from edge_rt.loaders.gguf import GGUFFile
from edge_rt.loaders.gguf_cursor import LazyArray
from edge_rt.sizes import format_size

_SHOWN_CHARACTERS = 200


def _shown(value: object) -> Any:
    if isinstance(value, LazyArray):
        return {"array": value.kind, "length": len(value)}
    if isinstance(value, str) and len(value) > _SHOWN_CHARACTERS:
        return value[:_SHOWN_CHARACTERS] + "…"
    return value


def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a GGUF file")],
    as_json: o.AsJson = False,
) -> None:
    """List a file's metadata and tensors."""
    source = GGUFFile.open(file, allow_unsupported=True)
    if as_json:
        o.print_json(
            {
                "path": source.path,
                "file_bytes": source.file_size,
                "version": source.version,
                "alignment": source.alignment,
                "metadata": {key: _shown(value) for key, value in source.metadata.items()},
                "tensors": [
                    {
                        "name": t.name,
                        "shape": t.shape,
                        "format": t.format_name,
                        "offset": t.offset,
                        "n_bytes": t.n_bytes,
                        "supported": t.format is not None,
                    }
                    for t in source.tensors.values()
                ],
            }
        )
        return
    print(f"{source.path}: GGUF v{source.version}, {format_size(source.file_size)}")
    for key, value in source.metadata.items():
        print(f"  {key} = {_shown(value)!r}")
    counts = Counter(t.format_name for t in source.tensors.values())
    kinds = ", ".join(f"{n} {name}" for name, n in counts.most_common())
    print(f"{len(source.tensors)} tensors: {kinds or 'none'}")
    for t in source.tensors.values():
        note = "" if t.format is not None else "  (not supported)"
        shape = " x ".join(map(str, t.shape))
        print(f"  {t.name:<32} {t.format_name:<6} {shape:>16} {format_size(t.n_bytes):>12}{note}")
