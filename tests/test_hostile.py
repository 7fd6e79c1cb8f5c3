"""Hostile and damaged model files (tests/hostile) through the command line, and their judge."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from .hostile import attacks, corpus
from .hostile.case import REFUSED, RUNS, Case, digest, file_of
from .hostile.runner import Outcome, Server, again, judge, run_all, run_case
from .hostile.small import byte_tokenizer, raw_tokenizer, small_bytes

CASE = Case("a", "b", REFUSED, file_of(b""))
GOOD: dict[str, Any] = {
    "code": 4, "err": "error: /tmp/x/m.gguf: it is damaged\n", "out": "", "seconds": 0.1,
    "peak": 20 << 20, "late": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("NO /proc/self/clear_refs: resident memory cannot be measured here")
    with Server() as made:
        yield made


def wrong(outcomes: list[Outcome], root: Path) -> list[str]:
    """What does not hold; a command that only took long is measured again alone."""
    outcomes = [again(o, root) if o.only_slow else o for o in outcomes]
    return [
        f"{o.case.family}: {o.case.name!a}: {o.command}: {o.wrong}" for o in outcomes if o.wrong
    ]


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_named_attacks(server: Server, tmp_path: Path, name: str) -> None:
    case = next(case for case in attacks.cases() if case.name == name)
    assert not wrong(run_case(server, case, tmp_path), tmp_path)


def test_sockets_are_no_models(server: Server, tmp_path: Path) -> None:
    cases = [case for case in corpus.cases() if case.name.endswith("is a socket")]
    assert len(cases) == 4
    for case in cases:
        assert not wrong(run_case(server, case, tmp_path), tmp_path)


def test_what_only_a_prompt_meets_names_the_file(server: Server, tmp_path: Path) -> None:
    names = {"no token for what is asked, none unknown", "NaN in the row of token 5"}
    cases = [case for case in corpus.cases() if case.name in names]
    assert len(cases) == len(names)
    for case in cases:
        assert not wrong(run_case(server, case, tmp_path), tmp_path)


def test_every_attack_of_the_literature_is_there() -> None:
    known = (
        "2024-21802 2024-21825 2024-21836 2024-23496 2024-23605 2024-34359 2025-49847 2025-52566 "
        "2025-53630 2026-27940 2026-33298 2026-7482"
    )
    assert {f"CVE-{number}" for number in known.split()} <= set(attacks.ATTACKS)


def test_a_chat_does_not_execute_its_template(tmp_path: Path) -> None:
    path = attacks.cve_2024_34359(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "from edge_rt.apps.cli import main; main()", "chat", str(path),
         "--ram", "96M", "-n", "2"],
        input="x\n", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "chat template" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / attacks.EXECUTED).exists()


def test_files_of_every_family(server: Server, tmp_path: Path) -> None:
    """About 300 files, other ones each time; all of them with EDGE_RT_HOSTILE=all."""
    seed = int(os.environ.get("EDGE_RT_TEST_SEED") or random.randrange(1 << 30))
    print(f"EDGE_RT_TEST_SEED={seed}")
    whole = os.environ.get("EDGE_RT_HOSTILE") == "all"
    cases = list(corpus.cases(seed)) if whole else corpus.sample(40, seed)
    assert len(cases) >= 250
    found = wrong(list(run_all(cases, tmp_path)), tmp_path)
    assert not found, f"seed {seed}\n" + "\n".join(found)


def test_there_are_5000_files_to_refuse(tmp_path: Path) -> None:
    names, distinct = set(), set()
    for number, case in enumerate(corpus.cases()):
        assert (case.family, case.name) not in names
        names.add((case.family, case.name))
        if case.expect == REFUSED and len(distinct) < 5000:
            folder = tmp_path / str(number)
            folder.mkdir()
            case.make(folder)
            distinct.add(digest(folder))
            for path in folder.iterdir():
                if path.is_file():  # some are large
                    path.unlink()
    assert len(distinct) == 5000 and len(names) >= 10_000


def test_no_case_changes_the_next_one(tmp_path: Path) -> None:
    before = json.dumps([raw_tokenizer(), byte_tokenizer()])
    for number, case in enumerate(corpus.cases()):
        if case.family in ("growing", "components", "tokenizer.json", "added tokens", "patterns"):
            (tmp_path / str(number)).mkdir()
            case.make(tmp_path / str(number))
    assert json.dumps([raw_tokenizer(), byte_tokenizer()]) == before


def test_accepted_files_have_a_reason() -> None:
    accepted = {case.family for case in corpus.cases() if case.expect != REFUSED}
    assert accepted == set(corpus.WHY_ACCEPTED)


def test_the_judge_accepts_what_is_right() -> None:
    assert judge(CASE, "generate", GOOD, "/tmp/x").wrong == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"code": 1}, "exit 1"),
        ({"code": 0, "err": ""}, "exit 0"),
        ({"code": 5}, "exit 5"),
        ({"code": -11, "err": "", "peak": 0}, "exit -11"),
        ({"seconds": 2.5}, "took 2.5"),
        ({"late": True}, "killed"),
        ({"peak": 97_000_000}, "held 93 MiB"),
        ({"err": ""}, "no reason"),
        ({"err": "error: damaged"}, "no reason"),
        ({"err": "error: it is damaged somewhere"}, "does not name the file"),
        ({"err": "error: /tmp/x/m.gguf: damaged\nmore"}, "2 lines"),
        ({"err": "error: /tmp/x/m.gguf: Traceback (most recent call last)"}, "Traceback"),
        ({"err": "error: /tmp/x/m.gguf: internal error"}, "internal error"),
        ({"err": "error: /tmp/x/m.gguf: <A object at 0x7f>"}, "object at 0x"),
        ({"err": "error: /tmp/x/m.gguf: \x1b[2J"}, "not printable"),
        ({"err": "error: /tmp/x/m.gguf: " + "x" * 3000}, "a message of"),
        ({"err": "error: /tmp/x/m.gguf and /etc/passwd"}, "names /etc/passwd"),
    ],
)
def test_the_judge_calls_wrong(change: dict[str, Any], says: str) -> None:
    found = judge(CASE, "generate", GOOD | change, "/tmp/x").wrong
    assert any(says in reason for reason in found), found


def test_the_judge_allows_inspect_64_mib() -> None:
    for peak, held in ((64 << 20, True), ((64 << 20) + 1, False)):
        assert (judge(CASE, "inspect", GOOD | {"peak": peak}, "/tmp/x").wrong == []) is held


@pytest.mark.parametrize(
    "out",
    [
        "",
        "[",
        '{"tokens": ["x"], "text": "", "finish_reason": "eos"}',
        '{"tokens": [], "text": "", "finish_reason": "length"}',
    ],
)
def test_the_judge_reads_what_is_printed(out: str) -> None:
    done = GOOD | {"code": 0, "err": "", "out": out}
    assert judge(replace(CASE, expect=RUNS), "generate", done, "/tmp/x").wrong


def test_the_server_tells_the_truth(server: Server, tmp_path: Path) -> None:
    """A file that runs where it must not is wrong, and the other way round."""
    whole, cut = file_of(small_bytes()), file_of(small_bytes()[:-1])
    for make, right, other in ((whole, RUNS, REFUSED), (cut, REFUSED, RUNS)):
        outcomes = run_case(server, Case("a", "b", right, make), tmp_path)
        assert outcomes and all(o.peak > 5 << 20 and o.seconds > 0 for o in outcomes)
        assert not wrong(outcomes, tmp_path)
        assert wrong(run_case(server, Case("a", "b", other, make), tmp_path), tmp_path)
    assert server.run(["generate", "x"], timeout=0.0)["late"]
