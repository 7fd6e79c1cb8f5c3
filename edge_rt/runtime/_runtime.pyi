from collections.abc import Callable, Sequence
from typing import Any

from edge_rt.flash_io._flash_io import File

class Hold:
    def __enter__(self) -> Hold: ...
    def __exit__(self, *args: object) -> None: ...

class Gate:
    def __init__(self) -> None: ...
    def enter(self) -> Hold: ...

class Arena:
    def __init__(self, bytes: int) -> None: ...
    @property
    def size(self) -> int: ...
    def resize(self, bytes: int, kept: int) -> None: ...

class SamplerOptions:
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    def __init__(self) -> None: ...

class Sampler:
    def __init__(self, seed: int) -> None: ...

class Runtime:
    def __init__(
        self,
        arena: Arena,
        file: File,
        isa: str,
        n_threads: int,
        io: str,
        max_tokens: int,
    ) -> None: ...
    def add_buffer(self, offset: int, width: int, quantized: bool) -> int: ...
    def add_weight(
        self,
        format: int,
        n_rows: int,
        n_cols: int,
        segment: int,
        tiles: Sequence[tuple[int, int, int]],
        streamed: Sequence[tuple[int, int]],
    ) -> int: ...
    def add_op(
        self,
        segment: int,
        kind: str,
        src: int = -1,
        src2: int = -1,
        dst: int = -1,
        vector_offset: int = -1,
        layer: int = -1,
        value: float = 0.0,
        width: int = 0,
        window: int = 0,
        cap: float = 0.0,
        parts: Sequence[tuple[int, int, int, bool]] = [],
    ) -> None: ...
    def set_attention(
        self,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        n_ctx: int,
        half: bool,
        rope_halves: bool,
        kv_offset: int,
        kv_positions: Sequence[int],
        temperature: float = 0.0,
        temperature_length: int = 1,
    ) -> None: ...
    def add_rope_table(
        self, buffer: int, frequencies: Sequence[float], magnitude: float
    ) -> None: ...
    def add_vector(
        self, file_offset: int, format: int, n: int, arena_offset: int, offset: float
    ) -> None: ...
    def set_embedding(
        self,
        file_offset: int,
        format: int,
        n_rows: int,
        n_cols: int,
        buffer: int,
        staging_offset: int,
        staging_bytes: int,
    ) -> None: ...
    def set_scratch(self, offset: int, bytes_per_thread: int) -> None: ...
    def set_logits(self, buffer: int, n_rows: int) -> None: ...
    def finish(self, ring_offset: int, ring_bytes: int) -> None: ...
    def load(
        self, runs: Sequence[tuple[int, int, int]], progress: Callable[[int, int], object] | None
    ) -> None: ...
    def plan(self, segments: Sequence[int]) -> None: ...
    def cancel(self) -> None: ...
    def close(self, seconds: float | None = None) -> bool: ...
    def run(self, tokens: Sequence[int], position: int, with_head: bool) -> None: ...
    def run_head(self, first: int, n_rows: int) -> None: ...
    def copy_logits(self, row: int, out: Any) -> None: ...
    def logits_bytes(self, row: int) -> bytes: ...
    def negative_log_likelihood(self, row: int, target: int) -> float: ...
    def sample(
        self,
        sampler: Sampler,
        options: SamplerOptions,
        history: Sequence[int],
        bias: Sequence[tuple[int, float]],
        arena: Arena,
        scratch_offset: int,
    ) -> int: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def io(self) -> str: ...
    @property
    def why_no_uring(self) -> str: ...
    def stats(self) -> dict[str, int]: ...

def matmul_scratch_bytes(n_cols: int) -> int: ...
def isa_name(isa: str) -> str: ...
def malloc_trim() -> None: ...
def calls_in_progress() -> int: ...
def set_leak_warnings(on: bool) -> None: ...
