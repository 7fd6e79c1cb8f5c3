"""A fork server: imports edge-rt once, then runs each command line in a child of its own.

    python tests/hostile/server.py

Takes one JSON list a line on stdin, ``[timeout in seconds, [ARGUMENT, ...]]``, runs the command
line's entry with these arguments in a forked child, and answers with one JSON object a line:
``code`` (negative: the signal that ended it), ``out``, ``err``, ``seconds``, ``peak`` (VmHWM in
bytes, 0 if the child ended without saying) and ``late`` (it was killed at the timeout).

The child's VmHWM begins at what it shares with the server, so it is what a process of its own
would hold but for pages of libraries that it never touches.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

from edge_rt.apps import cli, generate, inspect, plan  # noqa: F401
from edge_rt.engine import Engine  # noqa: F401

_MOST_BYTES = 3 << 30  # of address space
_KEPT_BYTES = 1 << 16  # of what a command printed


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _child(arguments: list[str], out: int, err: int, report: int) -> NoReturn:
    code = 70
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        # A file that makes a child grow must not take the machine with it.
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
        sys.argv = ["edge-rt", *arguments]
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(report, str(_peak()).encode())
    except BaseException as error:  # must not fall back into the server's loop
        os.write(2, f"server: {error!r}\n".encode())
        code = 70
    os._exit(code)


def run(arguments: list[str], timeout: float) -> dict[str, Any]:
    """One command in one child."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        read_end, write_end = os.pipe()
        started = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            _child(arguments, out.fileno(), err.fileno(), write_end)
        os.close(write_end)
        handle = os.pidfd_open(pid)
        late = not select.select([handle], [], [], timeout)[0]
        seconds = time.perf_counter() - started
        if late:
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        os.close(handle)
        peak = os.read(read_end, 32) if not late else b""
        os.close(read_end)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(_KEPT_BYTES).decode(errors="backslashreplace"))
    return {
        "code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1],
        "seconds": seconds, "peak": int(peak or b"0"), "late": late,
    }  # fmt: skip


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        timeout, arguments = json.loads(line)
        print(json.dumps(run(arguments, timeout)), file=answers, flush=True)


if __name__ == "__main__":
    main()
