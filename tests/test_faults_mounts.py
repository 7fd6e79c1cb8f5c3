"""File systems that are not like the one at home: no O_DIRECT, layers, drives that vanish.

Mounting needs root, and a kernel that has the thing; where one is missing a test is skipped aloud.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from edge_rt import Engine, StorageError
from edge_rt.flash_io._flash_io import File, why_no_uring
from edge_rt.flash_io.files import open_file

from .faulty_models import Model, build
from .fuse_server import Mount, Refused, mount_raw, unmount

IOS = ["pread", "uring"]
STREAM = {"weight_cap": "0"}
DRIVE_BYTES = 32 << 20


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return build(tmp_path_factory.mktemp("gguf"), "gguf")


@pytest.fixture(scope="module")
def right(gguf: Model) -> tuple[list[int], bytes]:
    with engine_of(gguf.folder / gguf.entry, "auto") as engine:
        return answer(engine)


def engine_of(path: Path, io: str, **settings: Any) -> Engine:
    return Engine(path, ram="4GiB", ctx=96, threads=2, io=io, **settings)


def answer(engine: Engine, n: int = 4) -> tuple[list[int], bytes]:
    engine.forget()
    done = engine.generate("the rain in the north is hard", n, temperature=0.0)
    return done.tokens, engine.logits_bytes(0)


class Mounts:
    """Mounts and loop devices that are gone when the test is, whatever becomes of it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack, self._n = folder, stack, 0

    def where(self) -> Path:
        self._n += 1
        path = self.folder / f"mount{self._n}"
        path.mkdir()
        return path

    def mount(self, source: str, kind: str, options: str = "", flags: int = 0) -> Path:
        where = self.where()
        try:
            mount_raw(source, str(where), kind, options, flags)
        except OSError as error:
            pytest.skip(f"NO MOUNT of {kind}: {error}")
        self._stack.callback(unmount, str(where))
        return where

    def fuse(self, folder: Path) -> Mount:
        try:
            return self._stack.enter_context(Mount(folder, self.where()))
        except Refused as why:
            pytest.skip(f"NO FUSE: {why}")

    def loop(self, image: Path, *options: str) -> str:
        found = run("losetup", "--find", "--show", *options, str(image)).strip()
        self._stack.callback(subprocess.run, ["losetup", "-d", found], check=False)
        return found


def run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"NO {command[0]}: install util-linux and e2fsprogs")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        pytest.skip(f"NO {command[0]} here: {done.stderr.strip()}")
    return done.stdout


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    with ExitStack() as stack:
        yield Mounts(tmp_path, stack)


def image_of(model: Model, tmp_path: Path, *mkfs: str) -> Path:
    """A drive with the model on it, as a file."""
    image = tmp_path / "drive.img"
    with image.open("wb") as file:
        file.truncate(DRIVE_BYTES)
    run(*mkfs, "-d", str(model.folder), str(image))
    return image


# --- file systems ---------------------------------------------------------------------------------


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("settings", [{}, STREAM], ids=["resident", "streamed"])
def test_tmpfs(gguf: Model, right: Any, mounts: Mounts, io: str, settings: dict[str, Any]) -> None:
    where = mounts.mount("tmpfs", "tmpfs", "size=64m")
    shutil.copy(gguf.folder / gguf.entry, where)
    with engine_of(where / gguf.entry, io, **settings) as engine:
        assert answer(engine) == right
        os.truncate(where / gguf.entry, 1_000_000)
        with pytest.raises(StorageError, match="ends at byte 1000000"):
            answer(engine)


@pytest.mark.parametrize("io", IOS)
def test_overlay(gguf: Model, right: Any, mounts: Mounts, io: str) -> None:
    """What is opened for writing is copied to the upper layer, and read there from then on."""
    upper = mounts.mount("tmpfs", "tmpfs", "size=64m")
    (upper / "u").mkdir()
    (upper / "w").mkdir()
    options = f"lowerdir={gguf.folder},upperdir={upper / 'u'},workdir={upper / 'w'}"
    where = mounts.mount("overlay", "overlay", options)
    with engine_of(where / gguf.entry, io, **STREAM) as engine:
        assert answer(engine) == right
        with (where / gguf.entry).open("r+b") as file:
            assert (upper / "u" / gguf.entry).exists()
            assert answer(engine) == right  # the same bytes
            file.write(b"GGUF" + bytes(400_000))
        with pytest.raises(StorageError, match=r"m\.gguf changed while in use"):
            answer(engine)


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("block", [1024, 4096])
def test_loop_device_with_sectors(
    gguf: Model, right: Any, mounts: Mounts, tmp_path: Path, block: int, io: str
) -> None:
    """Direct reads of 512 bytes, and of 4096 where the drive has no smaller sectors."""
    image = image_of(gguf, tmp_path, "mkfs.ext4", "-q", "-b", str(block))
    sector = "4096" if block == 4096 else "512"
    device = mounts.loop(image, "--direct-io=on", "--sector-size", sector)
    where = mounts.mount(device, "ext4", "", 1)
    file = open_file(where / gguf.entry)
    assert file.direct and file.alignment in (512, 4096) and file.alignment >= int(sector)
    for settings in ({}, STREAM):
        with engine_of(where / gguf.entry, io, **settings) as engine:
            assert answer(engine) == right


@pytest.mark.parametrize("overlay", [False, True])
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("n_bytes", [0, 777, 4096, 5003])
def test_io_uring_leaves_fuse_alone(
    mounts: Mounts, tmp_path: Path, n_bytes: int, direct: bool, overlay: bool
) -> None:
    """It reads on after a short answer, from the wrong offset: the bytes must be right."""
    (tmp_path / "data").mkdir()
    content = os.urandom(200_000)
    (tmp_path / "data/file").write_bytes(content)
    fuse = mounts.fuse(tmp_path / "data")
    fuse.add("bypass")
    if n_bytes:
        fuse.add("short", n_bytes=n_bytes, count=3)
    where = fuse.where
    if overlay:
        upper = mounts.mount("tmpfs", "tmpfs", "size=1m")
        (upper / "u").mkdir()
        (upper / "w").mkdir()
        options = f"lowerdir={fuse.where},upperdir={upper / 'u'},workdir={upper / 'w'}"
        where = mounts.mount("overlay", "overlay", options)
    file = File([where / "file"], direct)
    assert "FUSE" in why_no_uring(file)
    assert file.read_through(8192, 150_001, 65536, "uring") == content[8192 : 8192 + 150_001]


# --- drives that vanish ---------------------------------------------------------------------------


def truncated(image: Path, mount: Mount | None) -> None:
    os.truncate(image, 64 << 10)


def dead(image: Path, mount: Mount | None) -> None:
    assert mount is not None
    mount.add("gone")
    with pytest.raises(OSError, match=r"(abort|connected)"):
        os.pread(os.open(mount.where / image.name, os.O_RDONLY), 1, 0)


def refusing(image: Path, mount: Mount | None) -> None:
    assert mount is not None
    mount.add("error", errno=6)  # ENXIO: what a drive says that was pulled out


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("settings", [{}, STREAM], ids=["resident", "streamed"])
@pytest.mark.parametrize("fate", [truncated, dead, refusing])
def test_a_drive_under_ext4(
    gguf: Model,
    right: Any,
    mounts: Mounts,
    tmp_path: Path,
    fate: Callable[[Path, Mount | None], None],
    settings: dict[str, Any],
    io: str,
) -> None:
    """The block device below the file system fails: the embedding rows, at the least, are read."""
    served = tmp_path / "served"
    served.mkdir()
    image = image_of(gguf, served, "mkfs.ext4", "-q")
    fuse = None if fate is truncated else mounts.fuse(served)
    if fuse:
        fuse.add("bypass")  # else the image lies in the page cache, and the drive is not asked
    device = mounts.loop(fuse.where / image.name if fuse else image, "-r")
    where = mounts.mount(device, "ext4", "noload", 1)
    with engine_of(where / gguf.entry, io, **settings) as engine:
        assert answer(engine) == right
        stream = engine.stream("lion", 4, temperature=0.0)
        pieces = [next(stream)]
        fate(image, fuse)
        with pytest.raises(StorageError, match=rf"at \d+ of .*{gguf.entry}: Input/output error"):
            pieces += stream
        with pytest.raises(StorageError):
            answer(engine)
    with engine_of(gguf.folder / gguf.entry, io, **settings) as second:
        assert answer(second) == right
        text = second.generate("lion", 4, temperature=0.0).text
    assert text.startswith("".join(pieces))


@pytest.mark.parametrize("io", IOS)
def test_unmounted_by_force(
    gguf: Model, right: Any, mounts: Mounts, tmp_path: Path, io: str
) -> None:
    """umount --lazy, as file managers do: the file stays open and readable."""
    image = image_of(gguf, tmp_path, "mkfs.ext4", "-q")
    where = mounts.mount(mounts.loop(image, "-r"), "ext4", "noload", 1)
    with engine_of(where / gguf.entry, io, **STREAM) as engine:
        unmount(str(where))
        assert answer(engine) == right
        engine.resize("3GiB")
        assert answer(engine) == right
