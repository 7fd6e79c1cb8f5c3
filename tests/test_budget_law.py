"""Promise 1: the budget is a law. Real processes in memory cgroups of exactly SIZE, without swap,
and every declared ceiling of ``edge_rt/budget.py`` against what is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edge_rt import budget
from edge_rt.engine import make_settings, open_planner
from edge_rt.planner import N_IO_THREADS

EDGE_RT = [sys.executable, "-m", "edge_rt.apps.cli"]
MIB = 2**20
CTX = 512
THREADS = 2
# The smallest that works, one that streams and one that holds everything.
SIZES = ("floor", 96 * MIB, 160 * MIB)


@cache
def floor_of(model: Path) -> int:
    planner = open_planner(model)[1]
    return planner.floor(make_settings(planner, 1 << 40, CTX, THREADS))[0]


@cache
def token_ids(folder: Path) -> Path:
    path = folder / "ids.npy"
    np.save(path, np.array([1, *((i * 7919) % 40000 + 100 for i in range(63))], np.int32))
    return path


def run(cgroup: ModuleType, model: Path, size: int, *args: object, **options: Any) -> Any:
    argv = [*EDGE_RT, args[0], str(model), "--ram", str(size), "--ctx", str(CTX)]
    argv += ["--threads", str(THREADS), "--json", *map(str, args[1:])]
    result = cgroup.run(argv, size, model=model, timeout_s=120, **options)
    assert not result.oom_killed, (size, result.stderr)
    return result


def check_law(result: Any, size: int) -> None:
    assert result.rc == 0, result.stderr
    assert result.held_bytes <= size, result.processes
    assert result.model_cache_peak_bytes <= MIB


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_generate_stays_within(cgroup: ModuleType, demo_model: Path, size: int | str) -> None:
    size = floor_of(demo_model) if size == "floor" else int(size)
    prompt = ("-p", "Once upon a time", "-n", 24)
    result = run(cgroup, demo_model, size, "generate", *prompt, cold=True)
    check_law(result, size)
    report = json.loads(result.stdout)
    assert report["generated_tokens"] == 24 and report["budget_bytes"] == size // 4096 * 4096
    assert report["peak_rss_bytes"] <= size


@pytest.mark.slow
def test_the_same_bits_at_every_size(
    cgroup: ModuleType, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ids, found = token_ids(tmp_path_factory.getbasetemp()), {}
    for size in SIZES:
        size = floor_of(demo_model) if size == "floor" else size
        result = run(cgroup, demo_model, size, "bench", "--tokens", ids)
        check_law(result, size)
        (row,) = json.loads(result.stdout)["rows"]
        assert row["held_bytes"] <= size == row["ram_bytes"]
        found[size] = row["logits_sha256"]
    assert len(found) == 3 and len(set(found.values())) == 1, found


@pytest.mark.slow
def test_a_long_prompt_at_the_floor(cgroup: ModuleType, demo_model: Path, tmp_path: Path) -> None:
    """Prefill, the tokenizer's word cache and a full KV cache: the worst that a request can do."""
    size = floor_of(demo_model)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(" ".join(f"word{i * 7919 % 10007}" for i in range(90)))
    result = run(cgroup, demo_model, size, "generate", "-f", prompt, "-n", 4)
    check_law(result, size)
    assert json.loads(result.stdout)["prompt_tokens"] > 350


@pytest.mark.slow
def test_chat_at_the_floor(cgroup: ModuleType, demo_model: Path) -> None:
    size = floor_of(demo_model)
    argv = [*EDGE_RT, "chat", str(demo_model), "--ram", str(size), "--ctx", str(CTX)]
    argv += ["--threads", str(THREADS), "-n", "8", "--seed", "1"]
    result = cgroup.run(argv, size, model=demo_model, stdin="Hello!\n/stats\nAnd now?\n")
    assert not result.oom_killed
    check_law(result, size)
    assert "held" in result.stdout


@pytest.mark.slow
def test_below_the_floor_is_refused(cgroup: ModuleType, demo_model: Path) -> None:
    floor = floor_of(demo_model)
    result = run(cgroup, demo_model, floor - MIB, "generate", "-p", "a", "-n", 1)
    assert result.rc == 3 and result.stdout == ""
    assert f"--ram {floor // MIB}MiB ({floor} bytes)" in result.stderr
    result = run(cgroup, demo_model, floor - MIB, "plan")
    assert result.rc == 3 and json.loads(result.stdout)["floor_bytes"] == floor


def test_the_floor_is_the_same_in_every_process(demo_model: Path) -> None:
    argv = [*EDGE_RT, "plan", str(demo_model), "--ram", "1MiB", "--ctx", str(CTX)]
    argv += ["--threads", str(THREADS), "--json"]
    floors = {
        json.loads(subprocess.run(argv, capture_output=True, timeout=60).stdout)["floor_bytes"]
        for _ in range(3)
    }
    assert floors == {floor_of(demo_model)}


# --- declared ceilings --------------------------------------------------------------------------

STATUS = """
def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
"""


def measure(code: str, *args: object) -> int:
    """The integer that ``code`` prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", STATUS + code, *map(str, args)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return int(done.stdout.split()[-1])


def test_interpreter_ceiling() -> None:
    """What a chat imports: our extensions, typer, jinja2 with a rendered template, tokenizers."""
    code = """
import edge_rt.apps.cli
from edge_rt.engine import Engine
import edge_rt.perplexity, edge_rt.forecast, edge_rt.tokenizer_json
import tokenizers, jinja2, jinja2.sandbox
from edge_rt import ChatTemplate
template = ChatTemplate("{% for m in messages %}{{ m }}{% endfor %}", bos_token="", eos_token="")
template.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
print(status("VmHWM"))
"""
    held = max(measure(code) for _ in range(3))
    assert held <= budget.INTERPRETER_BYTES
    assert held > budget.INTERPRETER_BYTES // 2, "the ceiling is far too high: lower it"


def test_numpy_ceiling() -> None:
    code = "import os; os.environ['OPENBLAS_NUM_THREADS'] = '1'\nimport edge_rt.apps.cli\n"
    code += "before = status('VmRSS')\nimport numpy\nnumpy.empty((4, 100), numpy.float32)\n"
    code += "print(status('VmHWM') - before)"
    assert measure(code) <= budget.NUMPY_BYTES


# Threads from the arena's first byte to the last: grows of a process that opens a model.
OPENED = """
import sys
import edge_rt.apps.cli
from edge_rt.engine import Engine
def touched_stacks():
    # Touched pages of the mappings that thread stacks live in: each follows a guard page.
    total, size, guard = 0, 0, False
    for line in open("/proc/self/smaps"):
        head = line.split()
        if "-" in head[0] and ":" not in head[0]:
            low, high = (int(x, 16) for x in head[0].split("-"))
            is_stack = guard and head[1] == "rw-p" and len(head) == 5
            guard = head[1] == "---p" and high - low == 4096
        elif head[0] == "Rss:" and is_stack:
            total += int(head[1]) * 1024
    return total
"""


@pytest.mark.parametrize("threads", [1, 16])
def test_thread_ceilings(demo_model: Path, threads: int) -> None:
    """Touched pages of all thread stacks after real work, and 16 KiB of kernel stack for each."""
    code = (
        OPENED
        + f"""
e = Engine(sys.argv[1], "1GiB", ctx=512, threads={threads}, weight_cap="0")
e.generate("Once upon a time", max_tokens=4)
import os
print(touched_stacks() + 20480 * len(os.listdir("/proc/self/task")))
"""
    )
    declared = threads * budget.COMPUTE_THREAD_BYTES + N_IO_THREADS * budget.READ_THREAD_BYTES
    # The main thread is the interpreter's.
    assert 0 < measure(code, demo_model) <= declared + 20480


@pytest.mark.slow
def test_slack_ceiling(demo_model: Path) -> None:
    """Growth over requests of all kinds, once the arena is touched and everything is imported."""
    code = (
        OPENED
        + """
e = Engine(sys.argv[1], "120MiB", ctx=512, threads=2)
e.generate([1] * 512, max_tokens=1, temperature=1.0, top_p=0.9)
list(e.chat([{"role": "user", "content": "hello"}], max_tokens=1))
before = status("VmRSS")
for i in range(6):
    e.generate("".join(f" {i * j}" for j in range(40)), max_tokens=2, temperature=1.0, top_p=0.9)
    list(e.chat([{"role": "user", "content": f"question {i} " * 20}], max_tokens=2))
print(status("VmHWM") - before)
"""
    )
    assert measure(code, demo_model) <= budget.SLACK_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("size", [96 * MIB, 400 * MIB])
def test_kernel_ceiling(cgroup: ModuleType, demo_model: Path, size: int) -> None:
    result = run(cgroup, demo_model, size, "generate", "-p", "a", "-n", 2)
    check_law(result, size)
    planner = open_planner(demo_model)[1]
    plan = planner.plan(make_settings(planner, size, CTX, THREADS))
    stacks = 20480 * (THREADS + N_IO_THREADS)  # charged to the io role with their threads
    assert 0 < result.kernel_peak_bytes <= budget.kernel_bytes(plan.arena_bytes) + stacks
