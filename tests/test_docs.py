"""The documentation is true: its code runs, its links lead somewhere, its commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "THIRD_PARTY.md",
         "docs/hostile.md", "docs/measurements.md", "docs/parity.md")  # fmt: skip
SKIPPED = {"build", "dist", "node_modules", "__pycache__"}
TEXT = {".c", ".cc", ".cmake", ".h", ".in", ".json", ".md", ".py", ".pyi", ".sh", ".toml", ".txt",
        ".yaml", ".yml"}  # fmt: skip
# Spelled in halves, so that this file passes its own test.
MACHINE_PATH = re.compile(r"(?<![\w.$}/-])/(?:" + "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me"))
                          + r")/[\w.]")  # fmt: skip


def code_blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(
    code: str | Path, demo_model: Path, folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run Python away from the checkout, so that only what is installed is found."""
    environment = dict(os.environ)
    if demo_model.parent.name == "edge-rt":
        environment["XDG_CACHE_HOME"] = str(demo_model.parent.parent)
    else:
        cache = folder / "cache" / "edge-rt"
        cache.mkdir(parents=True)
        (cache / "SmolLM2-135M-Instruct.Q4_1.gguf").symlink_to(demo_model)
        environment["XDG_CACHE_HOME"] = str(folder / "cache")
    command = ["-c", code] if isinstance(code, str) else [str(code)]
    return subprocess.run(
        [sys.executable, *command, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_readme_python_runs(demo_model: Path, tmp_path: Path) -> None:
    (code,) = code_blocks("python")
    done = run(code, demo_model, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_quickstart_runs(demo_model: Path, tmp_path: Path) -> None:
    done = run(ROOT / "examples/quickstart.py", demo_model, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "of 96,000,000 bytes" in done.stdout


def test_readme_chat_is_what_comes_out(demo_model: Path, tmp_path: Path) -> None:
    """The transcript's first answer, byte for byte but for its line breaks."""
    (block,) = code_blocks("text")
    command, _, talk = block.partition("\n")
    question, _, rest = talk.removeprefix("> ").partition("\n")
    answer = rest.split("\n> ")[0]
    arguments = command.removeprefix("$ edge-rt ").split()
    chat = "import sys; from edge_rt.apps.cli import main; sys.exit(main())"
    done = run(f"import io, sys; sys.stdin = io.StringIO({question + chr(10)!r})"
               f"\n{chat}", demo_model, tmp_path, *arguments)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == answer.split()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    broken = [t for t in targets if "://" not in t and not ((ROOT / page).parent / t).exists()]
    assert not broken


def test_readme_names_the_commands_that_exist(tmp_path: Path) -> None:
    code = "from edge_rt.apps.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    offered = set(re.findall(r"^  (\w+) ", done.stdout.partition("Commands:")[2], re.MULTILINE))
    named = set(re.findall(r"\bedge-rt ([a-z]\w*)", (ROOT / "README.md").read_text()))
    assert named == offered


def test_exit_codes_are_those_of_the_errors() -> None:
    from edge_rt import errors

    rows = re.findall(r"^\| (\d+) \| ", (ROOT / "README.md").read_text(), re.MULTILINE)
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    assert {c.exit_code for c in classes if hasattr(c, "exit_code")} <= set(map(int, rows))


def project_files() -> list[Path]:
    found = []
    for folder, folders, names in os.walk(ROOT):
        names = [name for name in names if name != ".git"]  # a file where this is a worktree
        folders[:] = [f for f in folders if f not in SKIPPED and (f[0] != "." or f == ".ci")
                      and not (Path(folder) / f / "pyvenv.cfg").exists()]  # fmt: skip
        found += [Path(folder) / name for name in names]
    return [p for p in found if p.suffix in TEXT or p.suffix == ""]


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    files = project_files()
    assert len(files) > 50
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files
        if (match := MACHINE_PATH.search(path.read_text(errors="replace")))
    ]
    assert not found


def test_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
