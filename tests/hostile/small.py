"""The smallest models that run: what the hostile files are made of."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from .. import gguf_builder as g
from .. import tokenizer_files
from ..gguf_builder import Array, GGUFBuilder
from ..safetensors_builder import Safetensors, write_folder

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM = 8, 16, 2, 1, 4
PIECES = ["<unk>", "<s>", "</s>", "▁", "x", "▁x", "a", "▁xa"]
Change = Callable[[GGUFBuilder], object]

MATRICES = {
    "attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "ffn_gate": (FFN, HIDDEN),
    "ffn_up": (FFN, HIDDEN),
    "ffn_down": (HIDDEN, FFN),
}
# GGUF's names of a layer's tensors and Hugging Face's.
FOLDER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
KEYS: dict[str, tuple[int, Any]] = {
    "general.architecture": (g.STRING, "llama"),
    "general.name": (g.STRING, "small"),
    "llama.block_count": (g.U32, 1),
    "llama.context_length": (g.U32, 64),
    "llama.embedding_length": (g.U32, HIDDEN),
    "llama.feed_forward_length": (g.U32, FFN),
    "llama.attention.head_count": (g.U32, HEADS),
    "llama.attention.head_count_kv": (g.U32, KV_HEADS),
    "llama.attention.key_length": (g.U32, HEAD_DIM),
    "llama.attention.layer_norm_rms_epsilon": (g.F32, 1e-5),
    "llama.rope.dimension_count": (g.U32, HEAD_DIM),
    "llama.rope.freq_base": (g.F32, 10000.0),
    "tokenizer.ggml.model": (g.STRING, "llama"),
    "tokenizer.ggml.tokens": (g.ARRAY, Array(g.STRING, PIECES)),
    "tokenizer.ggml.scores": (g.ARRAY, Array(g.F32, [-float(i) for i in range(len(PIECES))])),
    "tokenizer.ggml.token_type": (g.ARRAY, Array(g.I32, [2, 3, 3, 1, 1, 1, 1, 1])),
    "tokenizer.ggml.bos_token_id": (g.U32, 1),
    "tokenizer.ggml.eos_token_id": (g.U32, 2),
    "tokenizer.ggml.add_bos_token": (g.BOOL, 1),
}


def _floats(rng: random.Random, n: int) -> bytes:
    return struct.pack(f"<{n}f", *(rng.uniform(-0.4, 0.4) for _ in range(n)))


def weights(
    rows: int = len(PIECES), hidden: int = HIDDEN
) -> dict[str, tuple[tuple[int, int], bytes]]:
    """Random matrices of a layer and the embedding, by GGUF's names without ``.weight``."""
    rng = random.Random(11)
    shapes = {"token_embd": (rows, hidden), **MATRICES}
    return {name: (shape, _floats(rng, shape[0] * shape[1])) for name, shape in shapes.items()}


def small(change: Change | None = None, **keys: tuple[int, Any] | None) -> GGUFBuilder:
    """A llama of one layer; ``keys`` are added or replaced, None leaves one out."""
    builder = GGUFBuilder()
    for key, value in (KEYS | keys).items():
        if value is not None:
            builder.add(key, *value)
    vocabulary = (KEYS | keys)["tokenizer.ggml.tokens"]
    rows = len(PIECES)
    if vocabulary is not None and isinstance(vocabulary[1], Array) and vocabulary[1].values:
        rows = min(len(vocabulary[1].values), 4096)
    made = weights(rows)
    ones = struct.pack(f"<{HIDDEN}f", *[1.0] * HIDDEN)

    def matrix(name: str, prefix: str = "") -> None:
        shape, data = made[name]
        builder.tensor(f"{prefix}{name}.weight", shape[::-1], 0, data)

    matrix("token_embd")
    for name in FOLDER_NAMES:
        if name.endswith("norm"):
            builder.tensor(f"blk.0.{name}.weight", (HIDDEN,), 0, ones)
        else:
            matrix(name, "blk.0.")
    builder.tensor("output_norm.weight", (HIDDEN,), 0, ones)
    if change is not None:
        change(builder)
    return builder


@cache
def small_bytes() -> bytes:
    return small().pack()


def replace_key(builder: GGUFBuilder, name: str, kind: int, value: Any) -> None:
    """Set a key of ``builder``, at the end if it is new."""
    builder.keys = [k for k in builder.keys if k[0] != name] + [(name, kind, value)]


def byte_pairs(
    pieces: list[str] | None = None,
    merges: list[str] | None = None,
    types: list[int] | None = None,
    pre: str = "gpt-2",
    **keys: tuple[int, Any] | None,
) -> GGUFBuilder:
    """The same model with a byte-level vocabulary, its 256 letters first."""
    letters = [*letters_of_bytes(), "<|end|>", "xa", "xax"]
    pieces = letters if pieces is None else pieces
    merges = ["x a", "xa x"] if merges is None else merges
    types = [3 if piece.startswith("<|") else 1 for piece in pieces] if types is None else types
    changed: dict[str, tuple[int, Any] | None] = {
        "tokenizer.ggml.model": (g.STRING, "gpt2"),
        "tokenizer.ggml.pre": (g.STRING, pre),
        "tokenizer.ggml.tokens": (g.ARRAY, Array(g.STRING, list(pieces))),
        "tokenizer.ggml.token_type": (g.ARRAY, Array(g.I32, types)),
        "tokenizer.ggml.merges": (g.ARRAY, Array(g.STRING, list(merges))),
        "tokenizer.ggml.scores": None,
        "tokenizer.ggml.bos_token_id": None,
        "tokenizer.ggml.add_bos_token": None,
        "tokenizer.ggml.eos_token_id": (g.U32, 256),
    }
    return small(**(changed | keys))


def letters_of_bytes() -> list[str]:
    """GPT-2's character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


# --- Hugging Face -------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
    "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 264,
}  # fmt: skip
RAW_PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{b:02X}>" for b in range(256)),
    "▁",
    "x",
    "▁x",
    "a",
    "xa",
]


def shard(rows: int = len(RAW_PIECES)) -> Safetensors:
    """The weights of the small model under Hugging Face's names."""
    made, file = weights(rows), Safetensors()
    ones = struct.pack(f"<{HIDDEN}f", *[1.0] * HIDDEN)
    file.add("model.embed_tokens.weight", made["token_embd"][0], data=made["token_embd"][1])
    for name, theirs in FOLDER_NAMES.items():
        full = f"model.layers.0.{theirs}.weight"
        if name.endswith("norm"):
            file.add(full, (HIDDEN,), data=ones)
        else:
            file.add(full, made[name][0], data=made[name][1])
    return file.add("model.norm.weight", (HIDDEN,), data=ones)


def raw_tokenizer() -> dict[str, Any]:
    """A tokenizer.json in the manner of SentencePiece."""
    # Cases change what they get.
    normalizer, pre_tokenizer, decoders = deepcopy(tokenizer_files.RAW["llama-2"])
    extra = [tokenizer_files.added(piece, i, True) for i, piece in enumerate(RAW_PIECES[:3])]
    vocab = {piece: i for i, piece in enumerate(RAW_PIECES)}
    return tokenizer_files.content(
        normalizer, pre_tokenizer, {"type": "Sequence", "decoders": decoders}, extra, vocab,
        ["▁ x", "x a"], unk_token="<unk>", fuse_unk=True, byte_fallback=True,
    )  # fmt: skip


def byte_tokenizer(name: str = "gpt-2") -> dict[str, Any]:
    """A byte-level tokenizer.json of 264 tokens."""
    normalizer, pre_tokenizer = deepcopy(tokenizer_files.BYTE_LEVEL[name])
    letters = letters_of_bytes()
    vocab = {piece: i for i, piece in enumerate([*letters, "xa", "ax", "xax", "aa", "xx"])}
    extra = [
        tokenizer_files.added(f"<|{name}|>", 261 + i, True)
        for i, name in enumerate(("start", "end", "pad"))
    ]
    return tokenizer_files.content(
        normalizer, pre_tokenizer, deepcopy(tokenizer_files.LAST), extra, vocab, ["x a", "xa x"],
        ignore_merges=False,
    )  # fmt: skip


def write_small_folder(
    folder: Path,
    config: Any = None,
    tokenizer: Any = None,
    shards: list[Safetensors] | None = None,
    index: bool | None = None,
    **files: Any,
) -> Path:
    """A Hugging Face folder that runs; ``config`` and ``tokenizer`` replace the files of these
    names. ``files``: others by name, with ``__`` for a dot: bytes, a text, or what JSON has; None
    leaves one out."""
    write_folder(folder, shards or [shard()], CONFIG if config is None else config, index)
    tokenizer_files.write(folder, raw_tokenizer() if tokenizer is None else tokenizer)
    for name, value in files.items():
        path = folder / name.replace("__", ".")
        if value is None:
            path.unlink(missing_ok=True)
        elif isinstance(value, bytes):
            path.write_bytes(value)
        else:
            path.write_text(value if isinstance(value, str) else json.dumps(value))
    return folder
