"""Turn an architecture and a model's tensor directory into a step program."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge_rt.errors import ModelError
from edge_rt.loaders.gguf_cursor import clip
from edge_rt.loaders.source import TensorInfo, WeightSource
from edge_rt.models import architecture_of
from edge_rt.models.description import Architecture, Attention, GatedMlp, Hyperparameters, Norm
from edge_rt.models.hyperparameters import read_hyperparameters
from edge_rt.models.names import name_in_folder
from edge_rt.models.rope import FACTORS, LONG_FACTORS, SHORT_FACTORS, ReadFloats
from edge_rt.program import (
    ATTENDED,
    GATE,
    HEAD,
    LAYERS,
    LOGITS,
    ROPE,
    UP,
    H,
    K,
    MatmulPart,
    MatrixUse,
    Operation,
    Program,
    Q,
    V,
    VectorUse,
    X,
)
from edge_rt.quant.blocks import FORMATS, BlockFormat


def build_program(source: WeightSource, read_floats: ReadFloats) -> Program:
    """Check the directory against the architecture and write down the steps.

    ``read_floats`` returns the bytes of a small F32 tensor (rope factors only). Raises `ModelError`
    for missing tensors, wrong shapes or formats, and tensors that no step uses.
    """
    architecture = architecture_of(source)
    hyper = read_hyperparameters(source, architecture, read_floats)
    return _Builder(source, architecture, hyper).build()


_MAX_VOCAB = 1 << 28


@dataclass(frozen=True)
class _Rows:
    """Rows ``first .. first + n`` of the tensor ``name``, multiplied into ``dst``."""

    name: str
    dst: str
    n: int
    first: int = 0
    of: int = 0  # rows of the whole tensor, 0: n


class _Builder:
    def __init__(
        self, source: WeightSource, architecture: Architecture, hyper: Hyperparameters
    ) -> None:
        self.tensors = source.tensors
        self.in_folder = source.folder is not None
        self.architecture = architecture
        self.hyper = hyper
        self.used = {FACTORS, LONG_FACTORS, SHORT_FACTORS}
        embedding = self.tensor(f"{architecture.embedding}.weight")
        if len(embedding.shape) != 2 or embedding.shape[1] != hyper.hidden:
            raise ModelError(
                f"{embedding.name} is {embedding.shape}: it must have {hyper.hidden} columns"
            )
        if not 0 < embedding.shape[0] <= _MAX_VOCAB:
            raise ModelError(
                f"{embedding.name} has {embedding.shape[0]} rows: no model has none, or more than "
                f"{_MAX_VOCAB}"
            )
        self.program = Program(
            architecture=architecture,
            hyper=hyper,
            n_vocab=embedding.shape[0],
            embedding=embedding,
            embedding_format=self.format(embedding),
        )
        self.input = X  # what the next part reads
        self.layer = -1  # of what is emitted

    def build(self) -> Program:
        p, h = self.program, self.hyper
        p.buffers.update({X: h.hidden, H: h.hidden, LOGITS: p.n_vocab})
        for index, rope in enumerate(h.ropes):
            p.buffers[f"{ROPE}{index}"] = 2 * len(rope.frequencies)
        self.emit(LAYERS, Operation("rope_tables"))
        self.scale(LAYERS, X, h.embedding_scale)
        for self.layer in range(h.n_layers):
            for part in self.architecture.layer:
                self.add(part, self.layer)
        self.layer = -1
        self.norm(self.architecture.final_norm, HEAD)
        head = f"{self.architecture.head}.weight"
        head_name = head if head in self.tensors else f"{self.architecture.embedding}.weight"
        self.matmul(HEAD, H, [_Rows(head_name, LOGITS, p.n_vocab)])
        self.bias(f"{self.architecture.head}.bias", LOGITS, p.n_vocab, segment=HEAD)
        self.scale(HEAD, LOGITS, h.logit_scale)
        if h.logit_cap:
            self.emit(HEAD, Operation("softcap", dst=LOGITS, value=h.logit_cap))
        self.refuse_unused()
        return p

    def add(self, part: Norm | Attention | GatedMlp, layer: int) -> None:
        match part:
            case Norm():
                self.norm(f"blk.{layer}.{part.weight}", LAYERS)
                self.input = H
            case Attention():
                self.attention(part, layer)
            case GatedMlp():
                self.mlp(part, layer)

    def mlp(self, part: GatedMlp, layer: int) -> None:
        n, prefix = self.hyper.ffn, f"blk.{layer}."
        if part.gate is None:
            both = f"{prefix}{part.up}"
            uses = [_Rows(both, GATE, n, 0, 2 * n), _Rows(both, UP, n, n, 2 * n)]
        else:
            uses = [_Rows(f"{prefix}{part.gate}", GATE, n), _Rows(f"{prefix}{part.up}", UP, n)]
        self.project(uses)
        self.emit(LAYERS, Operation(f"{part.activation}_gate", src=UP, dst=GATE))
        self.add_to_stream(GATE, f"{prefix}{part.down}", part.post_norm, prefix)

    def attention(self, part: Attention, layer: int) -> None:
        h, kind = self.hyper, self.hyper.layers[layer]
        n_q, n_kv = h.n_heads * h.head_dim, h.n_kv_heads * h.head_dim
        prefix = f"blk.{layer}."
        if f"{prefix}{part.qkv}.weight" in self.tensors:
            qkv, n = f"{prefix}{part.qkv}", n_q + 2 * n_kv
            uses = [
                _Rows(qkv, Q, n_q, 0, n),
                _Rows(qkv, K, n_kv, n_q, n),
                _Rows(qkv, V, n_kv, n_q + n_kv, n),
            ]
        else:
            names = ((part.q, Q, n_q), (part.k, K, n_kv), (part.v, V, n_kv))
            uses = [_Rows(f"{prefix}{name}", dst, n) for name, dst, n in names]
        self.project(uses)
        for name, dst, n in ((part.q_norm, Q, n_q), (part.k_norm, K, n_kv)):
            if name is not None:
                width = h.head_dim if part.norm_over == "head" else n
                self.rms_norm(f"{prefix}{name}", dst, dst, width, LAYERS)
        if kind.rope is not None:
            for dst in (Q, K):
                self.emit(LAYERS, Operation("rope", src=f"{ROPE}{kind.rope}", dst=dst))
        self.emit(LAYERS, Operation("store_kv", src=K, src2=V))
        self.program.buffers[ATTENDED] = n_q
        attend = Operation(
            "attention",
            src=Q,
            dst=ATTENDED,
            value=h.attention_scale,
            window=kind.window,
            cap=h.attention_cap,
        )
        self.emit(LAYERS, attend)
        self.add_to_stream(ATTENDED, f"{prefix}{part.output}", part.post_norm, prefix)

    def project(self, uses: list[_Rows]) -> None:
        """Multiply the part's input with several matrices, and add their biases."""
        weights = [_Rows(f"{u.name}.weight", u.dst, u.n, u.first, u.of) for u in uses]
        self.matmul(LAYERS, self.input, weights)
        for u in uses:
            self.bias(f"{u.name}.bias", u.dst, u.n, u.first, u.of)

    def add_to_stream(self, src: str, name: str, post_norm: str | None, prefix: str) -> None:
        """x += scale * norm(src times a matrix); the next part reads the stream."""
        n, scale = self.hyper.hidden, self.hyper.residual_scale
        direct = post_norm is None and scale == 1.0
        dst = X if direct else H  # h is free: the part has read its input
        self.matmul(LAYERS, src, [_Rows(f"{name}.weight", dst, n)], accumulate=direct)
        self.bias(f"{name}.bias", dst, n)
        if post_norm is not None:
            self.rms_norm(f"{prefix}{post_norm}", H, H, n, LAYERS)
        if not direct:
            self.emit(LAYERS, Operation("add", src=H, dst=X, value=scale))
        self.input = X

    def norm(self, name: str, segment: int) -> None:
        self.rms_norm(name, X, H, self.hyper.hidden, segment)

    def rms_norm(self, name: str, src: str, dst: str, width: int, segment: int) -> None:
        vector = self.vector(f"{name}.weight", width, offset=self.hyper.norm_offset)
        eps = self.hyper.norm_eps
        step = Operation("rms_norm", src=src, dst=dst, vector=vector, value=eps, width=width)
        self.emit(segment, step)

    def bias(
        self, name: str, dst: str, n: int, first: int = 0, of: int = 0, segment: int = LAYERS
    ) -> None:
        if name in self.tensors:
            vector = self.vector(name, n, first, of)
            self.emit(segment, Operation("add_bias", dst=dst, vector=vector))

    def scale(self, segment: int, dst: str, factor: float) -> None:
        if factor != 1.0:
            self.emit(segment, Operation("scale", dst=dst, value=factor))

    def matmul(self, segment: int, src: str, uses: list[_Rows], accumulate: bool = False) -> None:
        """Multiply ``src`` with several matrices in one step; its int8 form is made if one needs
        it."""
        n_cols = self.program.buffers[src]
        parts = []
        for use in uses:
            tensor = self.tensor(use.name)
            if tensor.shape != (use.of or use.n, n_cols):
                wanted = (use.of or use.n, n_cols)
                raise ModelError(f"{use.name} is {tensor.shape}: it must be {wanted}")
            fmt = self.format(tensor)
            self.program.buffers.setdefault(use.dst, use.n)
            self.program.matrices.append(MatrixUse(tensor, fmt, segment, use.first, use.n))
            source = f"{src}.q8" if fmt.quantized else src
            index = len(self.program.matrices) - 1
            parts.append(MatmulPart(index, source, use.dst, accumulate=accumulate))
        if any(part.src != src for part in parts):
            self.program.buffers[f"{src}.q8"] = n_cols
            self.emit(segment, Operation("quantize", src=src, dst=f"{src}.q8"))
        self.emit(segment, Operation("matmul", parts=tuple(parts)))

    def emit(self, segment: int, operation: Operation) -> None:
        self.program.operations[segment].append(replace(operation, layer=self.layer))

    def tensor(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            if self.in_folder:
                name = name_in_folder(name, self.architecture)
            raise ModelError(f"the model has no tensor {name}")
        self.used.add(name)
        return self.tensors[name]

    def format(self, tensor: TensorInfo) -> BlockFormat:
        if tensor.format is None or tensor.format.ggml_id not in FORMATS:
            known = ", ".join(f.name for f in FORMATS.values())
            raise ModelError(f"{tensor.name} is {tensor.format_name} (supported: {known})")
        return tensor.format

    def vector(self, name: str, n: int, first: int = 0, of: int = 0, offset: float = 0.0) -> str:
        tensor = self.tensor(name)
        fmt, wanted = tensor.format, (of or n,)
        if tensor.shape != wanted or fmt is None or fmt.quantized:
            raise ModelError(
                f"{name} is {tensor.format_name} {tensor.shape}: it must be floats {wanted}"
            )
        key = f"{name}[{first}]"
        self.program.vectors[key] = VectorUse(tensor, fmt, first, n, offset)
        return key

    def refuse_unused(self) -> None:
        """A tensor that nobody reads is a part of the model that we would leave out."""
        unused = [info.name for name, info in self.tensors.items() if name not in self.used]
        if unused:
            names = ", ".join(clip(name) for name in unused[:3])
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            raise ModelError(f"{self.architecture.name} has no use for the tensors {names}{more}")
