"""Hostile chat templates stop soon and small, whatever they try."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_rt.chat.template import ChatTemplate
from edge_rt.errors import ModelError, UsageError

from .conftest import ROOT, load_script

hostile = load_script("hostile_templates", "tests")
SECONDS = 1.0
KIB = 32 * 1024
USER = [{"role": "user", "content": "hi"}]


def run(names: list[str]) -> dict[str, list[Any]]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/hostile_templates.py"), *names],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr[-2000:]
    return {row[0]: row[1:] for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("group", hostile.CLASSES)
def test_attacks_are_stopped(group: str) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("NO /proc: resident memory cannot be measured here")
    attacks = hostile.CLASSES[group]
    found = run(list(attacks))
    assert set(found) == set(attacks)
    # A busy machine is asked again; no attack may be slow three times.
    for _ in range(2):
        slow = [name for name, row in found.items() if row[2] > SECONDS]
        if slow:
            found |= run(slow)
    for name, (kind, said, seconds, kib) in found.items():
        assert kind == "ModelError", f"{name}: {kind} {said}"
        assert "template" in said and len(said) < 400, f"{name}: {said}"
        assert "AttributeError" not in said and "NameError" not in said, f"{name}: {said}"
        assert seconds <= SECONDS, f"{name}: {seconds:.2f} s"
        assert kib <= KIB, f"{name}: {kib} KiB"


def test_there_are_many_attacks() -> None:
    assert len(hostile.ATTACKS) == sum(map(len, hostile.CLASSES.values())) >= 250


@pytest.mark.parametrize("said", ["'x' * 1000000", "messages * 9", "['é' * 99999] * 2"])
def test_what_a_template_says_is_cut(said: str) -> None:
    with pytest.raises(UsageError, match="refuses these messages") as caught:
        ChatTemplate("{{ raise_exception(" + said + ") }}").render(USER)
    assert len(str(caught.value)) < 500


def test_an_error_keeps_nothing_alive() -> None:
    with pytest.raises(ModelError) as caught:
        ChatTemplate("{% set x = 'x' * 9000000 %}{{ x.no.such }}").render(USER)
    assert caught.value.__context__ is None and caught.value.__cause__ is None


def test_the_clock_stops_what_the_steps_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import edge_rt.chat.meter as meter

    clock = iter(range(1_000_000))
    monkeypatch.setattr(meter.time, "thread_time", lambda: float(next(clock)))
    with pytest.raises(ModelError, match=r"takes more than 0\.6 s"):
        ChatTemplate("{% for i in range(9000) %}{{ i }}{% endfor %}").render(USER)


def test_limits_are_for_each_rendering() -> None:
    template = ChatTemplate("{% for i in range(20000) %}{{ i }}{% endfor %}")
    assert len({template.render(USER) for _ in range(15)}) == 1


def test_nothing_is_calculated_while_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    import edge_rt.chat.sandbox as sandbox

    def fail(*_: Any) -> None:
        raise AssertionError("charged while compiling")

    monkeypatch.setattr(sandbox.Meter, "make", fail)
    monkeypatch.setattr(sandbox.Meter, "step", fail)
    ChatTemplate(
        "{{ 'a' ~ 'b' }}{{ 'a'|upper }}{{ 1 + 2 }}{{ 'a' in 'abc' }}{{ 'abc'[1:] }}{{ [1]|sort }}"
        "{{ 3 is odd }}{{ {'a'|upper: 1} }}{% set x = 'a' * 3 %}{{ range(3) }}{{ -1 }}"
    )


def test_tests_take_no_arguments_of_ours() -> None:
    for call in ("1 is odd(raise_exception)", "'a' is lower(cycler)", "'a' is filter(cycler)"):
        with pytest.raises(ModelError):
            ChatTemplate("{{ " + call + " }}").render(USER)
