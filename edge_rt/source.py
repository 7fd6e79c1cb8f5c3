"""Opening a model: whatever people have on disk as one `WeightSource`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edge_rt.errors import UsageError
from edge_rt.flash_io.files import is_folder, is_there
from edge_rt.loaders.gguf import SPLIT_NAME, GGUFFile
from edge_rt.loaders.gguf_cursor import clip, list_folder
from edge_rt.loaders.source import SAFETENSORS_INDEX, WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterable

# general.type or general.architecture of GGUFs that hold no language model, and what to do instead.
_OTHER_KINDS = {
    "clip": "a vision projector (mmproj), not a language model: give the language model's file",
    "mmproj": "a vision projector (mmproj), not a language model: give the language model's file",
    "adapter": "an adapter (LoRA), not a model: merge it into its base model and give that",
    "controlvector": "a control vector, not a model: give the language model's file",
    "imatrix": "an importance matrix for quantizing, not a model: give the language model's file",
}
# Files that stand for the Hugging Face folder that they lie in.
_FOLDER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", SAFETENSORS_INDEX)


def open_source(path: str | os.PathLike[str]) -> WeightSource:
    """Open and check the directory of a model: a GGUF file, any part of a split one, a Hugging Face
    folder (or a file in it), or a folder that holds one GGUF model.

    Raises `UsageError` when there is no such model, `ModelError` when it is damaged or not
    supported, `StorageError` when the drive fails.
    """
    kind, path = locate(os.fspath(path))
    if kind == "gguf":
        file = GGUFFile.open(path, allow_unsupported=True)
        if reason := why_no_model(file):
            raise file.fail(reason)
        file.refuse_unsupported()
        return file
    # Only those who have such a folder pay for the code that translates it.
    from edge_rt.loaders.safetensors import SafetensorsFolder
    from edge_rt.models.huggingface import huggingface_source

    return huggingface_source(SafetensorsFolder.open(path))


def why_no_model(file: GGUFFile) -> str:
    """Why ``file`` cannot be run as a language model, whatever its formats; empty if it can."""
    for key in ("general.type", "general.architecture"):
        kind = file.metadata.get(key)
        if isinstance(kind, str) and kind in _OTHER_KINDS:
            return _OTHER_KINDS[kind]
    if not file.tensors:
        if "tokenizer.ggml.tokens" in file.metadata:
            return "only a vocabulary, without weights: give the model's file"
        return "there are no tensors in it"
    return ""


def locate(path: str) -> tuple[str, str]:
    """What ``path`` means: ``("gguf", file)`` or ``("safetensors", folder)``.

    The name of a split model without ``-00001-of-000NN.gguf`` means its first part.
    """
    if is_folder(path):
        path = path.rstrip("/") or "/"
        names = list_folder(path)
        if "config.json" in names and any(n.endswith(".safetensors") for n in names):
            return "safetensors", path
        models = gguf_models(names)
        if len(models) == 1:
            return "gguf", os.path.join(path, models[0])
        if models:
            raise UsageError(
                f"{path} holds {len(models)} models, give one: {clip(', '.join(models), 500)}"
            )
        return "safetensors", path  # the reader of such folders says what is missing
    base = os.path.basename(path)
    if base in _FOLDER_FILES or base.endswith(".safetensors"):
        if not is_there(path):
            raise UsageError(f"no such file: {path}")
        return "safetensors", os.path.dirname(path) or "."
    if not is_there(path) and (first := _first_part(path)):
        return "gguf", first
    return "gguf", path


def _first_part(prefix: str) -> str:
    """The first part of the split model whose files begin with ``prefix``; empty if none is."""
    folder, base = os.path.split(prefix)
    if not base or not is_folder(folder or "."):
        return ""
    for name in sorted(list_folder(folder or ".")):
        split = SPLIT_NAME.fullmatch(name)
        if split and split[1] == base:
            return os.path.join(folder, f"{base}-00001-of-{split[3]}.gguf")
    return ""


def gguf_models(names: Iterable[str]) -> list[str]:
    """The files among ``names`` that each stand for a GGUF model: of a split one the first part.

    Vision projectors and importance matrices lie beside the models that they belong to.
    """
    models = set()
    for name in names:
        lower = name.lower()
        if not lower.endswith(".gguf") or "mmproj" in lower:
            continue
        if lower.startswith("imatrix") or lower.endswith("imatrix.gguf"):
            continue
        split = SPLIT_NAME.fullmatch(name)
        models.add(f"{split[1]}-00001-of-{split[3]}.gguf" if split else name)
    return sorted(models)
