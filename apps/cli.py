"""The command line: ``edge-rt``. One file per command; errors become exit codes here."""

from __future__ import annotations

import io
import os
import signal
import sys

# Before anything imports them: these libraries size their thread pools at import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# First of all extensions, because it sets malloc's limits for the process.
import edge_rt.runtime._runtime  # noqa: F401, I001

import typer

from edge_rt.apps.bench import bench
from edge_rt.apps.chat import chat
from edge_rt.apps.generate import generate
from edge_rt.apps.inspect import inspect
from edge_rt.apps.list import list_models
from edge_rt.apps.plan import plan
from edge_rt.apps.ppl import ppl
from edge_rt.apps.pull import pull
from edge_rt.errors import EdgeRTError

# typer carries its own copy of click from 0.26 on, so the class is found through typer's.
_BadUsage = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="edge-rt",
    help="Language models inside a hard RAM budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (chat, generate, ppl, plan, bench, inspect, pull):
    app.command()(command)
app.command("list")(list_models)


def _end(code: int) -> None:
    """Leave with ``code`` even if stdout is a closed pipe."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = 141
    except OSError:
        code = code or 5
    if code == 141:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def main() -> None:
    """Run a command; every outcome has the exit code of the README's table."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are no UTF-8
    try:
        code = app(standalone_mode=False)
        _end(code if isinstance(code, int) else 0)
    except SystemExit as end:
        # typer makes 1 of a closed pipe; nothing of ours leaves with 1 this way.
        _end(141) if end.code == 1 else sys.exit(end.code)
    except EdgeRTError as error:
        print(f"error: {error}", file=sys.stderr)
        _end(error.exit_code)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        _end(128 + signal.SIGINT)
    except BrokenPipeError:
        _end(141)
    except (typer.Abort, EOFError):
        print("aborted", file=sys.stderr)
        _end(2)
    except Exception as error:
        if isinstance(error, _BadUsage):
            error.show()  # type: ignore[attr-defined]
            _end(2)
        if os.environ.get("EDGE_RT_DEBUG"):
            raise
        print(
            f"internal error: {type(error).__name__}: {error}\n"
            "This is a bug in edge-rt; EDGE_RT_DEBUG=1 shows where.",
            file=sys.stderr,
        )
        _end(1)


if __name__ == "__main__":
    main()
