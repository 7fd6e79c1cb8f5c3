"""Run a command in a memory cgroup of exactly N bytes without swap, and measure it from outside.

    python scripts/cgroup.py --limit 256MiB [--model FILE --cold --read-bps 200M] -- edge-rt ...

What a runtime *holds* is the sum of VmHWM over its process tree plus the kernel memory charged
to it (page tables, io_uring, sockets). The cgroup's own usage also counts clean page cache, of
shared libraries among others, which the kernel takes back at will: it is reported, not blamed.
Page cache of the model file is counted separately, with mincore, which looks without touching.
Works with cgroup v1 (memory, blkio) and v2; needs root. Groups nest below the caller's own where
the hierarchy allows it, so an outer limit stays in force.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from page_cache import PAGE, FileCache, drop_all_caches, drop_file_cache, weight_files

SYS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
SAMPLE_S = 0.010
CACHE_SAMPLE_S = 0.250


@dataclass(frozen=True)
class Result:
    """One run. ``hwm_bytes`` sums each process's peak, dead ones included: an upper bound."""

    rc: int
    stdout: str
    stderr: str
    wall_s: float
    timed_out: bool
    limit_bytes: int
    hwm_bytes: int
    kernel_peak_bytes: int
    held_bytes: int
    cgroup_peak_bytes: int
    rss_peak_bytes: int  # anonymous memory as memory.stat has it, sampled
    cache_peak_bytes: int  # page cache charged to the group, sampled
    oom_killed: bool
    model_cache_peak_bytes: int | None
    model_cache_end_bytes: int | None
    first_output_s: float | None  # from the start to the first byte on stdout
    cpu_s: float  # user and system, of all that it ran
    major_faults: int
    read_bytes: int  # from drives, by whatever way: buffered, mapped or direct
    processes: dict[str, int] = field(default_factory=dict)  # "pid comm" -> VmHWM bytes


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _int(path: Path) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else 0


def _stat(path: Path) -> dict[str, int]:
    """``key value`` lines."""
    pairs = (line.split() for line in _read(path).splitlines())
    return {p[0]: int(p[1]) for p in pairs if len(p) == 2 and p[1].isdigit()}


def version() -> int:
    """2 where the unified hierarchy has the memory controller, 1 for the old one, 0 for none."""
    if "memory" in _read(SYS / "cgroup.controllers").split():
        return 2
    return 1 if (SYS / "memory/memory.limit_in_bytes").exists() else 0


def available() -> str | None:
    """Why cgroups cannot be made here; None when they can."""
    if sys.platform != "linux":
        return "not Linux"
    if version() == 0:
        return "no memory controller below /sys/fs/cgroup"
    if os.geteuid() != 0:
        return "not root"
    try:
        group = _create("memory", f"edge-rt-probe-{os.getpid()}")
    except OSError as error:
        return f"cannot create a group: {error}"
    group.rmdir()
    return None


def _own_group(controller: str) -> Path:
    """The caller's group of ``controller``, as a folder; the root where it is not visible."""
    v2 = version() == 2
    root = SYS if v2 else SYS / controller
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if (v2 and names == "") or (not v2 and controller in names.split(",")):
            folder = root / path.lstrip("/")
            return folder if folder.is_dir() else root
    return root


def _create(controller: str, name: str) -> Path:
    """Make a group with ``controller`` active, as deep below our own as the hierarchy allows."""
    parent = _own_group(controller)
    if version() == 2:
        # v2 gives controllers only to children of groups that hold no process themselves.
        while controller not in _read(parent / "cgroup.subtree_control").split():
            with suppress(OSError):
                (parent / "cgroup.subtree_control").write_text(f"+{controller}")
                break
            if parent == SYS:
                raise OSError(f"no group may delegate the {controller} controller")
            parent = parent.parent
    group = parent / name
    group.mkdir()
    return group


class Group:
    """A memory cgroup (and a blkio one when throttled), v1 or v2."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes // PAGE * PAGE
        self.v2 = version() == 2
        self._name = f"edge-rt-{os.getpid()}-{time.monotonic_ns()}"
        self.memory = _create("memory", self._name)
        self.folders = [self.memory]
        try:
            self._limit_memory()
        except BaseException:
            self.remove()
            raise

    def _limit_memory(self) -> None:
        limit = str(self.limit_bytes)
        if self.v2:
            (self.memory / "memory.max").write_text(limit)
            with suppress(FileNotFoundError):  # no swap in this kernel
                (self.memory / "memory.swap.max").write_text("0")
            return
        (self.memory / "memory.limit_in_bytes").write_text(limit)
        with suppress(OSError):
            (self.memory / "memory.swappiness").write_text("0")
        with suppress(FileNotFoundError):  # no swap accounting in this kernel
            (self.memory / "memory.memsw.limit_in_bytes").write_text(limit)

    def throttle_reads(self, path: Path, bytes_per_s: int) -> None:
        """Limit reads from the drive that holds ``path``."""
        device = os.stat(path).st_dev
        numbers = (os.major(device), os.minor(device))
        link = Path("/sys/dev/block/{}:{}".format(*numbers))
        if (link / "partition").exists():  # the limit belongs to the whole disk
            numbers = tuple(map(int, _read(link.resolve().parent / "dev").split(":")))  # type: ignore[assignment]
        name = "{}:{}".format(*numbers)
        if self.v2:
            parent = self.memory.parent / "cgroup.subtree_control"
            if "io" not in _read(parent).split():
                parent.write_text("+io")
            (self.memory / "io.max").write_text(f"{name} rbps={bytes_per_s}")
            return
        folder = _create("blkio", self._name)
        self.folders.append(folder)
        (folder / "blkio.throttle.read_bps_device").write_text(f"{name} {bytes_per_s}")

    def peak_bytes(self) -> int:
        name = "memory.peak" if self.v2 else "memory.max_usage_in_bytes"
        return _int(self.memory / name)

    def parts(self) -> tuple[int, int, int]:
        """Bytes now: anonymous, page cache, kernel."""
        stat = _stat(self.memory / "memory.stat")
        if self.v2:
            parts = ("slab", "kernel_stack", "pagetables", "percpu", "sock")
            kernel = stat.get("kernel", sum(stat.get(p, 0) for p in parts))
            return stat.get("anon", 0), stat.get("file", 0), kernel
        kernel = _int(self.memory / "memory.kmem.usage_in_bytes")
        return stat.get("rss", 0), stat.get("cache", 0), kernel

    def kernel_peak_bytes(self) -> int:
        """v1 keeps the exact peak; v2 has none, and sampling stands in."""
        return 0 if self.v2 else _int(self.memory / "memory.kmem.max_usage_in_bytes")

    def oom_kills(self) -> int:
        name = "memory.events" if self.v2 else "memory.oom_control"
        return _stat(self.memory / name).get("oom_kill", 0)

    def pids(self) -> list[int]:
        return [int(p) for p in _read(self.memory / "cgroup.procs").split()]

    def remove(self) -> None:
        """Kill what is left in the group and delete it; a dying process may hold it a moment."""
        for folder in self.folders:
            for _ in range(200):
                for pid in _read(folder / "cgroup.procs").split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.01)


def remove_left_behind() -> None:
    """Delete groups of runners that were killed before they could."""
    for controller in ("memory", "blkio"):
        with suppress(OSError):
            for folder in _own_group(controller).glob("edge-rt-*-*"):
                pid = folder.name.split("-")[2]
                if pid.isdigit() and not (PROC / pid).exists():
                    for left in _read(folder / "cgroup.procs").split():
                        with suppress(ProcessLookupError):
                            os.kill(int(left), signal.SIGKILL)
                    with suppress(OSError):
                        folder.rmdir()


@contextmanager
def group(limit_bytes: int) -> Iterator[Group]:
    made = Group(limit_bytes)
    try:
        yield made
    finally:
        made.remove()


# --- process tree -------------------------------------------------------------------------------


class PeakTree:
    """Peak resident bytes of every process ever seen in a group.

    Before its exec a forked child shows its parent's pages, and a vforked one its parent's very
    memory. The stack's random start tells such images apart, so an exec starts a fresh peak.
    """

    def __init__(self) -> None:
        self._peaks: dict[tuple[int, str], tuple[str, str, int]] = {}

    def sample(self, pids: Sequence[int]) -> None:
        for pid in pids:
            folder = PROC / str(pid)
            hwm = _vm_hwm(_read(folder / "status"))
            stat = _read(folder / "stat").rpartition(")")[2].split()
            if not hwm or len(stat) < 26:
                continue  # gone, or a zombie: its last peak stands
            key, image = (pid, stat[19]), stat[25]
            known = self._peaks.get(key)
            if known is not None and known[0] == image:
                hwm = max(hwm, known[2])
            self._peaks[key] = (image, _read(folder / "comm").strip(), hwm)

    def total_bytes(self) -> int:
        return sum(hwm for _, _, hwm in self._peaks.values())

    def by_process(self) -> dict[str, int]:
        return {f"{pid} {comm}": hwm for (pid, _), (_, comm, hwm) in self._peaks.items()}


def _vm_hwm(status: str) -> int:
    _, found, rest = status.partition("VmHWM:")
    return int(rest.split(None, 1)[0]) * 1024 if found else 0


# --- running ------------------------------------------------------------------------------------

# The shell joins the groups and then *becomes* the command: every page of it is charged here.
_JOIN = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ >"$1/cgroup.procs" || exit 125; '
_JOIN += 'shift; n=$((n-1)); done; exec "$@"'


def run(
    argv: Sequence[str],
    limit_bytes: int,
    *,
    model: Path | None = None,
    cold: bool = False,
    read_bps: int | None = None,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 600.0,
) -> Result:
    """Run ``argv`` inside ``limit_bytes`` (rounded down to pages) and measure it.

    ``model``: drop the page cache of this file or folder first and watch it. ``cold``: drop
    everything.
    ``read_bps``: throttle reads from the model's drive. A run past ``timeout_s`` is killed.
    """
    if read_bps is not None and model is None:
        raise ValueError("read_bps needs model: it is the model's drive that is throttled")
    if model is not None:
        for path in weight_files(model):
            drop_file_cache(path)
    if cold:
        drop_all_caches()
    watched = [FileCache(path) for path in weight_files(model)] if model is not None else []
    tree, rss_peak, cache_peak, kernel_peak, model_peak = PeakTree(), 0, 0, 0, 0
    timed_out = False
    try:
        with (
            group(limit_bytes) as g,
            _spool(None) as err,
            _spool(stdin) as inp,
        ):
            if read_bps is not None and model is not None:
                g.throttle_reads(model, read_bps)
            joins = [str(len(g.folders)), *map(str, g.folders)]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            started = time.monotonic()
            child = subprocess.Popen(
                ["/bin/sh", "-c", _JOIN, "sh", *joins, *argv],
                stdin=inp, stdout=subprocess.PIPE, stderr=err, env=env, cwd=cwd,
            )  # fmt: skip
            assert child.stdout is not None
            out = _Listener(child.stdout, started)
            next_cache = 0.0
            while True:
                done = child.poll() is not None
                tree.sample(g.pids())
                anonymous, cache, kernel = g.parts()
                rss_peak, cache_peak = max(rss_peak, anonymous), max(cache_peak, cache)
                kernel_peak = max(kernel_peak, kernel)
                now = time.monotonic()
                if watched and (now >= next_cache or done):
                    model_peak = max(model_peak, sum(f.cached_bytes() for f in watched))
                    next_cache = now + CACHE_SAMPLE_S
                if done:
                    break
                if now - started > timeout_s and not timed_out:
                    timed_out = True
                    for pid in g.pids():
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                time.sleep(SAMPLE_S)
            wall_s = time.monotonic() - started
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            kernel_peak = max(kernel_peak, g.kernel_peak_bytes())
            err.seek(0)
            return Result(
                rc=child.returncode,
                stdout=out.text(),
                stderr=err.read().decode(errors="replace"),
                wall_s=wall_s,
                timed_out=timed_out,
                limit_bytes=g.limit_bytes,
                hwm_bytes=tree.total_bytes(),
                kernel_peak_bytes=kernel_peak,
                held_bytes=tree.total_bytes() + kernel_peak,
                cgroup_peak_bytes=g.peak_bytes(),
                rss_peak_bytes=rss_peak,
                cache_peak_bytes=cache_peak,
                oom_killed=g.oom_kills() > 0,
                model_cache_peak_bytes=model_peak if watched else None,
                model_cache_end_bytes=sum(f.cached_bytes() for f in watched) if watched else None,
                processes=tree.by_process(),
                first_output_s=out.first_s,
                cpu_s=sum(after[:2]) - sum(before[:2]),
                major_faults=after.ru_majflt - before.ru_majflt,
                read_bytes=512 * (after.ru_inblock - before.ru_inblock),
            )
    finally:
        for file in watched:
            file.close()


class _Listener(threading.Thread):
    """Takes what a child writes, and when it began to."""

    def __init__(self, pipe: IO[bytes], started: float) -> None:
        super().__init__(daemon=True)
        self.first_s: float | None = None
        self._pipe, self._began, self._parts = pipe, started, [b""]
        self.start()

    def run(self) -> None:
        with self._pipe:
            while part := os.read(self._pipe.fileno(), 1 << 16):
                if self.first_s is None:
                    self.first_s = time.monotonic() - self._began
                self._parts.append(part)

    def text(self) -> str:
        """All of it; what a grandchild that outlives the child still says is not waited for."""
        self.join(1.0)
        return b"".join(self._parts).decode(errors="replace")


@contextmanager
def _spool(text: str | None = None) -> Iterator[IO[bytes]]:
    """A deleted file for a child's stream."""
    with tempfile.TemporaryFile() as file:
        if text:
            file.write(text.encode())
            file.seek(0)
        yield file


def _parse_size(text: str) -> int:
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "K": 10**3, "M": 10**6, "G": 10**9}
    for suffix, factor in units.items():
        if text.endswith(suffix):
            return int(float(text[: -len(suffix)]) * factor)
    return int(text)


def as_chosen(args: argparse.Namespace, command: Sequence[str], *reach: Path | None) -> list[str]:
    """``command`` as ``--user`` with ``--memlock``, who can read what is in ``reach``."""
    if args.user is None and args.memlock is None:
        return list(command)
    import as_user

    files = [file for path in reach if path for file in (path, *weight_files(path))]
    user = args.user or "root"
    return as_user.command(command, user=user, memlock=args.memlock, reach=files)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--limit", type=_parse_size, required=True, metavar="SIZE")
    parser.add_argument("--model", type=Path, help="drop and watch this file's page cache")
    parser.add_argument("--cold", action="store_true", help="drop all clean caches first")
    parser.add_argument("--read-bps", type=_parse_size, metavar="SIZE", help="throttle reads")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    parser.add_argument("--user", help="run as this user, who joins the group as root")
    parser.add_argument("--memlock", metavar="SIZE", help="RLIMIT_MEMLOCK of the command")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    reason = available()
    if reason:
        print(f"cgroup: {reason}", file=sys.stderr)
        return 2
    result = run(
        as_chosen(args, args.command, args.model),
        args.limit,
        model=args.model,
        cold=args.cold,
        read_bps=args.read_bps,
        timeout_s=args.timeout,
    )
    if args.json:
        print(json.dumps(asdict(result), indent=1))
    else:
        sys.stdout.write(result.stdout)
        sys.stderr.write(result.stderr)
        for key, value in asdict(result).items():
            if key.endswith("_bytes") and value is not None:
                print(f"{key:24} {value:>14,}  {value / 2**20:9.2f} MiB", file=sys.stderr)
        print(f"oom_killed {result.oom_killed}  wall {result.wall_s:.2f} s", file=sys.stderr)
    return result.rc if result.rc >= 0 else 128 - result.rc


if __name__ == "__main__":
    sys.exit(main())
