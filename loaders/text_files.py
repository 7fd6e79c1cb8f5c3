"""The small files of a Hugging Face folder: what was read of one is what is read of it again."""

from __future__ import annotations

import os
from pathlib import Path

from edge_rt.flash_io.files import File, is_file, open_file


class TextFiles:
    """The files of ``folder`` by name, each opened at most once and then kept open.

    Several readers need the same file, one after the other. A file that is replaced or deleted
    meanwhile stays what it was, one that is missing stays missing, and whoever reads one that was
    written to finds that out.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._files: dict[str, File | None] = {}

    def get(self, name: str) -> File | None:
        """The file ``name``, None where there is no regular file of that name.

        Raises `StorageError` when the drive fails, `UsageError` when it cannot be opened.
        """
        if name not in self._files:
            path = self.folder / name
            self._files[name] = open_file(path) if is_file(path) else None
        return self._files[name]
