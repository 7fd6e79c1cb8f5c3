"""Everything works for ordinary users: no privileges, tight limits, no io_uring, things missing.

Each run is compared with the same run as root in the open: the answer may not depend on who asks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from .conftest import DEMO_FILE, load_script
from .fresh import STATUS
from .test_budget_law import floor_of

EDGE_RT = [sys.executable, "-m", "edge_rt.apps.cli"]
MIB = 1 << 20
NO_HOME_SAID = "no model given and the demo model is not here yet"
CLOSED_PROC = "what is held cannot be measured (no /proc/self/status): planned with ceilings\n"
ULIMIT = "64KiB"


@pytest.fixture(scope="session")
def as_user() -> ModuleType:
    """The module scripts/as_user.py: ``as_user.run(argv, memlock="64KiB", ...)``."""
    module = load_script("as_user")
    try:
        done = module.run([*EDGE_RT, "--help"], options={"cwd": "/"})
    except (module.NotPermitted, OSError) as error:
        pytest.skip(f"NO OTHER USERS: {error}")
    if done.returncode != 0:
        pytest.skip(f"NO OTHER USERS: they cannot read this Python or checkout: {done.stderr}")
    return module


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that everybody may enter and write to."""
    tmp_path.chmod(0o777)
    return tmp_path


class Stranger:
    """Runs edge-rt as somebody else, with nothing in the environment."""

    def __init__(self, as_user: ModuleType, place: Path) -> None:
        self.as_user, self.place = as_user, place

    def __call__(
        self, *args: object, code: int = 0, stdin: str = "", shell: str = "",
        cwd: Path | None = None, env: dict[str, str] | None = None, **conditions: Any,
    ) -> tuple[str, str]:  # fmt: skip
        """stdout and stderr of ``edge-rt args``, which must end with ``code``. ``shell``: what a
        shell does before, such as ``umask 077``, or redirects, such as ``<&-``."""
        command = [*EDGE_RT, *map(str, args)]
        before, _, redirect = shell.partition("|")
        if shell:
            command = ["/bin/sh", "-c", f'{before or ":"}; exec "$@" {redirect}', "sh", *command]
        files = [Path(arg) for arg in map(str, args) if arg.startswith("/") and os.path.exists(arg)]
        options = {
            "env": {"PATH": os.environ["PATH"]} | (env or {}), "cwd": cwd or self.place,
            "input": stdin, "errors": "surrogateescape",
        }  # fmt: skip
        try:
            reach = [*files, self.place]
            done = self.as_user.run(command, options=options, reach=reach, **conditions)
        except self.as_user.NotPermitted as error:
            pytest.skip(f"NOT PERMITTED HERE: {error}")
        assert "Traceback" not in done.stderr and "internal error" not in done.stderr, done.stderr
        assert done.returncode == code, (done.returncode, done.stdout[-300:], done.stderr)
        return done.stdout, done.stderr


@pytest.fixture
def stranger(as_user: ModuleType, place: Path) -> Stranger:
    return Stranger(as_user, place)


@cache
def as_root(*args: object, stdin: str = "") -> str:
    done = subprocess.run(
        [*EDGE_RT, *map(str, args)], input=stdin, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def story(model: Path) -> tuple[object, ...]:
    return ("generate", model, "-p", "Zoo", "-n", 12, "--ram", "64MiB", "--threads", 2)


# --- one thing missing at a time ------------------------------------------------------------------


@pytest.mark.parametrize(
    "conditions",
    [
        {}, {"memlock": ULIMIT}, {"memlock": 0}, {"deny_io_uring": "EPERM"},
        {"deny_io_uring": "ENOSYS"}, {"hide": ["/dev/shm"]}, {"hide": ["/dev"]},
        {"hide": ["/sys"]}, {"hide": ["/tmp"]}, {"noexec": ["/tmp"]}, {"proc": "hidepid"},
        {"proc": "pids"}, {"proc": "hidden"}, {"limits": {"NOFILE": 16}},
        {"limits": {"STACK": 256 << 10}}, {"limits": {"FSIZE": 0}}, {"limits": {"AS": 400 << 20}},
        {"user": "54321"}, {"env": {"HOME": "/nonexistent"}}, {"env": {"HOME": ""}},
        {"env": {"LC_ALL": "C"}}, {"env": {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}},
        {"shell": "umask 077"}, {"shell": "|<&-"}, {"shell": "cd /"},
    ],
    ids=lambda conditions: " ".join(f"{k}={v}" for k, v in conditions.items()) or "nobody",
)  # fmt: skip
def test_the_same_text(stranger: Stranger, stories_model: Path, conditions: dict[str, Any]) -> None:
    place = stranger.place
    if "/tmp" in conditions.get("hide", ()):
        stranger.place = Path("/")  # where the tests' own folders are
    out, err = stranger(*story(stories_model), **conditions)
    assert out == as_root(*story(stories_model))
    assert err == (CLOSED_PROC if conditions.get("proc") == "hidden" else "")
    assert list(place.iterdir()) == []


def test_everything_missing_at_once(stranger: Stranger, stories_model: Path) -> None:
    (home := stranger.place / "home").mkdir()
    out, err = stranger(
        *story(stories_model), "--json", user="54321", memlock=0, deny_io_uring="ENOSYS",
        hide=["/dev", "/sys"], proc="hidden", read_only=[home], noexec=["/tmp"], cwd=home,
        env={"HOME": str(home), "LC_ALL": "C"}, limits={"NOFILE": 16}, shell="umask 077|<&-",
    )  # fmt: skip
    report = json.loads(out)
    assert err == CLOSED_PROC
    assert report["text"] + "\n" == as_root(*story(stories_model))
    assert report["io"] == "pread" and report["peak_rss_bytes"] is None


def test_without_ram_what_is_free_is_used(stranger: Stranger, stories_model: Path) -> None:
    args = ("generate", stories_model, "-p", "Zoo", "-n", 2)
    for conditions in ({}, {"proc": "hidden"}, {"proc": "pids"}, {"hide": ["/sys"]}):
        _, err = stranger(*args, **conditions)
        assert err.startswith("no --ram given: using ")


@pytest.mark.parametrize(
    ("limits", "code", "words"),
    [
        ({"AS": 120 << 20}, 3, "the system refuses memory that the budget allows (ulimit -v"),
        ({"DATA": 60 << 20}, 3, "the system refuses memory that the budget allows (ulimit -v"),
        ({"NPROC": 2}, 2, "cannot start a compute thread: Resource temporarily unavailable (ulim"),
        ({"NPROC": 1}, 2, "thread: Resource temporarily unavailable (ulimit -u"),
    ],
)
def test_limits_that_are_too_tight(
    stranger: Stranger, chat_model: Path, limits: dict[str, int], code: int, words: str
) -> None:
    args = ["generate", chat_model, "-p", "a", "-n", 2, "--threads", 8, "--ram", "1GiB"]
    if code == 3:
        maker = load_script("make_model")
        config = maker.Config(layers=2, hidden=512, ffn=16384, heads=8, kv_heads=8, head_dim=64,
                              vocab=2048, context=512, format="F32")  # fmt: skip
        model = stranger.place / "large.gguf"
        maker.build(config, 3).write(model)
        args[1] = model
    out, err = stranger(*args, limits=limits, user="54321", code=code)
    assert out == "" and err.startswith("error: ") and words in err


# --- io_uring -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_io_uring_denied(stranger: Stranger, stories_model: Path, error: str) -> None:
    """Silently for auto, said in one line to who asked for it."""
    args = (*story(stories_model), "--json", "--io")
    root = json.loads(as_root(*args, "pread"))
    for io in ("auto", "uring", "pread"):
        out, err = stranger(*args, io, deny_io_uring=error, memlock=ULIMIT)
        found = json.loads(out)
        assert found["io"] == "pread" and found["tokens"] == root["tokens"]
        if io == "uring":
            assert err.startswith("reading with pread: cannot set up an io_uring: ")
            assert err.count("\n") == 1
        else:
            assert err == ""


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids") / "ids.npy"
    np.save(path, np.array([1, *((i * 7919) % 2000 + 20 for i in range(23))], np.int32))
    path.parent.chmod(0o755)
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("io", ["uring", "pread", "auto"])
def test_the_same_bits_with_every_reader(
    stranger: Stranger, chat_model: Path, ids: Path, io: str
) -> None:
    """Streaming, with buffers that cannot be registered."""
    args = ("bench", chat_model, "--tokens", ids, "--weight-cap", "0", "--ram", "80MiB")
    args = (*args, "--ctx", 64, "--threads", 2, "--json", "--io")
    (truth,) = json.loads(as_root(*args, "pread"))["rows"]
    out, err = stranger(*args, io, memlock=ULIMIT)
    (row,) = json.loads(out)["rows"]
    assert row["logits_sha256"] == truth["logits_sha256"] and err == ""
    assert row["flash_bytes_per_token"] > MIB


PINNED = (
    STATUS
    + """
import sys
from edge_rt import Engine
with Engine(sys.argv[1], "80MiB", ctx=64, threads=2, io=sys.argv[2], weight_cap="0") as engine:
    engine.generate([1, 5, 9], max_tokens=2, ignore_eos=True)
    print(engine.io, status("VmPin"))
"""
)


def test_buffers_are_registered_only_as_far_as_the_limit_allows(
    as_user: ModuleType, place: Path, chat_model: Path
) -> None:
    found = {}
    for memlock in (ULIMIT, None):  # None: this machine's own limit
        for io in ("uring", "pread"):
            argv = [sys.executable, "-c", PINNED, str(chat_model), io]
            options = {"cwd": place, "env": {"PATH": os.environ["PATH"]}}
            done = as_user.run(argv, memlock=memlock, reach=[chat_model, place], options=options)
            assert done.returncode == 0 and done.stderr == "", done.stderr
            found[memlock, io] = done.stdout.split()
    if found[None, "uring"][0] != "uring":
        pytest.skip("NO IO_URING on this machine: nothing can be registered")
    assert int(found[None, "uring"][1]) > 256 << 10, "the ring is registered where it may be"
    assert found[ULIMIT, "uring"] == ["uring", "0"]
    assert found[ULIMIT, "pread"] == found[None, "pread"] == ["pread", "0"]


# --- files that cannot be read or written ---------------------------------------------------------


def test_models_that_may_not_be_read(stranger: Stranger, stories_model: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("NO OTHER USERS: not root, and to its owner every file is open")
    place = stranger.place
    for name in ("closed.gguf", "folder/m.gguf"):
        (place / name).parent.mkdir(exist_ok=True)
        shutil.copy(stories_model, place / name)
    (place / "closed.gguf").chmod(0o600)
    (place / "folder").chmod(0o700)
    (place / "link.gguf").symlink_to("closed.gguf")
    for name in ("closed.gguf", "link.gguf", "folder/m.gguf", "folder"):
        for command in (("inspect", name), ("generate", name, "-p", "a", "--ram", "64MiB")):
            out, err = stranger(*command, code=2)
            assert out == "" and "Permission denied" in err and name[:6] in err, err


def test_models_by_relative_paths_and_links(stranger: Stranger, stories_model: Path) -> None:
    place = stranger.place
    (place / "models").mkdir()
    shutil.copy(stories_model, place / "models/m.gguf")
    (place / "link.gguf").symlink_to("models/m.gguf")
    (place / "folder").symlink_to("models")
    (place / "gone.gguf").symlink_to("nowhere.gguf")
    truth = as_root(*story(stories_model))
    for name in ("models/m.gguf", "./link.gguf", "folder/m.gguf", "models", "folder/../link.gguf"):
        assert stranger(*story(Path(name)))[0] == truth, name
    assert stranger(*story(Path("../link.gguf")), cwd=place / "models")[0] == truth
    # In a folder that may not be written to.
    assert stranger(*story(Path("link.gguf")), read_only=[place])[0] == truth
    _, err = stranger(*story(Path("gone.gguf")), code=2)
    assert "no such file: gone.gguf" in err


def test_homes(stranger: Stranger, stories_model: Path) -> None:
    """Without a cache there is no demo model, and that is all that is said."""
    (home := stranger.place / "home").mkdir(mode=0o777)
    for conditions in (
        {"env": {"HOME": "/nonexistent"}}, {"user": "54321"}, {"env": {"HOME": str(home)}},
        {"env": {"HOME": str(home)}, "read_only": [home]}, {"env": {"XDG_CACHE_HOME": "/proc/x"}},
        {"env": {"HF_HOME": "~/x", "OLLAMA_MODELS": "~nobody-at-all/x"}, "user": "54321"},
    ):  # fmt: skip
        _, err = stranger("generate", "-p", "a", code=2, **conditions)
        assert NO_HOME_SAID in err
        assert "no models in " in stranger("list", **conditions)[0]
        assert "no model is called" in stranger("plan", "org/m", code=2, **conditions)[1]
    assert list(home.iterdir()) == []
    _, err = stranger("pull", "demo", env={"HOME": str(home)}, read_only=[home], code=5)
    assert err == (
        f"error: cannot store the demo model in {home}/.cache/edge-rt: Read-only file system "
        "(XDG_CACHE_HOME names another place)\n"
    )
    assert "Permission denied" in stranger("pull", "demo", user="54321", code=5)[1]


def test_rates_are_kept_where_they_can_be(stranger: Stranger, demo_model: Path) -> None:
    place = stranger.place
    args = ("generate", demo_model, "-p", "Once", "-n", 20, "--ram", "160MiB", "--ctx", 64)
    truth = as_root(*args)
    (home := place / "home").mkdir()
    home.chmod(0o777)
    env = {"HOME": str(home)}
    for conditions in ({"read_only": [home]}, {"limits": {"FSIZE": 0}}, {"shell": f"cd {home}"}):
        assert stranger(*args, env=env, **conditions) == (truth, "")
        if "shell" not in conditions:
            stranger("plan", *args[1:2], "--ram", "1GiB", env=env, **conditions)
            assert not list(home.rglob("*machine*")), "not even a part of a file"
    stranger("plan", *args[1:2], "--ram", "1GiB", env=env)
    (rates,) = home.rglob("machine.json")
    assert json.loads(rates.read_text())
    rates.write_text("[" * 100_000)
    rates.chmod(0o666)
    assert stranger(*args, env=env) == (truth, "")
    rates.chmod(0o000)
    rates.parent.chmod(0o755)
    assert stranger(*args, env=env) == (truth, "")


# --- chats ----------------------------------------------------------------------------------------

QUESTIONS = (
    "What is a brook? Answer in one sentence.\n/save talk.json\nAnd héllo €?\n/load talk.json\n"
)
QUESTIONS += "And a creek?\n/exit\n"


@pytest.fixture
def talker(request: pytest.FixtureRequest) -> Path:
    """The demo model; one of random weights where it is not there."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    demo = Path(os.environ.get("EDGE_RT_DEMO_MODEL") or cache_home / "edge-rt" / DEMO_FILE)
    name = "demo_model" if demo.is_file() else "chat_model"
    found: Path = request.getfixturevalue(name)
    return found


def chat(model: Path) -> tuple[object, ...]:
    args = ("chat", model, "--ram", "128MiB", "--ctx", 256, "-n", 24, "--seed", 5, "--threads", 2)
    return (*args, "--system", "Be brief.")


@pytest.mark.parametrize(
    "conditions",
    [
        {"memlock": ULIMIT}, {"memlock": ULIMIT, "deny_io_uring": "EPERM", "hide": ["/dev/shm"]},
        {"proc": "hidden", "env": {"LC_ALL": "C"}, "shell": "umask 077"}, {"user": "54321"},
    ],
    ids=lambda conditions: " ".join(conditions),
)  # fmt: skip
def test_a_chat(
    stranger: Stranger, talker: Path, tmp_path: Path, conditions: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "root").mkdir()
    monkeypatch.chdir(tmp_path / "root")
    truth = as_root(*chat(talker), stdin=QUESTIONS)
    out, err = stranger(*chat(talker), stdin=QUESTIONS, **conditions)
    assert out == truth and "3 messages saved" in out and "3 messages loaded" in out
    assert err == (CLOSED_PROC if "proc" in conditions else "")
    saved = stranger.place / "talk.json"
    assert saved.stat().st_uid != 0 and saved.stat().st_mode & 0o777 == 0o600
    assert len(json.loads(saved.read_text("utf-8"))["messages"]) == 3


def test_a_chat_without_input(stranger: Stranger, chat_model: Path) -> None:
    assert stranger(*chat(chat_model), shell="|<&-") == ("", "")
    assert stranger(*chat(chat_model), shell="|</dev/null") == ("", "")


def test_conversations_that_cannot_be_saved(stranger: Stranger, chat_model: Path) -> None:
    place = stranger.place
    (place / "mine.json").write_text('{"messages": []}')
    (place / "mine.json").chmod(0o644)
    (place / "closed.json").write_text('{"messages": []}')
    (place / "closed.json").chmod(0o600)
    (closed := place / "closed").mkdir()
    for lines, words, conditions in (
        ("/save talk.json", "Read-only file system", {"read_only": [place]}),
        ("/save mine.json", "Read-only file system", {"read_only": [place]}),
        ("/save closed/talk.json", "Permission denied", {}),
        ("/save closed.json", "Permission denied", {}),
        ("/load closed.json", "Permission denied", {}),
        ("/save ~/talk.json", "No such file", {"user": "54321"}),
    ):
        _, err = stranger(*chat(chat_model), stdin=lines + "\n", code=2, **conditions)
        assert words in err and err.count("\n") == 1, err
    _, err = stranger(*chat(chat_model), stdin="/save x\n", code=5, limits={"FSIZE": 10})
    assert "File too large" in err
    assert {path.name for path in place.iterdir()} == {"mine.json", "closed.json", "closed"}
    assert list(closed.iterdir()) == []


# --- the law --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "conditions",
    [
        {"memlock": ULIMIT}, {"memlock": ULIMIT, "deny_io_uring": "EPERM"},
        {"memlock": ULIMIT, "proc": "hidden"}, {"user": "54321", "memlock": 0},
    ],
    ids=lambda conditions: " ".join(conditions),
)  # fmt: skip
def test_the_law_holds_for_everybody(
    as_user: ModuleType, cgroup: ModuleType, place: Path, own_demo_model: Path,
    conditions: dict[str, Any],
) -> None:  # fmt: skip
    """The floor, in a cgroup of exactly that: the process joins as root, then becomes nobody."""
    size = floor_of(own_demo_model)
    argv = [*EDGE_RT, "chat", own_demo_model, "--ram", size, "--ctx", 512, "--threads", 2]
    argv += ["-n", 16, "--seed", 1]
    argv = as_user.command([*map(str, argv)], reach=[own_demo_model, place], **conditions)
    env = {"PATH": os.environ["PATH"]}
    questions = "Hello!\nAnd now?\n"
    result = cgroup.run(argv, size, model=own_demo_model, stdin=questions, env=env, cwd=place)
    assert result.rc == 0 and not result.oom_killed, result.stderr
    assert result.held_bytes <= size, result.processes
    assert result.model_cache_peak_bytes <= MIB
    args = ("chat", own_demo_model, "--ram", "160MiB", "--ctx", 512, "-n", 16, "--seed", 1)
    assert result.stdout == as_root(*args, stdin=questions)
