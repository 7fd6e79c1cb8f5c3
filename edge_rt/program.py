"""Turn an architecture and a file's tensor directory into a step program.

The program is a plain description: buffers, matrices, vectors and two lists of operations (segment
0: the layers, segment 1: the head). ``edge_rt.planner`` sizes it, ``edge_rt.engine`` hands it to
C++.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from edge_rt.errors import ModelError
from edge_rt.loaders.source import TensorInfo, WeightSource
from edge_rt.models import architecture_of
from edge_rt.models.description import Architecture, Attention, GatedMlp, Hyperparameters, Norm
from edge_rt.quant.blocks import F32, FORMATS, BlockFormat

LAYERS, HEAD = 0, 1

# Names of the activation buffers; the int8 form of one is "<name>.q8".
X, H, Q, K, V, ATTENDED, GATE, UP, LOGITS, ROPE = (
    "x", "h", "q", "k", "v", "attended", "gate", "up", "logits", "rope",
)  # fmt: skip


@dataclass(frozen=True)
class MatrixUse:
    """One weight matrix and the segment that multiplies with it."""

    tensor: TensorInfo
    format: BlockFormat
    segment: int

    @property
    def n_rows(self) -> int:
        return self.tensor.shape[0]

    @property
    def n_cols(self) -> int:
        return self.tensor.shape[1]

    @property
    def row_bytes(self) -> int:
        return self.format.row_bytes(self.n_cols)


@dataclass(frozen=True)
class MatmulPart:
    """``dst`` (tokens, rows) = or += ``src`` (tokens, columns) times a matrix transposed."""

    matrix: int
    src: str
    dst: str
    accumulate: bool = False


@dataclass(frozen=True)
class Operation:
    """One step; the fields that a kind uses are those of the C++ ``Op``."""

    kind: str
    src: str = ""
    src2: str = ""
    dst: str = ""
    vector: str = ""
    layer: int = -1
    value: float = 0.0
    parts: tuple[MatmulPart, ...] = ()


@dataclass
class Program:
    """Everything that a pass does, before it is known what is resident."""

    architecture: Architecture
    hyper: Hyperparameters
    n_vocab: int
    embedding: TensorInfo
    embedding_format: BlockFormat
    rope_frequencies: list[float]
    buffers: dict[str, int] = field(default_factory=dict)  # name -> columns
    matrices: list[MatrixUse] = field(default_factory=list)
    vectors: dict[str, TensorInfo] = field(default_factory=dict)
    operations: tuple[list[Operation], list[Operation]] = field(default_factory=lambda: ([], []))

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of KV cache that one position takes over all layers."""
        h = self.hyper
        return 2 * h.n_layers * h.n_kv_heads * h.head_dim * element_bytes


def build_program(source: WeightSource, read_floats: Callable[[TensorInfo], bytes]) -> Program:
    """Check the directory against the architecture and write down the steps.

    ``read_floats`` returns the bytes of a small F32 tensor (rope factors only). Raises `ModelError`
    for missing tensors and wrong shapes or formats.
    """
    architecture = architecture_of(source)
    hyper = architecture.read(source, architecture.name)
    return _Builder(source, architecture, hyper, read_floats).build()


class _Builder:
    def __init__(
        self,
        source: WeightSource,
        architecture: Architecture,
        hyper: Hyperparameters,
        read_floats: Callable[[TensorInfo], bytes],
    ) -> None:
        self.tensors = source.tensors
        self.architecture = architecture
        self.hyper = hyper
        embedding = self.tensor(f"{architecture.embedding}.weight")
        if len(embedding.shape) != 2 or embedding.shape[1] != hyper.hidden:
            raise ModelError(
                f"{embedding.name} is {embedding.shape}: it must have {hyper.hidden} columns"
            )
        self.program = Program(
            architecture=architecture,
            hyper=hyper,
            n_vocab=embedding.shape[0],
            embedding=embedding,
            embedding_format=self.format(embedding),
            rope_frequencies=self.rope_frequencies(read_floats),
        )

    def build(self) -> Program:
        p, h = self.program, self.hyper
        p.buffers.update({X: h.hidden, H: h.hidden, ROPE: h.rope_dimensions, LOGITS: p.n_vocab})
        for layer in range(h.n_layers):
            for part in self.architecture.layer:
                self.add(part, layer)
        # The rope table is made once per pass, after the first norm.
        p.operations[LAYERS].insert(1, Operation("rope_table"))
        self.norm(self.architecture.final_norm, HEAD)
        head = f"{self.architecture.head}.weight"
        head_name = head if head in self.tensors else p.embedding.name
        self.matmul(HEAD, H, [(head_name, LOGITS, p.n_vocab)])
        return p

    def add(self, part: Norm | Attention | GatedMlp, layer: int) -> None:
        match part:
            case Norm():
                self.norm(f"blk.{layer}.{part.weight}", LAYERS)
            case Attention():
                self.attention(part, layer)
            case GatedMlp():
                name = f"blk.{layer}.{{}}.weight".format
                n = self.hyper.ffn
                self.matmul(LAYERS, H, [(name(part.gate), GATE, n), (name(part.up), UP, n)])
                self.emit(LAYERS, Operation("silu_gate", src=UP, dst=GATE))
                down = (name(part.down), X, self.hyper.hidden)
                self.matmul(LAYERS, GATE, [down], accumulate=True)

    def attention(self, part: Attention, layer: int) -> None:
        h = self.hyper
        n_q, n_kv = h.n_heads * h.head_dim, h.n_kv_heads * h.head_dim
        prefix = f"blk.{layer}."
        uses = [(part.q, Q, n_q), (part.k, K, n_kv), (part.v, V, n_kv)]
        self.matmul(LAYERS, H, [(f"{prefix}{name}.weight", dst, n) for name, dst, n in uses])
        for name, dst, n in uses:
            self.bias(f"{prefix}{name}.bias", dst, n)
        self.emit(LAYERS, Operation("rope", dst=Q))
        self.emit(LAYERS, Operation("rope", dst=K))
        self.emit(LAYERS, Operation("store_kv", src=K, src2=V, layer=layer))
        self.program.buffers[ATTENDED] = n_q
        attend = Operation("attention", src=Q, dst=ATTENDED, layer=layer, value=h.head_dim**-0.5)
        self.emit(LAYERS, attend)
        output = (f"{prefix}{part.output}.weight", X, h.hidden)
        self.matmul(LAYERS, ATTENDED, [output], accumulate=True)
        self.bias(f"{prefix}{part.output}.bias", X, h.hidden)

    def norm(self, name: str, segment: int) -> None:
        vector = self.vector(f"{name}.weight", self.hyper.hidden)
        step = Operation("rms_norm", src=X, dst=H, vector=vector, value=self.hyper.norm_eps)
        self.emit(segment, step)

    def bias(self, name: str, dst: str, n: int) -> None:
        if name in self.tensors:
            self.emit(LAYERS, Operation("add_bias", dst=dst, vector=self.vector(name, n)))

    def matmul(
        self, segment: int, src: str, uses: list[tuple[str, str, int]], accumulate: bool = False
    ) -> None:
        """Multiply ``src`` with several matrices in one step; its int8 form is made if one needs
        it."""
        n_cols = self.program.buffers[src]
        parts = []
        for name, dst, n_rows in uses:
            tensor = self.tensor(name)
            if tensor.shape != (n_rows, n_cols):
                raise ModelError(f"{name} is {tensor.shape}: it must be {(n_rows, n_cols)}")
            fmt = self.format(tensor)
            self.program.buffers.setdefault(dst, n_rows)
            self.program.matrices.append(MatrixUse(tensor, fmt, segment))
            source = f"{src}.q8" if fmt.quantized else src
            parts.append(
                MatmulPart(len(self.program.matrices) - 1, source, dst, accumulate=accumulate)
            )
        if any(part.src != src for part in parts):
            self.program.buffers[f"{src}.q8"] = n_cols
            self.emit(segment, Operation("quantize", src=src, dst=f"{src}.q8"))
        self.emit(segment, Operation("matmul", parts=tuple(parts)))

    def emit(self, segment: int, operation: Operation) -> None:
        self.program.operations[segment].append(operation)

    def tensor(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise ModelError(f"the file has no tensor {name}")
        return self.tensors[name]

    def format(self, tensor: TensorInfo) -> BlockFormat:
        if tensor.format is None or tensor.format.ggml_id not in FORMATS:
            known = ", ".join(f.name for f in FORMATS.values())
            raise ModelError(f"{tensor.name} is {tensor.format_name} (supported: {known})")
        return tensor.format

    def vector(self, name: str, n: int) -> str:
        tensor = self.tensor(name)
        if tensor.shape != (n,) or tensor.format != F32:
            raise ModelError(
                f"{name} is {tensor.format_name} {tensor.shape}: it must be F32 {(n,)}"
            )
        self.program.vectors[name] = tensor
        return name

    def rope_frequencies(self, read_floats: Callable[[TensorInfo], bytes]) -> list[float]:
        """base^(-2i/n) (RoFormer, section 3.2.2), divided by the file's scaling factors."""
        h = self.hyper
        n = h.rope_dimensions
        frequencies = [h.rope_base ** (-2 * i / n) / h.rope_divisor for i in range(n // 2)]
        name = f"{self.architecture.rope_factors}.weight"
        if name in self.tensors:
            tensor = self.tensors[name]
            if tensor.shape != (n // 2,) or tensor.format != F32:
                raise ModelError(f"{name} must be F32 {(n // 2,)}")
            factors = struct.unpack(f"<{n // 2}f", read_floats(tensor))
            if not all(f > 0 and f < float("inf") for f in factors):
                raise ModelError(f"{name} holds factors that are not positive")
            frequencies = [f / factor for f, factor in zip(frequencies, factors, strict=True)]
        return frequencies
