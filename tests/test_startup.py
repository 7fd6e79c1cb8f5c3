"""What a command imports: start-up is paid by every run, and so is the memory of every module."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Big, slow, or of other commands.
HEAVY = {
    "jinja2", "tokenizers", "numpy", "hashlib", "_ssl", "socket", "asyncio", "urllib.request",
    "tempfile", "zipfile", "ctypes", "concurrent", "multiprocessing", "logging", "unittest",
    "rich", "pydantic", "edge_rt.chat.sandbox", "edge_rt.tokenizer.folder",
    "edge_rt.tokenizer.json_file", "edge_rt.loaders.safetensors", "edge_rt.loaders.json_stream",
    "edge_rt.models.huggingface", "edge_rt.apps.bench", "edge_rt.apps.chat", "edge_rt.apps.ppl",
    "edge_rt.apps.inspect", "edge_rt.apps.pull",
}  # fmt: skip
# Runs a command and then says which modules there are, and whether garbage is collected.
PROBE = """
import atexit, gc, json, os, sys
out = os.dup(2)
def report():
    os.write(out, json.dumps([gc.isenabled(), sorted(sys.modules)]).encode())
atexit.register(report)
os.close(2)
os.open(os.devnull, os.O_WRONLY)
from edge_rt.apps.cli import main
sys.argv = ["edge-rt", *sys.argv[1:]]
main()
"""


def modules(*args: object) -> set[str]:
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-c", PROBE]
    done = subprocess.run(
        [*command, *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    assert done.returncode == 0
    collects, found = json.loads(done.stderr)
    assert collects
    return set(found)


@pytest.mark.parametrize("command", ["generate", "plan"])
def test_a_gguf_needs_nothing_heavy(stories_model: Path, command: str) -> None:
    extra = ("-p", "Once", "-n", "1") if command == "generate" else ()
    found = modules(command, stories_model, "--ram", "64MiB", *extra)
    assert f"edge_rt.apps.{command}" in found and "edge_rt.tokenizer.gguf" in found
    assert not found & HEAVY
    # All of it, Python's own included: a new one should be worth its while.
    assert len(found) < 260


def test_what_digests_logits_brings_no_openssl(stories_model: Path) -> None:
    """Within the budget that the engine was planned for."""
    found = modules("bench", stories_model, "--ram", "64MiB", "-n", "1")
    assert "edge_rt.apps.bench" in found and "_hashlib" not in found


def test_help_needs_no_engine() -> None:
    found = modules("generate", "--help")
    assert not found & {"edge_rt.engine", "edge_rt.planner", "edge_rt.tokenizer"}
    assert {f"edge_rt.apps.{name}" for name in ("bench", "chat", "list")} <= modules("--help")
