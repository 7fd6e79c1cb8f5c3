"""The command line: every exit code, every JSON object, from outside."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EDGE_RT = [sys.executable, "-m", "edge_rt.apps.cli"]
MIB = 2**20
ROLES = {
    "interpreter", "tokenizer", "weights", "ring", "kv", "activations", "io", "kernel", "slack",
}  # fmt: skip


def edge_rt(*args: object, code: int = 0, stdin: bytes = b"", **env: str) -> tuple[str, str]:
    """Run a command that must end with ``code``; returns stdout and stderr."""
    done = subprocess.run(
        [*EDGE_RT, *map(str, args)],
        input=stdin, capture_output=True, env=os.environ | env, timeout=120,
    )  # fmt: skip
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in err and "internal error" not in err, err
    assert done.returncode == code, f"{args}: {done.returncode}\n{out[-500:]}\n{err}"
    if code not in (0, 3):
        assert out == "" and err.strip(), "an error is one message on stderr"
    return out, err


def one_object(out: str) -> dict[str, Any]:
    """stdout must be one JSON object and nothing else."""
    assert out.count("\n") == 1 and out.endswith("\n")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert isinstance(found, dict)
    return found


# --- generate -----------------------------------------------------------------------------------


def test_generate_json(stories_model: Path) -> None:
    out, err = edge_rt(
        "generate", stories_model, "-p", "Zoo", "-n", 20, "--ram", "64MiB", "--threads", 2, "--json"
    )
    r = one_object(out)
    assert err == ""
    assert set(r) == {
        "text", "tokens", "prompt_tokens", "generated_tokens", "prefill_tok_s", "decode_tok_s",
        "ttft_s", "load_s", "process_s", "budget_bytes", "peak_rss_bytes", "model_bytes",
        "resident_bytes", "io", "flash_bytes_read", "flash_bytes_per_token", "cache", "stall_s",
        "finish_reason",
    }  # fmt: skip
    assert r["text"].startswith(" was a little girl named Lily.")
    assert len(r["tokens"]) == r["generated_tokens"] == 20
    assert r["prompt_tokens"] == 4 and r["finish_reason"] == "length"
    assert r["budget_bytes"] == 64 * MIB
    assert 10 * MIB < r["peak_rss_bytes"] <= r["budget_bytes"]
    assert r["model_bytes"] == stories_model.stat().st_size
    assert 1_000_000 < r["resident_bytes"] <= r["flash_bytes_read"]
    assert r["decode_tok_s"] > 0 and r["prefill_tok_s"] > 0
    assert 0 < r["ttft_s"] < r["process_s"] and 0 < r["load_s"] < r["process_s"] < 60
    assert {"hits", "misses"} <= set(r["cache"])


def test_streaming_shows_in_the_report(stories_model: Path) -> None:
    common = ("generate", stories_model, "-p", "Zoo", "-n", 6, "--ram", "64MiB", "--json")
    resident = one_object(edge_rt(*common)[0])
    streamed = one_object(edge_rt(*common, "--weight-cap", 0)[0])
    assert streamed["tokens"] == resident["tokens"]
    assert streamed["resident_bytes"] == 0
    assert streamed["flash_bytes_per_token"] >= 1_000_000 > resident["flash_bytes_per_token"]


def test_generate_text_and_prompts(stories_model: Path, tmp_path: Path) -> None:
    base = ("generate", stories_model, "-n", 8, "--ram", "64MiB")
    text, _ = edge_rt(*base, "-p", "Zoo")
    assert text == " was a little girl named\n" or text.startswith(" was a little girl")
    assert edge_rt(*base, "-p", "-", stdin=b"Zoo")[0] == text
    file = tmp_path / "prompt.txt"
    file.write_text("Zoo")
    assert edge_rt(*base, "-f", file)[0] == text


def test_sampling_options(stories_model: Path) -> None:
    base = ("generate", stories_model, "-p", "Zoo", "-n", 16, "--ram", "64MiB", "--json")

    def tokens(*args: object) -> list[int]:
        return one_object(edge_rt(*base, *args)[0])["tokens"]

    warm = ("--temp", 1.5, "--top-k", 40, "--top-p", 0.95, "--min-p", 0.01)
    assert tokens(*warm, "--seed", 5) == tokens(*warm, "--seed", 5) != tokens(*warm, "--seed", 6)
    assert tokens("--logit-bias", "300=1000000") == [300] * 16
    assert tokens("--repeat-penalty", 1.8) != tokens()
    assert tokens("--logit-bias", "2=1000000") == []
    assert tokens("--logit-bias", "2=1000000", "--ignore-eos") == [2] * 16
    stopped = one_object(edge_rt(*base, "--stop", "girl", "--stop", "nothing")[0])
    assert stopped["text"] == " was a little " and stopped["finish_reason"] == "stop"


def test_no_ram_is_said_aloud(stories_model: Path) -> None:
    out, err = edge_rt("generate", stories_model, "-p", "Zoo", "-n", 1, "--json")
    assert "no --ram given" in err and one_object(out)["budget_bytes"] > 64 * MIB


# --- exit codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("nothing",),
        ("generate", "MODEL", "--ram", "64MiB"),
        ("generate", "MODEL", "-p", "a", "-f", "b", "--ram", "64MiB"),
        ("generate", "MODEL", "-f", "/no/such/file", "--ram", "64MiB"),
        ("generate", "MODEL", "-f", "/", "--ram", "64MiB"),
        ("generate", "MODEL", "-p", "a", "--ram", "lots"),
        ("generate", "MODEL", "-p", "a", "--ram", "-5"),
        ("generate", "MODEL", "-p", "a", "--ram", "64MiB", "-n", "x"),
        ("generate", "MODEL", "-p", "a", "--ram", "64MiB", "-n", "-1"),
        ("generate", "MODEL", "-p", "a", "--ram", "64MiB", "--temp", "nan"),
        ("generate", "MODEL", "-p", "a", "--ram", "64MiB", "--threads", "0"),
        ("generate", "MODEL", "-p", "a", "--ram", "64MiB", "--ctx", "513"),
        ("generate", "MODEL", "-p", "a", "--ram", "64MiB", "--kv", "q8"),
        ("generate", "MODEL", "-p", "a", "--ram", "64MiB", "--io", "mmap"),
        ("generate", "MODEL", "-p", "a", "--ram", "64MiB", "--logit-bias", "x"),
        ("generate", "MODEL", "-p", "a", "--ram", "64MiB", "--seed", "-1"),
        ("generate", "MODEL", "-p", "a", "--ram", "64MiB", "--no-such-option"),
        ("generate", "MODEL", "-p", "a" * 3000, "--ram", "64MiB"),
        ("generate", "MODEL", "-p", "a b c d e f g h", "--ctx", "4", "--ram", "64MiB"),
        ("generate", "/no/such/model.gguf", "-p", "a", "--ram", "64MiB"),
        ("generate", "/", "-p", "a", "--ram", "64MiB"),
        ("chat", "MODEL", "--ram", "64MiB"),
        ("plan", "/no/such/model.gguf", "--ram", "64MiB"),
        ("inspect", "/no/such/model.gguf"),
        ("ppl", "MODEL", "--ram", "64MiB"),
        ("ppl", "MODEL", "--text", "/no/such/file", "--ram", "64MiB"),
        ("bench", "MODEL", "--ram", "64MiB", "--tokens", "/no/such/file"),
        ("bench", "MODEL", "--ram", "64MiB", "-n", "0"),
        ("bench", "MODEL", "--ram", "64MiB", "-n", "513"),
        ("pull", "elsewhere"),
    ],
    ids=lambda args: " ".join(args)[:60],
)
def test_usage_errors(stories_model: Path, args: tuple[str, ...]) -> None:
    edge_rt(*(stories_model if a == "MODEL" else a for a in args), code=2)


def test_prompts_that_are_not_utf8(stories_model: Path, tmp_path: Path) -> None:
    base = ("generate", stories_model, "-n", 1, "--ram", "64MiB")
    file = tmp_path / "prompt.bin"
    file.write_bytes(b"caf\xe9")
    assert "UTF-8" in edge_rt(*base, "-f", file, code=2)[1]
    assert "UTF-8" in edge_rt(*base, "-p", "-", code=2, stdin=b"caf\xe9")[1]
    done = subprocess.run(
        [*EDGE_RT, *map(str, base), "-p", b"caf\xe9"], capture_output=True, timeout=60
    )
    assert done.returncode == 2 and b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["generate", "chat", "plan", "bench"])
def test_no_demo_model_and_no_terminal(tmp_path: Path, command: str) -> None:
    args = ("-p", "a") if command == "generate" else ()
    _, err = edge_rt(command, *args, "--ram", "96MiB", code=2, XDG_CACHE_HOME=str(tmp_path))
    assert "edge-rt pull demo" in err


def test_budget_too_small(stories_model: Path) -> None:
    _, err = edge_rt("generate", stories_model, "-p", "a", "--ram", "20MiB", code=3)
    assert "the smallest budget that works" in err
    out, _ = edge_rt("plan", stories_model, "--ram", "20MiB", "--json", code=3)
    plan = one_object(out)
    assert plan["fits"] is False and plan["floor_bytes"] > 20 * MIB == plan["budget_bytes"]
    floor = plan["floor_bytes"]
    edge_rt("generate", stories_model, "-p", "a", "-n", 1, "--ram", floor)
    _, err = edge_rt("generate", stories_model, "-p", "a", "--ram", floor - MIB, code=3)
    assert f"{floor} bytes" in err
    edge_rt("bench", stories_model, "--ram", f"20MiB,{floor}", "--json", code=3)


def test_bad_model(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(3))
    for args in (
        ("generate", bad, "-p", "a", "--ram", "64MiB"),
        ("plan", bad, "--ram", "64MiB", "--json"),
        ("inspect", bad, "--json"),
    ):
        edge_rt(*args, code=4)


def test_interrupt(demo_model: Path) -> None:
    # Scalar kernels need minutes for this: it cannot be over before the signal comes.
    args = ["generate", demo_model, "-p", "a", "-n", 2000, "--ram", "400MiB", "--ctx", 2048]
    args += ["--ignore-eos", "--threads", 1]
    child = subprocess.Popen(
        [*EDGE_RT, *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"EDGE_RT_ISA": "ref"},
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.read(1)  # it has begun to answer
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=90)
    assert child.returncode == 130, err
    assert b"Traceback" not in err


def test_interrupt_while_starting(stories_model: Path) -> None:
    for delay in (0.05, 0.15, 0.3):
        child = subprocess.Popen(
            [*EDGE_RT, "chat", str(stories_model), "--ram", "64MiB"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
        assert child.returncode in (2, 130, -signal.SIGINT), (delay, err)
        if child.returncode == 130:
            assert b"Traceback" not in err, (delay, err)


def test_interrupt_while_importing(tmp_path: Path) -> None:
    """An import that interrupts itself stands for Ctrl-C at that moment."""
    (tmp_path / "typer.py").write_text("import signal; signal.raise_signal(signal.SIGINT)\n")
    done = subprocess.run(
        [*EDGE_RT, "list"], capture_output=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("args", [("inspect", "MODEL"), ("inspect", "MODEL", "--json"), ("list",)])
def test_output_that_cannot_be_written(stories_model: Path, args: tuple[str, ...]) -> None:
    args = tuple(str(stories_model) if a == "MODEL" else a for a in args)
    with open("/dev/full", "w") as full:
        done = subprocess.run([*EDGE_RT, *args], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr.count(b"\n")) == (5, 1), done.stderr
    assert b"No space left" in done.stderr
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        shell = ["sh", "-c", f'"$@" {closed}', "sh", *EDGE_RT, *args]
        done = subprocess.run(shell, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b""), closed


def test_a_reader_that_leaves(stories_model: Path) -> None:
    args = f"generate '{stories_model}' -p Zoo -n 500 --ignore-eos --ram 64MiB"
    shell = f"{sys.executable} -m edge_rt.apps.cli {args} | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr, len(done.stdout)) == (141, b"", 1)


@pytest.mark.parametrize(
    "args",
    [
        ("generate", "MODEL", "-p", "Zoo", "-n", "4", "--ram", "64MiB"),
        ("generate", "MODEL", "-p", "Zoo", "-n", "4", "--ram", "64MiB", "--json"),
        ("inspect", "MODEL"), ("inspect", "MODEL", "--json"),
        ("plan", "MODEL", "--ram", "64MiB", "--json"), ("--help",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_closed_pipe(stories_model: Path, args: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    args = tuple(str(stories_model) if a == "MODEL" else a for a in args)
    done = subprocess.run([*EDGE_RT, *args], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_help_and_read_only_home(stories_model: Path) -> None:
    out, _ = edge_rt("--help")
    for command in ("chat", "generate", "ppl", "plan", "doctor", "bench", "inspect", "pull"):
        assert command in out
        assert "Usage" in edge_rt(command, "--help")[0]
    # Root may write anywhere, so the folder is one that nobody can make files in.
    homeless = {"HOME": "/proc", "XDG_CACHE_HOME": ""}
    edge_rt("generate", stories_model, "-p", "Zoo", "-n", 20, "--ram", "64MiB", **homeless)
    edge_rt("plan", stories_model, "--ram", "64MiB", **homeless)


# --- plan, inspect, ppl -------------------------------------------------------------------------


def test_plan(stories_model: Path) -> None:
    out, _ = edge_rt("plan", stories_model, "--ram", "64MiB", "--json")
    plan = one_object(out)
    assert set(plan) == {
        "fits", "floor_bytes", "budget_bytes", "roles", "resident_bytes",
        "streamed_bytes_per_token", "forecast", "threads", "pass_tokens", "curve", "knee_bytes",
    }  # fmt: skip
    assert plan["fits"] is True and set(plan["roles"]) == ROLES
    assert sum(plan["roles"].values()) <= plan["budget_bytes"] == 64 * MIB
    f = plan["forecast"]
    assert 0 < f["tok_s_low"] <= f["tok_s"] <= f["tok_s_high"]
    assert f["bound"] in ("flash", "compute")
    text, _ = edge_rt("plan", stories_model, "--ram", "64MiB")
    assert all(role in text for role in ROLES) and "forecast" in text
    assert "speed by budget" in text and "<- this budget" in text and "knee" in text
    capped, _ = edge_rt("plan", stories_model, "--ram", "64MiB", "--weight-cap", 0, "--json")
    assert one_object(capped)["streamed_bytes_per_token"] >= 1_000_000


def test_inspect(stories_model: Path) -> None:
    found = one_object(edge_rt("inspect", stories_model, "--json")[0])
    assert found["metadata"]["general.architecture"] == "llama"
    assert found["file_bytes"] == stories_model.stat().st_size
    assert found["metadata"]["tokenizer.ggml.tokens"] == {"array": "string", "length": 512}
    by_name = {t["name"]: t for t in found["tensors"]}
    assert len(by_name) == 47
    assert by_name["token_embd.weight"]["shape"] == [512, 64]
    assert by_name["token_embd.weight"]["format"] == "F32"
    text, _ = edge_rt("inspect", stories_model)
    assert "token_embd.weight" in text and "512 x 64" in text


def test_ppl(stories_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time, there was a little girl named Lily. " * 60)
    args = ("ppl", stories_model, "--text", text, "--ctx", 128, "--ram", "64MiB", "--json")
    found = one_object(edge_rt(*args, "--chunks", 3)[0])
    assert {"ppl", "nll", "tokens", "chunks"} <= set(found)
    assert (found["chunks"], found["tokens"]) == (3, 3 * 63)
    assert found["ppl"] == pytest.approx(math.exp(found["nll"])) and 1 < found["ppl"] < 3
    streamed = one_object(edge_rt(*args, "--chunks", 3, "--weight-cap", 0, "--threads", 1)[0])
    assert streamed["nll"] == found["nll"]
    assert one_object(edge_rt(*args)[0])["chunks"] > 3
    text.write_text("short")
    edge_rt(*args, code=2)
    text.write_bytes(b"\xff" * 5000)
    edge_rt(*args, code=2)


# --- bench --------------------------------------------------------------------------------------


def test_bench_at_several_budgets(chat_model: Path, tmp_path: Path) -> None:
    ids = np.array([1, *range(300, 315)], np.int32)
    np.save(tmp_path / "ids.npy", ids)
    out, _ = edge_rt(
        "bench", chat_model, "--ram", "floor,50%,100%", "--tokens", tmp_path / "ids.npy",
        "--ctx", 64, "--json",
    )  # fmt: skip
    rows = one_object(out)["rows"]
    assert len(rows) == 3
    for row in rows:
        assert {
            "ram_bytes", "decode_tok_s", "prefill_tok_s", "token_ms", "hit_rate",
            "flash_bytes_per_token", "held_bytes", "logits_sha256",
        } <= set(row)  # fmt: skip
        assert len(row["token_ms"]) == len(ids) and row["hit_rate"] is None
        assert row["held_bytes"] <= row["ram_bytes"]
    assert len({row["logits_sha256"] for row in rows}) == 1
    assert rows[0]["ram_bytes"] < rows[1]["ram_bytes"] < rows[2]["ram_bytes"]
    assert rows[0]["flash_bytes_per_token"] >= rows[2]["flash_bytes_per_token"]


def test_bench_free_running(stories_model: Path) -> None:
    out, _ = edge_rt("bench", stories_model, "--ram", "64MiB", "-n", 12, "--json")
    (row,) = one_object(out)["rows"]
    assert len(row["token_ms"]) == 12
    assert row["token_ms_quartiles"] == sorted(row["token_ms_quartiles"])
    assert min(row["token_ms"]) <= row["token_ms_quartiles"][1] <= max(row["token_ms"])
    assert row["prefill_tokens"] == 512 and row["ttft_s"] > 0 and row["prefill_tok_s"] > 0
    again, _ = edge_rt(
        "bench", stories_model, "--ram", "64MiB", "-n", 12, "--prompt", 0, "--warmup", 0, "--json"
    )
    (other,) = one_object(again)["rows"]
    assert other["logits_sha256"] == row["logits_sha256"]  # nothing before the steps shows in them
    assert "prefill_tok_s" not in other
    text, _ = edge_rt("bench", stories_model, "--ram", "64MiB", "-n", 4)
    title, head, line = text.splitlines()
    assert "4 tokens" in title and "tok/s" in head and len(line) == len(head)


@pytest.mark.parametrize("option", ["--prompt", "--warmup"])
def test_bench_refuses_other_lengths(stories_model: Path, option: str) -> None:
    edge_rt("bench", stories_model, "--ram", "64MiB", "-n", 2, option, -1, code=2)
    edge_rt("bench", stories_model, "--ram", "64MiB", "-n", 2, "--warmup", 513, code=2)


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, 99999], np.int32), np.array([1, -1]), np.array([1, 2**40]),
        np.array([1.0, 2.0]), np.array([[1, 2]]), np.array([], np.int32),
        np.array([1, 2], ">i4"), np.arange(600, dtype=np.int32) % 500,
    ],
    ids=["beyond", "negative", "huge", "float", "matrix", "empty", "big-endian", "long"],
)  # fmt: skip
def test_bench_refuses_other_ids(stories_model: Path, tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "ids.npy", array)
    edge_rt("bench", stories_model, "--ram", "64MiB", "--tokens", tmp_path / "ids.npy", code=2)


@pytest.mark.parametrize("ram", ["", ",", "x%", "-5%", "50%,", "nan%", "1e9%"])
def test_bench_refuses_other_shares(stories_model: Path, ram: str) -> None:
    edge_rt("bench", stories_model, "--ram", ram, "-n", 2, code=2)


# --- chat ---------------------------------------------------------------------------------------


def chat(model: Path, *lines: str, code: int = 0, args: tuple[object, ...] = ()) -> str:
    base = ("chat", model, "--ram", "64MiB", "-n", 5, "--temp", 0)
    return edge_rt(*base, *args, stdin="\n".join(lines).encode(), code=code)[0]


def test_chat_from_a_pipe(chat_model: Path) -> None:
    once = chat(chat_model, "hello")
    assert once.endswith("\n") and len(once) > 2
    assert chat(chat_model, "hello", "/exit", "never read") == once
    assert chat(chat_model, "", "  ", "hello", "") == once
    # What came before changes the answer; /reset and /undo take it back.
    again = chat(chat_model, "other words", "/reset", "hello")
    assert again.endswith(once) and again != once
    undone = chat(chat_model, "other words", "/undo", "hello")
    assert undone == again
    assert not chat(chat_model, "other words", "hello").endswith(once)


def test_chat_commands(chat_model: Path) -> None:
    assert "/undo" in chat(chat_model, "/help")
    assert "nothing to undo" in chat(chat_model, "/undo")
    assert "no command /nonsense" in chat(chat_model, "/nonsense")
    stats = chat(chat_model, "hello", "/stats")
    assert "tok/s" in stats and all(role in stats for role in ROLES)
    assert "held" in chat(chat_model, "/stats")
    system = chat(chat_model, "/system be brief", "hello")
    assert system == chat(chat_model, "hello", args=("--system", "be brief"))
    assert system != chat(chat_model, "hello")
    kept = chat(chat_model, "/system be brief", "one", "/reset", "hello")
    assert kept.endswith(system)
    assert "budget 72.0 MiB" in chat(chat_model, "/ram 72MiB", "hello")
    chat(chat_model, "/ram 1MiB", code=3)


def test_chat_with_a_seed(chat_model: Path) -> None:
    warm = ("--temp", 1.5, "--seed", 3)
    assert chat(chat_model, "hello", args=warm) == chat(chat_model, "hello", args=warm)


def test_chat_that_outgrows_its_context(chat_model: Path) -> None:
    base = ("chat", chat_model, "--ram", "64MiB", "-n", 5, "--temp", 0, "--ctx", 48)
    done = subprocess.run(
        [*EDGE_RT, *map(str, base)],
        input=b"some more words\n" * 12,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 2 and b"context of 48" in done.stderr
    assert b"Traceback" not in done.stderr


def test_chat_message_that_is_not_utf8(chat_model: Path) -> None:
    base = ("chat", chat_model, "--ram", "64MiB", "-n", 2)
    _, err = edge_rt(*base, stdin=b"caf\xe9\n", code=2, PYTHONUTF8="1")
    assert "a message is not UTF-8" in err
