"""The machine as the system describes it: cores, caches, memory, and the limits of our cgroups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_rt.process import OCTAL, available_bytes, cgroups, character, lines, memory_limit

_ROOT: Final = Path("/")
_CPU: Final = "sys/devices/system/cpu"
# Cores whose greatest clock or capacity is below this share of the best one's are the small ones.
_EFFICIENT: Final = 0.85


@dataclass(frozen=True)
class Drive:
    """Where a file lies: ``key`` names the file system (source and kind) also after a reboot.

    ``limit``: bytes per second that our cgroups let us read from it, None for no limit.
    """

    key: str
    mount: str
    kind: str
    limit: int | None


def _text(path: Path) -> str:
    return "\n".join(lines(path)).strip()


def _int(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _cpu_list(text: str) -> list[int]:
    """``0-2,5`` as numbers."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            found.extend(range(int(first), min(int(last or first), int(first) + 4096) + 1))
    return found


def processor_name(root: Path = _ROOT) -> str:
    """What the processor calls itself; its architecture where the system does not say."""
    for line in lines(root / "proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware", "uarch") and value.strip():
            return value.strip()
    return os.uname().machine


def allowed_cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def core_quota(root: Path = _ROOT) -> float | None:
    """Cores' worth of time that our cgroups let us have, None for no limit."""
    found = []
    for is_v1, group in cgroups("cpu", root):
        if is_v1:
            quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        else:
            quota, _, period = _text(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            found.append(int(quota) / int(period))
    return min(found, default=None)


def usable_cores() -> int:
    """How many threads can compute at one time: allowed cores, within the quota; at most 64."""
    quota = core_quota()
    n = len(allowed_cores())
    if quota is not None:
        n = min(n, max(1, round(quota)))
    return max(1, min(64, n))


def cores(root: Path = _ROOT) -> dict[str, Any]:
    """Cores: which we may use, which of them are siblings on one core, which are small ones."""
    cpus = root / _CPU
    allowed = allowed_cores()
    online = _cpu_list(_text(cpus / "online")) or allowed
    siblings = {
        tuple(_cpu_list(_text(cpus / f"cpu{n}/topology/thread_siblings_list"))) or (n,)
        for n in allowed
    }
    speed: dict[int, int] = {}
    for n in allowed:
        capacity = _int(cpus / f"cpu{n}/cpu_capacity")
        clock = _int(cpus / f"cpu{n}/cpufreq/cpuinfo_max_freq")
        speed[n] = capacity or clock or 0
    best = max(speed.values(), default=0)
    efficient = [n for n in allowed if 0 < speed[n] < _EFFICIENT * best]
    return {
        "name": processor_name(root),
        "online": len(online),
        "allowed": allowed,
        "physical": len(siblings),
        "smt_siblings": [list(group) for group in sorted(siblings) if len(group) > 1],
        "performance": [n for n in allowed if n not in efficient],
        "efficiency": efficient,
        "quota": core_quota(root),
        "usable": usable_cores(),
        "busy": busy_cores(root),
        "caches": caches(root),
    }


def busy_cores(root: Path = _ROOT) -> float:
    """Cores' worth of work that others have had on average over the last minute, 0 where the system
    does not say."""
    text = _text(root / "proc/loadavg").partition(" ")[0]
    try:
        return float(text)
    except ValueError:
        return 0.0


def caches(root: Path = _ROOT) -> dict[str, int]:
    """Bytes of the data caches that our first core sees, as ``{"L1": …, "L3": …}``."""
    found = {}
    first = allowed_cores()[0]
    for index in range(8):
        folder = root / _CPU / f"cpu{first}/cache/index{index}"
        level, size = _int(folder / "level"), _text(folder / "size")
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1:])
        if level and unit and size[:-1].isdigit() and _text(folder / "type") != "Instruction":
            found[f"L{level}"] = int(size[:-1]) * unit
    return found


def last_level_cache(root: Path = _ROOT) -> int:
    """Bytes of the largest data cache, 0 where the system does not say."""
    return max(caches(root).values(), default=0)


def memory(root: Path = _ROOT) -> dict[str, Any]:
    """Bytes of memory, in all and free, pages, and the limits of our cgroups, outermost first."""
    total = 0
    for line in lines(root / "proc/meminfo"):
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
    limits = [
        {"group": str(group), "version": 1 if is_v1 else 2, "bytes": limit}
        for is_v1, group in cgroups("memory", root)
        if (limit := memory_limit(group, is_v1)) is not None
    ]
    modes = _text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "total_bytes": total,
        "available_bytes": available_bytes(root),
        "page_bytes": os.sysconf("SC_PAGE_SIZE"),
        "huge_pages": modes.partition("[")[2].partition("]")[0] or None,
        "cgroup_limits": limits,
    }


def drive_of(path: str | os.PathLike[str], root: Path = _ROOT) -> Drive:
    """The file system that holds ``path``, which must be there."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mount, kind, source = "", "", number
    for line in lines(root / "proc/self/mountinfo"):
        place, _, rest = line.partition(" - ")
        fields, rest_fields = place.split(" "), rest.split(" ")
        if len(fields) > 4 and fields[2] == number and len(rest_fields) > 1:
            mount = OCTAL.sub(character, fields[4])
            kind, source = rest_fields[0], rest_fields[1]
            break
    return Drive(
        f"{source} {kind}".strip(), mount, kind, min(_read_limits(number, root), default=None)
    )


def _read_limits(number: str, root: Path) -> Iterator[int]:
    """Bytes per second that groups around us may read from the drive ``major:minor``."""
    disk = _text(root / f"sys/dev/block/{number}/../dev")  # of a partition; limits are the disk's
    names = {number, disk}
    for is_v1, group in cgroups("blkio", root):
        name = "blkio.throttle.read_bps_device" if is_v1 else "io.max"
        for line in lines(group / name):
            fields = line.split()
            if not fields or fields[0] not in names:
                continue
            for field in fields[1:]:
                value = field if is_v1 else field.removeprefix("rbps=")
                if value.isdigit() and int(value) > 0:
                    yield int(value)
                    break
