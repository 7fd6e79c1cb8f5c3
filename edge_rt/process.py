"""What the process as a whole holds, and giving back what it does not need."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_rt.runtime._runtime import malloc_trim
from edge_rt.sizes import KIB

OCTAL: Final = re.compile(r"\\([0-7]{3})")  # a space in a path of mountinfo


def release_memory() -> None:
    """Collect garbage, then give the allocator's free pages back to the system (glibc only)."""
    gc.collect()
    malloc_trim()


def lines(path: Path) -> list[str]:
    """The lines of a file, none where it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _kibibytes(path: Path, key: str) -> int:
    """The value of a line ``key: 123 kB`` in bytes, 0 where there is none."""
    for line in lines(path):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * KIB
    return 0


def resident_bytes() -> int:
    """Resident memory of this process now (VmRSS), 0 where the system does not say."""
    return _kibibytes(Path("/proc/self/status"), "VmRSS")


def peak_resident_bytes() -> int:
    """The most resident memory this process ever had (VmHWM; not ru_maxrss, which survives
    exec), 0 where the system does not say."""
    return _kibibytes(Path("/proc/self/status"), "VmHWM")


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that could be had now: what the system calls available, within the limits of the
    cgroups that we are in. Below ``root`` are ``proc`` and ``sys``."""
    free = _kibibytes(root / "proc/meminfo", "MemAvailable")
    free = free or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return min([free, *_cgroup_rooms(root)])


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """What each limited memory cgroup around us still has room for."""
    for is_v1, group in cgroups("memory", root):
        room = _room(group, is_v1)
        if room is not None:
            yield room


def cgroups(controller: str, root: Path = Path("/")) -> Iterator[tuple[bool, Path]]:
    """The folders of the cgroups of ``controller`` that we are in, outermost first, each with
    whether it is v1."""
    names = {}
    for line in lines(root / "proc/self/cgroup"):
        _, controllers, name = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            names[controllers != ""] = name
    for is_v1, point, top in _mounts(controller, root):
        # A container may see only a part of the hierarchy, and our name may be one outside of it:
        # then the mount's own group is the nearest that we can see.
        name = names.get(is_v1, top)
        top = top.rstrip("/") + "/"
        below = (name + "/").removeprefix(top).split("/")
        if not (name + "/").startswith(top) or ".." in below:
            below = []
        group = root / point.lstrip("/")
        yield is_v1, group
        for part in filter(None, below):
            group /= part
            yield is_v1, group


def _mounts(controller: str, root: Path) -> Iterator[tuple[bool, str, str]]:
    """Hierarchies that may limit ``controller``: whether it is v1, where it is mounted, its top
    group."""
    found = False
    for line in lines(root / "proc/self/mountinfo"):
        place, _, kind = line.partition(" - ")
        kind, _, options = kind.partition(" ")
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split()[-1].split(",")):
            top, point = (OCTAL.sub(character, field) for field in place.split(" ")[3:5])
            yield kind == "cgroup", point, top
            found = True
    if not found:  # /proc is hidden
        yield False, "/sys/fs/cgroup", "/"
        yield True, f"/sys/fs/cgroup/{controller}", "/"


def character(code: re.Match[str]) -> str:
    """What an octal escape of mountinfo stands for."""
    return chr(int(code[1], 8))


def _room(group: Path, is_v1: bool) -> int | None:
    """Bytes that ``group`` lets its processes have besides what they hold, None for no limit.

    Page cache that nobody used lately is charged to the group but given back before the limit is
    felt. Above ``memory.high`` processes are slowed down until they hardly move.
    """
    limit = memory_limit(group, is_v1)
    if limit is None:
        return None
    usage = "memory.usage_in_bytes" if is_v1 else "memory.current"
    cache = "total_inactive_file " if is_v1 else "inactive_file "
    stat = (line for line in lines(group / "memory.stat") if line.startswith(cache))
    reclaimable = sum(int(line.split()[1]) for line in stat)
    return max(0, limit - max(0, (_number(group / usage) or 0) - reclaimable))


def memory_limit(group: Path, is_v1: bool) -> int | None:
    """Bytes that ``group`` may hold, None for no limit."""
    names = ["memory.limit_in_bytes"] if is_v1 else ["memory.max", "memory.high"]
    return min((n for name in names if (n := _number(group / name)) is not None), default=None)


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, or one that means no limit."""
    text = "".join(lines(path)).strip()
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None
