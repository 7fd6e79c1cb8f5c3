"""What is known of the machine: the system's description, the cache of rates, the model on top."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from edge_rt.flash_io._flash_io import File
from edge_rt.forecast import POSITION, curve, forecast, learn, step_seconds
from edge_rt.machine import drive, host
from edge_rt.machine.host import Drive
from edge_rt.machine.probe import Probe, large, random_file, weight_bytes
from edge_rt.machine.rates import FILE_NAME, Cell, Rate, Rates
from edge_rt.opening import make_settings, open_planner
from edge_rt.performance import Performance, Stream, interpolate
from edge_rt.planner import Planner
from edge_rt.program import HEAD, LAYERS
from edge_rt.quant.blocks import FORMATS
from edge_rt.runtime._runtime import measure_memory
from edge_rt.sizes import KIB, MIB

from .conftest import load_script

DRIVE = Drive("/dev/made-up ext4", "/", "ext4", None)


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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/edge-rt" / FILE_NAME


def rate(mid: float) -> Rate:
    return Rate(0.9 * mid, mid, 1.1 * mid)


def cells(best: float, latency: float = 1e-4, io: str = "uring") -> list[Cell]:
    return [
        Cell(io, size, depth, rate(min(best, depth * size / (latency + size / best))), 1e-11)
        for size in (4 * KIB, 64 * KIB, MIB)
        for depth in (1, 4, 16)
    ]


def known(rates: Rates, n_threads: int, scale: float = 1.0) -> None:
    """Store rates of a plausible machine, each different, ``scale`` times as fast."""
    formats = {"Q4_0": 12e9, "Q4_1": 11e9, "Q8_0": 15e9, "F32": 16e9, "Q6_K": 7e9}
    rates.store_kernels(
        n_threads,
        {
            "layer": rate(1e-5 / scale).stored(),
            "token": rate(3e-5 / scale).stored(),
            "attention": {"f16": rate(3e9 * scale).stored()},
            "attention_pass": {"f16": rate(5e9 * scale).stored()},
            "vectors": rate(4e-10 / scale).stored(),
            "decode": {name: rate(r * scale).stored() for name, r in formats.items()},
            "pass": {name: rate(r * scale).stored() for name, r in formats.items()},
            "prefill": {name: rate(5 * r * scale).stored() for name, r in formats.items()},
        },
    )


def test_rates_are_kept(cache: Path) -> None:
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
    assert list(cache.parent.iterdir()) == [cache], "nothing half-written stays"
    again.forget()
    assert Rates(DRIVE).cells() == [] and Rates(DRIVE).thread_counts() == []


def test_a_new_build_is_measured_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(Rates(), 1)
    monkeypatch.setattr("edge_rt.machine.rates.__version__", "another")
    rates = Rates()
    assert rates.thread_counts() == []
    known(rates, 1)
    (machine,) = json.loads(cache.read_text())["machines"].values()
    assert len(machine["kernels"]) == 1, "rates of builds that are gone are forgotten"


def test_a_limit_caps_the_curve(cache: Path) -> None:
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


def test_a_damaged_cache_counts_as_not_measured(cache: Path, long_model: Path) -> None:
    rates = Rates(DRIVE)
    known(rates, 1)
    rates.store_drive(cells(2e9), whole=True)
    rates.learn("run", 1.1)
    text = cache.read_text()
    rng = random.Random()
    damaged = [text[: rng.randrange(len(text))] for _ in range(20)]
    damaged += [json.dumps(_damage(rng, json.loads(text))) for _ in range(60)]
    damaged += ["", "[" * 100_000, "null", "[]", '{"version": 2}', "\udcff", '{"version": 1}']
    planner = open_planner(long_model)[1]
    for sample in damaged:
        cache.write_text(sample, errors="surrogateescape")
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


# --- the model ------------------------------------------------------------------------------------


def test_interpolation() -> None:
    measured = cells(2e9)
    for cell in measured:
        assert interpolate(measured, cell.request_bytes, cell.depth)[0].mid == pytest.approx(
            cell.rate.mid
        )
    sizes = [interpolate(measured, size, 3)[0].mid for size in range(1 * KIB, 3 * MIB, 50 * KIB)]
    depths = [interpolate(measured, 100 * KIB, depth)[0].mid for depth in range(1, 64)]
    for row in (sizes, depths):
        assert all(a <= b * (1 + 1e-9) for a, b in pairwise(row)) and row[0] < row[-1]
    assert interpolate(measured, 1, 1) == interpolate(measured, 4 * KIB, 1)
    assert interpolate(measured, 1 << 40, 99) == interpolate(measured, MIB, 16)


@pytest.fixture
def planner(cache: Path, demo_model: Path) -> Planner:
    found = open_planner(demo_model)[1]
    found.rates = Rates(DRIVE)
    known(found.rates, 1)
    known(found.rates, 2, 1.7)
    found.rates.store_drive(cells(1e9), whole=True)
    found.forget_models()
    return found


def test_a_step_is_the_slower_of_reading_and_computing(planner: Planner) -> None:
    model = Performance(planner.program, planner.rates, 1, "f16")
    total = sum(m.n_bytes for m in planner.program.matrices)
    near = model.step(Stream(), POSITION)
    assert near.reads.mid == 0
    weights = sum(
        m.n_bytes / {"Q4_1": 11e9, "F32": 16e9, "Q8_0": 15e9, "Q6_K": 7e9}[m.format.name]
        for m in planner.program.matrices
    )
    assert weights < near.total.mid < 1.3 * weights
    assert model.step(Stream(), 2000).total.mid > near.total.mid
    streaming = model.step(Stream(total, 0, 128 * KIB, 16), POSITION)
    assert streaming.reads.mid == pytest.approx(total / 0.9e9, rel=0.01)
    assert streaming.total.mid == pytest.approx(streaming.reads.mid, rel=0.05)
    assert model.step(Stream(total, 0, 128 * KIB, 1), POSITION).total.mid > streaming.total.mid
    assert Performance(planner.program, planner.rates, 2, "f16").step(
        Stream(), POSITION
    ).total.mid == pytest.approx(near.total.mid / 1.7, rel=0.02)


def test_what_was_not_measured_has_a_wide_interval(planner: Planner) -> None:
    def width(n_threads: int, rates: Rates) -> float:
        total = Performance(planner.program, rates, n_threads, "f16").step(Stream(), 9).total
        assert total.low < total.mid < total.high
        return total.high / total.low

    assert width(2, planner.rates) < width(3, planner.rates) < width(2, Rates.unknown())


def test_prompts_in_passes(planner: Planner) -> None:
    model = Performance(planner.program, planner.rates, 1, "f16")
    resident = [model.prompt(Stream(), 512, n).mid for n in (16, 64, 256)]
    assert resident[0] > resident[1] > resident[2]
    one = model.prompt(Stream(), 256, 256).mid
    assert 2 * one < resident[2] < 3 * one  # attention grows
    layers = sum(m.n_bytes for m in planner.program.matrices if m.segment == LAYERS)
    head = sum(m.n_bytes for m in planner.program.matrices if m.segment == HEAD)
    planner.rates.store_drive(cells(1e7), whole=True)
    slow = Performance(planner.program, planner.rates, 1, "f16")
    stream = Stream(layers, head, 128 * KIB, 16)
    for n_passes, pass_tokens in ((8, 64), (2, 256)):
        expected = (n_passes * layers + head) / 0.9e7
        assert slow.prompt(stream, 512, pass_tokens).mid == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", ["vectors", "attention_pass", "pass", "prefill"])
def test_prompts_take_what_is_slow(planner: Planner, name: str) -> None:
    """Each rate of passes counts for prompts, and for decoding only what a token has as well."""

    def seconds() -> tuple[float, float]:
        model = Performance(planner.program, planner.rates, 1, "f16")
        return model.prompt(Stream(), 512, 64).mid, model.step(Stream(), POSITION).total.mid

    prompt, step = seconds()
    stored = json.loads(json.dumps(planner.rates._kernels(1)[name]))
    slower = (
        rate(stored[1] * 3).stored()
        if name == "vectors"
        else {key: rate(value[1] / 3).stored() for key, value in stored.items()}
    )
    planner.rates.store_kernels(1, {name: slower})
    slow_prompt, slow_step = seconds()
    assert slow_prompt > 1.02 * prompt
    assert (slow_step > step) is (name == "vectors")


def test_streams_reach_the_limit_and_less_than_the_doctor(planner: Planner) -> None:
    stream = Stream(100 * MIB, 0, MIB, 16)
    planner.rates.store_drive(cells(1e9), whole=True)
    free = Performance(planner.program, planner.rates, 1, "f16").step(stream, 1).reads.mid
    assert 1.05 < free / (100 * MIB / 1e9) < 1.2
    planner.rates.drive = replace(DRIVE, limit=500_000_000)
    held = Performance(planner.program, planner.rates, 1, "f16").step(stream, 1).reads.mid
    assert held == pytest.approx(100 * MIB / 5e8, rel=0.01)


def test_loading_waits_for_memory(planner: Planner) -> None:
    def seconds() -> float:
        return Performance(planner.program, planner.rates, 1, "f16").load(100 * MIB).mid

    planner.rates.store_memory({"fresh": rate(1e11)})
    assert seconds() == pytest.approx(100 * MIB / 1e9, rel=0.02)
    planner.rates.store_memory({"fresh": rate(2e8)})
    assert seconds() == pytest.approx(100 * MIB / 2e8, rel=0.02)


def test_sizes_follow_the_rates(planner: Planner) -> None:
    """A drive that needs many requests in flight gets a larger ring; one whose passes read longer
    than they compute gets longer passes where they cost nothing; the floor is the same."""

    def plan(measured: list[Cell], cap: int | None = None) -> Any:
        settings = make_settings(planner, "110MiB", 512, 1, weight_cap=cap)
        planner.rates.store_drive(measured, whole=True)
        planner.forget_models()
        return planner.plan(settings)

    quick, distant = plan(cells(1e9, 1e-6)), plan(cells(1e9, 3e-3))
    assert distant.ring_bytes > quick.ring_bytes
    assert distant.stream.depth > quick.stream.depth
    slow = plan(cells(2e7, 1e-6), MIB)
    assert slow.pass_tokens > quick.pass_tokens
    assert quick.floor_bytes == distant.floor_bytes == slow.floor_bytes


def test_threads_that_hinder_are_left_out(planner: Planner) -> None:
    known(planner.rates, 4, 0.5)  # slower together than one alone
    settings = make_settings(planner, "400MiB", 512, 4)
    assert planner.plan(settings).n_threads == 4, "what the user says goes"
    planner.forget_models()
    chosen = planner.plan(replace(settings, threads_open=True))
    assert chosen.n_threads == 2 and chosen.floor_bytes == planner.plan(settings).floor_bytes


def test_reads_come_in_step_with_computing(tmp_path: Path, cache: Path) -> None:
    """At every point of a pass, what was streamed so far is its share of the time so far."""
    maker = load_script("make_model")
    config = maker.Config(
        layers=8, hidden=512, ffn=2048, heads=8, kv_heads=8, head_dim=64, vocab=4096,
        format="Q4_0", context=512,
    )  # fmt: skip
    maker.build(config, 3).write(tmp_path / "m.gguf")
    planner = open_planner(tmp_path / "m.gguf")[1]
    known(planner.rates, 1)
    planner.forget_models()
    floor, _ = planner.floor(make_settings(planner, 1 << 40, 64, 1))
    for share in (0.2, 0.5, 0.8):
        budget = floor + int(share * planner.weight_bytes)
        plan = planner.plan(make_settings(planner, budget, 64, 1))
        slowness = planner.performance(plan.settings).slowness
        tiles = planner.cut(plan.tile_bytes).all
        costs = [
            t.n_bytes * slowness(planner.program.matrices[t.matrix].format.name) for t in tiles
        ]
        out = [(t.matrix, t.row) not in plan.tile_offsets for t in tiles]
        streamed = sum(t.n_bytes for t, s in zip(tiles, out, strict=True) if s)
        assert streamed > 0
        seen, spent = 0, 0.0
        largest = max(t.n_bytes for t in tiles)
        for tile, cost, is_out in zip(tiles, costs, out, strict=True):
            spent += cost
            seen += tile.n_bytes if is_out else 0
            assert abs(seen - streamed * spent / sum(costs)) < 3 * largest


# --- forecasts ------------------------------------------------------------------------------------


def test_forecast_and_curve(planner: Planner) -> None:
    floor, _ = planner.floor(make_settings(planner, 1 << 40, 512, 1))
    speeds = []
    for ram in (floor, floor + planner.weight_bytes // 2, floor + 2 * planner.weight_bytes):
        plan = planner.plan(make_settings(planner, ram, 512, 1))
        found = forecast(planner, plan, opening_s=0.5)
        assert found["source"] == "measured"
        for name in ("tok_s", "ttft_s", "load_s"):
            assert 0 < found[f"{name}_low"] <= found[name] <= found[f"{name}_high"], name
        assert found["load_s"] >= 0.5 and found["tok_s_full_context"] <= found["tok_s"]
        speeds.append(found["tok_s"])
    assert found["tok_s_full_context"] < found["tok_s"]
    assert speeds[0] < speeds[1] < speeds[2]
    shown = curve(planner, make_settings(planner, "200MiB", 512, 1))
    rows = shown["curve"]
    assert rows[0]["ram_bytes"] == floor and rows[0]["tok_s"] == pytest.approx(speeds[0], rel=0.03)
    assert rows[-1]["tok_s"] == pytest.approx(speeds[2], rel=0.03)
    assert all(a["ram_bytes"] < b["ram_bytes"] for a, b in pairwise(rows))
    assert all(a["tok_s"] <= 1.02 * b["tok_s"] for a, b in pairwise(rows))
    knee = shown["knee_bytes"]
    assert floor <= knee <= rows[-1]["ram_bytes"] + MIB
    for ram, enough in ((knee, True), (knee - 4 * MIB, False)):
        plan = planner.plan(make_settings(planner, ram, 512, 1))
        fast = forecast(planner, plan)["tok_s"]
        assert (fast >= 0.94 * rows[-1]["tok_s"]) is enough


def test_earlier_runs_correct_the_forecast(planner: Planner) -> None:
    plans = {
        name: planner.plan(make_settings(planner, ram, 512, 1))
        for name, ram in (("whole", "400MiB"), ("streamed", "80MiB"))
    }
    before = {name: step_seconds(planner, plan)[0] for name, plan in plans.items()}
    learn(planner, plans["whole"], POSITION, 8, 1.0, 0.0)
    assert step_seconds(planner, plans["whole"])[1] is False, "eight steps say nothing"
    for _ in range(3):
        learn(planner, plans["whole"], POSITION, 64, 64 * 1.3 * before["whole"].mid, 0.0)
    after, corrected = step_seconds(planner, plans["whole"])
    assert corrected and after.mid == pytest.approx(1.3 * before["whole"].mid, rel=1e-3)
    assert after.high / after.low < before["whole"].high / before["whole"].low
    assert step_seconds(planner, plans["streamed"]) == (before["streamed"], False)
    seconds = 64 * before["streamed"].mid
    learn(planner, plans["streamed"], POSITION, 64, seconds, 0.0)
    assert step_seconds(planner, plans["streamed"])[1] is False, "nobody waited for the drive"
    learn(planner, plans["streamed"], POSITION, 64, 1.2 * seconds, 0.9 * seconds)
    assert step_seconds(planner, plans["streamed"])[1] is True
    planner.rates = Rates(DRIVE)
    planner.forget_models()
    assert step_seconds(planner, plans["whole"]) == (after, True), "it was kept"


def test_ratios_that_say_nothing_are_not_kept(cache: Path) -> None:
    rates = Rates(DRIVE)
    for ratio in (0.01, 100.0):
        rates.learn("run", ratio)
        assert rates.correction("run") is None
    for number in range(200):
        rates.learn(f"run {number % 90}", 1.0 + number / 1000)
    (machine,) = json.loads(cache.read_text())["machines"].values()
    assert len(machine["runs"]) <= 64
    assert all(len(ratios) <= 5 for ratios in machine["runs"].values())


def test_errors_of_forecasts() -> None:
    script = load_script("bench_forecast")
    names = ("tok_s", "ttft_s", "load_s")

    def row(forecast: float, measured: float) -> dict[str, Any]:
        ends = {f"{name}_low": 0.9 * forecast for name in names}
        ends |= {f"{name}_high": 1.1 * forecast for name in names}
        return {
            "forecast": ends | dict.fromkeys(names, forecast),
            "measured": dict.fromkeys(names, measured),
        }

    rows = [row(10.0, 10.5), row(10.0, 8.0), row(9.0, 10.0), row(20.0, 20.0)]
    found = script.summary(rows)["tok_s"]
    assert found["worst_error"] == pytest.approx(0.25)
    assert found["median_error"] == pytest.approx((0.5 / 10.5 + 0.1) / 2)
    assert found["interval_holds"] == 0.5
    assert script.speeds("full,1G,200M") == [None, 10**9, 2 * 10**8]
