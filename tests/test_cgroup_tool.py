"""scripts/cgroup.py: the ruler that the RAM promises are measured with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import load_script

MIB = 2**20
HOLD_50 = "import time; b = bytearray(50 << 20); time.sleep(0.2); print(len(b))"


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", code]


def groups(cgroup) -> list[Path]:
    """Groups that this process has left behind."""
    return list(cgroup._own_group("memory").rglob(f"edge-rt-{os.getpid()}-*"))


def test_measures_what_a_process_holds(cgroup) -> None:
    result = cgroup.run(python(HOLD_50), 128 * MIB)
    assert result.rc == 0, result.stderr
    assert result.stdout == f"{50 * MIB}\n"
    assert 50 * MIB < result.hwm_bytes < 75 * MIB
    assert result.held_bytes == result.hwm_bytes + result.kernel_peak_bytes
    assert 0 < result.kernel_peak_bytes < 8 * MIB
    assert 50 * MIB < result.cgroup_peak_bytes <= 128 * MIB
    assert not result.oom_killed and not result.timed_out


def test_kills_above_the_limit(cgroup) -> None:
    result = cgroup.run(
        python("b = bytearray(90 << 20); b[::4096] = b[::4096]; print('no')"), 64 * MIB
    )
    assert result.oom_killed and result.rc != 0 and result.stdout == ""
    assert result.cgroup_peak_bytes <= 64 * MIB
    assert groups(cgroup) == []


def test_dead_children_keep_their_peak(cgroup) -> None:
    child = "import time; b = bytearray(30 << 20); time.sleep(0.15)"
    parent = "import subprocess, sys; b = bytearray(20 << 20)\n"
    parent += f"argv = [sys.executable, '-S', '-c', {child!r}]\n"
    parent += "for _ in range(2): subprocess.run(argv, check=True)"
    result = cgroup.run(python(parent), 200 * MIB)
    assert result.rc == 0, result.stderr
    # 20 + 30 + 30 and three interpreters; a vforked child's first moment must not add 20 again.
    assert 80 * MIB < result.hwm_bytes < 125 * MIB, result.processes
    assert len(result.processes) == 3


def test_exit_status_streams_and_timeout(cgroup) -> None:
    code = "import sys; sys.stdout.write(sys.stdin.read()); sys.stderr.write('e'); sys.exit(7)"
    result = cgroup.run(python(code), 64 * MIB, stdin="héllo")
    assert (result.rc, result.stdout, result.stderr) == (7, "héllo", "e")
    result = cgroup.run(python("import time; time.sleep(60)"), 64 * MIB, timeout_s=0.5)
    assert result.timed_out and result.rc == -9 and result.wall_s < 10


def test_model_page_cache_is_seen_without_touching_it(cgroup, tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    model.write_bytes(os.urandom(16 * MIB))
    quiet = cgroup.run(python("print(1)"), 64 * MIB, model=model)
    assert quiet.model_cache_peak_bytes == 0 and quiet.model_cache_end_bytes == 0
    reads = f"print(len(open({str(model)!r}, 'rb').read(4 << 20)))"
    loud = cgroup.run(python(reads), 64 * MIB, model=model)
    assert loud.rc == 0 and 4 * MIB <= loud.model_cache_peak_bytes <= 8 * MIB


@pytest.mark.slow
def test_read_throttle(cgroup, tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    model.write_bytes(os.urandom(16 * MIB))
    reads = f"print(len(open({str(model)!r}, 'rb').read()))"
    try:
        result = cgroup.run(python(reads), 96 * MIB, model=model, read_bps=8 * MIB)
    except OSError as error:
        pytest.skip(f"NO READ THROTTLE on this drive: {error}")
    assert result.rc == 0 and result.wall_s > 1.0


def test_all_parts_of_a_model_are_watched(tmp_path: Path) -> None:
    tool = load_script("cgroup")
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m-00001-of-00003.gguf", "o.gguf"]
    paths = [tmp_path / name for name in [*names, "n-00001-of-00002.gguf", "config.json"]]
    for path in paths:
        path.touch()
    assert tool.weight_files(paths[1]) == paths[:2]
    assert tool.weight_files(paths[3]) == [paths[3]]
    assert tool.weight_files(tmp_path) == sorted(paths[:-1])


class Unified:
    """A tree of files like that of cgroup v2, in which our own process is in /a/b."""

    def __init__(self, tool: ModuleType, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.sys, self.proc = root / "sys", root / "proc"
        (self.sys / "a/b").mkdir(parents=True)
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self/cgroup").write_text("0::/a/b\n")
        (self.sys / "cgroup.controllers").write_text("cpu io memory pids\n")
        for group in ("a", "a/b", ""):
            (self.sys / group / "cgroup.subtree_control").write_text("cpu\n")
        patch.setattr(tool, "SYS", self.sys)
        patch.setattr(tool, "PROC", self.proc)


@pytest.fixture
def unified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unified:
    return Unified(load_script("cgroup"), tmp_path, monkeypatch)


def test_v2_groups_are_made_where_controllers_are_delegated(unified: Unified) -> None:
    tool = load_script("cgroup")
    assert tool.version() == 2
    (unified.sys / "a/cgroup.subtree_control").write_text("cpu memory\n")
    # Our own group holds us, so that it must not delegate: the kernel says EBUSY.
    (unified.sys / "a/b/cgroup.subtree_control").unlink()
    (unified.sys / "a/b/cgroup.subtree_control").mkdir()
    group = tool.Group(100_000_001)
    assert group.memory.parent == unified.sys / "a"
    made = {path.name: path.read_text() for path in group.memory.iterdir()}
    assert made == {"memory.max": str(100_000_001 // 4096 * 4096), "memory.swap.max": "0"}
    (unified.proc / "self/cgroup").write_text("0::/away\n")  # not visible: the top
    assert tool.Group(1 << 20).memory.parent == unified.sys
    assert (unified.sys / "cgroup.subtree_control").read_text() == "+memory"


def test_v2_accounts(unified: Unified) -> None:
    tool = load_script("cgroup")
    group = tool.Group(64 * MIB)
    for name, text in (
        ("memory.peak", "7000\n"), ("memory.events", "low 0\noom 4\noom_kill 3\n"),
        ("cgroup.procs", "12\n13\n"),
        ("memory.stat", "anon 5\nfile 6\nslab 1\nkernel_stack 2\npagetables 3\nsock 4\n"),
    ):  # fmt: skip
        (group.memory / name).write_text(text)
    assert (group.peak_bytes(), group.oom_kills(), group.pids()) == (7000, 3, [12, 13])
    assert group.parts() == (5, 6, 10)  # before Linux 5.18 there is no sum
    (group.memory / "memory.stat").write_text("anon 5\nfile 6\nkernel 99\nslab 1\n")
    assert group.parts() == (5, 6, 99) and group.kernel_peak_bytes() == 0


def test_v2_without_the_memory_controller(unified: Unified) -> None:
    tool = load_script("cgroup")
    (unified.sys / "cgroup.controllers").write_text("cpu\n")
    assert tool.version() == 0
    for folder in ("a/b", "a", ""):
        path = unified.sys / folder / "cgroup.subtree_control"
        path.unlink()
        path.mkdir()  # nobody may delegate
    (unified.sys / "cgroup.controllers").write_text("memory\n")
    with pytest.raises(OSError, match="no group may delegate"):
        tool.Group(MIB)


def test_v2_groups_for_real() -> None:
    """What a unified hierarchy without memory can show: joining, listing, killing, removing."""
    tool = load_script("cgroup")
    top = Path("/sys/fs/cgroup/unified")
    if os.geteuid() != 0 or not (top / "cgroup.procs").exists():
        pytest.skip("NO CGROUP V2: root and a v2 hierarchy at /sys/fs/cgroup/unified are needed")
    folder = top / f"edge-rt-test-{os.getpid()}"
    folder.mkdir()
    group = object.__new__(tool.Group)
    group.memory, group.folders, group.v2 = folder, [folder], True
    sleeper = ["/bin/sh", "-c", tool._JOIN, "sh", "1", str(folder), "sleep", "60"]
    with subprocess.Popen(sleeper) as child:
        deadline = time.monotonic() + 20
        while group.pids() != [child.pid] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert group.pids() == [child.pid]
        assert (
            f"0::{'/' + str(folder.relative_to(top))}\n"
            in Path(f"/proc/{child.pid}/cgroup").read_text()
        )
        group.remove()
        assert child.wait(20) == -9 and not folder.exists()


def test_times_and_reads_of_a_run(cgroup, tmp_path: Path) -> None:
    """The first byte on stdout, processor time, and what was read from the drive."""
    model = tmp_path / "model.bin"
    model.write_bytes(os.urandom(8 * MIB))
    code = (
        "import os, time; time.sleep(0.4); print('x', flush=True); time.sleep(0.4)\n"
        "ends = time.process_time() + 0.3\nwhile time.process_time() < ends: pass\n"
        f"os.read(os.open({str(model)!r}, 0), 8 << 20)"
    )
    result = cgroup.run(python(code), 64 * MIB, model=model)
    assert result.rc == 0 and result.stdout == "x\n", result.stderr
    assert 0.4 < result.first_output_s < result.wall_s - 0.6
    assert 0.3 < result.cpu_s < 1.0
    assert 8 * MIB <= result.read_bytes < 64 * MIB
    silent = cgroup.run(python("pass"), 64 * MIB)
    assert silent.first_output_s is None and silent.read_bytes < 8 * MIB
