"""Code in an interpreter of its own, to see what memory it takes."""

from __future__ import annotations

import os
import subprocess
import sys

STATUS = """
def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
"""
_PEAK = '\nprint(status("VmHWM"), file=__import__("sys").stderr)\n'


def run_fresh(code: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with ``sys.argv[1:]`` and ``status(key)``: a value of /proc/self/status in
    bytes."""
    return subprocess.run(
        [sys.executable, "-c", STATUS + code, *map(str, args)],
        capture_output=True, text=True, timeout=120, check=True, env=os.environ | env,
    )  # fmt: skip


def measure(code: str, *args: object, **env: str) -> int:
    """The integer that ``code`` prints last."""
    return int(run_fresh(code, *args, **env).stdout.split()[-1])


def peak(code: str, *args: object, **env: str) -> tuple[str, int]:
    """What ``code`` prints, and the most bytes that it held."""
    done = run_fresh(code + _PEAK, *args, **env)
    return done.stdout, int(done.stderr.split()[-1])
