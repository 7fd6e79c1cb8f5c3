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

from edge_rt import BudgetError, Engine, budget, conversation
from edge_rt.opening import make_settings, open_planner
from edge_rt.planner import N_IO_THREADS

from .conftest import load_script
from .fresh import measure

EDGE_RT = [sys.executable, "-m", "edge_rt.apps.cli"]
MIB = 2**20
CTX = 512
THREADS = 2
# The smallest that works, one that streams and one that holds everything.
SIZES = ("floor", 96 * MIB, 160 * MIB)


@cache
def floor_of(model: Path, kv: str = "f16") -> int:
    planner = open_planner(model)[1]
    return planner.floor(make_settings(planner, 1 << 40, CTX, THREADS, kv))[0]


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


def chat(cgroup: ModuleType, model: Path, size: int, lines: str) -> Any:
    argv = [*EDGE_RT, "chat", str(model), "--ram", str(size), "--ctx", str(CTX)]
    argv += ["--threads", str(THREADS), "-n", "8", "--seed", "1"]
    result = cgroup.run(argv, size, model=model, stdin=lines)
    assert not result.oom_killed, (size, result.stderr)
    return result


def check_law(result: Any, size: int) -> None:
    assert result.rc == 0, result.stderr
    assert result.held_bytes <= size, result.processes
    assert result.model_cache_peak_bytes <= MIB


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_generate_stays_within(cgroup: ModuleType, own_demo_model: Path, size: int | str) -> None:
    size = floor_of(own_demo_model) if size == "floor" else int(size)
    prompt = ("-p", "Once upon a time", "-n", 24)
    result = run(cgroup, own_demo_model, size, "generate", *prompt, cold=True)
    check_law(result, size)
    report = json.loads(result.stdout)
    assert report["generated_tokens"] == 24 and report["budget_bytes"] == size // 4096 * 4096
    assert report["peak_rss_bytes"] <= size


@pytest.mark.slow
def test_the_same_bits_at_every_size(
    cgroup: ModuleType, own_demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ids, found = token_ids(tmp_path_factory.getbasetemp()), {}
    for size in SIZES:
        size = floor_of(own_demo_model) if size == "floor" else size
        result = run(cgroup, own_demo_model, size, "bench", "--tokens", ids)
        check_law(result, size)
        (row,) = json.loads(result.stdout)["rows"]
        assert row["held_bytes"] <= size == row["ram_bytes"]
        found[size] = row["logits_sha256"]
    assert len(found) == 3 and len(set(found.values())) == 1, found


@pytest.mark.slow
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_a_long_prompt_at_the_floor(
    cgroup: ModuleType, own_demo_model: Path, tmp_path: Path, kv: str
) -> None:
    """Prefill, the tokenizer's word cache and a full KV cache: the worst that a request can do."""
    size = floor_of(own_demo_model, kv)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(" ".join(f"word{i * 7919 % 10007}" for i in range(90)))
    result = run(cgroup, own_demo_model, size, "generate", "-f", prompt, "-n", 4, "--kv", kv)
    check_law(result, size)
    assert json.loads(result.stdout)["prompt_tokens"] > 350


@pytest.mark.slow
def test_chat_at_the_floor(cgroup: ModuleType, own_demo_model: Path) -> None:
    size = floor_of(own_demo_model)
    result = chat(cgroup, own_demo_model, size, "Hello!\n/stats\nAnd now?\n")
    check_law(result, size)
    assert "held" in result.stdout


@pytest.mark.slow
def test_conversation_files_at_the_floor(
    cgroup: ModuleType, own_demo_model: Path, tmp_path: Path
) -> None:
    """The dearest file that is loaded, then one that is refused by its size."""
    size, limit = floor_of(own_demo_model), conversation.limit_bytes(CTX)
    messages = ['{"role":"user","content":"' + r"\ud83d\ude00" + "a" * (limit - 80) + '"}']
    (tmp_path / "talk.json").write_text(f'{{"messages":[{",".join(messages)}]}}')
    (tmp_path / "large.json").write_text(" " * 100_000_000)
    lines = f"Hello!\n/load {tmp_path}/talk.json\n/save {tmp_path}/new.json\n/reset\nAnd now?\n"
    result = chat(cgroup, own_demo_model, size, lines)
    check_law(result, size)
    assert "1 messages loaded\n1 messages saved" in result.stdout
    result = chat(cgroup, own_demo_model, size, f"/load {tmp_path}/large.json\n")
    assert result.rc == 2 and "it has 100000000 bytes" in result.stderr
    assert result.held_bytes <= size


@pytest.mark.slow
def test_chat_with_the_dearest_template_at_the_floor(cgroup: ModuleType, tmp_path: Path) -> None:
    maker = load_script("make_model")
    # More vocabulary than weights: most of the floor is not the arena's.
    config = maker.Config(layers=2, hidden=256, ffn=1024, heads=4, kv_heads=2, head_dim=64,
                          vocab=8192, context=CTX, format="Q8_0")  # fmt: skip
    model, dear = maker.build(config, 2), "{{ a(b)|upper }}" * 470
    say = "{% for m in messages %}{{ m.content }}{% endfor %}"
    model.add("tokenizer.chat_template", f"{say}{{% if a is defined %}}{dear}{{% endif %}}")
    model.write(path := tmp_path / "dear.gguf")
    size = floor_of(path)
    check_law(chat(cgroup, path, size, "Hello!\nAnd now?\n"), size)


@pytest.mark.slow
def test_below_the_floor_is_refused(cgroup: ModuleType, own_demo_model: Path) -> None:
    floor = floor_of(own_demo_model)
    result = run(cgroup, own_demo_model, floor - MIB, "generate", "-p", "a", "-n", 1)
    assert result.rc == 3 and result.stdout == ""
    assert f"--ram {floor // MIB}MiB ({floor} bytes)" in result.stderr
    result = run(cgroup, own_demo_model, floor - MIB, "plan")
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


def test_interpreter_ceiling(demo_model: Path) -> None:
    """What every command imports, and the directory of a model; neither jinja2 nor tokenizers."""
    code = """
import sys
import edge_rt.apps.cli
import edge_rt.perplexity, edge_rt.forecast
from edge_rt.engine import Engine
from edge_rt.opening import open_planner
kept = open_planner(sys.argv[1])
assert not {"jinja2", "tokenizers", "numpy"} & set(sys.modules)
print(status("VmHWM"))
"""
    held = max(measure(code, demo_model) for _ in range(3))
    assert held <= budget.INTERPRETER_BYTES
    assert held > budget.INTERPRETER_BYTES * 3 // 4, "the ceiling is far too high: lower it"


CHAT = """
import sys
import edge_rt.apps.cli
from edge_rt.engine import Engine
from edge_rt import ChatTemplate
source = open(sys.argv[1]).read()
before = status("VmRSS")
template = ChatTemplate(source, bos_token="", eos_token="")
talk = [{"role": role, "content": "some words " * 100} for role in ("user", "assistant", "user")]
parameters = {"type": "object", "properties": {"place": {"type": "string"}}}
tool = {"name": "weather", "description": "of a place", "parameters": parameters}
for tools in (None, [{"type": "function", "function": tool}]):
    try:
        template.render(talk, tools=tools)
    except Exception as error:
        print(error)
print(status("VmHWM") - before)
"""


def check_chat(folder: Path, source: str) -> int:
    (path := folder / "template.jinja").write_text(source)
    held, declared = measure(CHAT, path), budget.CHAT_BYTES + budget.template_bytes(source)
    assert held <= declared, (source[:60], held, declared)
    return held


def test_chat_ceiling(tmp_path: Path) -> None:
    """jinja2, the sandbox, and templates from none to what is dearest to compile."""
    held = check_chat(tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert held > budget.CHAT_BYTES // 2, "the ceiling is far too high: lower it"
    for unit, n in (("{{a(b)|upper}}", 480), ("{{m.c[0]+'x'}}", 400), ("{%set a=a%}", 600)):
        check_chat(tmp_path, unit * n)


@pytest.mark.slow
def test_chat_ceiling_of_known_templates(shared_data: Path, tmp_path: Path) -> None:
    sources = [path.read_text() for path in sorted((shared_data / "templates").glob("*.jinja"))]
    assert sources
    for source in sources:
        check_chat(tmp_path, source)


def test_a_template_of_the_caller_is_charged(demo_model: Path) -> None:
    source = "{{ messages[0].content }}" + "{% if a %}{{ b(c) }}{% endif %}" * 100
    with Engine(demo_model, "1GiB", ctx=64) as engine:
        before = engine.memory()["planned"]
        engine.template()
        assert engine.memory()["planned"] == before
        for _ in range(3):
            engine.template(source=source)
            engine.template()
        grown = engine.memory()["planned"] - before
        own = engine._planner.template_bytes
        assert own > 0 and grown == budget.template_bytes(source) - own
        assert engine.memory()["roles"]["interpreter"] > grown
    with Engine(demo_model, "1GiB", ctx=64) as engine:
        engine.resize(engine.memory()["floor"])
        with pytest.raises(BudgetError, match="chat template"):
            engine.template(source="{{ a(b)|upper }}" * 480)
        assert engine.generate("a", max_tokens=1).tokens


def test_context_ceiling(tmp_path: Path) -> None:
    """What a request of many tokens makes, per position: texts, ids and lists."""
    maker = load_script("make_model")
    config = maker.Config(layers=1, hidden=32, ffn=32, heads=1, kv_heads=1, vocab=512,
                          head_dim=32, context=1 << 16, format="Q8_0")  # fmt: skip
    model = maker.build(config, 1)
    model.add("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}")
    model.write(tmp_path / "wide.gguf")
    code = """
import sys
import edge_rt.apps.cli
from edge_rt import Engine

class Short:  # a long prompt takes seconds to compute: only its last pass is
    def __init__(self, runtime): self.runtime = runtime
    def __getattr__(self, name): return getattr(self.runtime, name)
    def plan(self, segments): self.runtime.plan(segments[-2:])
    def run(self, tokens, position, with_head):
        if with_head: self.runtime.run(tokens, 0, with_head=True)

n = 1 << 16
with Engine(sys.argv[1], "400MiB", ctx=n, threads=1) as engine:
    engine.generate([1] * 300, max_tokens=1, temperature=1.0, top_p=0.9)
    list(engine.chat([{"role": "user", "content": "hello"}], max_tokens=1))
    engine._life.runtime = Short(engine._life.runtime)
    text = " ".join("etaoinsrhld"[i % 7 : i % 7 + 1 + i % 4] for i in range(n // 4))
    before = status("VmRSS")
    done = engine.chat([{"role": "user", "content": text}], max_tokens=8)
    assert done.prompt_tokens > n // 3, done.prompt_tokens
    list(done)
    engine.generate([i % 500 for i in range(n - 20)], max_tokens=10)
    print(status("VmHWM") - before)
"""
    assert 0 < measure(code, tmp_path / "wide.gguf") <= budget.CONTEXT_TOKEN_BYTES << 16


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
def test_kernel_ceiling(cgroup: ModuleType, own_demo_model: Path, size: int) -> None:
    result = run(cgroup, own_demo_model, size, "generate", "-p", "a", "-n", 2)
    check_law(result, size)
    planner = open_planner(own_demo_model)[1]
    plan = planner.plan(make_settings(planner, size, CTX, THREADS))
    stacks = 20480 * (THREADS + N_IO_THREADS)  # charged to the io role with their threads
    assert 0 < result.kernel_peak_bytes <= budget.kernel_bytes(plan.arena_bytes) + stacks
