"""What the process as a whole holds, and giving back what it does not need."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from edge_rt.runtime._runtime import malloc_trim
from edge_rt.sizes import KIB


def release_memory() -> None:
    """Collect garbage, then give the allocator's free pages back to the system (glibc only)."""
    gc.collect()
    malloc_trim()


def _status(pid: int | str, key: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * KIB
    except OSError:
        pass
    return 0


def resident_bytes() -> int:
    """Resident memory of this process now (VmRSS), 0 where the system does not say."""
    return _status("self", "VmRSS")


def peak_resident_bytes() -> int:
    """The most resident memory this process ever had (VmHWM; not ru_maxrss, which survives
    exec)."""
    return _status("self", "VmHWM")


def available_bytes() -> int:
    """Memory that could be had now: what the system calls available, within our cgroup's limit."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * KIB
    except OSError:
        pass
    return min([free, *_cgroup_room()])


def _cgroup_room() -> list[int]:
    """Limit less usage of every memory cgroup we are in that has a limit, v1 and v2."""
    rooms = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            base, limit_file, usage_file = "/sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base = "/sys/fs/cgroup/memory"
            limit_file, usage_file = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = Path(base + name)
        while len(folder.parts) >= len(Path(base).parts):
            try:
                limit = (folder / limit_file).read_text().strip()
                usage = (folder / usage_file).read_text().strip()
                if limit != "max" and int(limit) < 1 << 60:
                    rooms.append(max(0, int(limit) - int(usage)))
            except (OSError, ValueError):
                pass
            folder = folder.parent
    return rooms
