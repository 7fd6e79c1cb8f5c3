"""The fault matrix: every place that reads a model's files, met by every fault, and the judgement.

A cell holds if the run either ends with `StorageError` that names the file (and, where a read
failed, the offset), or gives the very same texts, tokens and logits as without the fault; if what
was said before an error is the beginning of the right answer; if it ends in time; if the same
engine then works or says that it is closed or that its file changed; and if a second engine in the
same process gives the right answer.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

from edge_rt import EdgeRTError, Engine, StorageError, Tokenizer, UsageError
from edge_rt.flash_io._flash_io import Faults
from edge_rt.flash_io.files import set_faults
from edge_rt.life_cycle import LifeCycle

from .faulty_models import Model, build, restore
from .fuse_server import Mount, change

RAM, OTHER_RAM, CTX = "4GiB", "3GiB", 96
PROMPT = "the rain in the north is hard and then it ends"
SECOND_PROMPT = "lion"
BOUND_S = 20.0  # an error comes within this; far above what machines under load need
SHORT_DELAY_MS, LONG_DELAY_MS = 300, 10_000

_CHANGES = ("truncate", "append", "overwrite", "replace", "delete")
RECOVERED, ERROR, EITHER = "recovered", "error", "either"


@dataclass(frozen=True)
class Site:
    """Reads of ``extent`` of ``model`` from ``moment`` on; ``options`` of the engine."""

    name: str
    model: str
    extent: str
    moment: str  # open, tokenizer, start, pass, decode, again, resize or chat
    options: dict[str, Any] = field(default_factory=dict)
    weights: bool = True  # read by the runtime, else a header or a text
    opened: bool = True  # before the moment
    ahead: bool = False  # reads are guesses, too: what nobody waits for may fail


_STREAM = {"weight_cap": "0"}
_Q = "blk.0.attn_q.weight"
SITES = [
    Site("GGUF keys", "gguf", "keys 0", "open", weights=False),
    Site("GGUF tensor directory", "gguf", "directory 0", "open", weights=False),
    Site("header of a split part", "split", "directory 1", "open", weights=False),
    Site("vocabulary read again", "gguf", "tokenizer.ggml.tokens", "tokenizer", weights=False),
    Site("merges read again", "gguf", "tokenizer.ggml.merges", "tokenizer", weights=False),
    Site("safetensors header", "folder", "header 1", "open", weights=False),
    Site("safetensors index", "folder", "model.safetensors.index.json", "open", weights=False),
    Site("config.json", "folder", "config.json", "open", weights=False),
    Site("config.json read again", "folder", "config.json", "tokenizer", weights=False),
    Site("generation_config.json", "folder", "generation_config.json", "open", weights=False),
    Site("tokenizer.json", "folder", "tokenizer.json", "open", weights=False),
    Site("tokenizer_config.json", "folder", "tokenizer_config.json", "tokenizer", weights=False,
         opened=False),
    Site("chat template", "folder", "chat_template.jinja", "open", weights=False),
    Site("chat template at a chat", "folder", "chat_template.jinja", "chat", weights=False),
    Site("rope factors", "gguf", "rope_freqs.weight", "open"),
    Site("norm vectors", "gguf", "blk.1.ffn_norm.weight", "start"),
    Site("resident tiles", "gguf", "blk.1.ffn_up.weight", "start"),
    Site("resident tiles of a folder", "folder", "model-00002-of-00002.safetensors", "start"),
    Site("embedding rows", "gguf", "token_embd.weight", "pass"),
    Site("embedding row of a step", "gguf", "token_embd.weight", "decode"),
    Site("streamed tile of a layer", "gguf", "blk.1.ffn_down.weight", "pass", _STREAM),
    Site("streamed tile of a part", "split", "blk.1.ffn_down.weight", "pass", _STREAM),
    Site("streamed tile of the head", "gguf", "output.weight", "pass", _STREAM),
    Site("read ahead over a token", "gguf", _Q, "decode", _STREAM, ahead=True),
    Site("streamed tile, partly resident", "gguf", "blk.1.ffn_up.weight", "pass",
         {"weight_cap": "400KiB"}),
    Site("embedding rows of a second request", "gguf", "token_embd.weight", "again"),
    Site("norm vectors at resize", "gguf", "output_norm.weight", "resize"),
    Site("resident tiles at resize", "gguf", "blk.1.ffn_up.weight", "resize"),
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """``rules``: each the arguments of a `fuse_server.Rule`. ``everywhere``: all reads of all
    files from the site's moment on, not only those of its extent. ``lasting``: it stays with those
    who have the file open, whatever is mended. ``names_offset``: a read fails, so the error says
    where."""

    name: str
    expect: str
    rules: tuple[dict[str, Any], ...]
    everywhere: bool = False
    lasting: bool = False
    names_offset: bool = True
    from_open: bool = False  # a property of the file system: in force before anything is opened

    @property
    def short(self) -> bool:
        """Whether reads bring less than was asked for."""
        return any(rule["kind"] in ("short", "eof", "random") for rule in self.rules)

    @property
    def once(self) -> bool:
        """Whether who asks again gets the bytes."""
        return all(rule["kind"] == "error" and rule["count"] == 1 for rule in self.rules)


def _error(number: int, count: int = 0) -> tuple[dict[str, Any], ...]:
    return ({"kind": "error", "errno": number, "count": count},)


FAULTS = [
    Fault("EIO", ERROR, _error(errno.EIO)),
    Fault("EIO once", ERROR, _error(errno.EIO, 1)),
    Fault("ENXIO", ERROR, _error(errno.ENXIO)),
    Fault("ENODEV", ERROR, _error(errno.ENODEV)),
    Fault("ETIMEDOUT", ERROR, _error(errno.ETIMEDOUT)),
    Fault("drive gone in mid-read", ERROR, ({"kind": "gone"},), lasting=True),
    Fault("EINTR 3 times", RECOVERED, _error(errno.EINTR, 3)),
    Fault("EINTR for ever", ERROR, _error(errno.EINTR)),
    Fault("EAGAIN 3 times", RECOVERED, _error(errno.EAGAIN, 3)),
    Fault("EAGAIN for ever", ERROR, _error(errno.EAGAIN)),
    Fault("short: 4096", RECOVERED, ({"kind": "short", "n_bytes": 4096},)),
    Fault("short: 5003", RECOVERED, ({"kind": "short", "n_bytes": 5003},)),
    Fault("short: 777, twice", RECOVERED, ({"kind": "short", "n_bytes": 777, "count": 2},)),
    Fault("short: 777", EITHER, ({"kind": "short", "n_bytes": 777},)),
    Fault("short: 1, 40 times", EITHER, ({"kind": "short", "n_bytes": 1, "count": 40},)),
    Fault("nothing, once", EITHER, ({"kind": "eof", "count": 1},)),
    Fault("nothing", ERROR, ({"kind": "eof"},)),
    Fault("delay", RECOVERED, ({"kind": "delay", "ms": SHORT_DELAY_MS, "count": 2},)),
    Fault("other order", RECOVERED, ({"kind": "shuffle", "ms": 12, "seed": 3},), everywhere=True),
    Fault("all small ones, mixed", RECOVERED, ({"kind": "random", "seed": 5},), everywhere=True),
    Fault("truncated", ERROR, ({"kind": "truncate", "count": 1},), lasting=True),
    Fault("overwritten", ERROR, ({"kind": "overwrite", "count": 1},), lasting=True,
          names_offset=False),
    Fault("appended", EITHER, ({"kind": "append", "count": 1},), lasting=True, names_offset=False),
    Fault("replaced by rename", RECOVERED, ({"kind": "replace", "count": 1},)),
    Fault("deleted", RECOVERED, ({"kind": "delete", "count": 1},)),
    Fault("no O_DIRECT", RECOVERED, ({"kind": "refuse_direct"},), from_open=True),
    Fault("O_DIRECT opens, reads refused", RECOVERED, ({"kind": "refuse_direct_reads"},),
          from_open=True),
    Fault("never the page cache", RECOVERED, ({"kind": "bypass"},), from_open=True),
]  # fmt: skip
LONG_DELAY = Fault("delay 10 s", RECOVERED, ({"kind": "delay", "ms": LONG_DELAY_MS, "count": 1},))


# --- the run --------------------------------------------------------------------------------------


@contextmanager
def _moments(at: Callable[[str], None]) -> Iterator[None]:
    """Calls ``at`` when the tokenizer is built, when loading starts and when a step is decoded."""
    with ExitStack() as stack:

        def before(owner: Any, name: str, moment: str) -> None:
            original = owner.__dict__[name]
            function = original.__func__ if isinstance(original, classmethod) else original

            def called(*args: Any, **kwargs: Any) -> Any:
                at(moment)
                return function(*args, **kwargs)

            new = classmethod(called) if isinstance(original, classmethod) else called
            stack.enter_context(patch.object(owner, name, new))

        before(Tokenizer, "from_source", "tokenizer")
        before(LifeCycle, "_load", "start")
        before(Engine, "decode", "decode")
        yield


def _logits(engine: Engine) -> str:
    return hashlib.sha256(engine.logits_bytes(0)).hexdigest()[:16]


def talk(engine: Engine, said: list[Any], at: Callable[[str], None] = lambda moment: None) -> None:
    """Two requests on an open engine; what they give goes to ``said`` as it comes."""
    engine.forget()
    for moment, prompt in (("pass", PROMPT), ("again", SECOND_PROMPT)):
        at(moment)
        stream = engine.stream(prompt, 3, temperature=0.0)
        said.extend(stream)
        assert stream.completion
        said.append(tuple(stream.completion.tokens))
        said.append(_logits(engine))


def run(
    path: Path, site: Site, io: str, said: list[Any], made: list[Engine], at: Callable[[str], None]
) -> None:
    """All that is compared: load, two requests, a resize, a chat."""
    options = {**site.options, "io": io}
    at("open")
    with _moments(at):
        engine = Engine(path, ram=RAM, ctx=CTX, threads=2, **options)
        made.append(engine)
        talk(engine, said, at)
        at("resize")
        engine.resize(OTHER_RAM)
        said.append(tuple(engine.generate(SECOND_PROMPT + "e", 2).tokens))
        said.append(_logits(engine))
        at("chat")
        stream = engine.chat([{"role": "user", "content": "tin"}], 2, temperature=0.0)
        said.extend(stream)
        assert stream.completion
        said.append(tuple(stream.completion.tokens))


# --- where faults come from -----------------------------------------------------------------------


class World(Protocol):
    """Something that makes reads fail."""

    model: Model

    def path(self) -> Path: ...
    def prepare(self, fault: Fault) -> None: ...
    def arm(self, site: Site, fault: Fault) -> None: ...
    def fired(self) -> int: ...
    def mend(self) -> None: ...
    def offers(self, site: Site, fault: Fault) -> bool: ...
    def close(self) -> None: ...


class FuseWorld:
    """A mounted file system that fails: real system calls."""

    def __init__(self, where: Path, kind: str) -> None:
        self.model: Model = build(where / "pristine", kind)
        self._served, self._where = where / "served", where / "mounted"
        self._served.mkdir()
        restore(self.model, self._served)
        self.mount = Mount(self._served, self._where)
        self._prepared = 0

    def path(self) -> Path:
        return self._where / self.model.entry

    def offers(self, site: Site, fault: Fault) -> bool:
        return True

    def prepare(self, fault: Fault) -> None:
        self._prepared = int(fault.short)
        if fault.short:
            self.mount.add("bypass")

    def arm(self, site: Site, fault: Fault) -> None:
        name, first, last = self.model.extents[site.extent]
        for rule in fault.rules:
            given: dict[str, Any] = dict(rule)
            if not fault.everywhere:
                given |= {"path": name, "first": first, "last": last}
            if fault.from_open:
                given = {"kind": rule["kind"], "path": name}
            if rule["kind"] in ("overwrite", "replace"):
                given["other"] = str(self.model.twin / name)
            if rule["kind"] == "truncate":
                given["n_bytes"] = first + (last - first) // 2
            self.mount.add(**given)

    def fired(self) -> int:
        found = self.mount.fired()
        died = not found and not self.mount.alive()  # of the fault
        return 1 if died else sum(found[self._prepared :])

    def mend(self) -> None:
        restore(self.model, self._served)
        if self.mount.alive():
            self.mount.clear()
        else:
            self.mount.close()
            self.mount = Mount(self._served, self._where)

    def close(self) -> None:
        self.mount.close()


class HookWorld:
    """Faults at the one place where all backends ask the kernel: needs no rights. Files are changed
    when the site's moment comes, before its reads and not between them."""

    def __init__(self, where: Path, kind: str) -> None:
        self.model: Model = build(where / "pristine", kind)
        self._folder = where / "served"
        self._folder.mkdir()
        restore(self.model, self._folder)
        self._faults = Faults()
        self._changed = 0
        set_faults(self._faults)

    def path(self) -> Path:
        return self._folder / self.model.entry

    def offers(self, site: Site, fault: Fault) -> bool:
        if fault.from_open or fault.rules[0]["kind"] == "gone":
            return False
        # Before anything is opened it would be another file, and that is all.
        opened = site.opened and site.moment != "open"
        return opened or fault.rules[0]["kind"] not in _CHANGES

    def prepare(self, fault: Fault) -> None:
        for rule in fault.rules:
            if rule["kind"] == "shuffle":  # readers that are made from now on
                self._faults.set_reorder(rule["seed"])

    def arm(self, site: Site, fault: Fault) -> None:
        name, first, last = self.model.extents[site.extent]
        for rule in fault.rules:
            kind, n_bytes = rule["kind"], rule.get("n_bytes", 0)
            if kind in _CHANGES:
                change(self._folder / name, kind, str(self.model.twin / name),
                       first + (last - first) // 2)  # fmt: skip
                self._changed += 1
            elif kind == "random":
                self._faults.set_chaos(0.5, rule["seed"])
            elif kind == "shuffle":
                self._changed += 1
            else:
                value = {"error": rule.get("errno", 0), "delay": rule.get("ms", 0)}
                count = {"count": rule["count"]} if rule.get("count") else {}
                self._faults.add(
                    {"eof": "end"}.get(kind, kind), value.get(kind, n_bytes),
                    path=name, begin=first, end=last + 1, **count,
                )  # fmt: skip

    def fired(self) -> int:
        return self._faults.hits - self._hits + self._changed

    _hits = 0

    def mend(self) -> None:
        self._faults.clear()
        self._hits, self._changed = self._faults.hits, 0
        restore(self.model, self._folder)

    def close(self) -> None:
        set_faults(None)


# --- the judgement --------------------------------------------------------------------------------


@dataclass
class Outcome:
    """One cell. ``holds`` is false where ``problems`` has an entry."""

    site: str
    fault: str
    io: str
    result: str = ""  # recovered, or the error's class
    message: str = ""
    seconds: float = 0.0
    same_engine: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.problems

    def row(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


# A file that changed, or cannot even be asked for its size, failed at no offset.
_OFFSET = re.compile(r"\b(?:at|byte|offset) \d+|changed while in use|cannot stat")


def reference(world: World, site: Site, io: str) -> list[Any]:
    """What a run says when nothing fails."""
    said: list[Any] = []
    made: list[Engine] = []
    run(world.path(), site, io, said, made, lambda moment: None)
    made[0].close()
    return said


def try_cell(world: World, site: Site, fault: Fault, io: str, right: list[Any]) -> Outcome:
    """Run one cell and judge it."""
    cell = Outcome(site.name, fault.name, io)
    said: list[Any] = []
    made: list[Engine] = []
    armed = [False]

    def at(moment: str) -> None:
        if not armed[0] and moment == ("open" if fault.from_open else site.moment):
            armed[0] = True
            world.arm(site, fault)

    error: BaseException | None = None
    world.prepare(fault)
    started = time.perf_counter()
    try:
        run(world.path(), site, io, said, made, at)
    except Exception as caught:
        error = caught
    cell.seconds = round(time.perf_counter() - started, 3)
    if not world.fired():
        cell.problems.append("the fault was not met")
    _judge(cell, world, site, fault, error, said, right)
    error = None  # its traceback holds the engine's frames
    try:
        _afterwards(cell, world, site, fault, io, made, right)
    except Exception as caught:
        cell.problems.append(f"afterwards: {type(caught).__name__}: {caught}")
    for engine in made:
        engine.close()
    return cell


def _judge(
    cell: Outcome,
    world: World,
    site: Site,
    fault: Fault,
    error: BaseException | None,
    said: list[Any],
    right: list[Any],
) -> None:
    problems = cell.problems
    if said != right[: len(said)]:
        problems.append(f"said {said[-3:]}, not {right[: len(said)][-3:]}")
    delay = sum(rule.get("ms", 0) for rule in fault.rules) / 1000
    if cell.seconds > BOUND_S + 3 * delay:
        problems.append(f"took {cell.seconds} s")
    if error is None:
        cell.result = RECOVERED
        if fault.expect == ERROR and not (site.ahead and fault.once):
            problems.append("no error")
        if len(said) != len(right):
            problems.append(f"said {len(said)} things of {len(right)}")
        return
    cell.result, cell.message = type(error).__name__, str(error)
    if fault.expect == RECOVERED:
        problems.append("not recovered")
    if not isinstance(error, StorageError) or error.exit_code != 5:
        problems.append(f"not a StorageError: {type(error).__mro__[1].__name__}")
    if not isinstance(error, EdgeRTError):
        problems.append("an error of Python's own")
    names = [e[0] for e in world.model.extents.values()]
    if fault.rules[0]["kind"] != "gone" and not fault.everywhere:  # else any file may fail first
        names = [world.model.extents[site.extent][0]]
    if not any(name in cell.message for name in names):
        problems.append("the file is not named")
    if fault.names_offset and not _OFFSET.search(cell.message):
        problems.append("the offset is not named")


def _afterwards(
    cell: Outcome,
    world: World,
    site: Site,
    fault: Fault,
    io: str,
    made: list[Engine],
    right: list[Any],
) -> None:
    """The drive is mended: the same engine, then a new one."""
    first_part = right[: _talk_length(right)]
    world.mend()
    if made:
        said: list[Any] = []
        try:
            talk(made[0], said)
            cell.same_engine = "works"
            if said != first_part:
                cell.problems.append("the same engine then says something else")
        except UsageError as error:
            cell.same_engine = "closed" if "closed" in str(error) else str(error)
            if "closed" not in str(error):
                cell.problems.append(f"the same engine: {error}")
            elif cell.result == RECOVERED:
                cell.problems.append("recovered, but then closed")
        except StorageError as error:
            cell.same_engine = "fails again"
            if not fault.lasting:
                cell.problems.append(f"the same engine fails again: {error}")
        if said != first_part[: len(said)]:
            cell.problems.append("the same engine then says something else")
        made[0].close()
    again: list[Any] = []
    with Engine(world.path(), ram=RAM, ctx=CTX, threads=2, io=io, **site.options) as second:
        talk(second, again)
    if again != first_part:
        cell.problems.append("a second engine says something else")


def _talk_length(right: list[Any]) -> int:
    """How much of it the two requests of `talk` said: up to the second hash of logits."""
    is_hash = [isinstance(x, str) and bool(re.fullmatch("[0-9a-f]{16}", x)) for x in right]
    return [i for i, yes in enumerate(is_hash) if yes][1] + 1


# --- many cells -----------------------------------------------------------------------------------


def held() -> dict[str, int]:
    """What a process may leak: open files, threads, mappings, resident bytes."""
    gc.collect()
    with open("/proc/self/status") as file:
        (rss,) = (int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))
    with open("/proc/self/maps") as file:
        maps = len(file.readlines())
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "maps": maps,
        "resident": rss,
    }


def run_site(
    site: Site,
    faults: list[Fault],
    ios: list[str],
    where: Path,
    kind: type[FuseWorld | HookWorld],
    pick: Callable[[int], bool] | None = None,
) -> list[Outcome]:
    """The cells of one site, or those whose number ``pick`` takes; the last outcome for each io is
    about leaks. ``where``: an empty folder."""
    world: World = kind(where, site.model)
    found: list[Outcome] = []
    number = 0
    try:
        for io in ios:
            right = reference(world, site, io)
            again = reference(world, site, io)
            before = held()
            for fault in faults:
                if world.offers(site, fault):
                    number += 1
                    if pick is None or pick(number):
                        found.append(try_cell(world, site, fault, io, right))
            leak = Outcome(site.name, "leaks", io, RECOVERED, problems=_leaks(before, held()))
            if again != right:
                leak.problems.append("without a fault, it does not say the same thing twice")
            found.append(leak)
    finally:
        world.close()
    return found


def _leaks(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What there is more of than the allocators of C and Python may keep."""
    room = {"files": 0, "threads": 0, "maps": 8, "resident": 8 << 20}
    return [
        f"{name}: {before[name]} before, {after[name]} after"
        for name in room
        if after[name] > before[name] + room[name]
    ]


assert len({s.name for s in SITES}) == len(SITES) and len({f.name for f in FAULTS}) == len(FAULTS)
