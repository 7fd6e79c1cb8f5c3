"""The GGUF reader: agreement with gguf-py, and refusal of whatever is wrong."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_rt.errors import EdgeRTError, ModelError, StorageError, UsageError
from edge_rt.flash_io._flash_io import Faults
from edge_rt.loaders.gguf import GGUFFile, LazyArray

from . import gguf_builder as g
from .fresh import peak
from .gguf_builder import Array, GGUFBuilder


def sample(version: int = 3) -> GGUFBuilder:
    builder = GGUFBuilder(version=version).add("general.architecture", g.STRING, "llama")
    values = ((g.U8, 255), (g.I8, -1), (g.U16, 65535), (g.I16, -2), (g.U32, 7), (g.I32, -3),
              (g.F32, 0.5), (g.U64, 2**64 - 1), (g.I64, -(2**63)), (g.F64, 0.1))  # fmt: skip
    for kind, value in values:
        builder.add(f"n.{kind}", kind, value)
        builder.add(f"a.{kind}", g.ARRAY, Array(kind, [value, value]))
    builder.add("yes", g.BOOL, True).add("bools", g.ARRAY, Array(g.BOOL, [1, 0, 1]))
    builder.add("names", g.ARRAY, Array(g.STRING, ["a", "", "ü▁", "x" * 300]))
    builder.add("empty", g.ARRAY, Array(g.STRING, []))
    builder.tensor("w", (64, 3), 2, bytes(2 * 3 * 18)).tensor("v", (5,), 0, bytes(20))
    return builder


def load(tmp_path: Path, builder: GGUFBuilder | bytes, **kwargs: bool) -> GGUFFile:
    path = tmp_path / "m.gguf"
    path.write_bytes(builder if isinstance(builder, bytes) else builder.pack())
    return GGUFFile.open(path, **kwargs)


@pytest.mark.parametrize("version", [2, 3])
def test_agrees_with_gguf_py(tmp_path: Path, version: int) -> None:
    gguf = pytest.importorskip("gguf")
    ours = load(tmp_path, sample(version))
    theirs = gguf.GGUFReader(ours.path)
    fields = {k: v for k, v in theirs.fields.items() if not k.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, value in ours.metadata.items():
        if isinstance(value, LazyArray):
            assert list(value) == (fields[key].contents() or []), key
        else:
            assert value == fields[key].contents(), key
            assert type(value) is type(fields[key].contents()), key
    assert [t.name for t in theirs.tensors] == list(ours.tensors)
    for t in theirs.tensors:
        mine = ours.tensors[t.name]
        assert mine.shape == tuple(int(d) for d in t.shape)[::-1]
        assert (mine.offset, mine.n_bytes) == (t.data_offset, t.n_bytes)
        assert mine.format is not None and mine.format.ggml_id == t.tensor_type
    assert ours.data_offset == theirs.data_offset


def test_arrays_are_read_again(tmp_path: Path) -> None:
    file = load(tmp_path, sample())
    names = file.get_array("names")
    assert list(names) == list(names) == ["a", "", "ü▁", "x" * 300]
    assert list(names.raw())[2] == "ü▁".encode()
    assert (len(names), names.kind) == (4, "string")
    assert list(file.get_array("bools")) == [True, False, True]
    assert file.get_array("a.5").numbers().tolist() == [-3, -3]
    with pytest.raises(ModelError, match="not numbers"):
        names.numbers()


def test_long_arrays_cross_chunks(tmp_path: Path) -> None:
    words = [f"token {i}" * (i % 7) for i in range(60000)]
    numbers = list(range(200_000))
    builder = GGUFBuilder().add("w", g.ARRAY, Array(g.STRING, words))
    builder.add("n", g.ARRAY, Array(g.I32, numbers)).add("last", g.U32, 9)
    builder.add("big", g.ARRAY, Array(g.STRING, ["y" * 700_000, "z"]))
    file = load(tmp_path, builder)
    assert list(file.get_array("w")) == words
    assert list(file.get_array("n")) == numbers
    assert list(file.get_array("big")) == ["y" * 700_000, "z"]
    assert file.get_int("last") == 9


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    file = load(tmp_path, sample())
    with open(file.path, "ab") as f:
        f.write(b"\0")
    with pytest.raises(StorageError, match="changed while in use"):
        list(file.get_array("names"))


def test_getters(tmp_path: Path) -> None:
    file = load(tmp_path, sample().add("nan", g.F32, float("nan")))
    assert file.get_int("n.4") == 7
    assert file.get_float("n.6") == 0.5
    assert file.get_bool("yes") is True
    assert file.get_str("general.architecture") == "llama"
    assert file.get_int("none", None) is None
    assert file.get_str("none", "x") == "x"
    for call, words in (
        (lambda: file.get_int("none"), "'none' is missing"),
        (lambda: file.get_int("yes"), "'yes' is True, not an integer"),
        (lambda: file.get_int("yes", 1), "'yes' is True, not an integer"),
        (lambda: file.get_bool("n.4"), "'n.4' is 7, not a bool"),
        (lambda: file.get_str("n.4"), "'n.4' is 7, not a string"),
        (lambda: file.get_int("n.4", minimum=8), "'n.4' is 7, not in 8"),
        (lambda: file.get_float("nan"), "finite"),
        (lambda: file.get_array("names", kind="int32"), "array of string, not of int32"),
        (lambda: file.get_int("names"), "'names' is <4 x string"),
    ):
        with pytest.raises(ModelError, match=words):
            call()


def test_nothing_of_the_weights_is_read(tmp_path: Path, faults: Faults) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(sample().pack())
    with open(path, "r+b") as f:
        f.truncate(path.stat().st_size + (1 << 30))
    file = GGUFFile.open(path)
    assert 0 < faults.bytes <= 256 * 1024
    assert file.file_size > 1 << 30


def test_the_file_is_closed(tmp_path: Path) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    before = len(os.listdir("/proc/self/fd"))
    file = load(tmp_path, sample())
    next(iter(file.get_array("names")))
    with pytest.raises(ModelError):
        load(tmp_path, b"GGUF\3\0\0\0")
    del file  # it keeps its own file open
    assert len(os.listdir("/proc/self/fd")) == before


HOSTILE: dict[str, tuple[GGUFBuilder | bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "garbage": (b"\x7fELF" + bytes(100), "not a GGUF file"),
    "magic alone": (b"GGUF", "truncated"),
    "version 1": (GGUFBuilder(version=1), "version 1 is not supported"),
    "version 4": (GGUFBuilder(version=4), "version 4 is unknown"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "keys": (GGUFBuilder(n_keys=2**63), "keys cannot be in"),
    "tensors": (GGUFBuilder(n_tensors=2**64 - 1), "tensors cannot be in"),
    "too many keys": (GGUFBuilder(n_keys=70000).header() + bytes(2_000_000), "limit is 65536"),
    "key length": (
        GGUFBuilder(n_keys=1).header() + struct.pack("<Q", 2**64 - 1) + bytes(20),
        "limit is 65535",
    ),
    "key utf-8": (GGUFBuilder().add(b"\xff\xfe", g.U32, 1), "not UTF-8"),
    "key twice": (GGUFBuilder().add("a", g.U32, 1).add("a", g.U32, 2), "'a' occurs twice"),
    "value type": (GGUFBuilder().add("a", 13, b"\0" * 8), "unknown value type 13"),
    "bool": (GGUFBuilder().add("a", g.BOOL, 2), "bool of value 2"),
    "bool array": (
        GGUFBuilder().add("a", g.ARRAY, Array(g.BOOL, [0, 7])), "holds a bool of value 7",
    ),
    "nested": (
        GGUFBuilder().add("a", g.ARRAY, Array(g.ARRAY, length=1, raw=bytes(32))),
        "array of arrays",
    ),
    "element type": (
        GGUFBuilder().add("a", g.ARRAY, Array(99, length=1, raw=bytes(32))),
        "unknown element type 99",
    ),
    "array length": (
        GGUFBuilder().add("a", g.ARRAY, Array(g.U64, length=2**61, raw=bytes(32))), "are left",
    ),
    "strings length": (
        GGUFBuilder().add("a", g.ARRAY, Array(g.STRING, length=2**61, raw=bytes(32))),
        "bytes are left",
    ),
    "element length": (
        GGUFBuilder().add(
            "a", g.ARRAY, Array(g.STRING, length=1, raw=struct.pack("<Q", 2**63) + bytes(32))
        ),
        "element",
    ),
    "string length": (
        GGUFBuilder().add("a", g.U32, 0).header()[:-8] + struct.pack("<IQ", 8, 2**40), "limit is",
    ),
    "alignment 0": (GGUFBuilder().add("general.alignment", g.U32, 0), "alignment"),
    "alignment 24": (GGUFBuilder().add("general.alignment", g.U32, 24), "power of two"),
    "alignment 4": (GGUFBuilder().add("general.alignment", g.U32, 4), "alignment"),
    "alignment 2M": (GGUFBuilder().add("general.alignment", g.U32, 1 << 21), "alignment"),
    "alignment type": (GGUFBuilder().add("general.alignment", g.STRING, "32"), "not an integer"),
    "no dims": (GGUFBuilder().tensor("t", (), 0, bytes(32)), "0 dimensions"),
    "five dims": (GGUFBuilder().tensor("t", (1,) * 5, 0, bytes(32)), "5 dimensions"),
    "dim 0": (GGUFBuilder().tensor("t", (4, 0), 0, bytes(32)), "shape"),
    "dims wrap": (GGUFBuilder().tensor("t", (2**32, 2**32, 4), 0, bytes(32)), "the file has"),
    "ragged row": (GGUFBuilder().tensor("t", (33, 32), 2, bytes(999)), "Q4_0 blocks"),
    "past the end": (GGUFBuilder().tensor("t", (9,), 0, bytes(32)), "file ends at"),
    "offset": (GGUFBuilder().tensor("t", (8,), 0, bytes(32), offset=2**63), "file ends at"),
    "odd offset": (GGUFBuilder().tensor("t", (2,), 0, bytes(64), offset=4), "multiple of 32"),
    "overlap": (
        GGUFBuilder().tensor("t", (16,), 0, bytes(64)).tensor("u", (8,), 0, bytes(32), offset=32),
        "'t' and 'u' overlap",
    ),
    "same place": (
        GGUFBuilder().tensor("t", (4,), 0, bytes(64)).tensor("u", (4,), 0, b"", offset=0),
        "overlap",
    ),
    "name twice": (
        GGUFBuilder().tensor("t", (8,), 0, bytes(32)).tensor("t", (8,), 0, bytes(32)),
        "'t' occurs twice",
    ),
    "long name": (GGUFBuilder().tensor("t" * 65, (8,), 0, bytes(32)), "limit is 64"),
    "NVFP4": (GGUFBuilder().tensor("t", (256,), 40, bytes(144)), r"NVFP4.*supported: F32"),
    "type 77": (GGUFBuilder().tensor("t", (256,), 77, bytes(210)), "unknown type 77"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    content, words = HOSTILE[name]
    with pytest.raises(ModelError, match=words) as caught:
        load(tmp_path, content)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_unsupported_formats_open_for_inspection(tmp_path: Path) -> None:
    builder = GGUFBuilder().tensor("t", (256,), 40, bytes(144)).tensor("u", (8,), 0, bytes(32))
    tensors = load(tmp_path, builder, allow_unsupported=True).tensors
    assert (tensors["t"].format, tensors["t"].format_name) == (None, "NVFP4")
    assert tensors["t"].n_bytes == 160
    far = GGUFBuilder().tensor("t", (256,), 40, bytes(144), offset=4096)
    with pytest.raises(ModelError, match="file ends at"):
        load(tmp_path, far, allow_unsupported=True)


def test_what_is_no_file(tmp_path: Path, faults: Faults) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, words in (("none", "no such file"), ("", "folder"), ("fifo", "not a regular file")):
        with pytest.raises(UsageError, match=words):
            GGUFFile.open(tmp_path / name)
    with pytest.raises(UsageError):
        GGUFFile.open("nul\0byte")

    path = sample().write(tmp_path / "m.gguf")
    faults.add("error", errno.EIO)
    with pytest.raises(StorageError, match=r"at 0 of .*m.gguf: Input/output"):
        GGUFFile.open(path)


def exercise(path: Path) -> None:
    """Open and iterate everything; any error must be one of ours."""
    try:
        file = GGUFFile.open(path, allow_unsupported=True)
        for value in file.metadata.values():
            if isinstance(value, LazyArray):
                for _ in value:
                    pass
        for t in file.tensors.values():
            assert file.data_offset <= t.offset < t.offset + t.n_bytes <= file.file_size
    except EdgeRTError:
        pass


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    whole = sample().pack()
    path = tmp_path / "m.gguf"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError):
            GGUFFile.open(path)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6))
def test_random_mutations_raise_only_our_errors(
    tmp_path: Path, edits: list[tuple[int, int]]
) -> None:
    content = bytearray(sample().pack())
    header = len(sample().header())
    for at, value in edits:
        content[at % header] = value
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    exercise(path)


@pytest.mark.parametrize("kind", ["strings", "text", "keys", "tensors"])
def test_hostile_files_are_cheap(tmp_path: Path, kind: str) -> None:
    if kind == "strings":  # 26 million empty strings in 200 MiB
        builder = GGUFBuilder(n_keys=1)
        content = builder.header() + g.string("a") + struct.pack("<IIQ", 9, 8, 26_000_000)
    elif kind == "text":  # one astral character makes each character take four bytes
        text = ("x" * 1_000_000 + "😀").encode()
        content = GGUFBuilder(n_keys=40).header() + b"".join(
            g.string(f"k{i}") + struct.pack("<I", 8) + g.string(text) for i in range(40)
        )
    elif kind == "keys":
        builder = GGUFBuilder()
        for i in range(60000):
            builder.add(f"{i}" + "k" * 1000, g.U32, i)
        content = builder.pack()
    else:
        builder = GGUFBuilder()
        for i in range(65536):
            builder.tensor(f"{i:064d}", (1, 2, 3, 2**60 + i), 14, offset=32 * i)
        content = builder.pack()
    path = tmp_path / "m.gguf"
    with open(path, "wb") as f:
        f.write(content)
        f.truncate(max(len(content), 200 << 20))
    program = (
        "import sys\nfrom edge_rt.loaders.gguf import GGUFFile\n"
        "from edge_rt.errors import ModelError\n"
        "try: GGUFFile.open(sys.argv[1], allow_unsupported=True)\n"
        "except ModelError as e: print('refused')\n"
    )
    start = time.perf_counter()
    out, held = peak(program, path)
    assert time.perf_counter() - start < 10  # 2 s on an idle machine; CI machines are not
    assert held < 64 << 20, out


def cached_bytes(path: Path) -> int:
    """Bytes of ``path`` in the page cache, by mincore."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    size = path.stat().st_size
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    fd = os.open(path, os.O_RDONLY)
    try:
        at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), pages) != 0:
            pytest.skip("mincore is not available here")
        libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(size))
    finally:
        os.close(fd)
    return sum(value & 1 for value in pages) * mmap.PAGESIZE


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_the_page_cache_stays_small(tmp_path: Path) -> None:
    words = ["w" * 50] * 100_000
    path = GGUFBuilder().add("w", g.ARRAY, Array(g.STRING, words)).write(tmp_path / "m.gguf")
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    if cached_bytes(path):
        pytest.skip("this file system does not drop cached pages when told to")
    file = GGUFFile.open(path)
    assert sum(1 for _ in file.get_array("w")) == 100_000
    assert cached_bytes(path) <= 1 << 20


def test_the_demo_model(demo_model: Path) -> None:
    start = time.perf_counter()
    file = GGUFFile.open(demo_model)
    assert time.perf_counter() - start < 1
    assert len(file.tensors) == 272
    assert file.tensors["token_embd.weight"].shape == (49152, 576)
    assert file.data_offset == 1785664
    last = max(file.tensors.values(), key=lambda t: t.offset)
    assert last.offset + last.n_bytes <= file.file_size
