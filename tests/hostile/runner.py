"""Runs hostile files through the command line and judges what came of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .case import REFUSED, Case, digest

COMMANDS = ("inspect", "plan", "generate")
REFUSAL_S = 2.0
INSPECT_BYTES = 64 << 20
TIMEOUT_S = 20.0
_PATH = re.compile(r"(?<![\w.'])/[\w.+-]+/[^\s:'\"]*")
_SLOW = "took"
_UNITS = {"M": 10**6, "G": 10**9, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass
class Outcome:
    """One command on one file; ``wrong`` says what is not as it must be."""

    case: Case
    command: str
    code: int
    seconds: float
    peak: int
    err: str
    wrong: list[str] = field(default_factory=list)
    digest: str = ""

    @property
    def only_slow(self) -> bool:
        """Whether nothing but the clock is against it: the machine may have been busy."""
        return bool(self.wrong) and all(reason.startswith(_SLOW) for reason in self.wrong)


def size_of(text: str) -> int:
    """``--ram`` in bytes."""
    match = re.fullmatch(r"(\d+)(\D+)", text)
    assert match
    return int(match[1]) * _UNITS[match[2]]


def arguments(command: str, path: Path, case: Case) -> list[str]:
    """The command line for ``case``, whose file is at ``path``."""
    more = {
        "inspect": ["--json"],
        "plan": ["--ram", case.ram, "--json"],
        "generate": ["-p", case.prompt, "-n", "2", "--ram", case.ram, "--json", "--threads", "1"],
    }
    return [command, str(path), *more[command]]


def judge(case: Case, command: str, done: dict[str, Any], home: str) -> Outcome:
    """What is wrong with ``done``, the server's answer; ``home``: the only folder that a message
    may name."""
    code, err, out = done["code"], done["err"], done["out"]
    found = Outcome(case, command, code, done["seconds"], done["peak"], err)
    wrong = found.wrong
    if done["late"]:
        wrong.append(f"killed after {TIMEOUT_S} s")
        return found
    if code not in case.codes(command):
        wrong.append(f"exit {code}, not one of {sorted(case.codes(command))}")
    limit = REFUSAL_S if code else max(REFUSAL_S, case.runs_s)
    if command == "inspect":
        limit = REFUSAL_S
    if done["seconds"] > limit:
        wrong.append(f"{_SLOW} {done['seconds']:.1f} s")
    allowed = INSPECT_BYTES if command == "inspect" else size_of(case.ram)
    if done["peak"] > allowed:
        wrong.append(f"held {done['peak'] / (1 << 20):.0f} MiB")
    if code == 0 and not out:
        wrong.append("prints nothing")
    if code in (0, 3) and out:
        wrong += _wrong_output(command, out, code)
    if code:
        wrong += _wrong_message(err, home, code)
    return found


def _wrong_output(command: str, out: str, code: int) -> Iterator[str]:
    try:
        value = json.loads(out)
    except ValueError:
        if len(out) < 1 << 16:  # what the server keeps
            yield f"no JSON: {out[:100]!r}"
        return
    if command == "generate" and not code:
        tokens = value["tokens"]
        if not isinstance(value["text"], str) or not all(isinstance(t, int) for t in tokens):
            yield f"wrong output {out[:200]!r}"
        if value["finish_reason"] == "length" and not 1 <= len(tokens) <= 2:
            yield f"{len(tokens)} tokens"


def _wrong_message(err: str, home: str, code: int) -> Iterator[str]:
    lines = err.splitlines()
    if code == 3 and not lines:
        return  # plan --json prints its arithmetic
    if not lines or not lines[0].startswith("error: ") or len(lines[0]) < 15:
        yield f"no reason: {err[:200]!r}"
    if code == 4 and len(lines) > 1:
        yield f"{len(lines)} lines: {err[:300]!r}"
    if code == 4 and home not in err:
        yield f"does not name the file: {err[:200]!r}"
    if len(err) > 2500:
        yield f"a message of {len(err)} characters"
    if not all(line.isprintable() for line in lines):
        yield f"not printable: {err[:200]!r}"
    for word in ("Traceback", 'File "', "internal error", "object at 0x"):
        if word in err:
            yield f"{word}: {err[:200]!r}"
    for path in _PATH.findall(err):
        if not path.startswith(home):
            yield f"names {path}"


class Server:
    """One process of ``server.py``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, command: list[str], timeout: float = TIMEOUT_S) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        print(json.dumps([timeout, command]), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_case(server: Server, case: Case, root: Path) -> list[Outcome]:
    """All commands on one file, which is made in a folder of its own below ``root``."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        path = case.make(folder)
        name = digest(folder)
        # Whatever is refused before anything is planned is refused by the same code.
        plain = case.expect == REFUSED
        return [
            replace(
                judge(case, command, server.run(arguments(command, path, case)), str(folder)),
                digest=name,
            )
            for command in COMMANDS
            if not (plain and command == "plan")
        ]
    finally:
        for one in folder.rglob("*"):
            if one.is_dir() and not one.is_symlink():
                one.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


def run_all(cases: Iterable[Case], root: Path, workers: int = 2) -> Iterator[Outcome]:
    """Every command on every file, by ``workers`` servers; in the order of ``cases``."""
    servers = [Server() for _ in range(workers)]
    free = list(servers)

    def one(case: Case) -> list[Outcome]:
        server = free.pop()
        try:
            return run_case(server, case, root)
        finally:
            free.append(server)

    try:
        with ThreadPoolExecutor(workers) as pool:
            for outcomes in pool.map(one, cases):
                yield from outcomes
    finally:
        for server in servers:
            server.close()


def again(outcome: Outcome, root: Path, runs: int = 3) -> Outcome:
    """An outcome that is only too slow, measured anew with nothing beside it: the run of median
    time of ``runs``, or the first that is wrong in another way."""
    with Server() as server:
        found = []
        for _ in range(runs):
            found += [o for o in run_case(server, outcome.case, root)
                      if o.command == outcome.command]  # fmt: skip
    other = [o for o in found if o.wrong and not o.only_slow]
    return other[0] if other else sorted(found, key=lambda o: o.seconds)[runs // 2]
