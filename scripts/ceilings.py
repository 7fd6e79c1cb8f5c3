"""What the machine could do at most: bytes per second out of a file's drive and out of memory.

Simple on purpose, and written without edge-rt's own reader and kernels: they are what is compared
with it. Reads are direct, of 1 MiB, four at a time, into huge pages, and what was read is looked at
by the C library's ``memcmp``: on a virtual drive, a core that takes the data out of the cache of
the one that brought it slows the next read down. Memory is read by ``memchr``, on as many threads
as compute.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20
_READERS = 4
_BLOCK = MIB
_BUFFER = 256 * MIB  # of each thread: far beyond any cache


def rates(work: Callable[[int], int], n_threads: int, seconds: float) -> float:
    """Bytes per second of ``n_threads`` that repeat ``work``, which returns bytes, for a while."""
    done = [0] * n_threads
    errors: list[BaseException] = []
    ends = time.perf_counter() + seconds

    def repeat(index: int) -> None:
        try:
            while time.perf_counter() < ends:
                done[index] += work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(n_threads)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(done) / (time.perf_counter() - started)


def huge(n_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, n_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


_libc = ctypes.CDLL(None)
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_libc.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
_libc.memchr.restype = ctypes.c_void_p


def look_at(address: int, n_bytes: int) -> None:
    """Read all of it, and let other threads run meanwhile."""
    _libc.memcmp(address, address, n_bytes)


def drive_rate(path: Path, seconds: float = 2.0) -> float:
    """Bytes per second of direct reads at random places of ``path``; buffered where direct ones
    are refused."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        fd = os.open(path, os.O_RDONLY)
    n_blocks = max(1, os.stat(path).st_size // _BLOCK)
    buffers = [memoryview(huge(2 * MIB))[:_BLOCK] for _ in range(_READERS)]
    places = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
    draw = random.Random(0)

    def read(index: int) -> int:
        n = os.preadv(fd, [buffers[index]], draw.randrange(n_blocks) * _BLOCK)
        look_at(places[index], n)
        return n

    try:
        return rates(read, _READERS, seconds)
    finally:
        os.close(fd)


def memory_rate(n_threads: int, seconds: float = 1.0) -> float:
    """Bytes per second that ``n_threads`` read out of memory."""
    buffers = [huge(_BUFFER) for _ in range(n_threads)]
    places = []
    for buffer in buffers:
        buffer.write(b"\0" * _BUFFER)  # backed by memory of its own
        places.append(ctypes.addressof(ctypes.c_char.from_buffer(buffer)))

    def search(index: int) -> int:
        assert _libc.memchr(places[index], 1, _BUFFER) is None
        return _BUFFER

    return rates(search, n_threads, seconds)
