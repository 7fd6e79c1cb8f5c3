"""How fast this machine computes: small made-up models, run as every model is run.

What is timed is planned, assembled, loaded and executed by the same code as a real model, so that
a rate has everything in it that a pass has: the layout of resident weights, the split over threads,
the barriers. Their weights are a few MiB of random bytes in memory that all matrices share on
"disk" and that every matrix has a copy of in the arena.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from edge_rt.assemble import assemble
from edge_rt.errors import StorageError
from edge_rt.flash_io._flash_io import File
from edge_rt.loaders.source import TensorInfo, WeightSource
from edge_rt.lowering import build_program
from edge_rt.machine.host import last_level_cache
from edge_rt.machine.rates import Rate
from edge_rt.plan import Settings
from edge_rt.planner import Planner
from edge_rt.program import LAYERS
from edge_rt.quant.blocks import FORMATS, BlockFormat
from edge_rt.runtime._runtime import Arena, isa_name
from edge_rt.sizes import GIB, KIB, MIB

_FILE_BYTES = 8 * MIB  # no matrix is larger
_LEAST_WEIGHT_BYTES, _MOST_WEIGHT_BYTES = 54 * MIB, 256 * MIB  # of a large one
_CACHES = 4  # a cache keeps some of what is read in turn even if it cannot hold all of it
_CTX = 1088
POSITION, PASS_POSITION = 1023, 255  # where attention of a token, of a pass, is timed
FEW_TOKENS, MANY_TOKENS = 16, 64  # of passes that are timed
_VOCAB = 512
_LEAST_TURNS = 6
_PATIENCE = 6  # times as long as it should take


@dataclass(frozen=True)
class Shape:
    """A llama of one format: ``heads`` of 64 columns in groups of ``group`` that share keys."""

    format: BlockFormat
    layers: int
    hidden: int
    ffn: int
    group: int = 4

    @property
    def n_weights(self) -> int:
        """Weights of the layers' matrices."""
        attention = 2 * self.hidden * self.hidden * (1 + 1 / self.group)
        return self.layers * (int(attention) + 3 * self.hidden * self.ffn)


def weight_bytes() -> int:
    """Of a large model: far more than the last-level cache holds, as real models have."""
    return max(_LEAST_WEIGHT_BYTES, min(_MOST_WEIGHT_BYTES, _CACHES * last_level_cache()))


def large(format: BlockFormat) -> Shape:
    """About `weight_bytes` in ``format``."""
    wanted = weight_bytes()
    per_weight = format.block_bytes / format.block_elements
    hidden = 2048 if per_weight <= 2 else 1024
    most = min(8192, int(_FILE_BYTES / per_weight / hidden) // 256 * 256)
    layers = math.ceil(wanted / (Shape(format, 1, hidden, most).n_weights * per_weight))
    attention = Shape(format, 1, hidden, 0).n_weights
    ffn = (wanted / layers / per_weight - attention) / (3 * hidden)
    return Shape(format, layers, hidden, min(most, max(256, round(ffn / 256) * 256)))


def small(layers: int) -> Shape:
    """Hardly any weights: what it takes is the steps'."""
    return Shape(FORMATS[8], layers, 128, 128, 2)


def shallow(format: BlockFormat) -> Shape:
    """A part of a large one, for passes of many tokens, which a cache does not help."""
    whole = large(format)
    return replace(whole, layers=math.ceil(whole.layers / 4))


def narrow() -> Shape:
    """What its tokens take besides matrices is a fair part of what they take."""
    return Shape(FORMATS[8], 12, 512, 512, 2)


def with_heads() -> Shape:
    """Sixteen heads in each of a few layers: what changes with the position is attention."""
    return Shape(FORMATS[8], 4, 1024, 256)


@contextmanager
def random_file() -> Iterator[File]:
    """A file in memory whose bytes are sane numbers in every format: no NaN, nothing subnormal."""
    fd = -1
    try:
        fd = os.memfd_create("edge-rt-probe", os.MFD_CLOEXEC)
        sane = bytes((b & 0x80) | 0x30 | (b & 0x0F) for b in range(256))
        piece = os.urandom(64 * KIB).translate(sane)
        for _ in range(_FILE_BYTES // len(piece)):
            os.write(fd, piece)
        yield File([f"/proc/self/fd/{fd}"])
    except OSError as error:
        raise StorageError(f"cannot measure the kernels: {error.strerror}") from error
    finally:
        if fd >= 0:
            os.close(fd)


class Probe:
    """A made-up model, loaded and ready to be timed."""

    def __init__(self, shape: Shape, file: File, n_threads: int, kv: str = "f16") -> None:
        self.shape = shape
        self.n_threads = n_threads
        source = _source(shape, file)
        planner = Planner(source, build_program(source, _no_floats), file.alignment)
        settings = Settings(64 * GIB, _CTX, n_threads, kv=kv)
        plan = planner.plan(settings)
        self._arena = Arena(plan.arena_bytes)
        isa = isa_name(os.environ.get("EDGE_RT_ISA", "auto"))
        self._runtime = assemble(planner, plan, self._arena, file, isa, "pread")
        runs = [(run.file_offset, run.n_bytes, run.arena_offset) for run in plan.runs]
        self._runtime.load(runs, None)
        self.program = planner.program
        self.weight_bytes = sum(m.n_bytes for m in self.program.matrices if m.segment == LAYERS)
        assert plan.pass_tokens >= MANY_TOKENS

    def close(self) -> None:
        self._runtime.close()
        del self._runtime, self._arena

    def seconds(self, n_tokens: int, position: int = 0) -> float:
        """The time of a pass of ``n_tokens`` from ``position`` on."""
        tokens = [i % _VOCAB for i in range(n_tokens)]
        self._runtime.plan([LAYERS])
        begin = time.perf_counter()
        self._runtime.run(tokens, position, with_head=False)
        return time.perf_counter() - begin


def in_turns(passes: Sequence[tuple[Probe, int, int]], at_least: float) -> list[Rate]:
    """Times of passes (probe, tokens, position), in turns, so that whatever slows the machine down
    for a while slows all of them: for ``at_least`` seconds each or so; few where it is slow."""
    times: list[list[float]] = [[] for _ in passes]
    begin = time.perf_counter()
    enough, too_long = at_least * len(passes), _PATIENCE * at_least * len(passes)
    while len(times[0]) < _LEAST_TURNS or time.perf_counter() - begin < enough:
        if len(times[0]) >= 2 and time.perf_counter() - begin > too_long:
            break
        for found, (probe, n_tokens, position) in zip(times, passes, strict=True):
            found.append(probe.seconds(n_tokens, position))
    # The first one finds cold caches and sleeping threads.
    return [Rate.of_times(found[1:]) for found in times]


def _no_floats(tensor: TensorInfo) -> bytes:
    raise AssertionError(tensor.name)  # only rope factors are read, and there are none


def _source(shape: Shape, file: File) -> WeightSource:
    source = WeightSource("a made-up model", (), file.size)
    numbers = {
        "block_count": shape.layers,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.ffn,
        "attention.head_count": shape.hidden // 64,
        "attention.head_count_kv": shape.hidden // 64 // shape.group,
        "context_length": _CTX,
    }
    source.metadata = {"general.architecture": "llama"}
    source.metadata |= {f"llama.{key}": value for key, value in numbers.items()}
    source.metadata["llama.attention.layer_norm_rms_epsilon"] = 1e-5
    kv = shape.hidden // shape.group
    matrices = {
        "attn_q": (shape.hidden, shape.hidden),
        "attn_k": (kv, shape.hidden),
        "attn_v": (kv, shape.hidden),
        "attn_output": (shape.hidden, shape.hidden),
        "ffn_gate": (shape.ffn, shape.hidden),
        "ffn_up": (shape.ffn, shape.hidden),
        "ffn_down": (shape.hidden, shape.ffn),
    }
    f32 = FORMATS[0]

    def add(name: str, format: BlockFormat, *dimensions: int) -> None:
        n_bytes = format.row_bytes(dimensions[-1])
        for n in dimensions[:-1]:
            n_bytes *= n
        source.tensors[name] = TensorInfo(name, dimensions, format, format.name, 0, n_bytes)

    add("token_embd.weight", f32, _VOCAB, shape.hidden)
    add("output_norm.weight", f32, shape.hidden)
    for layer in range(shape.layers):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{norm}.weight", f32, shape.hidden)
        for name, dimensions in matrices.items():
            add(f"blk.{layer}.{name}.weight", shape.format, *dimensions)
    return source
