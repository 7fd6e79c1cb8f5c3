"""A file system of our own whose reads fail as they are told to: real system calls, real errors.

It shows a folder of real files under a mount point and speaks the kernel's protocol over /dev/fuse
(include/uapi/linux/fuse.h), so that no library is needed. `Mount` is what tests use; run as a
program this file is the server, which ends and unmounts when its standard input is closed,
whatever became of its parent.

    with Mount(folder, where) as mount:
        mount.add(path="m.gguf", kind="error", errno=errno.EIO, first=4096, last=8191)
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE = 1, 2, 3, 14, 15, 17, 18
_FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _ACCESS = 25, 26, 27, 28, 29, 34
_INTERRUPT, _DESTROY, _BATCH_FORGET, _STATX = 36, 38, 42, 52
_SILENT = {_FORGET, _BATCH_FORGET, _INTERRUPT}  # the kernel expects no answer

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ASYNC_READ, _MAX_PAGES, _PARALLEL_DIROPS = 1 << 0, 1 << 22, 1 << 18
_DIRECT_IO = 1  # FOPEN_DIRECT_IO: no page cache, whatever the flags of open(2)
_BUFFER = 1 << 16
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1


@dataclass
class Rule:
    """What happens to reads that touch bytes ``first`` to ``last`` of the file named ``path``.

    ``kind``: ``error`` (``errno``), ``short`` (at most ``n_bytes`` are given), ``delay`` (``ms``),
    ``eof`` (nothing is given), ``gone`` (the server ends: ENOTCONN from then on), ``random``
    (about half get EINTR, EAGAIN, a short answer or a delay of some ms, by ``seed``), ``shuffle``
    (each is delayed by 0 to ``ms``, so that answers come in another order).
    ``truncate`` (to ``n_bytes``), ``append``, ``overwrite``, ``replace`` (both with the file
    ``other``, the latter under the old one's name) and ``delete`` are done to the real file just
    before the read is answered. The first ``skip`` reads go unharmed, then ``count`` are met (0:
    all).

    A short answer means the end of the file to a kernel that has a page cache to fill: it puts
    zeros there, and no program can tell. So ``short``, ``eof`` and ``random`` need ``bypass``.

    Not of reads: ``refuse_direct`` (open(2) with O_DIRECT is EINVAL), ``refuse_direct_reads`` (it
    opens, then each read is EINVAL), ``bypass`` (no page cache), ``larger`` (``n_bytes`` are added
    to the size that stat(2) reports), ``open_error``, ``stat_error``, ``lookup_error`` and
    ``list_error`` (``errno``).
    """

    kind: str
    path: str = ""
    errno: int = errno.EIO
    first: int = 0
    last: int = 1 << 62
    skip: int = 0
    count: int = 0
    n_bytes: int = 0
    ms: int = 0
    seed: int = 0
    other: str = ""
    seen: int = 0
    fired: int = 0

    def covers(self, name: str, offset: int, size: int) -> bool:
        if self.path not in ("", name) or offset > self.last or offset + size <= self.first:
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.count and self.fired >= self.count):
            return False
        self.fired += 1
        return True


_NOT_OF_READS = (
    "refuse_direct", "refuse_direct_reads", "bypass", "larger", "open_error", "stat_error",
    "lookup_error", "list_error",
)  # fmt: skip


def change(path: Path, kind: str, other: str, n_bytes: int) -> None:
    """Do to a file what somebody else could."""
    match kind:
        case "truncate":
            os.truncate(path, n_bytes)
        case "append":
            with path.open("ab") as file:
                file.write(bytes(4096))
        case "overwrite":
            with path.open("r+b") as file:
                file.write(Path(other).read_bytes())
        case "replace":
            new = path.with_name(path.name + ".new")
            new.write_bytes(Path(other).read_bytes())
            new.rename(path)
        case "delete":
            path.unlink()


class _Server:
    """Answers the kernel. Nodes are the real files' inodes, held open: a file that is replaced by
    another of its name stays what it was for those who have it open."""

    def __init__(self, device: int, folder: str) -> None:
        self.device, self.folder = device, folder
        self.lock = threading.Lock()
        self.nodes: dict[int, tuple[int, str]] = {1: (os.open(folder, os.O_RDONLY), "")}
        self.numbers: dict[tuple[int, int], int] = {}
        self.rules: list[Rule] = []
        self.log: list[tuple[str, int, int]] = []  # reads: name, offset, size
        self.random = random.Random(0)

    # -- answers ---------------------------------------------------------------------------------

    def attributes(self, node: int) -> bytes:
        fd, name = self.nodes[node]
        self.refuse("stat_error", name)
        s = os.fstat(fd)
        size = s.st_size + sum(
            r.n_bytes for r in self.rules if r.kind == "larger" and r.path in ("", name)
        )
        times = [t // 10**9 for t in (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)]
        parts = [t % 10**9 for t in (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)]
        return _ATTR.pack(
            node, size, (size + 511) // 512, *times, *parts, s.st_mode, s.st_nlink, 0, 0, 0, 4096, 0
        )

    def lookup(self, name: str) -> bytes:
        path = os.path.join(self.folder, name)
        self.refuse("lookup_error", name)
        fd = os.open(path, os.O_RDONLY)
        s = os.fstat(fd)
        with self.lock:
            key = (s.st_dev, s.st_ino)
            node = self.numbers.get(key)
            if node is None:
                node = self.numbers[key] = len(self.nodes) + 1
                self.nodes[node] = (fd, name)
            else:
                os.close(fd)
                self.nodes[node] = (self.nodes[node][0], name)
        return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self.attributes(node)

    def read(self, node: int, offset: int, size: int, flags: int) -> bytes:
        fd, name = self.nodes[node]
        delay = 0
        with self.lock:
            self.log.append((name, offset, size))
            for rule in self.rules:
                if rule.kind == "refuse_direct_reads" and rule.path in ("", name):
                    if flags & os.O_DIRECT:
                        rule.fired += 1
                        raise OSError(errno.EINVAL, "")
                    continue
                if rule.kind in _NOT_OF_READS or not rule.covers(name, offset, size):
                    continue
                kind = rule.kind
                if rule.kind == "random":
                    kind = self.random.choice(["", "", "", "intr", "again", "short", "delay"])
                    if kind in ("intr", "again"):
                        raise OSError(errno.EINTR if kind == "intr" else errno.EAGAIN, "")
                    if kind == "short":
                        size = min(size, self.random.choice([1, 511, 4096, 5000, 65536]))
                    if kind == "delay":
                        delay = self.random.randrange(1, 20)
                elif kind == "error":
                    raise OSError(rule.errno, "")
                elif kind == "short":
                    size = min(size, rule.n_bytes)
                elif kind == "eof":
                    size = 0
                elif kind == "delay":
                    delay = rule.ms
                elif kind == "shuffle":
                    delay = self.random.randrange(rule.ms + 1)
                elif kind == "gone":
                    os._exit(0)
                elif kind:
                    change(Path(self.folder, name), kind, rule.other, rule.n_bytes)
        if delay:
            time.sleep(delay / 1000)
        return os.pread(fd, size, offset)

    def refuse(self, kind: str, name: str) -> None:
        for rule in self.rules:
            if rule.kind == kind and rule.path in ("", name):
                rule.seen += 1
                if rule.seen <= rule.skip or (rule.count and rule.fired >= rule.count):
                    continue
                rule.fired += 1
                raise OSError(rule.errno, "")

    def open(self, node: int, flags: int) -> bytes:
        self.refuse("open_error", self.nodes[node][1])
        name = self.nodes[node][1]
        answer = 0
        for rule in self.rules:
            if rule.path not in ("", name):
                continue
            if rule.kind == "refuse_direct" and flags & os.O_DIRECT:
                rule.fired += 1
                raise OSError(errno.EINVAL, "")
            if rule.kind == "bypass":
                rule.fired += 1
                answer |= _DIRECT_IO
        return struct.pack("<QIi", 0, answer, 0)

    def listing(self, offset: int, size: int) -> bytes:
        out = b""
        for number, name in enumerate([".", "..", *sorted(os.listdir(self.folder))], 1):
            raw = os.fsencode(name)
            entry = struct.pack("<QQII", number + 1000, number, len(raw), stat.S_IFREG >> 12) + raw
            entry += bytes(-len(entry) % 8)
            if number > offset:
                if len(out) + len(entry) > size:
                    break
                out += entry
        return out

    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        match opcode:
            case 26:  # _INIT
                _, minor, ahead, flags = struct.unpack_from("<IIII", body)
                wanted = flags & (_ASYNC_READ | _MAX_PAGES | _PARALLEL_DIROPS)
                fixed = (7, min(minor, 31), ahead, wanted, 16, 12, 4096, 1, 256, 0, 0)
                return struct.pack("<IIIIHHIIHHI", *fixed) + bytes(28)
            case 1:  # _LOOKUP
                return self.lookup(os.fsdecode(body.rstrip(b"\0")))
            case 3:  # _GETATTR
                return struct.pack("<QII", 0, 0, 0) + self.attributes(node)
            case 14:  # _OPEN
                return self.open(node, struct.unpack_from("<I", body)[0])
            case 15:  # _READ
                _, offset, size, _, _, flags = struct.unpack_from("<QQIIQI", body)
                return self.read(node, offset, size, flags)
            case 17:  # _STATFS
                return struct.pack("<QQQQQIIII", 1000, 500, 500, 100, 50, 4096, 255, 4096, 0) + (
                    bytes(24)
                )
            case 27:  # _OPENDIR
                return struct.pack("<QIi", 0, 0, 0)
            case 28:  # _READDIR
                _, offset, size = struct.unpack_from("<QQI", body)
                self.refuse("list_error", "")
                return self.listing(offset, size)
            case 18 | 25 | 29 | 34 | 38:  # _RELEASE, _FLUSH, _RELEASEDIR, _ACCESS, _DESTROY
                return b""
        raise OSError(errno.ENOSYS, "")

    def serve(self) -> None:
        """One of several threads that do this: a delayed answer holds up nobody else."""
        while True:
            try:
                raw = os.read(self.device, _BUFFER)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return  # ENODEV: unmounted
            _, opcode, unique, node, *_ = _IN.unpack_from(raw)
            if opcode in _SILENT:
                continue
            code, payload = 0, b""
            try:
                payload = self.answer(opcode, node, raw[_IN.size :])
            except OSError as error:
                code = -(error.errno or errno.EIO)
            except KeyError:
                code = -errno.ENOENT
            try:
                os.write(self.device, _OUT.pack(_OUT.size + len(payload), code, unique) + payload)
            except OSError as error:
                if error.errno != errno.ENOENT:  # who asked was interrupted, and is gone
                    return

    # -- what the test asks for ------------------------------------------------------------------

    def command(self, message: dict[str, Any]) -> Any:
        with self.lock:
            match message["do"]:
                case "add":
                    self.rules.append(Rule(**message["rule"]))
                    self.random = random.Random(message["rule"].get("seed", 0))
                    return len(self.rules) - 1
                case "clear":
                    self.rules.clear()
                    return None
                case "fired":
                    return [rule.fired for rule in self.rules]
                case "log":
                    log, self.log = self.log, []
                    return log
        return None


def _work(device: int, folder: str, control: socket.socket) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    server = _Server(device, folder)
    for _ in range(12):
        threading.Thread(target=server.serve, daemon=True).start()
    with control.makefile("rw") as lines:
        for line in lines:
            lines.write(json.dumps(server.command(json.loads(line))) + "\n")
            lines.flush()
    os._exit(0)


def mount_raw(source: str, where: str, kind: str, options: str, flags: int = 0) -> None:
    """mount(2); raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    args = (source.encode(), where.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    if libc.mount(*args):
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}")


def unmount(where: str) -> None:
    """umount2(2), also of what is in use; silent where nothing is mounted."""
    ctypes.CDLL(None).umount2(where.encode(), _MNT_DETACH)


def main() -> int:
    """The program: FOLDER MOUNTPOINT; commands and answers are lines of JSON."""
    folder, where = sys.argv[1:3]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={device},rootmode=40755,user_id=0,group_id=0,allow_other"
        mount_raw("edge-rt-test", where, "fuse.edge_rt_test", options, flags=2 | 4)
    except OSError as error:
        print(json.dumps({"refused": str(error)}), flush=True)
        return 0
    ours, theirs = socket.socketpair()
    worker = os.fork()
    if worker == 0:
        ours.close()
        _work(device, folder, theirs)
    os.close(device)  # the worker's is the only one: when it dies, the file system is dead
    theirs.close()
    print(json.dumps({"mounted": where}), flush=True)
    try:
        with ours.makefile("rw") as lines:
            for line in sys.stdin:
                answer = ""
                try:
                    lines.write(line)
                    lines.flush()
                    answer = lines.readline()
                except OSError:
                    pass
                print(answer.strip() or '"dead"', flush=True)
    except (OSError, ValueError):
        pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        unmount(where)
    return 0


class Refused(Exception):
    """The system lets us mount nothing; says why."""


class Mount:
    """``folder`` as it is, under ``where``, until rules are added."""

    def __init__(self, folder: Path, where: Path) -> None:
        self.folder, self.where = folder, where
        where.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder), str(where)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,  # it must outlive a signal to our group, to unmount
        )  # fmt: skip
        first = self._answer()
        if "mounted" not in first:
            self.close()
            raise Refused(f"cannot mount a FUSE file system: {first.get('refused')}")

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"refused": "the server ended"}

    def _do(self, **message: Any) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def add(self, kind: str, **rule: Any) -> int:
        """Add a `Rule`; returns its number, -1 where a read met it so soon that the server died."""
        number = self._do(do="add", rule={"kind": kind, **rule})
        if kind == "gone" and number == "dead":
            return -1
        assert isinstance(number, int), number
        return number

    def clear(self) -> None:
        """Forget all rules."""
        self._do(do="clear")

    def fired(self) -> list[int]:
        """How often each rule was met; empty if the server has died."""
        found = self._do(do="fired")
        return found if isinstance(found, list) else []

    def alive(self) -> bool:
        return isinstance(self._do(do="fired"), list)

    def log(self) -> list[tuple[str, int, int]]:
        """(file, offset, size) of each read since the last call, in the order of arrival."""
        found = self._do(do="log")
        return [tuple(x) for x in found] if isinstance(found, list) else []

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        unmount(str(self.where))

    def __enter__(self) -> Mount:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


if __name__ == "__main__":
    sys.exit(main())
