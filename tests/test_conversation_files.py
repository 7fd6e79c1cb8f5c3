"""Conversations as files: what is loaded was checked, what is saved is whole or was never there."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_rt import StorageError, UsageError, budget
from edge_rt.conversation import MAX_FILE_BYTES, MAX_MESSAGES, limit_bytes, load, save
from edge_rt.flash_io._flash_io import Faults
from edge_rt.flash_io.files import set_faults

from .fresh import run_fresh
from .test_cli import edge_rt

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'quotes " \\ / \x00 \x7f \u2028 \U0001f600 é\n\ttabs'},
    {"role": "assistant", "content": ""},
]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def talk(**message: Any) -> str:
    return json.dumps({"messages": [message]})


# --- loading ------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    for messages in ([], TALK, TALK[1:], [TALK[1]] * MAX_MESSAGES):
        save(path, messages)
        assert load(path) == messages
        assert json.loads(path.read_text("utf-8")) == {"messages": messages}
    save(path, [{"role": "user", "content": "a", "more": "is not kept"}])
    assert load(path) == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("indent", [None, 0, 7])
@pytest.mark.parametrize("ascii", [False, True])
def test_files_of_other_writers(tmp_path: Path, indent: int | None, ascii: bool) -> None:
    text = json.dumps({"messages": TALK}, indent=indent, ensure_ascii=ascii, sort_keys=True)
    assert load(write(tmp_path / "t", f"\r\n\t {text} \n")) == TALK


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it is empty"), ("null", "not a JSON object"), ("[]", "not a JSON object"),
        (json.dumps(TALK), "not a JSON object"), ("{}", "it has no messages"),
        ("\ufeff" + talk(role="user", content="a"), "not a JSON object"),
        (b"\x80\x04\x95", "not a JSON object"), ("<html>", "a web page"),
        ('{"messages": null}', "messages is not a list"),
        ('{"messages": {}}', "messages is not a list"),
        ('{"messages": NaN}', "messages is not a list"),
        ('{"messages": [], "messages": []}', "messages occurs twice"),
        ('{"messages": [], "model": "m"}', "it has 'model'; only messages"),
        ('{"model": "m", "messages": []}', "it has 'model'; only messages"),
        ('{"messages": []} x', "something follows"), ('{"messages": []}{}', "something follows"),
        ('{"messages": [}', "message 0 is not an object"), ('{"messages": [[]]}', "not an object"),
        ('{"messages": ["user"]}', "message 0 is not an object"),
        ('{"messages": [null]}', "not an object"), ('{"messages": [1e999]}', "not an object"),
        ('{"messages": [{}]}', "message 0 has no role"),
        (talk(role="user"), "message 0 has no content"), (talk(content="a"), "has no role"),
        (talk(role=None, content="a"), "the role of message 0 is not a string"),
        (talk(role="user", content=None), "the content of message 0 is not a string"),
        (talk(role="user", content=float("nan")), "is not a string"),
        (talk(role="user", content=["a"]), "is not a string"),
        (talk(role="user", content={"type": "text", "text": "a"}), "is not a string"),
        (talk(role="tool", content="a"), "the role of message 0 is 'tool'; known are system, user"),
        (talk(role="User", content="a"), "is 'User'"), (talk(role="", content="a"), "is ''"),
        (talk(role="user", content="a", name="b"), "message 0 has 'name'; only role and content"),
        ('{"messages": [{"role": "user", "role": "user", "content": "a"}]}', "has role twice"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "has content twice"),
        ('{"messages": [{"role": "user", "content": "a"},]}', "message 1 is not an object"),
        ('{"messages": [{"role": "user", "content": "a",}]}', "not a string"),
        ('{"messages": [{"role": "user" "content": "a"}]}', "instead of"),
        ('{"messages": [{"role": "user", "content": "a\nb"}]}', "this is not a string"),
        (talk(role="user", content="\ud800"), "not a string of characters"),
        (talk(role="user", content="\udc00\ud800"), "not a string of characters"),
        ('{"messages": [{"role": "user", "content": "\\u12"}]}', "not a string of characters"),
        ('{"messages": [{"role": "user", "content": "\\x"}]}', "not a string of characters"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "not a string of characters"),
        (b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}', "not a string of char"),
        ('{"messages": ' + "[" * 100_000, "not an object"), ('{"a":' * 100_000, "it has 'a'"),
        ('{"messages": [' + '{"role":"user","content":""},' * (MAX_MESSAGES + 1), "more than 4096"),
        ('{"messages": [{"' + "k" * 100_000 + '": 1}]}', "message 0 has 'kkk"),
    ],
    ids=range(49),
)  # fmt: skip
def test_what_is_no_conversation(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        load(write(tmp_path / "t", content))
    assert "near byte" in str(caught.value) or "JSON object" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_truncated_and_mutated_files(tmp_path: Path) -> None:
    """Every truncation is refused; a mutation is refused or is another conversation."""
    path, whole = tmp_path / "t", json.dumps({"messages": TALK}, ensure_ascii=False).encode()
    for n in range(len(whole)):
        with pytest.raises(UsageError):
            load(write(path, whole[:n]))
    rng, refused = random.Random(), 0
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.choice(
                (0x22, 0x5C, 0x7B, 0xFF, rng.randrange(256))
            )
        try:
            found = load(write(path, bytes(data)))
        except UsageError:
            refused += 1
        else:
            assert json.loads(data) == {"messages": found}, bytes(data)
    assert refused > 1000


@pytest.mark.parametrize(
    ("name", "loading", "saving"),
    [
        ("none", "no such file", None), ("fifo", "not a regular file", "not a regular file"),
        ("", "a folder", "not a regular file"), ("loop", "symbolic links", "not a regular file"),
        ("nul\0", "a NUL", "null"), ("x" * 300, "too long", "too long"),
        ("none/x", "no such file", "No such file"), ("fifo/x", "no such file", "Not a directory"),
    ],
)  # fmt: skip
def test_what_is_no_file(tmp_path: Path, name: str, loading: str, saving: str | None) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=loading):
        load(f"{tmp_path}/{name}")
    if saving:
        with pytest.raises(UsageError, match=saving):
            save(f"{tmp_path}/{name}", TALK)
    assert names(tmp_path) == {"fifo", "loop"}
    with pytest.raises(UsageError, match="regular"):
        save("/dev/null", TALK)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "large", "")
    os.truncate(path, 100_000_000)
    set_faults(faults := Faults())
    try:
        words = "it has 100000000 bytes, a conversation may have 1048576"
        with pytest.raises(UsageError, match=words):
            load(path)
        os.truncate(path, 5000)
        with pytest.raises(UsageError, match="may have 4999"):
            load(path, 4999)
        assert faults.reads == 0
        with pytest.raises(UsageError, match="not a JSON object"):
            load(path, 5000)
        assert faults.reads > 0
        faults.add("error", errno.EIO)
        with pytest.raises(StorageError, match="Input/output error"):
            load(path)
    finally:
        set_faults(None)


WORST = """
import sys
import edge_rt.apps.cli
from edge_rt import conversation
conversation.load(sys.argv[1])
before = status("VmRSS")
messages = conversation.load(sys.argv[2], conversation.limit_bytes(int(sys.argv[3])))
print(status("VmHWM") - before, len(messages))
"""


@pytest.mark.parametrize("ctx", [1, 4096, 1 << 16])
@pytest.mark.parametrize("kind", ["one text", "many messages", "wide texts"])
def test_loading_stays_within_the_slack(tmp_path: Path, ctx: int, kind: str) -> None:
    """The dearest files: all in one escaped text with a wide character, or in tiny messages."""
    save(tmp_path / "small", TALK)
    limit, path = limit_bytes(ctx), tmp_path / "t"
    assert limit <= MAX_FILE_BYTES
    if kind == "one text":
        content = r"\ud83d\ude00" + "a" * (limit - 70)
        write(path, '{"messages": [{"role": "user", "content": "' + content + '"}]}')
    elif kind == "many messages":
        n = min((limit - 20) // 29, MAX_MESSAGES)
        write(path, '{"messages":[' + ",".join(['{"role":"user","content":""}'] * n) + "]}")
    else:
        messages = ['{"role":"user","content":"\U0001f600' + "b" * 1965 + '"}'] * (limit // 2000)
        write(path, '{"messages":[' + ",".join(messages) + "]}")
    assert limit * 0.9 < path.stat().st_size <= limit or kind == "many messages"
    grown, count = map(int, run_fresh(WORST, tmp_path / "small", path, ctx).stdout.split())
    assert count >= 1
    assert 0 <= grown <= budget.SLACK_BYTES + budget.CONTEXT_TOKEN_BYTES * ctx


# --- saving -------------------------------------------------------------------------------------


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_permissions_and_links(tmp_path: Path) -> None:
    path, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to("real")
    save(link, TALK)
    assert link.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o4640)
    save(link, TALK[:1])
    assert link.is_symlink() and load(path) == TALK[:1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == {"real", "link"}


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    for name, content in (("notes", b"dear diary"), ("model.gguf", b"GGUF" + bytes(1 << 21))):
        path = write(tmp_path / name, content)
        with pytest.raises(UsageError, match="not replaced, choose another name"):
            save(path, TALK)
        assert path.read_bytes() == content
    save(write(tmp_path / "empty", b""), TALK)
    with pytest.raises(UsageError, match="a message is not Unicode"):
        save(tmp_path / "empty", [{"role": "user", "content": "\ud800"}])
    with pytest.raises(UsageError, match="a conversation may have 4096 in 1048576"):
        save(tmp_path / "empty", [{"role": "user", "content": "a" * MAX_FILE_BYTES}])
    assert load(tmp_path / "empty") == TALK
    assert names(tmp_path) == {"notes", "model.gguf", "empty"}


@pytest.mark.parametrize("call", ["fchmod", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_failing_drives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = tmp_path / "talk"
    save(path, TALK)

    def fail(*_: object) -> None:
        raise OSError(number, "made up")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageError, match=os.strerror(number)):
        save(path, TALK[:1])
    monkeypatch.undo()
    assert load(path) == TALK and names(tmp_path) == {"talk"}


def test_a_failing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversation is in its place, but a power cut might still undo that."""
    real = os.fsync

    def fail(number: int) -> Any:
        def fsync(fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(number, "made up")
            real(fd)

        return fsync

    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with pytest.raises(StorageError, match="Input/output error"):
        save(tmp_path / "talk", TALK)
    monkeypatch.setattr(os, "fsync", fail(errno.EINVAL))
    save(tmp_path / "talk", TALK[:1])
    assert load(tmp_path / "talk") == TALK[:1]


def test_a_power_cut_before_the_rename(tmp_path: Path) -> None:
    """What is left behind is not loaded and stands in nobody's way."""
    path = tmp_path / "talk"
    save(path, TALK)
    program = (
        "import os, sys\nfrom edge_rt.conversation import save\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "save(sys.argv[1], [{'role': 'user', 'content': 'new'}])\n"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == 9
    parts = names(tmp_path) - {"talk"}
    assert len(parts) == 2 and all(n.startswith(".") and n.endswith(".part") for n in parts)
    assert load(path) == TALK
    save(path, TALK[:1])
    assert load(path) == TALK[:1]


def run_saving(path: Path, n_bytes: int, **options: Any) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys\nfrom edge_rt.conversation import save\nfrom edge_rt import EdgeRTError\n"
        "try: save(sys.argv[1], [{'role': 'user', 'content': 'x' * int(sys.argv[2])}])\n"
        "except EdgeRTError as error: sys.exit(f'{error.exit_code} {error}')\n"
    )
    argv = [sys.executable, "-c", program, str(path), str(n_bytes)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, **options)


def test_a_limit_of_file_sizes(tmp_path: Path) -> None:
    path = tmp_path / "talk"
    save(path, TALK)
    limit = (50_000, 50_000)
    done = run_saving(
        path, 100_000, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    assert done.stderr == f"5 cannot save {str(path)!r}: File too large\n"
    assert load(path) == TALK and names(tmp_path) == {"talk"}


FULL = """
mount -t tmpfs -o size=64k tmpfs "$1" || exit 77
shift
exec "$@"
"""


def test_a_full_drive(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom edge_rt.conversation import load, save\n"
        "from edge_rt import StorageError\n"
        "path, talk = sys.argv[1] + '/talk', [{'role': 'user', 'content': 'x' * 30_000}]\n"
        "save(path, talk)\n"
        "try: save(path, talk * 3)\n"
        "except StorageError as error: print(error)\n"
        "print(load(path) == talk, os.listdir(sys.argv[1]))\n"
        "save(path, [])\n"
        "print(load(path))\n"
    )
    argv = ["unshare", "--mount", "sh", "-c", FULL, "sh", str(tmp_path)]
    try:
        argv += [sys.executable, "-c", program, str(tmp_path)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("NO FULL DRIVE: unshare (util-linux) is not installed")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"NO FULL DRIVE: no tmpfs can be mounted here: {done.stderr.strip()}")
    said, old, new = done.stdout.splitlines()
    assert said == f"cannot save '{tmp_path}/talk': No space left on device"
    assert old == "True ['talk']" and new == "[]"


# --- in a chat ----------------------------------------------------------------------------------


def test_saving_and_loading_in_a_chat(tmp_path: Path, chat_model: Path) -> None:
    path = tmp_path / "a talk.json"
    args = ("chat", chat_model, "--ram", "80MiB", "--ctx", 256, "-n", 4, "--seed", 1)
    lines = f"/system Be brief.\nhello\n/save {path}\nand?\n/load {path}\n/save {path}2\n"
    out, _ = edge_rt(*args, stdin=lines.encode())
    assert "3 messages saved" in out and "3 messages loaded" in out
    messages = load(path)
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    assert messages[0]["content"] == "Be brief." and messages[1]["content"] == "hello"
    assert load(f"{path}2") == messages and len(messages[2]["content"]) > 0
    # The next answer does not depend on whether the conversation was kept in a file.
    here, _ = edge_rt(*args, stdin=b"/system Be brief.\nhello\nand?\n")
    there, _ = edge_rt(*args, stdin=f"/load {path}\nand?\n".encode())
    assert there.splitlines()[1:] == here.splitlines()[-len(there.splitlines()) + 1 :]
    for line, words in (
        ("/save", "name of a file is missing"), ("/load", "name of a file is missing"),
        (f"/load {tmp_path}/none", "no such file"), (f"/save {tmp_path}/no/x", "No such file"),
        (f"/load {chat_model}", "a conversation may have 20480"),
        (f"/save {chat_model}", "choose another name"),
    ):  # fmt: skip
        assert words in edge_rt(*args, stdin=line.encode(), code=2)[1]
    assert "/save FILE" in edge_rt(*args, stdin=b"/help\n")[0]
