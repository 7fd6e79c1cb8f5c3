"""What is known of the machine: the system's description, a drive's curve, the cache of rates."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any, cast

import pytest

from edge_rt.flash_io._flash_io import File
from edge_rt.forecast import forecast
from edge_rt.machine import drive, host
from edge_rt.machine.host import Drive
from edge_rt.machine.probe import Probe, large, random_file, weight_bytes
from edge_rt.machine.rates import Rate, Rates
from edge_rt.opening import make_settings, open_planner
from edge_rt.quant.blocks import FORMATS
from edge_rt.runtime._runtime import measure_memory
from edge_rt.sizes import KIB, MIB

from .known_rates import DRIVE, cells, known, rate

# --- what the system says -------------------------------------------------------------------------


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def device(path: Path) -> str:
    number = os.stat(path).st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def mounts(root: Path, *lines: str) -> None:
    other = f"27 1 {device(root)} / /with\\040space rw - ext4 /dev/vdx rw"
    write(root / "proc/self/mountinfo", "\n".join([other, *lines]))


def test_the_drive_and_its_limits(tmp_path: Path) -> None:
    mounts(tmp_path)
    found = host.drive_of(tmp_path, tmp_path)
    assert (found.key, found.mount, found.kind) == ("/dev/vdx ext4", "/with space", "ext4")
    assert found.limit is None
    mounts(tmp_path, "31 23 0:28 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw")
    write(tmp_path / "proc/self/cgroup", "0::/outer/inner")
    group = tmp_path / "sys/fs/cgroup/outer"
    write(group / "inner/io.max", f"{device(tmp_path)} rbps=max wbps=5 riops=max wiops=max")
    assert host.drive_of(tmp_path, tmp_path).limit is None
    write(group / "io.max", f"1:2 rbps=7 wbps=max\n{device(tmp_path)} rbps=200000 wbps=max")
    assert host.drive_of(tmp_path, tmp_path).limit == 200000


def test_the_limit_of_version_1(tmp_path: Path) -> None:
    mounts(tmp_path, "38 31 0:35 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio")
    write(tmp_path / "proc/self/cgroup", "7:blkio:/a\n4:memory:/b")
    write(
        tmp_path / "sys/fs/cgroup/blkio/a/blkio.throttle.read_bps_device",
        f"9:9 5\n{device(tmp_path)} 1000000",
    )
    assert host.drive_of(tmp_path, tmp_path).limit == 1000000


@pytest.mark.parametrize(
    ("line", "own", "files", "quota"),
    [
        ("cgroup2 cgroup2 rw", "0::/a", {"cpu.max": "150000 100000"}, 1.5),
        ("cgroup2 cgroup2 rw", "0::/a", {"cpu.max": "max 100000"}, None),
        (
            "cgroup cgroup rw,cpu,cpuacct",
            "3:cpu,cpuacct:/a",
            {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("cgroup cgroup rw,cpu", "3:cpu:/a", {"cpu.cfs_quota_us": "-1"}, None),
    ],
)
def test_cpu_quota(
    tmp_path: Path, line: str, own: str, files: dict[str, str], quota: float | None
) -> None:
    mounts(tmp_path, f"31 23 0:28 / /sys/fs/cgroup rw - {line}")
    write(tmp_path / "proc/self/cgroup", own)
    for name, text in files.items():
        write(tmp_path / "sys/fs/cgroup/a" / name, text)
    assert host.core_quota(tmp_path) == quota


def test_topology(tmp_path: Path) -> None:
    allowed = host.allowed_cores()
    cpus = tmp_path / "sys/devices/system/cpu"
    write(cpus / "online", "0-7,9")
    for n in allowed:
        write(cpus / f"cpu{n}/topology/thread_siblings_list", f"{n},{n + 100}")
        write(
            cpus / f"cpu{n}/cpufreq/cpuinfo_max_freq", 2_000_000 if n == allowed[-1] else 4_000_000
        )
    for index, (level, kind, size) in enumerate(
        [(1, "Data", "48K"), (1, "Instruction", "64K"), (3, "Unified", "12M")]
    ):
        folder = cpus / f"cpu{allowed[0]}/cache/index{index}"
        write(folder / "level", level)
        write(folder / "type", kind)
        write(folder / "size", size)
    write(tmp_path / "proc/cpuinfo", "processor\t: 0\nmodel name\t: A Chip\n")
    write(tmp_path / "proc/loadavg", "1.25 0.5 0.1 1/200 4242")
    found = host.cores(tmp_path)
    assert (found["name"], found["online"], found["busy"]) == ("A Chip", 9, 1.25)
    assert found["smt_siblings"] == [[n, n + 100] for n in allowed]
    assert found["efficiency"] == (allowed[-1:] if len(allowed) > 1 else [])
    assert found["caches"] == {"L1": 48 * KIB, "L3": 12 * MIB}
    assert host.last_level_cache(tmp_path) == 12 * MIB


def test_nothing_is_known_without_proc_and_sys(tmp_path: Path) -> None:
    found = host.cores(tmp_path)
    assert found["caches"] == {} and found["efficiency"] == [] and found["quota"] is None
    assert host.memory(tmp_path)["cgroup_limits"] == []
    assert host.drive_of(tmp_path, tmp_path) == Drive(device(tmp_path), "", "", None)


def test_memory_bandwidth() -> None:
    assert 1e8 < measure_memory(2, 4 * MIB, 0.02) < 1e13
    for arguments in ((0, MIB, 0.1), (-1, MIB, 0.1), (2000, MIB, 0.1), (2, 1000, 0.1)):
        with pytest.raises(ValueError, match="threads"):
            measure_memory(*arguments)


def test_every_format_can_be_measured() -> None:
    """Its made-up model is large enough for memory and small enough for the doctor's bound."""
    with random_file() as file:
        for number, format in enumerate(FORMATS.values()):
            probe = Probe(large(format), file, 1 + number % 2)
            assert 0 < probe.seconds(1) < 60
            probe.close()
            assert 0.85 < probe.weight_bytes / weight_bytes() < 1.15, format.name


class Shared:
    """A drive that others use: what it gives in a round goes for all requests alike."""

    size, alignment = 1 << 30, 4096

    def __init__(self, levels: list[float]) -> None:
        self.levels = levels
        self.n_reads = 0

    def measure(self, file: Any, io: str, size: int, depth: int, *rest: Any) -> dict[str, float]:
        assert file is self
        self.n_reads += 1
        turn = rest[1] - 1  # the seed
        speed = 1e9 * min(1.0, size * depth / MIB) * self.levels[turn % len(self.levels)]
        return {"bytes": speed, "seconds": 1.0, "cpu_seconds": 0.2 * speed / 1e9}


def test_the_curve_of_a_drive_that_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """How requests compare does not depend on when they had their turn, and the level is the
    mean of what came and went."""
    levels = [2.0, 0.5, 1.0, 1.1, 0.9, 2.2, 0.4, 1.0, 1.0, 0.9]
    file = Shared(levels)
    monkeypatch.setattr(drive, "measure_reads", file.measure)
    monkeypatch.setattr(drive, "why_no_uring", lambda _: "")
    monkeypatch.setattr(drive, "_BETWEEN_SECONDS", 0.0)
    found = drive.DriveCurve(cast(File, file)).finish()
    assert len(found) == 2 * (len(drive.SIZES) * len(drive.DEPTHS) - 1)  # 32 of a MiB are too much
    within = sorted(levels)[1:-1]
    for cell in found:
        share = min(1.0, cell.request_bytes * cell.depth / MIB)
        assert cell.rate.mid == pytest.approx(1e9 * share * sum(within) / len(within))
        assert cell.rate.low == pytest.approx(1e9 * share * within[0])
        assert cell.rate.high == pytest.approx(1e9 * share * within[-1])
        assert cell.cpu_s == pytest.approx(0.2 / 1e9)


def test_a_slow_drive_is_not_measured_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Shared([0.04])  # 40 MB/s: sixteen requests of a MiB take half a second
    clock = iter(range(0, 10**6, 6))
    monkeypatch.setattr(drive, "measure_reads", file.measure)
    monkeypatch.setattr(drive, "why_no_uring", lambda _: "")
    monkeypatch.setattr(drive.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(drive, "_BETWEEN_SECONDS", 0.0)
    curve = drive.DriveCurve(cast(File, file), drive.QUICK)
    found = curve.finish()
    assert curve.n_rounds == 2, "each took six seconds"
    assert file.n_reads == 2 * len(found)
    assert [(c.request_bytes, c.depth) for c in found] == list(drive.QUICK[:-1])


# --- the cache of rates ---------------------------------------------------------------------------


def test_rates_are_kept(rates_file: Path) -> None:
    rates = Rates(DRIVE)
    assert rates.cells() == [] and rates.thread_counts() == [] and not rates.has_curve()
    known(rates, 2)
    rates.store_drive(cells(2e9), whole=True)
    rates.store_memory({"1": rate(2e10)})
    rates.store_memory({"fresh": rate(2e9)})
    again = Rates(DRIVE)
    assert again.cells() == rates.cells() and len(again.cells()) == 9 and again.has_curve()
    assert again.kernel(2, "decode", "Q4_0") == Rate(1.08e10, 1.2e10, 1.32e10)
    assert again.kernel(1, "decode", "Q4_0") is None and again.kernel(2, "decode", "F16") is None
    assert again.thread_counts() == [2] and again.memory(1) is not None
    assert again.fresh_memory() == Rate(1.8e9, 2e9, 2.2e9)
    assert Rates(Drive("another", "/", "xfs", None)).cells() == []
    assert list(rates_file.parent.iterdir()) == [rates_file], "nothing half-written stays"
    again.forget()
    assert Rates(DRIVE).cells() == [] and Rates(DRIVE).thread_counts() == []


def test_a_new_build_is_measured_again(rates_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(Rates(), 1)
    monkeypatch.setattr("edge_rt.machine.rates.__version__", "another")
    rates = Rates()
    assert rates.thread_counts() == []
    known(rates, 1)
    (machine,) = json.loads(rates_file.read_text())["machines"].values()
    assert len(machine["kernels"]) == 1, "rates of builds that are gone are forgotten"


def test_a_limit_caps_the_curve(rates_file: Path) -> None:
    Rates(DRIVE).store_drive(cells(2e9), whole=True)
    slow = Rates(Drive(DRIVE.key, "/", "ext4", 200_000_000))
    assert max(cell.rate.mid for cell in slow.cells()) == 2e8
    assert min(c.rate.mid for c in slow.cells()) == min(c.rate.mid for c in Rates(DRIVE).cells())
    slow.store_drive(cells(1.5e8), whole=False)  # measured under the limit: that goes first
    assert max(cell.rate.mid for cell in slow.cells()) < 1.51e8
    assert max(cell.rate.mid for cell in Rates(DRIVE).cells()) > 1.9e9


def _damage(rng: random.Random, value: Any) -> Any:
    """``value`` with one thing in it replaced."""
    strange = (None, True, -1, 0, 1e400, "x", [], {}, [[]], {"2": {"decode": 5}}, [1, 2], 10**400)
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        return value | {key: _damage(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return [*value[:at], _damage(rng, value[at]), *value[at + 1 :]]
    return rng.choice(strange)


def test_a_damaged_cache_counts_as_not_measured(rates_file: Path, long_model: Path) -> None:
    rates = Rates(DRIVE)
    known(rates, 1)
    rates.store_drive(cells(2e9), whole=True)
    rates.learn("run", 1.1)
    text = rates_file.read_text()
    rng = random.Random()
    damaged = [text[: rng.randrange(len(text))] for _ in range(20)]
    damaged += [json.dumps(_damage(rng, json.loads(text))) for _ in range(60)]
    damaged += ["", "[" * 100_000, "null", "[]", '{"version": 2}', "\udcff", '{"version": 1}']
    planner = open_planner(long_model)[1]
    for sample in damaged:
        rates_file.write_text(sample, errors="surrogateescape")
        rates = planner.rates = Rates(DRIVE)
        planner.forget_models()
        settings = make_settings(planner, "60MiB", 64, 1)
        found = forecast(planner, planner.plan(settings))
        assert 0 < found["tok_s_low"] <= found["tok_s"] <= found["tok_s_high"], sample
        rates.learn("run", 1.2)
        known(rates, 1)
        rates.store_drive(cells(2e9), whole=True)
        again = Rates(DRIVE)
        assert again.kernel(1, "decode", "Q4_0") is not None and len(again.cells()) == 9, sample


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    rates = Rates(DRIVE)
    known(rates, 1)
    rates.store_drive(cells(1e9), whole=True)
    assert rates.kernel(1, "decode", "Q4_0") is not None, "this process knows what it measured"
    assert Rates(DRIVE).cells() == []
