"""The command line: ``edge-rt``. One file per command; errors become exit codes here."""
# ruff: noqa: E402

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys

# Until main() is ready for Ctrl-C: importing takes long enough to be interrupted.
_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _interruptible:
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))

# Before anything imports them: these libraries size their thread pools at import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# First of all extensions, because it sets malloc's limits for the process.
import edge_rt.runtime._runtime  # noqa: F401

# What imports make stays: to look for garbage in it takes a tenth of their time.
gc.disable()

from collections.abc import Sequence
from importlib import import_module

import typer

from edge_rt.apps.options import catch_interrupt, printable, say
from edge_rt.errors import EdgeRTError

gc.enable()

# typer carries its own copy of click from 0.26 on, so the class is found through typer's.
_BadUsage = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

# Each is in the module of its name; in the order of the help.
_COMMANDS = (
    "chat", "generate", "ppl", "plan", "profile", "doctor", "bench", "inspect", "pull", "list",
)  # fmt: skip
_FUNCTIONS = {"list": "list_models"}


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """The command line for ``arguments``: of a known command the only one that is imported."""
    app = typer.Typer(
        name="edge-rt",
        help="Language models inside a hard RAM budget.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(lambda: None)  # without one, the only command would lose its name
    wanted = arguments[0] if arguments else ""
    for name in (wanted,) if wanted in _COMMANDS else _COMMANDS:
        module = import_module(f"edge_rt.apps.{name}")
        app.command(name)(getattr(module, _FUNCTIONS.get(name, name)))
    return app


def _end(code: int) -> None:
    """Leave with ``code`` even if stdout is a closed pipe or a full drive."""
    try:
        sys.stdout.flush()
    except OSError as error:
        full = not isinstance(error, BrokenPipeError)
        if full and not code:
            say(f"error: cannot write: {error.strerror}")
        code = (code or 5) if full else 141
        os.dup2(_null(), sys.stdout.fileno())
    sys.exit(code)


def _null() -> int:
    """A file that nobody reads; some sandboxes have no /dev."""
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        return os.memfd_create("null")


def _open_missing() -> None:
    """Put /dev/null where the standard streams were closed: a model's file must not get their
    numbers, and printing must not fail."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            fd = _null()
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: SIM115


def _internal(error: Exception) -> None:
    if os.environ.get("EDGE_RT_DEBUG"):
        raise error
    say(
        f"internal error: {type(error).__name__}: {printable(str(error))}\n"
        "This is a bug in edge-rt; EDGE_RT_DEBUG=1 shows where."
    )
    _end(1)


def main() -> None:
    """Run a command; every outcome has the exit code of the README's table."""
    if _interruptible:
        catch_interrupt()
    _open_missing()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are no UTF-8
    try:
        code = make_app(sys.argv[1:])(standalone_mode=False)
        _end(code if isinstance(code, int) else 0)
    except SystemExit as end:
        # typer makes 1 of a closed pipe; nothing of ours leaves with 1 this way.
        _end(141) if end.code == 1 else sys.exit(end.code)
    except EdgeRTError as error:
        say(f"error: {printable(str(error))}")
        _end(error.exit_code)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        _end(128 + signal.SIGINT)
    except BrokenPipeError:
        _end(141)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            _internal(error)
        say(f"error: cannot write: {error.strerror}")
        _end(5)
    except (typer.Abort, EOFError):
        print("aborted", file=sys.stderr)
        _end(2)
    except Exception as error:
        if isinstance(error, _BadUsage):
            error.show()  # type: ignore[attr-defined]
            _end(2)
        _internal(error)


if __name__ == "__main__":
    main()
