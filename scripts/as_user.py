"""Run a command as an ordinary user meets the machine: no privileges, tight limits, things missing.

    python scripts/as_user.py --user nobody --memlock 64KiB --deny-io-uring -- edge-rt chat ...

Mounts are made in a namespace of the command's own and end with it. What other users cannot reach,
because a folder above it is closed to them (a checkout below /root, say), is shown at its own path:
``--reach`` PATHs, the Python that runs this and the checkout it lies in. Ends with 125 where this
machine does not permit a condition. Without root the user stays who it is, and mounts are not
permitted.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import platform
import pwd
import resource
import stat
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOT_PERMITTED = 125

_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = (
    1,
    8,
    32,
    4096,
    1 << 14,
    1 << 18,
)
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
# Machine -> (its number in seccomp's data, those of io_uring_setup, _enter and _register).
_SYSCALLS = {
    "x86_64": (0xC000003E, (425, 426, 427)),
    "aarch64": (0xC00000B7, (425, 426, 427)),
}
_PROC = {"hidden": None, "hidepid": "hidepid=2", "pids": "subset=pid"}


class NotPermitted(Exception):
    """This machine, or who we are on it, does not allow a condition."""


def _python() -> list[Path]:
    """Where this Python, its libraries and the checkout are."""
    return [ROOT, *(Path(p) for p in (sys.prefix, sys.base_prefix, *sys.path) if os.path.isdir(p))]


def command(
    argv: Sequence[str],
    *,
    user: str = "nobody",
    memlock: int | str | None = None,
    limits: Mapping[str, int] | None = None,
    deny_io_uring: str | None = None,
    read_only: Iterable[Path] = (),
    hide: Iterable[Path] = (),
    noexec: Iterable[Path] = (),
    proc: str | None = None,
    reach: Iterable[Path] = (),
) -> list[str]:
    """The command line that runs ``argv`` so.

    ``user``: a name or a number. ``memlock``: RLIMIT_MEMLOCK, as ``"64KiB"`` or in bytes;
    ``limits``: others by their names in `resource`, without RLIMIT_. ``deny_io_uring``: the error
    (``"EPERM"``, ``"ENOSYS"``) of its system calls. ``read_only``, ``noexec``: folders mounted so;
    ``hide``: folders that are empty and closed. ``proc``: ``"hidden"`` (closed), ``"hidepid"`` (own
    processes only) or ``"pids"`` (no files about the system). ``reach``: what the command must be
    able to open, at its own path.
    """
    made = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), "--user", user]
    made += ["--memlock", str(memlock)] if memlock is not None else []
    made += ["--deny-io-uring", deny_io_uring] if deny_io_uring else []
    made += ["--proc", proc] if proc else []
    for name, value in (limits or {}).items():
        made += ["--limit", f"{name}={value}"]
    for option, paths in (
        ("--read-only", read_only), ("--hide", hide), ("--noexec", noexec),
        ("--reach", [*_python(), *reach]),
    ):  # fmt: skip
        for path in dict.fromkeys(map(str, paths)):
            made += [option, path]
    return [*made, "--", *map(str, argv)]


def run(argv: Sequence[str], *, options: Mapping[str, Any] | None = None, **conditions: Any) -> Any:
    """Run ``argv`` under ``conditions`` (see `command`); ``options`` are `subprocess.run`'s.

    Raises `NotPermitted` where they cannot be had.
    """
    more = {"capture_output": True, "text": True, "timeout": 120} | dict(options or {})
    done = subprocess.run(command(argv, **conditions), **more)
    if done.returncode == NOT_PERMITTED:
        raise NotPermitted(str(done.stderr).strip())
    return done


# --- inside -------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise NotPermitted(f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode() if kind else None,
        ctypes.c_ulong(flags), data.encode() if data else None,
    )  # fmt: skip
    _check(result, f"cannot mount {source} on {target}")


def _again(path: str, flags: int) -> None:
    """Bind ``path`` to itself with other flags."""
    _mount(path, path, None, _MS_BIND | _MS_REC)
    _mount("none", path, None, _MS_BIND | _MS_REMOUNT | flags)


def _is_open(folder: str, uid: int) -> bool:
    """Whether a stranger may go through ``folder``."""
    status = os.stat(folder)
    return bool(status.st_mode & stat.S_IXOTH) or status.st_uid == uid


def _closed_above(path: str, uid: int) -> str | None:
    """The outermost folder above ``path`` that keeps strangers out."""
    folders = [str(folder) for folder in reversed(Path(path).parents)]
    return next((folder for folder in folders if not _is_open(folder, uid)), None)


def _show(paths: Iterable[str], uid: int) -> None:
    """Put an open skeleton over closed folders that shows ``paths`` and nothing else."""
    wanted: dict[str, list[str]] = {}  # closed folder -> paths in it
    for path in sorted({os.path.abspath(p) for p in paths} | {os.path.realpath(p) for p in paths}):
        if os.path.lexists(path) and (closed := _closed_above(path, uid)):
            wanted.setdefault(closed, []).append(path)
    if not wanted:
        return
    # The contents wait elsewhere while their folders are covered.
    stage = "/proc/self/fd/{}"
    for closed, inside in wanted.items():
        inside = [p for p in inside if not any(p.startswith(q + "/") for q in inside)]
        held = [(p, os.open(p, os.O_PATH | os.O_NOFOLLOW)) for p in inside]
        _mount("tmpfs", closed, "tmpfs", 0, "mode=755,size=1m")
        for path, fd in held:
            status = os.fstat(fd)
            if stat.S_ISLNK(status.st_mode):
                os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
                os.symlink(os.readlink("", dir_fd=fd), path)
                continue
            if stat.S_ISDIR(status.st_mode):
                os.makedirs(path, 0o755, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            _mount(stage.format(fd), path, None, _MS_BIND | _MS_REC)
            os.close(fd)


def _mounts(args: argparse.Namespace, uid: int) -> None:
    here = os.getcwd()
    _check(_libc.unshare(_CLONE_NEWNS), "no mount namespace")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _show([*args.reach, here], uid)
    for path in args.noexec:
        _again(path, _MS_NOEXEC)
    for path in args.read_only:
        _again(path, _MS_RDONLY)
    for path in args.hide:
        _mount("tmpfs", path, "tmpfs", _MS_RDONLY, "mode=000")
    if args.proc:
        options = _PROC[args.proc]
        if options:
            _mount("proc", "/proc", "proc", 0, options)
        else:
            _mount("tmpfs", "/proc", "tmpfs", _MS_RDONLY, "mode=000")
    os.chdir(here)


def _deny_io_uring(error: int) -> None:
    """A seccomp filter: io_uring's system calls fail with ``error``."""
    if platform.machine() not in _SYSCALLS:
        raise NotPermitted(f"no filter for {platform.machine()}")
    machine, numbers = _SYSCALLS[platform.machine()]
    load, equal, give = 0x20, 0x15, 0x06
    allow, deny = 0x7FFF0000, 0x00050000 | error
    lines = [(load, 0, 0, 4), (equal, 1, 0, machine), (give, 0, 0, allow), (load, 0, 0, 0)]
    for k, number in enumerate(numbers):
        lines.append((equal, len(numbers) - k, 0, number))
    lines += [(give, 0, 0, allow), (give, 0, 0, deny)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code))
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero), "prctl")
    _check(
        _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(2), program, zero, zero), "no seccomp filter"
    )


def _ids(user: str) -> tuple[int, int]:
    """User and group of a name, or of a number that need not have one (containers)."""
    if user.isdigit():
        return int(user), int(user)
    who = pwd.getpwnam(user)
    return who.pw_uid, who.pw_gid


def _parse_size(text: str) -> int:
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    for suffix, factor in units.items():
        if text.endswith(suffix):
            return int(text[: -len(suffix)]) * factor
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--user", default="nobody", metavar="NAME|UID")
    parser.add_argument("--memlock", type=_parse_size, metavar="SIZE")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=N")
    parser.add_argument("--deny-io-uring", nargs="?", const="EPERM", choices=("EPERM", "ENOSYS"))
    parser.add_argument("--proc", choices=_PROC)
    for name in ("--read-only", "--noexec", "--hide", "--reach"):
        parser.add_argument(name, action="append", default=[], metavar="PATH")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    try:
        is_root = os.geteuid() == 0
        uid, gid = _ids(args.user)
        args.reach += [*map(str, _python()), args.command[0]]
        if is_root or args.read_only or args.noexec or args.hide or args.proc:
            _mounts(args, uid)
        limits = [*args.limit, *([f"MEMLOCK={args.memlock}"] if args.memlock is not None else [])]
        for name, _, value in (limit.partition("=") for limit in limits):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (int(value), int(value)))
        if is_root:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        if args.deny_io_uring:
            _deny_io_uring(getattr(errno, args.deny_io_uring))
    except (NotPermitted, OSError, KeyError, ValueError) as error:
        print(f"as_user: {error}", file=sys.stderr)
        return NOT_PERMITTED
    try:
        os.execvp(args.command[0], args.command)
    except OSError as error:
        print(f"as_user: {args.command[0]}: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main())
