"""The step program: buffers, matrices, vectors and two lists of operations.

Segment 0 are the layers, segment 1 the head. ``edge_rt.lowering`` writes a program down,
``edge_rt.planner`` sizes it, ``edge_rt.assemble`` hands it to C++.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_rt.loaders.source import TensorInfo
from edge_rt.models.description import Architecture, Hyperparameters
from edge_rt.quant.blocks import BlockFormat

LAYERS, HEAD = 0, 1

# Names of the activation buffers; the int8 form of one is "<name>.q8", rope tables are "rope0" ….
X, H, Q, K, V, ATTENDED, GATE, UP, LOGITS, ROPE = (
    "x", "h", "q", "k", "v", "attended", "gate", "up", "logits", "rope",
)  # fmt: skip


@dataclass(frozen=True)
class MatrixUse:
    """Rows ``first_row ..`` of a weight tensor, and the segment that multiplies with them."""

    tensor: TensorInfo
    format: BlockFormat
    segment: int
    first_row: int
    n_rows: int

    @property
    def n_cols(self) -> int:
        return self.tensor.shape[1]

    @property
    def row_bytes(self) -> int:
        return self.format.row_bytes(self.n_cols)

    @property
    def file_offset(self) -> int:
        return self.tensor.offset + self.first_row * self.row_bytes

    @property
    def n_bytes(self) -> int:
        return self.n_rows * self.row_bytes


@dataclass(frozen=True)
class VectorUse:
    """``n`` numbers of a float tensor from ``first`` on, ``offset`` added: a norm's or a bias."""

    tensor: TensorInfo
    format: BlockFormat
    first: int
    n: int
    offset: float

    @property
    def file_offset(self) -> int:
        return self.tensor.offset + self.format.row_bytes(self.first)


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
    layer: int = -1  # that it belongs to; -1: none
    value: float = 0.0
    width: int = 0
    window: int = 0
    cap: float = 0.0
    parts: tuple[MatmulPart, ...] = ()


@dataclass
class Program:
    """Everything that a pass does, before it is known what is resident."""

    architecture: Architecture
    hyper: Hyperparameters
    n_vocab: int
    embedding: TensorInfo
    embedding_format: BlockFormat
    buffers: dict[str, int] = field(default_factory=dict)  # name -> columns
    matrices: list[MatrixUse] = field(default_factory=list)
    vectors: dict[str, VectorUse] = field(default_factory=dict)
    operations: tuple[list[Operation], list[Operation]] = field(default_factory=lambda: ([], []))
