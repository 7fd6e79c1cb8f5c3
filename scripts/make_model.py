"""Write GGUF models of random weights, of any size, fast, in little memory, without torch.

    python scripts/make_model.py --preset llama-3b-q4_0 big.gguf
    python scripts/make_model.py --layers 2 --hidden 128 --ffn 352 --heads 4 --kv-heads 2 \\
        --head-dim 32 --vocab 512 --format Q8_0 --tied tiny.gguf
    python scripts/make_model.py --preset small --format IQ2_XS small.gguf

The weights are noise with real statistics: dequantized they have a standard deviation of
0.7 / sqrt(columns), so activations and logits stay finite and differ per token; ``--logit-std``
makes the next-token distribution less flat. The same seed gives the same bytes. The vocabulary
is SentencePiece's with byte fallback, as llama's. ``--arch`` is a model_type of Hugging Face's:
llama, qwen3, gemma3_text, phi3, olmo3, granite and so on. ``--format Q4_K_M`` mixes formats as
llama-quantize does. The presets ``llama-...`` have real models' shapes: a minute and 2 GB each.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf_layout import ARCHITECTURES, EQUAL_HEADS, gguf_name, keys, rope_factors, shapes

from edge_rt.quant import blocks
from edge_rt.quant.reference import dequantize
from edge_rt.quant.reference_write import random_blocks

ALIGNMENT = 32
CHUNK_ELEMENTS = 1 << 22  # weights made at a time: bounds memory to some tens of MiB

FORMATS = {fmt.name: fmt for fmt in blocks.FORMATS.values()}
# general.file_type: what most matrices are
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23,
    "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ2_S": 28, "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32,
    "TQ1_0": 36, "TQ2_0": 37, "MXFP4": 38, "Q4_K_M": 15,
}  # fmt: skip
MIXES = {"Q4_K_M": ("Q4_K", "Q6_K")}  # what most matrices are, and those that matter more
Fill = Callable[[BinaryIO], None]


@dataclass(frozen=True)
class Config:
    """A dense model of the architecture ``arch``; ``window``: of the layers that have one."""

    arch: str = "llama"
    layers: int = 2
    hidden: int = 128
    ffn: int = 352
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vocab: int = 512
    context: int = 4096
    format: str = "Q4_0"
    tied: bool = False
    rope_theta: float = 500000.0
    rope_scaling: str = "none"  # none, linear or llama3
    rope_factor: float = 4.0
    norm_eps: float = 1e-5
    # Of the weights of the embedding (0: as all others) and of one token's logits, if not tied.
    # A louder embedding keeps tokens apart through layers that mix them.
    embedding_std: float = 0.0
    logit_std: float = 0.7
    window: int = 256
    name: str = "random"

    def check(self) -> None:
        block = max(FORMATS[name].block_elements for name in self.formats)
        for what, n in (("hidden", self.hidden), ("ffn", self.ffn), ("q", self.q_dim)):
            if n % block:
                raise SystemExit(f"{what} width {n} is not whole blocks of {self.format} ({block})")
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise SystemExit("heads must be a multiple of kv-heads, and head-dim even")
        if self.tied and self.logit_std != Config.logit_std:
            raise SystemExit("the logits of a tied model are the embedding's: no --logit-std")
        if self.arch in EQUAL_HEADS and self.hidden != self.q_dim:
            raise SystemExit(f"{self.arch}: hidden must be heads times head-dim")
        if self.arch not in ("llama", "mistral", "qwen3") and self.rope_scaling != "none":
            raise SystemExit(f"{self.arch} has no --rope-scaling here")
        if self.vocab < 300:
            raise SystemExit("a byte-fallback vocabulary needs at least 300 pieces")

    @property
    def q_dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def formats(self) -> tuple[str, ...]:
        return MIXES.get(self.format, (self.format,))

    def format_of(self, name: str) -> str:
        """The format of a matrix: in a mix llama-quantize's choice, which gives the head, and half
        of the layers' values and down projections, more bits."""
        usual, finer = self.formats[0], self.formats[-1]
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            return finer
        if not name.endswith(("attn_v.weight", "ffn_down.weight")):
            return usual
        layer, eighth = int(name.split(".")[1]), self.layers // 8
        middle = eighth <= layer < 7 * self.layers // 8
        return usual if middle and (layer - eighth) % 3 != 2 else finer

    def hugging_face(self) -> dict[str, Any]:
        """The config.json of this model; each family's own settings are like its real models'."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        original = int(self.context / self.rope_factor)
        if self.rope_scaling != "none":
            rope |= {"rope_type": self.rope_scaling, "factor": self.rope_factor}
        if self.rope_scaling == "llama3":
            rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
            rope["original_max_position_embeddings"] = original
        yarn = {
            "rope_type": "yarn", "rope_theta": self.rope_theta, "factor": self.rope_factor,
            "original_max_position_embeddings": original,
        }  # fmt: skip
        own: dict[str, dict[str, Any]] = {
            "gemma2": {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
            "gemma3_text": {"rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_theta": 10000.0},
            }},
            "olmo3": {"rope_parameters": {"full_attention": yarn, "sliding_attention": rope}},
            "phi3": {"original_max_position_embeddings": self.context},
            "granite": {
                "attention_multiplier": 1 / self.head_dim, "embedding_multiplier": 12.0,
                "residual_multiplier": 0.22, "logits_scaling": 8.0,
            },
            "ministral3": {
                "rope_parameters": yarn | {"mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
            },
        }  # fmt: skip
        return {
            "num_hidden_layers": self.layers, "hidden_size": self.hidden,
            "intermediate_size": self.ffn, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab, "max_position_embeddings": self.context,
            "tie_word_embeddings": self.tied or self.arch.startswith("gemma"),
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": rope, "sliding_window": self.window, **own.get(self.arch, {}),
        }  # fmt: skip


_3B = Config(
    layers=28, hidden=3072, ffn=8192, heads=24, kv_heads=8, head_dim=128, vocab=32000,
    name="random llama 3B",
)  # fmt: skip
PRESETS = {
    "llama-3b-q4_0": _3B,
    "llama-3b-q4_k_m": replace(_3B, format="Q4_K_M"),
    "llama-1b-q8_0": Config(
        layers=16, hidden=2048, ffn=8192, heads=32, kv_heads=8, head_dim=64, vocab=128256,
        format="Q8_0", tied=True, name="random llama 1B",
    ),
    # Every width is a multiple of 256, the longest block; about 5 bits of entropy per token.
    "small": Config(
        layers=4, hidden=512, ffn=1024, heads=8, kv_heads=4, head_dim=64, vocab=2048,
        embedding_std=0.25, logit_std=3.0, name="random llama, small",
    ),
}  # fmt: skip


# --- GGUF writing -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """``dims`` in GGUF order: columns first."""

    name: str
    dims: tuple[int, ...]
    format: str
    fill: Fill

    @property
    def n_bytes(self) -> int:
        return FORMATS[self.format].row_bytes(math.prod(self.dims))


@dataclass
class GGUFFile:
    """Metadata and lazily made tensors of one GGUF v3."""

    metadata: list[bytes] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)

    def add(self, key: str, value: object) -> None:
        kind, payload = _value(value)
        self.metadata.append(_string(key) + struct.pack("<I", kind) + payload)

    def write(self, path: Path) -> None:
        """Write beside ``path``, fsync and rename: a reader never sees half a file."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as out:
                self._write(out)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _write(self, out: BinaryIO) -> None:
        out.write(b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.metadata)))
        out.writelines(self.metadata)
        offset = 0
        for t in self.tensors:
            out.write(_string(t.name) + struct.pack(f"<I{len(t.dims)}Q", len(t.dims), *t.dims))
            out.write(struct.pack("<IQ", FORMATS[t.format].ggml_id, offset))
            offset += -(-t.n_bytes // ALIGNMENT) * ALIGNMENT
        for t in self.tensors:
            out.write(b"\0" * (-out.tell() % ALIGNMENT))
            start = out.tell()
            t.fill(out)
            if out.tell() - start != t.n_bytes:
                raise AssertionError(f"{t.name}: {out.tell() - start} bytes, not {t.n_bytes}")
        out.write(b"\0" * (-out.tell() % ALIGNMENT))


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(value: object) -> tuple[int, bytes]:
    """GGUF type id and bytes: bool, uint32, float32, string, or an array of one of them."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return (4, struct.pack("<I", value)) if value >= 0 else (5, struct.pack("<i", value))
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, (str, bytes)):
        return 8, _string(value)
    if isinstance(value, np.ndarray):
        kind, dtype = {"f": (6, "<f4"), "i": (5, "<i4"), "b": (7, "?")}[value.dtype.kind]
        return 9, struct.pack("<IQ", kind, value.size) + value.astype(dtype).tobytes()
    if isinstance(value, Sequence):
        return 9, struct.pack("<IQ", 8, len(value)) + b"".join(map(_string, value))
    raise TypeError(f"no GGUF type for {type(value)}")


# --- contents ---------------------------------------------------------------------------------


def vocabulary(n: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Pieces, scores, types: <unk> <s> </s>, 256 bytes, single letters, then made-up syllables.

    Every longer piece is an earlier piece plus one that exists, so merging can reach all.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    types = [2, 3, 3, *[6] * 256]
    letters = ["▁", *"etaoinsrhldcumfpgwybvkxjqz"]
    seen = set(letters)
    made = list(letters)
    frontier = 0
    while len(made) < n - len(pieces):
        for letter in letters[1:]:
            piece = made[frontier] + letter
            if piece not in seen:
                seen.add(piece)
                made.append(piece)
        frontier += 1
    pieces += made[: n - len(pieces)]
    types += [1] * (n - len(types))
    scores = np.zeros(n, np.float32)
    # Merges rank by score: letters least, then the earlier a piece the likelier it is.
    scores[259:] = -np.arange(n - 259, dtype=np.float32)
    scores[259 : 259 + len(letters)] -= n
    return pieces, scores, np.array(types, np.int32)


def add_vocabulary(gguf: GGUFFile, n: int) -> None:
    """Add the keys of a SentencePiece tokenizer of ``n`` made-up pieces."""
    pieces, scores, types = vocabulary(n)
    gguf.add("tokenizer.ggml.model", "llama")
    gguf.add("tokenizer.ggml.pre", "default")
    gguf.add("tokenizer.ggml.tokens", pieces)
    gguf.add("tokenizer.ggml.scores", scores)
    gguf.add("tokenizer.ggml.token_type", types)
    gguf.add("tokenizer.ggml.bos_token_id", 1)
    gguf.add("tokenizer.ggml.eos_token_id", 2)
    gguf.add("tokenizer.ggml.unknown_token_id", 0)
    gguf.add("tokenizer.ggml.add_bos_token", True)
    gguf.add("tokenizer.ggml.add_eos_token", False)


def matrix(
    name: str, n_cols: int, n_rows: int, fmt: str, seed: list[int], gain: float = 0.7
) -> Tensor:
    """Noise that depends on the seed and the tensor's name, not on the order of writing.

    ``gain``: standard deviation of its products with columns of root mean square 1.
    """
    std = gain / math.sqrt(n_cols)

    def fill(out: BinaryIO) -> None:
        rng = np.random.default_rng([*seed, *name.encode()])
        left = n_cols * n_rows
        while left:
            n = min(left, CHUNK_ELEMENTS)
            out.write(random_blocks(FORMATS[fmt], 1, n, rng, std))
            left -= n

    return Tensor(name, (n_cols, n_rows), fmt, fill)


def vector(name: str, values: np.ndarray) -> Tensor:
    data = values.astype("<f4").tobytes()
    return Tensor(name, (values.size,), "F32", lambda out: out.write(data) and None)


def noise(name: str, n: int, seed: list[int], mean: float) -> Tensor:
    rng = np.random.default_rng([*seed, *name.encode()])
    return vector(name, mean + 0.1 * (rng.random(n, dtype=np.float32) - 0.5))


def tensors(c: Config, seed: list[int]) -> Iterator[Tensor]:
    config = c.hugging_face()
    for factors in rope_factors(config):
        yield vector(*factors)
    gains = {"token_embd.weight": c.embedding_std * math.sqrt(c.hidden) or 0.7}
    gains["output.weight"] = c.logit_std
    for source, shape in shapes(c.arch, config):
        name = gguf_name(c.arch, source)
        if len(shape) == 2:
            fmt = c.format_of(name)
            yield matrix(name, shape[1], shape[0], fmt, seed, gains.get(name, 0.7))
        else:
            yield noise(name, shape[0], seed, float(name.endswith("norm.weight")))


def build(c: Config, seed: int) -> GGUFFile:
    c.check()
    arch = ARCHITECTURES[c.arch]
    gguf = GGUFFile()
    gguf.add("general.architecture", arch)
    gguf.add("general.name", c.name)
    gguf.add("general.file_type", FILE_TYPES[c.format])
    gguf.add("general.quantization_version", 2)
    for key, value in keys(c.arch, c.hugging_face(), arch):
        gguf.add(key, value)
    add_vocabulary(gguf, c.vocab)
    gguf.tensors = list(tensors(c, [seed]))
    return gguf


def dequantized(model: GGUFFile) -> GGUFFile:
    """The same model with every matrix in F32: what its products with float activations give."""

    def widened(tensor: Tensor) -> Tensor:
        def fill(out: BinaryIO) -> None:
            packed = io.BytesIO()
            tensor.fill(packed)
            fmt = FORMATS[tensor.format]
            out.write(dequantize(packed.getvalue(), fmt, tensor.dims[::-1]).tobytes())

        return replace(tensor, format="F32", fill=fill)

    return replace(model, tensors=[widened(tensor) for tensor in model.tensors])


def main() -> int:
    base = Config()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", choices=PRESETS)
    parser.add_argument("--arch", choices=ARCHITECTURES)
    parser.add_argument("--seed", type=int, default=0)
    for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "context",
                 "window"):  # fmt: skip
        parser.add_argument("--" + name.replace("_", "-"), type=int, metavar="N")
    parser.add_argument("--format", choices=FILE_TYPES)
    parser.add_argument("--tied", action="store_true", default=None)
    parser.add_argument("--embedding-std", type=float)
    parser.add_argument("--logit-std", type=float)
    parser.add_argument("--rope-theta", type=float)
    parser.add_argument("--rope-scaling", choices=["none", "linear", "llama3"])
    parser.add_argument("--rope-factor", type=float)
    args = vars(parser.parse_args())
    path, preset, seed = args.pop("out"), args.pop("preset"), args.pop("seed")
    given = {key: value for key, value in args.items() if value is not None}
    config = replace(PRESETS[preset] if preset else base, **given)
    gguf = build(config, seed)
    gguf.write(path)
    print(f"{path}: {path.stat().st_size:,} bytes, {len(gguf.tensors)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
