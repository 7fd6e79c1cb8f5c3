"""What the fuzzers once found stays fixed, and the targets run: without atheris, without clang."""

from __future__ import annotations

import importlib
import random
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from .fuzz import harness

TESTS = Path(__file__).resolve().parent
REGRESSIONS = TESTS / "hostile/regressions"
NO_TARGETS = {"__init__", "__main__", "harness", "mutate"}
PYTHON = sorted(p.stem for p in (TESTS / "fuzz").glob("*.py") if p.stem not in NO_TARGETS)
NATIVE = sorted(p.stem for p in (TESTS / "fuzz/native").glob("*.cc") if p.stem != "replay")
FILES = sorted(p for p in REGRESSIONS.iterdir() if "--" in p.name)


def target_named(name: str) -> ModuleType:
    return importlib.import_module(f"{harness.__package__}.{name}")


@pytest.mark.parametrize("path", [p for p in FILES if p.name.split("--")[0] in PYTHON],
                         ids=lambda p: p.name)  # fmt: skip
def test_regressions(path: Path) -> None:
    target_named(path.name.split("--")[0]).run(path.read_bytes())


def test_native_regressions() -> None:
    """They run where the C++ tests were built, as those tests do with random bytes."""
    built = sorted((TESTS.parent / "build").glob("native*/tests/fuzz/native/*_replay"))
    ran = 0
    for program in built:
        name = program.name.removesuffix("_replay")
        files = [str(p) for p in FILES if p.name.split("--")[0] == name]
        if files:
            subprocess.run([program, *files], check=True, timeout=60)
            ran += 1
    if not ran:
        pytest.skip("NO C++ TESTS BUILT: sh scripts/native_tests.sh")


def test_every_regression_has_a_target_and_a_line() -> None:
    lines = (REGRESSIONS / "README.md").read_text()
    for path in FILES:
        assert path.name.split("--")[0] in {*PYTHON, *NATIVE}, path.name
        assert f"`{path.name}`" in lines, path.name
        assert path.stat().st_size <= 65536, path.name


@pytest.mark.parametrize("name", PYTHON)
def test_target(name: str) -> None:
    """The seeds and 200 mutations of them; the seed of a failure is in its message."""
    target = target_named(name)
    for data in target.seeds()[:40]:
        target.run(data)
    seed = random.randrange(1 << 32)
    for number, data in enumerate(harness.mutations(target, 200, seed)):
        try:
            target.run(data)
        except Exception as error:
            what = f"mutation {number} of seed {seed}, {data[:300]!r}"
            raise AssertionError(f"{what}: {error!r}") from error


def test_a_finding_is_one() -> None:
    """What the targets rely on: other errors, slowness and size do not pass."""
    with pytest.raises(KeyError), harness.bounded():
        raise KeyError("not ours")
    with pytest.raises(harness.Finding, match="MiB of memory"), harness.bounded():
        bytearray(harness.MAX_GROWTH + (8 << 20)).count(1)
    harness.MAX_SECONDS, kept = 0.01, harness.MAX_SECONDS
    try:
        with pytest.raises(harness.Finding, match="processor time"), harness.bounded():
            sum(range(3_000_000))
    finally:
        harness.MAX_SECONDS = kept


def test_containers() -> None:
    files = {"a.json": b"{}", "text": b"x\n=== y ===\n"}
    assert harness.split(harness.join(files)) == files
    assert harness.split(b"no mark") == {}
