"""What is no model file at all, and files of other kinds under a model's name."""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from .case import REFUSED, RUNS, USAGE, Case, Make, file_of
from .small import small_bytes, write_small_folder

NAMES = ("m.gguf", "model", "m.safetensors")


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"\x80\x04.")
    return buffer.getvalue()


def _other_kinds() -> Iterator[Case]:
    contents: dict[str, bytes] = {
        "empty": b"",
        "one byte": b"G",
        "three bytes": b"GGU",
        "only the magic": b"GGUF",
        "zeros": bytes(4096),
        "ones": b"\xff" * 4096,
        "one MiB of zeros": bytes(1 << 20),
        "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
        "a web page after spaces": b"\n\n  <html>",
        "an error in JSON": b'{"error": "not found"}',
        "an error": b"Access denied",
        "a pickle": pickle.dumps({"a": 1}),
        "a zip": _zip(),
        "a pointer of LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "a GGML file": b"lmgg" + bytes(100),
        "a GGJT file": b"tjgg\3\0\0\0" + bytes(100),
        "an ELF": b"\x7fELF" + bytes(100),
        "gzip": b"\x1f\x8b\x08" + bytes(100),
        "safetensors": struct.pack("<Q", 2) + b"{}",
        "a script": b"#!/bin/sh\nrm -rf /\n",
        "UTF-16": "GGUF".encode("utf-16"),
        "a GGUF after a BOM": b"\xef\xbb\xbf" + small_bytes(),
        "a GGUF one byte late": b"\0" + small_bytes(),
        "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "big-endian": b"FUGG" + bytes(64),
        "escapes": b"\x1b[2J\x1b[31m" * 10,
        "an ONNX": b"\x08\x07\x12\x07pytorch",
        "a checkpoint of Keras": b"\x89HDF\r\n\x1a\n" + bytes(50),
    }
    for what, data in contents.items():
        for name in NAMES:
            if name == "m.safetensors":
                # It stands for the folder that it lies in, which has no config.json.
                yield Case(
                    "other kinds", f"{what} as {name}", REFUSED, file_of(data, name), REFUSED
                )
            else:
                yield Case(
                    "other kinds", f"{what} as {name}", REFUSED, file_of(data, name), REFUSED
                )


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _no_files() -> Iterator[Case]:
    def made(make: Callable[[Path], object], name: str) -> Make:
        def write(folder: Path) -> Path:
            path = folder / name
            make(path)
            return path

        return write

    for name in ("m.gguf", "model", "model.safetensors", "config.json"):
        as_folder = name in ("model.safetensors", "config.json")
        wrong = REFUSED if as_folder else USAGE
        yield Case("no files", f"{name} is missing", USAGE, made(lambda _: None, name))
        yield Case("no files", f"{name} is a FIFO", wrong, made(os.mkfifo, name))
        yield Case("no files", f"{name} is a socket", wrong, made(_socket, name))
        yield Case(
            "no files", f"{name} links to itself", wrong, made(lambda p: p.symlink_to(p.name), name)
        )
        yield Case(
            "no files", f"{name} links to nothing", wrong, made(lambda p: p.symlink_to("x"), name)
        )
        for device in ("zero", "null", "random", "full", "tty"):
            make = made(lambda p, d=device: p.symlink_to(f"/dev/{d}"), name)
            yield Case("no files", f"{name} is /dev/{device}", wrong, make)
        yield Case("no files", f"{name} is /proc/self/mem", REFUSED,
                   made(lambda p: p.symlink_to("/proc/self/mem"), name))  # fmt: skip
    yield Case("no files", "an empty folder", USAGE, made(Path.mkdir, "m"))
    yield Case("no files", "a folder called m.gguf", USAGE, made(Path.mkdir, "m.gguf"))

    def with_folder(path: Path) -> None:
        path.mkdir()
        (path / "x.gguf").mkdir()

    yield Case("no files", "a folder whose GGUF is a folder", USAGE, made(with_folder, "m"))

    def two(path: Path) -> None:
        path.mkdir()
        for name in ("a.gguf", "b.gguf"):
            (path / name).write_bytes(small_bytes())

    yield Case("no files", "a folder of two models", USAGE, made(two, "m"))

    def one(path: Path) -> None:
        path.mkdir()
        (path / "a.gguf").write_bytes(small_bytes())

    yield Case("no files", "a folder of one model", RUNS, made(one, "m"))

    def looping(path: Path) -> None:
        path.mkdir()
        (path / "a").symlink_to("b")
        (path / "b").symlink_to("a")
        (path / "a.gguf").symlink_to("a")

    yield Case("no files", "a loop of links in a folder", USAGE, made(looping, "m"))

    def many(path: Path) -> None:
        path.mkdir()
        for i in range(17000):
            (path / f"{i:x}").touch()

    yield Case("no files", "a folder of 17000 files", REFUSED, made(many, "m"))
    for name in ("no/such/folder/m.gguf", "m.gguf/x", "x" * 300, "a\nb.gguf", "\x1b[2J.gguf", "…"):
        yield Case("no files", f"no file called {name[:20]!r}", USAGE, lambda f, n=name: f / n)


def _unusual_names() -> Iterator[Case]:
    """Files that are right under names that are not."""
    for name in ("m m.gguf", "-x.gguf", "\x1b[2J.gguf", "ü.gguf", "x" * 250, "m.gguf.gguf",
                 "..gguf", "\udcff.gguf", "m.tar.gz", "%s%n.gguf", "{0}.gguf"):  # fmt: skip
        for data, expect in ((small_bytes(), RUNS), (b"GGUF\3", REFUSED)):
            what = "a model" if expect == RUNS else "a damaged one"
            yield Case(
                "names of files",
                f"{what} called {name[:20]!a}",
                expect,
                file_of(data, name),
                expect,
            )

    def linked(folder: Path) -> Path:
        (folder / "real").write_bytes(small_bytes())
        (folder / "m.gguf").symlink_to("real")
        return folder / "m.gguf"

    yield Case("names of files", "a link to a model", RUNS, linked)

    def split_name(folder: Path) -> Path:
        path = folder / "m-00001-of-00001.gguf"
        path.write_bytes(small_bytes())
        return path

    yield Case("names of files", "one part of one, without the keys", RUNS, split_name)
    for inner in ("config.json", "tokenizer.json", "model.safetensors"):
        make = lambda folder, n=inner: write_small_folder(folder / "m") / n  # noqa: E731
        yield Case("names of files", f"{inner} of a folder", RUNS, make)


def cases() -> Iterator[Case]:
    """All files of these families."""
    yield from _other_kinds()
    yield from _no_files()
    yield from _unusual_names()
