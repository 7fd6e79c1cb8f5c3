"""What a process may still have: cgroups of both versions, as a tree of files shows them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from edge_rt.process import available_bytes

MIB = 1 << 20
V2 = "31 23 0:28 {top} /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 {top} {point} rw,relatime - cgroup cgroup rw,memory"


class Machine:
    """A tree of proc and sys with 1 GiB free."""

    def __init__(self, root: Path, own: str | None, mounts: list[str]) -> None:
        self.root = root
        self.write(
            "proc/meminfo", "MemTotal: 4194304 kB\nMemFree: 1 kB\nMemAvailable: 1048576 kB\n"
        )
        if own is not None:
            self.write("proc/self/cgroup", own + "\n")
            other = (
                "22 1 0:20 / /sys rw - sysfs sysfs rw\n31 23 0:28 / /x\\040y rw - tmpfs tmpfs rw"
            )
            self.write("proc/self/mountinfo", "\n".join([other, *mounts]) + "\n")

    def write(self, name: str, text: object) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}")

    def v2(self, group: str, **files: object) -> None:
        for name, value in files.items():
            self.write(f"sys/fs/cgroup/{group}/memory.{name}", f"{value}\n")

    def v1(self, group: str, limit: int, usage: int, stat: str = "") -> None:
        base = f"sys/fs/cgroup/memory/{group}"
        self.write(f"{base}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{base}/memory.usage_in_bytes", f"{usage}\n")
        self.write(f"{base}/memory.stat", stat)

    @property
    def room(self) -> float:
        """MiB."""
        return available_bytes(self.root) / MIB


def test_v2_limits_of_every_group_around_us(tmp_path: Path) -> None:
    m = Machine(tmp_path, "0::/user.slice/app.scope", [V2.format(top="/")])
    assert m.room == 1024
    m.v2("", stat="inactive_file 5\n")  # the root group has no limit of its own
    m.v2("user.slice/app.scope", max=500 * MIB, high="max", current=100 * MIB)
    assert m.room == 400
    m.v2("user.slice", max="max", high=450 * MIB, current=200 * MIB)
    assert m.room == 250
    m.v2("user.slice/other.scope", max=1, current=1)
    assert m.room == 250
    m.v2("user.slice/app.scope", high=120 * MIB)
    assert m.room == 20
    m.v2("user.slice/app.scope", current=121 * MIB)
    assert m.room == 0


def test_v2_page_cache_is_given_back(tmp_path: Path) -> None:
    m = Machine(tmp_path, "0::/a", [V2.format(top="/")])
    stat = f"anon 1\nfile {900 * MIB}\nworkingset_inactive_file 7\ninactive_file {80 * MIB}\n"
    m.v2("a", max=100 * MIB, current=95 * MIB, stat=stat + f"active_file {MIB}\n")
    assert m.room == 85
    m.v2("a", current=60 * MIB)  # read at another moment than stat
    assert m.room == 100


@pytest.mark.parametrize(
    ("own", "top", "group"),
    [
        ("0::/", "/", ""),  # a cgroup namespace: our group is the top
        ("0::/../other", "/", ""),  # moved out of the namespace's
        ("0::/docker/abc", "/docker/abc", ""),  # no namespace, the mount is our group
        ("0::/docker/abc/in/side", "/docker/abc", "in/side"),
        ("0::/docker/abcd", "/docker/abc", ""),  # a name that is not below the mount
        ("0::/gone/away", "/", ""),  # a container whose mount does not show it
        ("0::/a:b", "/", "a:b"),  # colons belong to the name
        ("1:name=systemd:/x\n0::/deep/er", "/", "deep/er"),
    ],
)
def test_v2_seen_from_containers(tmp_path: Path, own: str, top: str, group: str) -> None:
    m = Machine(tmp_path, own, [V2.format(top=top)])
    m.v2("never/here", max=1, current=0)
    m.v2(group, max=64 * MIB, current=4 * MIB)
    assert m.room == 60


def test_v1(tmp_path: Path) -> None:
    mounts = [V1.format(top="/", point="/sys/fs/cgroup/memory")]
    m = Machine(tmp_path, "5:cpu,cpuacct:/x\n4:memory,hugetlb:/a/b\n0::/", mounts)
    unlimited = 0x7FFFFFFFFFFFF000
    m.v1("", unlimited, 700 * MIB)
    assert m.room == 1024
    m.v1("a", 300 * MIB, 200 * MIB, f"inactive_file 1\ntotal_inactive_file {50 * MIB}\n")
    m.v1("a/b", unlimited, 9)
    assert m.room == 150
    m.v1("a/b", 60 * MIB, 50 * MIB, f"inactive_file {9 * MIB}\ntotal_inactive_file 0\n")
    assert m.room == 10


def test_both_versions_at_once(tmp_path: Path) -> None:
    """Hybrid: v2 is mounted without the memory controller, which v1 has."""
    hybrid = V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified").format(top="/")
    v1 = V1.format(top="/docker/x", point="/sys/fs/cgroup/memory")
    m = Machine(tmp_path, "4:memory:/docker/x\n0::/", [hybrid, v1])
    m.write("sys/fs/cgroup/unified/cgroup.procs", "1\n")
    m.v1("", 200 * MIB, 150 * MIB)
    assert m.room == 50


def test_mounted_elsewhere(tmp_path: Path) -> None:
    m = Machine(tmp_path, "4:memory:/a", [V1.format(top="/", point="/mnt/my\\040groups")])
    m.write("mnt/my groups/a/memory.limit_in_bytes", 90 * MIB)
    assert m.room == 90  # a usage that cannot be read is none


@pytest.mark.parametrize("version", [1, 2])
def test_a_hidden_proc(tmp_path: Path, version: int) -> None:
    m = Machine(tmp_path, None, [])
    if version == 2:
        m.v2("", max=100 * MIB, current=30 * MIB)
    else:
        m.v1("", 100 * MIB, 30 * MIB)
    assert m.room == 70
    (tmp_path / "proc/meminfo").unlink()
    assert 0 < m.room <= 70


def test_odd_files(tmp_path: Path) -> None:
    m = Machine(tmp_path, "0::/a", [V2.format(top="/")])
    for text in ("", "-1", "many", "1 2", "\xff", str(1 << 63), "9" * 30):
        m.v2("a", max=text, current=0)
        assert m.room == 1024, text
    m.v2("a", max=0, current=5)
    assert m.room == 0


def test_the_limit_that_we_are_in(cgroup: ModuleType, tmp_path: Path) -> None:
    """For real: what the process holds counts, the page cache of a file that it read does not."""
    (tmp_path / "file").write_bytes(bytes(64 * MIB))
    cgroup.drop_file_cache(tmp_path / "file")
    code = (
        "import sys\nfrom edge_rt.process import available_bytes\n"
        "print(available_bytes())\nheld = bytearray(50 << 20)\nprint(available_bytes())\n"
        "with open(sys.argv[1], 'rb') as file:\n    while file.read(1 << 20): pass\n"
        "print(available_bytes())\n"
    )
    done = cgroup.run([sys.executable, "-c", code, str(tmp_path / "file")], 256 * MIB)
    assert done.rc == 0, done.stderr
    assert done.cgroup_peak_bytes > 114 * MIB
    before, holding, cached = (int(line) / MIB for line in done.stdout.split())
    assert 200 < before < 256 and 48 < before - holding < 56 and abs(holding - cached) < 8
