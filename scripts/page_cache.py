"""The page cache of model files: counted without touching it, and dropped."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from pathlib import Path

PAGE = mmap.PAGESIZE
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


class FileCache:
    """Counts the pages of a file that are in the page cache, without bringing any in."""

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3]
        self._libc.mmap.argtypes += [ctypes.c_long]
        self._libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.size = path.stat().st_size
        self._bitmap = ctypes.create_string_buffer(-(-self.size // PAGE))
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            prot_read, map_shared = 1, 1
            self._address = self._libc.mmap(None, self.size, prot_read, map_shared, fd, 0)
        finally:
            os.close(fd)
        if self._address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap")

    def cached_bytes(self) -> int:
        if self._libc.mincore(self._address, self.size, self._bitmap):
            raise OSError(ctypes.get_errno(), "mincore")
        resident = bytes(b & 1 for b in range(256))
        return self._bitmap.raw.translate(resident).count(1) * PAGE

    def close(self) -> None:
        self._libc.munmap(self._address, self.size)


def weight_files(model: Path) -> list[Path]:
    """The files that hold the weights: the GGUF, all parts of a split one, or a folder's."""
    if model.is_dir():
        return sorted(path for kind in ("safetensors", "gguf") for path in model.glob(f"*.{kind}"))
    split = _SPLIT.fullmatch(model.name)
    if not split:
        return [model]
    same = (_SPLIT.fullmatch(path.name) for path in model.parent.iterdir())
    parts = [match for match in same if match and match[1] == split[1] and match[3] == split[3]]
    return sorted(model.parent / match[0] for match in parts)


def drop_file_cache(path: Path) -> None:
    """Write ``path`` back and drop its pages from the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def drop_all_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")
