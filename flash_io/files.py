"""Opening files as users name them, with the operating system's errors as ours."""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Final

from edge_rt.errors import EdgeRTError, StorageError, UsageError
from edge_rt.flash_io._flash_io import Faults, File

__all__ = ["File", "open_file", "set_faults", "storage_errors"]

# What the drive or the system does wrong. Everything else that opening meets is a wrong name.
_FAILURES: Final = frozenset(
    {
        errno.EIO, errno.ENXIO, errno.ENODEV, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
        errno.ESTALE, errno.ENOTCONN, errno.ECONNABORTED, errno.ETIMEDOUT, errno.EREMOTEIO,
        errno.ESHUTDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EUCLEAN, errno.EBADMSG,
    }
)  # fmt: skip

_faults: Faults | None = None


def set_faults(faults: Faults | None) -> None:
    """Every file that is opened from now on meets ``faults``. For tests."""
    global _faults
    _faults = faults


def open_file(path: str | os.PathLike[str]) -> File:
    """Open one file for reading past the page cache.

    Raises `UsageError` where there is no such file or it cannot be opened, `StorageError` when the
    drive fails.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise UsageError(f"cannot open {name[:300]!r}: a NUL is in its name")
    try:
        file = File([name])
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"no such file: {name}") from None
    except (IsADirectoryError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or f"cannot open {name[:300]!r}: {error}"
        raise UsageError(f"{reason}") from None
    except OSError as error:
        kind = StorageError if error.errno in _FAILURES else UsageError
        raise kind(error.strerror) from None
    if _faults is not None:
        file.inject(_faults)
    return file


class storage_errors:
    """A block whose `OSError` from reading becomes a `StorageError` with the same sentence."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, EdgeRTError):
            raise StorageError(error.strerror or str(error)) from error
