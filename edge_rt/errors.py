"""Every error a user can cause or meet, one class per exit code of the command line."""

from __future__ import annotations


class EdgeRTError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(EdgeRTError, ValueError):
    """The request itself is wrong: a bad option, a missing file, a prompt longer than ctx."""

    exit_code = 2


class BudgetError(EdgeRTError, MemoryError):
    """The budget cannot hold the model; ``plan`` carries the arithmetic as ``plan --json`` prints
    it."""

    exit_code = 3

    def __init__(self, message: str, plan: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.plan = plan or {}


class ModelError(EdgeRTError, ValueError):
    """A model file is damaged, hostile, or of a kind that is not supported."""

    exit_code = 4


class ForkError(EdgeRTError, RuntimeError):
    """An engine was used in a forked child: its threads and its memory stayed in the parent."""


class StorageError(EdgeRTError, OSError):
    """A drive or the network failed."""

    exit_code = 5


def as_ours(error: BaseException) -> BaseException:
    """What the system refuses, as an error of ours; anything else as it is."""
    text = getattr(error, "strerror", None) or str(error)
    if text.startswith("cannot start a"):  # a thread: there are limits for users and cgroups
        return UsageError(f"{text} (ulimit -u, pids.max); --threads takes fewer")
    if isinstance(error, OSError) and not isinstance(error, EdgeRTError):
        return StorageError(text)
    if type(error) is MemoryError:
        return BudgetError(
            "the system refuses memory that the budget allows (ulimit -v, ulimit -d)"
        )
    return error
