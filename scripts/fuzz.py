"""Build and run the fuzz targets: python scripts/fuzz.py [--minutes M] [--jobs N] [TARGET...]

Python targets are files of tests/fuzz and need atheris (the extra ``fuzz``), native ones are files
of tests/fuzz/native and need clang with libFuzzer. Corpora grow under build/fuzz/TARGET/corpus. The
folder ``--logs`` (build/fuzz) gets a folder for each target with its logs and the inputs of its
findings, and a table of all runs as ``table.md`` and ``results.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUZZ = ROOT / "tests/fuzz"
NATIVE_BUILD = ROOT / "build/fuzz/native"
NO_TARGETS = {"__init__", "__main__", "harness", "mutate"}
PYTHON = sorted(p.stem for p in FUZZ.glob("*.py") if p.stem not in NO_TARGETS)
NATIVE = sorted(p.stem for p in (FUZZ / "native").glob("*.cc") if p.stem != "replay")
# Where large inputs mean something; otherwise small ones are faster.
MAX_BYTES = {
    "gguf": 32768, "safetensors": 16384, "tokenizer_json": 16384, "gguf_vocabulary": 16384,
    "encode": 1024, "json_stream": 1024,
}  # fmt: skip
MOST_FINDINGS = 10  # of one target: it is started again after each
POLL_S = 5.0
STATUS = re.compile(r"^#(\d+)\s+\w+\s+(?:cov: (\d+) ft: (\d+) )?.*?corp: (\d+)/")
EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


@dataclass
class Result:
    """What one target did; minutes of processor time and by the clock."""

    target: str
    language: str
    executions: int = 0
    executions_s: float = 0.0
    edges: int = 0
    features: int = 0
    corpus: int = 0
    cpu_min: float = 0.0
    wall_min: float = 0.0
    findings: list[str] = field(default_factory=list)
    state: str = "waiting"


class Run:
    """One target; its process is started again for each slice of its time and after a finding."""

    def __init__(self, target: str, minutes: float, slice_: float, logs: Path) -> None:
        self.native = target in NATIVE
        self.result = Result(target, "C++" if self.native else "Python")
        self._minutes, self._slice, self._logs = minutes, slice_, logs / target
        self._corpus = ROOT / "build/fuzz" / target / "corpus"
        for folder in (self._logs, self._corpus):
            folder.mkdir(parents=True, exist_ok=True)
        self._done = self.result  # by the processes before
        self._known = set(self._findings())

    def resume(self, before: Result) -> None:
        """Go on where an earlier run of the same code ended."""
        self.result = replace(
            before, state="done" if before.cpu_min >= self._minutes else "waiting"
        )
        self._done = self.result
        self._known -= set(before.findings)

    def start(self) -> None:
        """Start a process for one slice."""
        target = self.result.target
        program = (
            [str(NATIVE_BUILD / f"tests/fuzz/native/fuzz_{target}")]
            if self.native
            else [sys.executable, str(FUZZ), target]
        )
        self.result = replace(self.result, state="running")
        self.log = self._logs / time.strftime(f"{target}-%Y%m%d-%H%M%S.log")
        self._started, self._ending, self._cpu = time.monotonic(), 0.0, 0.0
        environment = os.environ | {
            "ASAN_OPTIONS": "quarantine_size_mb=32:detect_leaks=1:strict_string_checks=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *program, f"-max_len={MAX_BYTES.get(target, 8192)}", "-len_control=0",
                    "-timeout=60", "-rss_limit_mb=2048", "-print_final_stats=1",
                    f"-max_total_time={int(self._slice * 60 * 20)}",
                    f"-artifact_prefix={self._logs}/", str(self._corpus),
                ],
                cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
                preexec_fn=lambda: os.nice(19),
            )  # fmt: skip

    def _cpu_seconds(self) -> float:
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return self._cpu
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def _findings(self) -> list[str]:
        kinds = ("crash-", "timeout-", "oom-", "leak-")
        return sorted(p.name for p in self._logs.iterdir() if p.name.startswith(kinds))

    def poll(self) -> bool:
        """Look at the process; False when it has ended."""
        ended = self.process.poll() is not None
        if not ended:
            self._cpu = self._cpu_seconds()
        self._read_log()
        result, done = self.result, self._done
        result.cpu_min = done.cpu_min + self._cpu / 60
        result.wall_min = done.wall_min + (time.monotonic() - self._started) / 60
        result.executions_s = result.executions / max(60 * result.wall_min, 1)
        result.findings = [name for name in self._findings() if name not in self._known]
        enough = self._cpu / 60 >= self._slice or result.cpu_min >= self._minutes
        if not ended:
            if enough and not self._ending:
                self.process.send_signal(signal.SIGUSR1)  # libFuzzer ends and says its numbers
                self._ending = time.monotonic()
            elif self._ending and time.monotonic() - self._ending > 120:
                self.process.kill()
            return True
        found = len(result.findings) > len(done.findings)
        if result.cpu_min >= self._minutes:
            result.state = "done"
        elif not enough and not found:
            result.state = f"ended with {self.process.returncode}: see {self.log}"
        elif len(result.findings) >= MOST_FINDINGS:
            result.state = "too many findings"
        else:
            result.state = "waiting"
        self._done = replace(result, findings=list(result.findings))
        return False

    def _read_log(self) -> None:
        lines = self.log.read_text(errors="replace").splitlines()
        for line in reversed(lines):
            if match := STATUS.match(line):
                executions, edges, features, corpus = (int(n or 0) for n in match.groups())
                self.result.edges = max(self.result.edges, edges)
                self.result.features = max(self.result.features, features)
                self.result.corpus = corpus
                break
        else:
            return
        for line in reversed(lines[-12:]):
            if match := EXECUTED.match(line):
                executions = int(match[1])
        self.result.executions = self._done.executions + executions


def build_native() -> None:
    """Configure and build the native targets with clang's sanitizers."""
    compiler = os.environ.get("CXX") or next(
        (name for name in ("clang++", *(f"clang++-{n}" for n in range(21, 13, -1)))
         if shutil.which(name)), "clang++"
    )  # fmt: skip
    options = [
        f"-DCMAKE_CXX_COMPILER={compiler}", "-DEDGE_RT_FUZZ=ON",
        "-DEDGE_RT_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
    ]  # fmt: skip
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(NATIVE_BUILD), *generator, *options],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    subprocess.run(["cmake", "--build", str(NATIVE_BUILD), "-j", "2"], check=True)


def write_table(results: list[Result], logs: Path) -> str:
    columns = [
        "Target", "Language", "Executions", "1/s", "Edges", "Features", "CPU min", "Wall min",
        "Findings",
    ]  # fmt: skip
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for r in results:
        findings = f"{len(r.findings)}" + ("" if r.state == "done" else f" ({r.state})")
        rows.append(
            f"| {r.target} | {r.language} | {r.executions:,} | {r.executions_s:.0f} | {r.edges} | "
            f"{r.features} | {r.cpu_min:.1f} | {r.wall_min:.1f} | {findings} |"
        )
    table = "\n".join(rows) + "\n"
    (logs / "table.md").write_text(table)
    (logs / "results.json").write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    return table


def main() -> int:
    """Run the targets, ``--jobs`` at a time; 1 if there is a finding or a target did not run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(PYTHON + NATIVE))
    parser.add_argument("--minutes", type=float, default=20, help="processor time of each (20)")
    parser.add_argument("--slice", type=float, help="of it before the others have a turn (all)")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time (1)")
    parser.add_argument("--logs", type=Path, default=ROOT / "build/fuzz")
    parser.add_argument("--resume", action="store_true", help="go on from results.json in --logs")
    parser.add_argument("--no-build", action="store_true", help="native targets are built already")
    options = parser.parse_args()
    names = options.targets or PYTHON + NATIVE
    if unknown := set(names) - {*PYTHON, *NATIVE}:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {PYTHON + NATIVE}")
    if set(names) & set(NATIVE) and not options.no_build:
        build_native()
    logs = options.logs.resolve()
    logs.mkdir(parents=True, exist_ok=True)
    runs = [
        Run(target, options.minutes, options.slice or options.minutes, logs) for target in names
    ]
    if options.resume and (logs / "results.json").is_file():
        before = {r["target"]: Result(**r) for r in json.loads((logs / "results.json").read_text())}
        for run in runs:
            if run.result.target in before:
                run.resume(before[run.result.target])
    waiting = [run for run in runs if run.result.state == "waiting"]
    running: list[Run] = []
    while waiting or running:
        while waiting and len(running) < options.jobs:
            running.append(waiting.pop(0))
            running[-1].start()
        time.sleep(POLL_S)
        for run in list(running):
            if not run.poll():
                running.remove(run)
                if run.result.state == "waiting":
                    waiting.append(run)
        table = write_table([run.result for run in runs], logs)
    print(table, end="")
    return int(any(run.result.findings or run.result.state != "done" for run in runs))


if __name__ == "__main__":
    sys.exit(main())
