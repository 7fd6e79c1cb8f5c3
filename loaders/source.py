"""What every kind of model gives the engine: hyperparameters by GGUF key and a tensor directory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar, overload

from edge_rt.errors import ModelError
from edge_rt.flash_io._flash_io import File
from edge_rt.loaders.gguf_cursor import LazyArray, clip
from edge_rt.loaders.text_files import TextFiles
from edge_rt.quant.blocks import BlockFormat

PART_ALIGNMENT: Final = 1 << 20  # a multiple of what direct reads of any drive need
SAFETENSORS_INDEX: Final = "model.safetensors.index.json"  # beside the files of a folder

_REQUIRED: Final = object()
_T = TypeVar("_T")
_K = TypeVar("_K")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: ``shape`` is row-major as in NumPy, so a matrix is (n_rows, n_cols).

    ``offset`` counts bytes through the source's parts laid one after the other (see
    `WeightSource`). ``format`` is None for a format that cannot be read here; ``n_bytes`` then
    reaches to the next tensor or the end of the file, padding included.
    """

    name: str
    shape: tuple[int, ...]
    format: BlockFormat | None
    format_name: str
    offset: int
    n_bytes: int


class WeightSource:
    """A model on disk: ``metadata`` under GGUF's keys and ``tensors`` under GGUF's names.

    ``path`` is what messages call it; ``parts`` are its weight files, ``file_size`` their bytes.
    Offsets count through the parts, each of which begins at a multiple of `PART_ALIGNMENT`.
    ``file`` has the parts open: what was checked is what is read.
    ``folder``: where the tokenizer's files lie; None if the metadata describe it.
    """

    def __init__(self, path: str, parts: tuple[str, ...], file_size: int) -> None:
        self.path = path
        self.parts = parts
        self.file_size = file_size
        self.folder: str | None = None
        self.file: File | None = None
        self._texts: TextFiles | None = None
        self.metadata: dict[str, object] = {}
        self.tensors: dict[str, TensorInfo] = {}

    @property
    def texts(self) -> TextFiles:
        """The tokenizer's files, where ``folder`` is one."""
        if self._texts is None:
            assert self.folder is not None
            self._texts = TextFiles(self.folder)
        return self._texts

    @texts.setter
    def texts(self, files: TextFiles) -> None:
        self._texts = files

    def fail(self, message: str) -> ModelError:
        """An error that names this source."""
        return ModelError(f"{self.path}: {message}")

    @contextmanager
    def named(self) -> Iterator[None]:
        """Refusals from within that do not say which model they are about do so afterwards."""
        try:
            yield
        except ModelError as error:
            message = str(error)
            if not message.startswith((self.path, os.path.normpath(self.path))):
                error.args = (f"{self.path}: {message}",)
            raise

    def _get(self, key: str, kind: type[_K], what: str, default: object) -> _K | None:
        """The value at ``key``, None when it is missing and there is a default."""
        value = self.metadata.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.fail(f"key {clip(key)} is missing")
            return None
        if type(value) is not kind:  # not isinstance: a bool is no integer
            raise self.fail(f"key {clip(key)} is {clip(value)}, not {what}")
        return value

    @overload
    def get_int(self, key: str, *, minimum: int = ..., maximum: int = ...) -> int: ...
    @overload
    def get_int(
        self, key: str, default: _T, minimum: int = ..., maximum: int = ...
    ) -> int | _T: ...
    def get_int(
        self,
        key: str,
        default: object = _REQUIRED,
        minimum: int = -(1 << 63),
        maximum: int = (1 << 64) - 1,
    ) -> object:
        """The integer at ``key``, in ``[minimum, maximum]``; ``default`` when it is missing."""
        value = self._get(key, int, "an integer", default)
        if value is not None and not minimum <= value <= maximum:
            raise self.fail(f"key {clip(key)} is {value}, not in {minimum} to {maximum}")
        return default if value is None else value

    @overload
    def get_float(self, key: str) -> float: ...
    @overload
    def get_float(self, key: str, default: _T) -> float | _T: ...
    def get_float(self, key: str, default: object = _REQUIRED) -> object:
        """The finite number at ``key``; ``default`` when it is missing."""
        value = self._get(key, float, "a float", default)
        if value is not None and not math.isfinite(value):
            raise self.fail(f"key {clip(key)} is {value}, not a finite number")
        return default if value is None else value

    @overload
    def get_str(self, key: str) -> str: ...
    @overload
    def get_str(self, key: str, default: _T) -> str | _T: ...
    def get_str(self, key: str, default: object = _REQUIRED) -> object:
        """The string at ``key``; ``default`` when it is missing."""
        value = self._get(key, str, "a string", default)
        return default if value is None else value

    @overload
    def get_bool(self, key: str) -> bool: ...
    @overload
    def get_bool(self, key: str, default: _T) -> bool | _T: ...
    def get_bool(self, key: str, default: object = _REQUIRED) -> object:
        """The bool at ``key``; ``default`` when it is missing."""
        value = self._get(key, bool, "a bool", default)
        return default if value is None else value

    @overload
    def get_array(self, key: str, *, kind: str | None = ...) -> LazyArray: ...
    @overload
    def get_array(self, key: str, default: _T, kind: str | None = ...) -> LazyArray | _T: ...
    def get_array(self, key: str, default: object = _REQUIRED, kind: str | None = None) -> object:
        """The array at ``key``, of element type ``kind`` if given; ``default`` if missing."""
        value = self._get(key, LazyArray, "an array", default)
        if value is not None and kind is not None and value.kind != kind:
            raise self.fail(f"key {clip(key)} is an array of {value.kind}, not of {kind}")
        return default if value is None else value
