"""Files that change, drives that go away and people who give up, while an engine runs."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_rt import EdgeRTError, Engine, StorageError, Tokenizer, conversation
from edge_rt.flash_io._flash_io import Faults
from edge_rt.flash_io.files import set_faults
from edge_rt.loaders.gguf import GGUFFile

from .faulty_cells import held
from .faulty_models import Model, build, restore
from .fuse_server import Mount, Refused, change

EDGE_RT = [sys.executable, "-m", "edge_rt.apps.cli"]
PROMPT = "the rain in the north is hard"
STREAM = {"weight_cap": "0"}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return build(tmp_path_factory.mktemp("gguf"), "gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return build(tmp_path_factory.mktemp("folder"), "folder")


@pytest.fixture
def faults() -> Iterator[Faults]:
    found = Faults()
    set_faults(found)
    yield found
    set_faults(None)


def served(model: Model, tmp_path: Path) -> Path:
    where = tmp_path / "served"
    where.mkdir()
    restore(model, where)
    return where


def engine_of(path: Path, io: str = "auto", **settings: Any) -> Engine:
    return Engine(path, ram="4GiB", ctx=96, threads=2, io=io, **settings)


def answer(engine: Engine, n: int = 4) -> tuple[list[int], bytes]:
    engine.forget()
    done = engine.generate(PROMPT, n, temperature=0.0)
    return done.tokens, engine.logits_bytes(0)


@pytest.fixture(scope="module")
def right(gguf: Model) -> tuple[list[int], bytes]:
    with engine_of(gguf.folder / gguf.entry) as engine:
        return answer(engine)


# --- files that change ----------------------------------------------------------------------------

KEPT = ("replace", "delete")  # who has the old file open goes on with it


@pytest.mark.parametrize("io", ["pread", "uring"])
@pytest.mark.parametrize("settings", [{}, STREAM], ids=["resident", "streamed"])
@pytest.mark.parametrize("kind", ["truncate", "overwrite", "append", *KEPT])
def test_between_loading_and_the_first_pass(
    gguf: Model, right: Any, tmp_path: Path, kind: str, settings: dict[str, Any], io: str
) -> None:
    path = served(gguf, tmp_path) / gguf.entry
    size = path.stat().st_size
    with engine_of(path, io, **settings) as engine:
        change(path, kind, str(gguf.twin / gguf.entry), size // 2)
        if kind in KEPT:
            assert answer(engine) == right
        else:
            for _ in range(2):  # and again: it does not forget
                with pytest.raises(StorageError, match=path.name) as caught:
                    answer(engine)
                assert caught.value.exit_code == 5


@pytest.mark.parametrize("io", ["pread", "uring"])
@pytest.mark.parametrize("kind", ["truncate", "overwrite", "append", *KEPT])
def test_between_tokens(gguf: Model, right: Any, tmp_path: Path, kind: str, io: str) -> None:
    path = served(gguf, tmp_path) / gguf.entry
    size = path.stat().st_size
    with engine_of(path, io, **STREAM) as engine:
        stream = engine.stream(PROMPT, 4, temperature=0.0)
        pieces = [next(stream)]
        change(path, kind, str(gguf.twin / gguf.entry), size // 2)
        if kind in KEPT:
            pieces += stream
            assert stream.completion and stream.completion.tokens == right[0]
        else:
            with pytest.raises(StorageError, match=r"changed|ends at byte"):
                pieces += stream
            text = engine.tokenizer.decode(right[0])
            assert text.startswith("".join(pieces)) and len("".join(pieces)) < len(text)


@pytest.mark.parametrize("io", ["pread", "uring"])
@pytest.mark.parametrize("kind", ["truncate", "overwrite", *KEPT])
def test_in_the_middle_of_a_pass(
    gguf: Model, right: Any, tmp_path: Path, kind: str, io: str, faults: Faults
) -> None:
    """A tile of the head takes its time; the file changes while everybody waits for it."""
    path = served(gguf, tmp_path) / gguf.entry
    name, first, last = gguf.extents["output.weight"]
    twin, size = str(gguf.twin / gguf.entry), path.stat().st_size
    with engine_of(path, io, **STREAM) as engine:
        faults.add("delay", 400, path=name, begin=first, end=last + 1, count=1)
        changer = threading.Timer(0.15, change, (path, kind, twin, size // 2))
        changer.start()
        try:
            if kind in KEPT:
                assert answer(engine) == right
            else:
                with pytest.raises(StorageError, match=r"changed|ends at byte"):
                    answer(engine)
        finally:
            changer.join()
        assert faults.hits == 1


def test_a_file_of_the_same_name_is_another_file(gguf: Model, right: Any, tmp_path: Path) -> None:
    path = served(gguf, tmp_path) / gguf.entry
    with engine_of(path, **STREAM) as old:
        change(path, "replace", str(gguf.twin / gguf.entry), 0)
        with engine_of(path, **STREAM) as new:
            assert answer(new) != right
        assert answer(old) == right
        old.resize("3GiB")
        assert answer(old) == right


def test_side_files_are_read_as_they_were(folder: Model, tmp_path: Path) -> None:
    """A template that is replaced while the engine runs is not half of the old model."""
    where = served(folder, tmp_path)
    message = [{"role": "user", "content": "hm"}]

    def said(engine: Engine) -> list[int]:
        stream = engine.chat(message, 3, temperature=0.0)
        list(stream)
        assert stream.completion
        return stream.completion.tokens

    with engine_of(where) as engine:
        expected = said(engine)
    for kind in KEPT:
        restore(folder, where)
        with engine_of(where) as engine:
            for name in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json"):
                change(where / name, kind, str(folder.twin / name), 0)
            assert said(engine) == expected
    restore(folder, where)
    with engine_of(where) as engine:
        change(where / "chat_template.jinja", "append", "", 0)
        with pytest.raises(StorageError, match=r"chat_template\.jinja changed while in use"):
            said(engine)
        assert len(engine.generate(PROMPT, 2).tokens) == 2  # which needs no template


# --- failures and recovery ------------------------------------------------------------------------


@pytest.mark.parametrize("io", ["pread", "uring"])
def test_a_failed_read_ahead_is_read_again(
    gguf: Model, right: Any, faults: Faults, io: str
) -> None:
    """The ring guesses that decoding goes on; what fails then, nobody may have asked for."""
    path = gguf.folder / gguf.entry
    name, first, last = gguf.extents["blk.0.attn_q.weight"]
    with engine_of(path, io, **STREAM) as engine:
        assert answer(engine, 4) == right
        # The first layer was read ahead for a fifth token; now the guess that follows it fails.
        faults.add("error", errno.EIO, path=name, begin=first, end=last + 1, count=1)
        outcomes = []
        for _ in range(4):
            try:
                outcomes.append(answer(engine, 4) == right)
            except StorageError:
                outcomes.append(None)  # an honest error, once at the most
        assert faults.hits == 1
        assert False not in outcomes and outcomes.count(None) <= 1 and outcomes[-1]


@pytest.mark.parametrize("io", ["pread", "uring"])
@pytest.mark.parametrize("seed", range(4))
def test_chaos(gguf: Model, right: Any, faults: Faults, seed: int, io: str) -> None:
    """Interrupted, refused, short and late reads, in any order, at every read: the same bits."""
    faults.set_chaos(0.6, seed)
    faults.set_reorder(seed)
    for settings in ({}, STREAM, {"weight_cap": "300KiB"}):
        with engine_of(gguf.folder / gguf.entry, io, **settings) as engine:
            assert answer(engine) == right
    assert faults.hits > 50


@pytest.mark.parametrize("io", ["pread", "uring"])
def test_hundreds_of_failures_leave_nothing_behind(
    gguf: Model, right: Any, faults: Faults, io: str
) -> None:
    path = gguf.folder / gguf.entry

    def fail(skip: int) -> None:
        faults.add("error", errno.EIO, skip=skip)
        with pytest.raises(StorageError, match=path.name), engine_of(path, io, **STREAM) as engine:
            answer(engine)
        faults.clear()

    with engine_of(path, io, **STREAM) as engine:
        assert answer(engine) == right
    reads = faults.reads // 2  # the last ones are guesses that nobody waits for
    fail(0)
    fail(reads)
    before = held()
    for at in range(120):
        fail(at * reads // 120)
    with engine_of(path, io, **STREAM) as engine:
        for _ in range(60):
            faults.add("error", errno.EIO, skip=8)
            with pytest.raises(StorageError):
                answer(engine)
            faults.clear()
            assert answer(engine) == right
    after = held()
    assert (after["files"], after["threads"]) == (before["files"], before["threads"])
    assert after["resident"] < before["resident"] + (6 << 20), (before, after)
    assert after["maps"] < before["maps"] + 6, (before, after)


CONVERSATION = '{"messages": [{"role": "user", "content": "hm"}]}'


def test_conversation_files(tmp_path: Path, faults: Faults) -> None:
    path = tmp_path / "talk.json"
    path.write_text(CONVERSATION)
    expected = [{"role": "user", "content": "hm"}]
    for number in (errno.EIO, errno.ENXIO, errno.EAGAIN, errno.EINTR):
        faults.add("error", number)
        with pytest.raises(StorageError, match=r"at 0 of .*talk\.json"):
            conversation.load(path)
        faults.clear()
    for kind, value, count in (("error", errno.EINTR, 3), ("short", 7, 99), ("end", 0, 2)):
        faults.add(kind, value, count=count)
        assert conversation.load(path) == expected
        faults.clear()
    for kind in ("truncate", "append", "overwrite"):
        (tmp_path / "other").write_text("{" * len(CONVERSATION))
        path.write_text(CONVERSATION)
        faults.add("delay", 200)
        changer = threading.Timer(0.05, change, (path, kind, str(tmp_path / "other"), 20))
        changer.start()
        with pytest.raises(StorageError, match=r"talk\.json"):
            conversation.load(path)
        changer.join()
        faults.clear()


def test_errors_name_file_and_offset(gguf: Model, folder: Model, faults: Faults) -> None:
    for model, tensor in ((gguf, "blk.1.ffn_up.weight"), (folder, "lm_head.weight")):
        name, first, last = model.extents[tensor]
        faults.add("error", errno.EIO, path=name, begin=first + 5000, end=last)
        path = model.folder / model.entry
        with pytest.raises(StorageError) as caught, engine_of(path) as engine:
            answer(engine)
        faults.clear()
        sentence = str(caught.value)
        assert f"{model.folder / name}: {os.strerror(errno.EIO)}" in sentence
        offset = int(sentence.split(" bytes at ")[1].split()[0])
        length = int(sentence.split(" bytes at ")[0].split()[-1])
        assert offset <= last and offset + length > first + 5000  # in the file, not in the model


# --- a drive that fails before anything is open ---------------------------------------------------


@pytest.fixture
def mount(gguf: Model, folder: Model, tmp_path: Path) -> Iterator[Mount]:
    """``g/`` and the folder's files."""
    where = served(folder, tmp_path)
    restore_gguf = where / "m.gguf"
    restore_gguf.write_bytes((gguf.folder / gguf.entry).read_bytes())
    try:
        mount = Mount(where, tmp_path / "mounted")
    except Refused as why:
        pytest.skip(f"NO FUSE: {why}")
    with mount:
        yield mount


OPENERS: dict[str, Callable[[Path], object]] = {
    "gguf": lambda where: engine_of(where / "m.gguf").close(),
    "folder": lambda where: engine_of(where).close(),
    "header": lambda where: GGUFFile.open(where / "m.gguf"),
    "tokenizer": lambda where: Tokenizer.from_file(where),
    "tokenizer.json": lambda where: Tokenizer.from_file(where / "tokenizer.json"),
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("kind", ["lookup_error", "stat_error", "open_error", "list_error"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENXIO])
def test_a_failing_drive_is_no_missing_file(
    mount: Mount, opener: str, kind: str, number: int
) -> None:
    OPENERS[opener](mount.where)
    for skip in range(40):
        mount.clear()
        rule = mount.add(kind, errno=number, skip=skip)
        try:
            OPENERS[opener](mount.where)
        except StorageError as error:
            assert str(mount.where) in str(error) and os.strerror(number) in str(error)
        except EdgeRTError as error:
            pytest.fail(f"skip {skip}: {type(error).__name__}: {error}")
        else:
            # Past the last look, or a second open(2) that failed: buffered reads do as well.
            if not mount.fired()[rule]:
                break
            assert kind in ("open_error", "lookup_error", "stat_error")


def test_a_folder_that_went_away(mount: Mount) -> None:
    mount.add("gone")
    with pytest.raises(StorageError):
        engine_of(mount.where / "m.gguf")
    assert not mount.alive()
    for opener in OPENERS.values():
        with pytest.raises(StorageError, match="not connected"):
            opener(mount.where)
    for command in ("inspect", "plan"):
        done = edge_rt(command, mount.where / "m.gguf", code=5)
        assert "not connected" in done.stderr


def test_a_size_that_is_not_there(mount: Mount, gguf: Model, right: Any) -> None:
    """stat(2) says more than can be read, as after a crash."""
    real = mount.folder / "m.gguf"
    size = real.stat().st_size
    os.truncate(real, gguf.extents["output.weight"][1] + 100)
    mount.add("larger", path="m.gguf", n_bytes=size - real.stat().st_size)
    with pytest.raises(StorageError, match=r"at \d+ of .*m\.gguf brought nothing"):
        answer(engine_of(mount.where / "m.gguf"))


# --- the command line -----------------------------------------------------------------------------


def edge_rt(*args: object, code: int) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*EDGE_RT, *map(str, args)], capture_output=True, text=True, timeout=120, errors="replace"
    )
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr, done.stderr
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def generate(path: Path, io: str, code: int) -> subprocess.CompletedProcess[str]:
    return edge_rt(
        "generate", path, "-p", PROMPT, "-n", 4, "--ram", "512MiB", "--ctx", 96, "--threads", 2,
        "--weight-cap", "0", "--io", io, code=code,
    )  # fmt: skip


NOTICE = {  # --io uring
    "uring": "reading with pread: {} lies on a FUSE file system, which io_uring may read wrongly\n"
}
CLI_CELLS: dict[str, tuple[dict[str, Any], bool]] = {  # rule, recovered?
    "EIO": ({"kind": "error", "errno": errno.EIO, "skip": 3}, False),
    "EIO at once": ({"kind": "error", "errno": errno.EIO}, False),
    "EAGAIN for ever": ({"kind": "error", "errno": errno.EAGAIN, "skip": 2}, False),
    "EINTR 5 times": ({"kind": "error", "errno": errno.EINTR, "count": 5}, True),
    "gone": ({"kind": "gone", "skip": 4}, False),
    "truncated": ({"kind": "truncate", "n_bytes": 100_000, "skip": 3, "count": 1}, False),
    "overwritten": ({"kind": "overwrite", "skip": 3, "count": 1}, False),
    "replaced": ({"kind": "replace", "skip": 3, "count": 1}, True),
    "late": ({"kind": "delay", "ms": 700, "skip": 3, "count": 2}, True),
}


@pytest.mark.parametrize("io", ["pread", "uring"])
@pytest.mark.parametrize("name", CLI_CELLS)
def test_generate_on_a_failing_drive(
    mount: Mount, gguf: Model, right: Any, name: str, io: str
) -> None:
    rule, recovered = CLI_CELLS[name]
    _, first, last = gguf.extents["output.weight"]
    other = {"other": str(gguf.twin / gguf.entry)}
    mount.add(path="m.gguf", first=first, last=last, **rule, **other)
    done = generate(mount.where / "m.gguf", io, 0 if recovered else 5)
    assert sum(mount.fired()) or not mount.alive()
    text = Tokenizer.from_file(gguf.folder / gguf.entry).decode(right[0])
    if recovered:
        assert done.stdout.rstrip("\n") == text.rstrip("\n")
        assert done.stderr == NOTICE.get(io, "").format(mount.where / "m.gguf")
    else:
        assert text.startswith(done.stdout.rstrip("\n"))
        error = done.stderr.removeprefix(NOTICE.get(io, "").format(mount.where / "m.gguf"))
        assert error.startswith("error: ") and "m.gguf" in error and error.count("\n") == 1
        assert re.search(r"at \d+ of|ends at byte \d+|changed while in use|cannot stat", error)


@pytest.mark.parametrize("command", [["inspect"], ["plan"], ["inspect", "--json"]])
def test_other_commands(mount: Mount, command: list[str]) -> None:
    mount.add("error", errno=errno.EIO, path="m.gguf")
    done = edge_rt(command[0], mount.where / "m.gguf", *command[1:], code=5)
    assert "m.gguf" in done.stderr + done.stdout


@pytest.mark.parametrize("io", ["pread", "uring"])
@pytest.mark.parametrize("tensor", ["token_embd.weight", "output.weight", "output_norm.weight"])
def test_ctrl_c_while_the_drive_hangs(mount: Mount, gguf: Model, tensor: str, io: str) -> None:
    """It ends as soon as the read in flight does: memory that a read still writes to is not given
    back."""
    _, first, last = gguf.extents[tensor]
    mount.add("delay", ms=1500, path="m.gguf", first=first, last=last, count=1)
    child = subprocess.Popen(
        [*EDGE_RT, "generate", str(mount.where / "m.gguf"), "-p", PROMPT, "-n", "4", "--ram",
         "512MiB", "--ctx", "96", "--weight-cap", "0", "--io", io],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not sum(mount.fired()) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, (out, err)
    assert "Traceback" not in err and time.monotonic() - started < 8
