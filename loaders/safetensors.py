"""Reader of Hugging Face folders: ``config.json`` and the headers of ``*.safetensors``.

A safetensors file: u64 length of the header, little-endian · the header, a JSON object · data. The
header maps each tensor's name to its ``dtype``, ``shape`` (row-major) and ``data_offsets`` (begin
and end, counted from the end of the header); ``__metadata__`` maps strings to strings. The tensors
cover the data without holes and without overlap. What this reader accepts, the safetensors library
accepts too (https://github.com/huggingface/safetensors, ``safetensors/src/tensor.rs``); repeated
names, which the format forbids and the library lets pass, are refused. No byte of the data is read.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edge_rt.errors import ModelError, UsageError
from edge_rt.flash_io.files import File, open_file, storage_errors
from edge_rt.loaders.gguf_cursor import U64, Cursor, clip, kind_of, list_folder, read_whole
from edge_rt.loaders.json_stream import JsonStream
from edge_rt.loaders.source import PART_ALIGNMENT, TensorInfo
from edge_rt.loaders.source import SAFETENSORS_INDEX as _INDEX
from edge_rt.loaders.text_files import TextFiles
from edge_rt.quant.blocks import BF16, F16, F32
from edge_rt.sizes import MIB, align_up

# The limits below exist so that a hostile folder costs little; real ones are far from each.
_MAX_HEADER_BYTES = 100_000_000  # the library's; what is held of it has the bounds below
_MAX_ENTRY_BYTES = 4096  # a tensor's entry has about 100
_MAX_NAME_BYTES = 1024
_MAX_METADATA_BYTES = 8 * MIB
_MAX_METADATA_STRING = 1 * MIB
_MAX_METADATA_KEYS = 4096
_MAX_TENSORS = 65536
_MAX_HELD_BYTES = 40 * MIB  # Python objects made of tensor entries, all files together
_HELD_PER_TENSOR = 420  # dict slot, TensorInfo, its shape and its integers
_MAX_FILES = 1024  # the largest models have about 200
_MAX_INDEX_BYTES = 32 * MIB  # walked through, never held
_MAX_CONFIG_BYTES = 1 * MIB  # the longest known has about 200 KiB

_FORMATS = {f.name: f for f in (F32, F16, BF16)}
_DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip

_SINGLE_NAME = "model.safetensors"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_PICKLES = (".bin", ".pth", ".pt", ".ckpt")
_CONVERT = (
    "convert it with transformers (`save_pretrained(folder, safe_serialization=True)`) or give a "
    "GGUF of it"
)


def _unsigned(text: str) -> int:
    if text[0] == "-":
        raise ValueError("negative")
    return int(text)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field occurs twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_ENTRY = json.JSONDecoder(
    parse_int=_unsigned, parse_constant=_no_constant, object_pairs_hook=_without_repeats
)


def _is_sizes(value: object) -> bool:
    """Whether ``value`` is a list of integers below 2**64: a bool is none."""
    return isinstance(value, list) and all(type(n) is int and n < 1 << 64 for n in value)


class SafetensorsFolder:
    """A Hugging Face folder as it lies: ``raw`` has the tensors under the names of the files.

    ``parts`` are its weight files; offsets count through them as `WeightSource` says. Tensors of a
    dtype other than F32, F16 and BF16 have the format None: a model that needs one refuses it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.texts = TextFiles(folder)
        self.parts: tuple[str, ...] = ()
        self.file: File | None = None  # all parts, open
        self._files: list[File] = []
        self.starts: list[int] = []  # of the parts, as offsets count
        self.file_size = 0
        self.raw: dict[str, TensorInfo] = {}
        self.config: dict[str, Any] = {}
        self.generation_config: dict[str, Any] = {}
        self._held = 0
        self._end = 0  # of the parts read so far, as offsets count

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], *, allow_unsupported: bool = False
    ) -> SafetensorsFolder:
        """Read and check ``config.json`` and all headers in ``folder``.

        ``allow_unsupported`` admits quantized weights, which cannot be computed with. Raises
        `UsageError` when there is no such folder, `ModelError` when something in it is missing,
        damaged, hostile or unsupported, `StorageError` when the drive fails.
        """
        found = cls(os.fspath(folder))
        names = list_folder(found.folder)
        files, index = found._weight_files(names)
        if "config.json" not in names:
            raise found.fail("config.json is missing: it describes the model")
        found.config = found._read_json("config.json")
        if "generation_config.json" in names:
            found.generation_config = found._read_json("generation_config.json")
        if not allow_unsupported and (reason := found.why_quantized()):
            raise found.fail(reason)
        found.parts = tuple(os.path.join(found.folder, name) for name in files)
        for path in found.parts:
            found._read_part(path)
        found.file = File.join(found._files)
        if index:
            found._check_index(files)
        return found

    def fail(self, message: str) -> ModelError:
        """An error that names this folder."""
        return ModelError(f"{self.folder}: {message}")

    # -- which files ----------------------------------------------------------------------------

    def _weight_files(self, names: set[str]) -> tuple[list[str], bool]:
        """The files that hold the weights, and whether an index names them.

        As transformers does, one whole file goes before an index. ``consolidated*`` files are a
        second copy under Mistral's own names.
        """
        if _SINGLE_NAME in names:
            return [_SINGLE_NAME], False
        if _INDEX in names:
            files = sorted(self._index_files())
            for name in files:
                if name not in names:
                    raise self.fail(f"{name} is missing ({_INDEX} names it)")
            return files, True
        every = sorted(n for n in names if n.endswith(".safetensors"))
        files = [n for n in every if not n.startswith(("consolidated", "adapter_"))]
        if len(files) == 1 and not _SHARD.fullmatch(files[0]):
            return files, False
        if files:
            return self._numbered(files), False
        reason = self._why_no_weights(names, every)
        if not reason and "config.json" not in names:
            raise UsageError(f"{self.folder} is a folder without a model (*.gguf, *.safetensors)")
        raise self.fail(reason or "there are no weights in it (*.safetensors)")

    def _numbered(self, files: list[str]) -> list[str]:
        """``files`` if they are all parts of one numbered set, which then needs no index."""
        shards = [_SHARD.fullmatch(name) for name in files]
        first = shards[0]
        if not first or any(not s or (s[1], s[3]) != (first[1], first[3]) for s in shards):
            raise self.fail(
                f"{_INDEX} is missing, and which of {len(files)} files make the model cannot "
                f"be told from their names: {clip(', '.join(files), 300)}"
            )
        count = int(first[3])
        if count > _MAX_FILES:
            raise self.fail(f"{count} weight files; the limit is {_MAX_FILES}")
        for number in range(1, count + 1):
            name = f"{first[1]}-{number:05}-of-{first[3]}.safetensors"
            if name not in files:
                raise self.fail(f"{name} is missing")
        if len(files) != count:
            raise self.fail(f"{len(files)} files are numbered as parts of {count}")
        return files

    def _why_no_weights(self, names: set[str], every: list[str]) -> str:
        """What the folder holds instead of weights; empty if nothing of the kind."""
        if "adapter_config.json" in names or any(n.startswith("adapter_") for n in every):
            return (
                "an adapter, not a model: merge it into its base model with peft "
                "(`merge_and_unload`) and save that"
            )
        if every:
            return (
                f"only {every[0]}, which has Mistral's own tensor names: fetch the repository's "
                "model-*.safetensors files too"
            )
        pickles = sorted(n for n in names if n.endswith(_PICKLES))
        if pickles:
            return (
                f"its weights are only in {pickles[0]}, a pickle, which runs code of its own when "
                f"it is loaded: {_CONVERT}"
            )
        others = sorted(n for n in names if n.endswith((".h5", ".msgpack", ".onnx", ".npz")))
        if others:
            return f"its weights are only in {others[0]}, which is not supported: {_CONVERT}"
        return ""

    # -- config.json ----------------------------------------------------------------------------

    def _text(self, name: str) -> File:
        with _of_the_folder(os.path.join(self.folder, name)) as path:
            return self.texts.get(name) or open_file(path)  # which says what is wrong

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads(read_whole(self._text(name), _MAX_CONFIG_BYTES).decode())
            json.dumps(value, ensure_ascii=False).encode()  # finds halves of surrogate pairs
        except (ValueError, RecursionError) as error:
            if isinstance(error, ModelError):
                raise
            raise self.fail(f"{name} is not JSON: {clip(str(error), 200)}") from None
        if not isinstance(value, dict):
            raise self.fail(f"{name} is {clip(value)}, not an object")
        return value

    def why_quantized(self) -> str:
        """Why these weights cannot be computed with whatever their dtype; empty if they can."""
        text_config = self.config.get("text_config")
        for config in (self.config, text_config if isinstance(text_config, dict) else {}):
            for key in ("quantization_config", "quantization"):  # the latter is MLX's
                settings = config.get(key)
                if not settings:
                    continue
                method = settings.get("quant_method") if isinstance(settings, dict) else None
                name = clip(method) if method else "mlx" if key == "quantization" else key
                return (
                    f"its weights are quantized ({name}), which is not supported for Hugging Face "
                    "folders: give the unquantized model or a GGUF of it"
                )
        return ""

    # -- the index ------------------------------------------------------------------------------

    def _index_pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (tensor, file) of the index's weight map."""
        file = self._text(_INDEX)
        if file.size > _MAX_INDEX_BYTES:
            raise self.fail(f"{_INDEX} has {file.size} bytes")
        scan = JsonStream(Cursor(file, 0, file.size))
        maps = 0
        for key in scan.members(_MAX_NAME_BYTES):
            if key != "weight_map":
                scan.skip()
                continue
            maps += 1
            for count, name in enumerate(scan.members(_MAX_NAME_BYTES)):
                if count >= _MAX_TENSORS:
                    raise scan.fail(f"more than {_MAX_TENSORS} tensors")
                yield name, scan.string(_MAX_NAME_BYTES)
        scan.end()
        with storage_errors():
            file.check_unchanged()
        if maps != 1:
            raise scan.fail(f"{maps} weight maps instead of one")

    def _index_files(self) -> set[str]:
        files: set[str] = set()
        for _, name in self._index_pairs():
            if name in files:
                continue
            # A name with a folder in it would reach files outside of the model's folder.
            if not name.endswith(".safetensors") or "/" in name or "\\" in name or "\0" in name:
                raise self.fail(f"{_INDEX} names {clip(name)}, not a *.safetensors beside it")
            files.add(name)
            if len(files) > _MAX_FILES:
                raise self.fail(f"{_INDEX} names more than {_MAX_FILES} files")
        if not files:
            raise self.fail(f"{_INDEX} names no file")
        return files

    def _check_index(self, files: list[str]) -> None:
        """Every tensor that the index names must be in the file that it names."""
        starts = [*self.starts, 1 << 63]
        number = {name: i for i, name in enumerate(files)}
        for name, file in self._index_pairs():
            tensor, part = self.raw.get(name), number.get(file)
            if part is None:
                raise self.fail(f"{_INDEX} changed while in use")
            if tensor is None or not starts[part] <= tensor.offset < starts[part + 1]:
                raise self.fail(f"tensor {clip(name)} is not in {file}, where {_INDEX} has it")

    # -- a weight file --------------------------------------------------------------------------

    def _read_part(self, path: str) -> None:
        """Add the tensors of ``path``."""
        with _of_the_folder(path):
            file = open_file(path)
        start = align_up(self._end, PART_ALIGNMENT)
        entries = self._read_header(file, path, start)
        with storage_errors():
            file.check_unchanged()
        self._files.append(file)
        self.starts.append(start)
        self._end = start + file.size
        self.file_size += file.size
        for t in entries:
            if t.name in self.raw:
                raise self.fail(f"tensor {clip(t.name)} is in two files")
            self.raw[t.name] = t

    def _read_header(self, file: File, path: str, start: int) -> list[TensorInfo]:
        size = file.size
        head = Cursor(file, 0, min(size, U64.size)).take(min(size, U64.size), "it")
        if size < U64.size:
            raise ModelError(f"{path}: truncated: {size} bytes are no safetensors file")
        (length,) = U64.unpack_from(head)
        if length > _MAX_HEADER_BYTES or length > size - U64.size:
            raise ModelError(
                f"{path}: not a safetensors file: a header of {length} bytes "
                f"(the file has {size}, the limit is {_MAX_HEADER_BYTES}); {kind_of(head)}"
            )
        data = U64.size + length
        if Cursor(file, U64.size, data).take(min(length, 1), "the header") != b"{":
            raise ModelError(f"{path}: the header does not start with '{{'")
        scan = JsonStream(Cursor(file, U64.size, data))
        entries: dict[str, TensorInfo] = {}
        has_metadata = False
        for name in scan.members(_MAX_NAME_BYTES):
            if name == "__metadata__":
                if has_metadata:
                    raise scan.fail("__metadata__ occurs twice")
                has_metadata = True
                self._check_metadata(scan)
                continue
            if name in entries:
                raise scan.fail(f"tensor {clip(name)} occurs twice")
            if len(self.raw) + len(entries) >= _MAX_TENSORS:
                raise scan.fail(f"more than {_MAX_TENSORS} tensors")
            self._held += _HELD_PER_TENSOR + sys.getsizeof(name)
            if self._held > _MAX_HELD_BYTES:
                raise scan.fail(f"tensor entries need more than {_MAX_HELD_BYTES} bytes")
            entries[name] = self._entry(scan, name, start + data)
        scan.end()
        end, order = start + data, list(entries.values())
        order.sort(key=lambda t: (t.offset, t.n_bytes))
        for t in order:
            if t.offset != end:
                raise ModelError(
                    f"{path}: tensor {clip(t.name)} begins at {t.offset - start - data} of the "
                    f"data, the one before it ends at {end - start - data}"
                )
            end += t.n_bytes
        if end != start + size:
            raise ModelError(
                f"{path}: its tensors end at byte {end - start}, the file has {size}: "
                + ("it is truncated" if end > start + size else "something follows them")
            )
        return list(entries.values())

    @staticmethod
    def _check_metadata(scan: JsonStream) -> None:
        keys, n_characters = set(), 0
        for key in scan.members(_MAX_METADATA_STRING):
            if key in keys:
                raise scan.fail(f"__metadata__ has {clip(key)} twice")
            keys.add(key)
            n_characters += len(key) + len(scan.string(_MAX_METADATA_STRING))
            if len(keys) > _MAX_METADATA_KEYS or n_characters > _MAX_METADATA_BYTES:
                raise scan.fail("__metadata__ is too large")

    @staticmethod
    def _entry(scan: JsonStream, name: str, data: int) -> TensorInfo:
        """One tensor; ``data`` is the offset through the parts that its own offsets count from."""
        what = f"tensor {clip(name)}"
        if scan.peek() != b"{":
            raise scan.fail(f"{what} is not an object")
        entry = scan.value(_MAX_ENTRY_BYTES, _ENTRY)
        dtype, shape, offsets = (entry.get(k) for k in ("dtype", "shape", "data_offsets"))
        bits = _DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
        if bits is None:
            raise scan.fail(f"{what} has dtype {clip(dtype)}, which safetensors does not have")
        if not _is_sizes(shape):
            raise scan.fail(f"{what} has shape {clip(shape)}")
        if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise scan.fail(f"{what} has data_offsets {clip(offsets)}")
        n_bits = bits
        for n in shape:  # in this order: a zero hides no overflow before it
            n_bits *= n
            if n_bits >= 1 << 64:
                raise scan.fail(f"{what} of shape {clip(shape)} is larger than any file")
        begin, end = offsets
        if n_bits != 8 * (end - begin):
            raise scan.fail(
                f"{what} of shape {clip(shape)} in {dtype} has {n_bits} bits, "
                f"its extent {end - begin} bytes"
            )
        block = _FORMATS.get(dtype)
        return TensorInfo(name, tuple(shape), block, dtype, data + begin, end - begin)


@contextmanager
def _of_the_folder(path: str) -> Iterator[str]:
    """Opening ``path``, which the folder lists: what is wrong then is the folder."""
    try:
        yield path
    except UsageError as error:
        if os.path.islink(path) and not os.path.exists(path):
            raise ModelError(f"{path} is a link to a file that is not there") from None
        raise ModelError(str(error)) from None
