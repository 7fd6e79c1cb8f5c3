"""scripts/cgroup.py: the ruler that the RAM promises are measured with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

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
