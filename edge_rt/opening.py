"""Opening a model and checking what a user chose, before anything is planned."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from edge_rt import budget
from edge_rt.errors import UsageError
from edge_rt.flash_io.files import File, storage_errors
from edge_rt.library import find_model
from edge_rt.loaders.source import TensorInfo, WeightSource
from edge_rt.lowering import build_program
from edge_rt.machine.host import drive_of, usable_cores
from edge_rt.machine.rates import Rates
from edge_rt.plan import KV_FORMATS, Settings
from edge_rt.planner import Planner
from edge_rt.process import available_bytes, resident_bytes
from edge_rt.runtime._runtime import isa_name
from edge_rt.sizes import parse_size
from edge_rt.source import open_source

_DEFAULT_CTX = 4096


def open_planner(model: str | os.PathLike[str] | None) -> tuple[WeightSource, Planner, File]:
    """Open a model (a path, a name that `find_model` knows, None: the demo model), check its
    directory and get ready to plan."""
    source = open_source(find_model(model))
    file = source.file
    assert file is not None

    def read_floats(tensor: TensorInfo) -> bytes:
        with storage_errors():
            return file.read(tensor.offset, tensor.n_bytes)

    with source.named():
        program = build_program(source, read_floats)
        return source, Planner(source, program, file.alignment, rates_for(file)), file


def rates_for(file: File) -> Rates:
    """What was measured of this machine and of the drive that ``file`` lies on."""
    try:
        return Rates(drive_of(file.path))
    except OSError:  # moved away since it was opened
        return Rates()


def make_settings(
    planner: Planner,
    ram: str | int | None,
    ctx: int | None = None,
    threads: int | None = None,
    kv: str = "f16",
    weight_cap: str | int | None = None,
) -> Settings:
    """Check a user's choices and fill in the defaults; raises `UsageError`."""
    trained = planner.program.hyper.n_ctx_train
    if ctx is None:
        ctx = min(_DEFAULT_CTX, trained)
    if not 1 <= ctx <= trained:
        raise UsageError(f"ctx is {ctx}: this model works with 1 to {trained} tokens")
    if kv not in KV_FORMATS:
        raise UsageError(f"kv is {kv!r}: it must be f16, f32 or q8_0")
    if threads is not None and not 1 <= threads <= 64:
        raise UsageError(f"threads is {threads}: it must be between 1 and 64")
    return Settings(
        budget=parse_size(ram) if ram is not None else available_bytes() * 9 // 10,
        ctx=ctx,
        n_threads=threads or usable_cores(),
        threads_open=threads is None,
        kv=kv,
        weight_cap=None if weight_cap is None else _parse_cap(weight_cap),
    )


def with_baseline(settings: Settings) -> Settings:
    """``settings`` with what this process, its tokenizer built, will hold besides an arena; as they
    are where the system does not say what it holds: the ceilings stand then."""
    resident = resident_bytes()
    if not resident:
        return settings
    loaded = "edge_rt.chat.sandbox" in sys.modules
    return replace(settings, baseline=budget.baseline_bytes(resident), chat_loaded=loaded)


def chosen_isa() -> str:
    """The set of kernels to use; raises `UsageError` where ``EDGE_RT_ISA`` names none."""
    wanted = os.environ.get("EDGE_RT_ISA", "auto")
    try:
        return isa_name(wanted)
    except ValueError as error:
        raise UsageError(f"EDGE_RT_ISA: {error}") from None


def _parse_cap(text: str | int) -> int:
    try:
        return parse_size(text)
    except UsageError:
        if str(text).rstrip("BKMGTibkmgt").strip() == "0":
            return 0  # everything streams
        raise
