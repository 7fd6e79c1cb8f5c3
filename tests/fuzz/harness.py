"""What all fuzz targets share: how an input is run, what counts as a finding, how atheris starts.

A target is a module of this folder with

* ``seeds() -> list[bytes]``: inputs that reach deep;
* ``mutate(data, rng) -> bytes``: changes that keep the outer shape, so that inner checks are met;
* ``run(data) -> None``: raises only for a finding.

Only ``main`` needs atheris: tests replay ``run`` without it. A finding is whatever is no
`EdgeRTError`, a broken invariant, more than `MAX_SECONDS` of processor time or more than
`MAX_GROWTH` bytes of memory for one input.
"""

from __future__ import annotations

import atexit
import gc
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from edge_rt.errors import EdgeRTError
from edge_rt.sizes import MIB

MAX_SECONDS = 2.0
MAX_GROWTH = 96 * MIB  # what one header may hold (40 MiB) twice, as it is parsed
MAX_MESSAGE = 4000  # characters; a long budget table has about 1000
MAX_INPUT = 65536


class Finding(AssertionError):
    """The input broke a promise."""


def require(holds: object, what: str) -> None:
    if not holds:
        raise Finding(what)


def scratch_folder() -> Path:
    """A folder in memory where there is one, gone when the process ends."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="edge-rt-fuzz-", dir=base))
    atexit.register(shutil.rmtree, folder, True)
    return folder


def _peak() -> int:
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _resident() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * 4096


def _reset_peak() -> bool:
    try:
        with open("/proc/self/clear_refs", "wb") as file:
            file.write(b"5")
    except OSError:
        return False
    return True


@contextmanager
def bounded() -> Iterator[None]:
    """Refusals are what hostile inputs are for; anything else passes on, and so does excess."""
    resets = _reset_peak()
    before, started = _resident(), time.process_time()
    try:
        yield
    except EdgeRTError as error:
        text = str(error)
        require(0 < len(text) <= MAX_MESSAGE, f"an error message of {len(text)} characters")
    seconds = time.process_time() - started
    require(seconds <= MAX_SECONDS, f"{seconds:.1f} s of processor time")
    if resets:
        grown = _peak() - before
        require(grown <= MAX_GROWTH, f"{grown / MIB:.0f} MiB of memory")


# -- inputs of several files ----------------------------------------------------------------------

_MARK = b"\n==== %s ====\n"


def join(files: dict[str, bytes]) -> bytes:
    """Several named texts as one input that people can read."""
    return b"".join(_MARK % name.encode() + text for name, text in files.items())


def split(data: bytes) -> dict[str, bytes]:
    """What `join` joined; text before the first mark belongs to no file."""
    files: dict[str, bytes] = {}
    for part in data.split(b"\n==== ")[1:]:
        name, found, text = part.partition(b" ====\n")
        if found:
            files[name.decode("latin-1")[:80]] = text
    return files


def text_of(raw: bytes) -> str:
    """A text that may hold halves of surrogate pairs, as Python's can."""
    try:
        return raw.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return raw.decode(errors="replace")


def raw_of(text: str) -> bytes:
    """The inverse of `text_of`."""
    return text.encode(errors="surrogatepass")


# -- atheris --------------------------------------------------------------------------------------

Mutate = Callable[[bytes, random.Random], bytes]


def mutations(target: ModuleType, count: int, seed: int) -> Iterator[bytes]:
    """``count`` inputs made of the seeds, the same for the same ``seed``."""
    rng = random.Random(seed)
    pool = list(target.seeds())
    for _ in range(count):
        data = rng.choice(pool)
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            data = target.mutate(data, rng)
        if len(pool) < 200:
            pool.append(data)
        yield data


def fuzz(target: ModuleType, arguments: list[str]) -> None:
    """Give the target to atheris; ``arguments`` are libFuzzer's options and corpora."""
    import atheris

    gc.collect()
    gc.freeze()  # every tokenizer collects garbage: what the imports made is not looked at again

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.25:
            return bytes(atheris.Mutate(data, max_size))
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            data = target.mutate(data, rng)
            if len(data) > max_size:  # each may make it a hundred times as long
                break
        return data[:max_size]

    for corpus in [Path(a) for a in arguments if not a.startswith("-")][:1]:
        if corpus.is_file():
            break  # one input, to be run again
        corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(target.seeds()):
            (corpus / f"seed-{number:03}").write_bytes(data)
    atheris.Setup([target.__name__, *arguments], target.run, custom_mutator=mutator)
    atheris.Fuzz()
