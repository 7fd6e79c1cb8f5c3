"""A GGUF file from its header to a plan and, where it is a model after all, a few tokens.

The input is the file itself.
"""

from __future__ import annotations

import random
import struct
import zlib

from edge_rt.chat.source import find_template, special_tokens
from edge_rt.engine import Engine
from edge_rt.errors import EdgeRTError
from edge_rt.loaders.gguf import GGUFFile
from edge_rt.models import ARCHITECTURES
from edge_rt.opening import make_settings, open_planner
from edge_rt.plan import Plan
from edge_rt.planner import Planner
from edge_rt.sizes import MIB, PAGE
from edge_rt.tokenizer import Tokenizer
from edge_rt.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from tests import gguf_builder as g
from tests.fuzz.harness import bounded, require, scratch_folder
from tests.fuzz.mutate import mutate_gguf

_FOLDER = scratch_folder()
_PATH = _FOLDER / "model.gguf"
_HIDDEN, _FFN, _HEADS, _KV_HEADS, _HEAD_DIM, _CTX = 32, 32, 4, 2, 8, 64
_KEYS = [
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "expert_count",
    "attention.value_length", "attention.layer_norm_rms_epsilon", "attention.sliding_window",
    "attention.sliding_window_pattern", "attention.causal", "attention.scale",
    "attention.clamp_kqv", "attention.temperature_scale",
    "attention.temperature_length", "rope.dimension_count",
    "rope.freq_base", "rope.freq_base_swa", "rope.scale_linear", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_attn_factor",
    "rope.scaling.finetuned",
    "rope.scaling.low_freq_factor", "rope.scaling.high_freq_factor",
    "rope.scaling.short_factor",
    "rope.scaling.long_factor", "rope.pairs", "attention.rope_pattern", "norm_offset",
    "final_logit_softcapping", "attn_logit_softcapping", "embedding_scale", "residual_scale",
    "logit_scale",
]  # fmt: skip
_WORDS = [
    *(f"{name}.{key}" for name in ARCHITECTURES for key in _KEYS), *ARCHITECTURES,
    "general.architecture", "general.alignment", "general.name", "general.type", "split.no",
    "split.count", "split.tensors.count", "phi3", "clip", "mmproj", "adapter",
    *(f"tokenizer.ggml.{key}" for key in (
        "model", "pre", "tokens", "scores", "token_type", "merges", "bos_token_id", "eos_token_id",
        "eot_token_id", "eom_token_id", "unknown_token_id", "padding_token_id", "add_bos_token",
        "add_eos_token", "add_space_prefix", "fim_pre_token_id", "prefix_token_id")),
    "tokenizer.chat_template", "tokenizer.chat_template.tool_use", "gpt2", "llama", "gemma4",
    "none", "linear", "yarn", "llama3", "longrope", "halves", *PRE_TOKENIZERS,
    "token_embd.weight", "output.weight", "output.bias", "output_norm.weight",
    "rope_freqs.weight",
    "rope_factors_long.weight", "rope_factors_short.weight",
    *(f"blk.{layer}.{name}" for layer in (0, 1) for name in (
        "attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_qkv.weight",
        "attn_output.weight", "attn_q.bias", "attn_q_norm.weight", "attn_k_norm.weight",
        "post_attention_norm.weight", "ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight",
        "ffn_down.weight", "post_ffw_norm.weight")),
    "<s>", "</s>", "<|im_end|>", "<|end|>", "<|call|>", "<|return|>", "<PRE>",
    "<0x0A>", "<0x-1>",
    "{{ messages[0].content }}", "{% for m in messages %}{{ m.content }}{% endfor %}",
]  # fmt: skip


def _base(kind: str) -> g.GGUFBuilder:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in (0, 10, 0xC3)), "▁", "a", "b", "ab"]
    if kind == "llama":
        types = [2, 3, 3, *[6] * 3, *[1] * 4]
        return g.spm_vocabulary(
            [(p, -float(i), types[i]) for i, p in enumerate(pieces)],
            bos_token_id=1, eos_token_id=2, unknown_token_id=0, add_space_prefix=True,
        )  # fmt: skip
    pieces = ["<|endoftext|>", "<|im_end|>", "Ġ", "Ċ", "a", "b", "c", "ab", "abc", "Ġab"]
    builder = g.bpe_vocabulary(pieces, ["a b", "ab c", "Ġ ab"], [3, 3, *[1] * 8], "qwen2")
    return builder.add("tokenizer.ggml.eos_token_id", g.U32, 1)


def _model(
    name: str, kind: str, ggml_id: int, more: list[tuple[str, int, object]], tied: bool = False
) -> bytes:
    """A one-layer model of an architecture whose layer is llama's, or nearly."""
    builder = _base(kind)
    vocab = 10
    for key, type_, value in [
        ("general.architecture", g.STRING, name),
        ("general.alignment", g.U32, 32),
        (f"{name}.block_count", g.U32, 1),
        (f"{name}.context_length", g.U32, _CTX),
        (f"{name}.embedding_length", g.U32, _HIDDEN),
        (f"{name}.feed_forward_length", g.U32, _FFN),
        (f"{name}.attention.head_count", g.U32, _HEADS),
        (f"{name}.attention.head_count_kv", g.U32, _KV_HEADS),
        (f"{name}.attention.key_length", g.U32, _HEAD_DIM),
        (f"{name}.attention.value_length", g.U32, _HEAD_DIM),
        (f"{name}.attention.layer_norm_rms_epsilon", g.F32, 1e-5),
        (f"{name}.rope.dimension_count", g.U32, _HEAD_DIM),
        (f"{name}.rope.freq_base", g.F32, 10000.0),
        *more,
        ("tokenizer.chat_template", g.STRING, "{% for m in messages %}{{ m.content }}{% endfor %}"),
    ]:
        builder.add(key, type_, value)
    block = {0: 4, 2: 18, 8: 34}[ggml_id]
    rng = random.Random(5)

    def matrix(tensor: str, rows: int, columns: int) -> None:
        n_blocks = rows * columns // (1 if ggml_id == 0 else 32)
        builder.tensor(tensor, (columns, rows), ggml_id, rng.randbytes(block * n_blocks))

    def norm(tensor: str, n: int = _HIDDEN) -> None:
        builder.tensor(tensor, (n,), 0, struct.pack(f"<{n}f", *[1.0] * n))

    matrix("token_embd.weight", vocab, _HIDDEN)
    p = "blk.0."
    norms = {"gemma2": ("post_attention_norm", "ffn_norm", "post_ffw_norm")}
    norm(p + "attn_norm.weight")
    matrix(p + "attn_q.weight", _HEADS * _HEAD_DIM, _HIDDEN)
    matrix(p + "attn_k.weight", _KV_HEADS * _HEAD_DIM, _HIDDEN)
    matrix(p + "attn_v.weight", _KV_HEADS * _HEAD_DIM, _HIDDEN)
    if name == "qwen2":
        norm(p + "attn_q.bias", _HEADS * _HEAD_DIM)
    if name in ("qwen3", "gemma3"):
        norm(p + "attn_q_norm.weight", _HEAD_DIM)
        norm(p + "attn_k_norm.weight", _HEAD_DIM)
    if name == "gemma3":
        norms["gemma3"] = norms["gemma2"]
    matrix(p + "attn_output.weight", _HIDDEN, _HEADS * _HEAD_DIM)
    for one in norms.get(name, ("ffn_norm",)):
        norm(f"{p}{one}.weight")
    matrix(p + "ffn_gate.weight", _FFN, _HIDDEN)
    matrix(p + "ffn_up.weight", _FFN, _HIDDEN)
    matrix(p + "ffn_down.weight", _HIDDEN, _FFN)
    norm("output_norm.weight")
    if not tied:
        matrix("output.weight", vocab, _HIDDEN)
    return builder.pack()


def seeds() -> list[bytes]:
    scaling = [
        ("llama.rope.scaling.type", g.STRING, "yarn"),
        ("llama.rope.scaling.factor", g.F32, 4.0),
        ("llama.rope.scaling.original_context_length", g.U32, 16),
    ]
    windows: list[tuple[str, int, object]] = [
        ("gemma3.attention.sliding_window", g.U32, 16),
        ("gemma3.attention.sliding_window_pattern", g.ARRAY, g.Array(g.BOOL, [1])),
    ]
    caps: list[tuple[str, int, object]] = [
        ("gemma2.attention.sliding_window", g.U32, 8),
        ("gemma2.attn_logit_softcapping", g.F32, 50.0),
        ("gemma2.final_logit_softcapping", g.F32, 30.0),
    ]
    return [
        _model("llama", "llama", 2, []),
        _model("llama", "gpt2", 8, scaling, tied=True),  # type: ignore[arg-type]
        _model("qwen2", "gpt2", 2, []),
        _model("qwen3", "gpt2", 2, [], tied=True),
        _model("gemma3", "llama", 2, windows, tied=True),
        _model("gemma2", "llama", 2, caps, tied=True),
        _base("llama").pack(),
        g.GGUFBuilder(version=2).add("a", g.ARRAY, g.Array(g.F32, [1.0])).pack(),
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    return mutate_gguf(data, rng, _WORDS)


def run(data: bytes) -> None:
    with open(_PATH, "wb") as file:
        file.write(data)
    with bounded():
        found = GGUFFile.open(_PATH, allow_unsupported=True)
        _check_directory(found, len(data))
    with bounded():
        source, planner, _ = open_planner(_PATH)
        plans = [
            planner.plan(make_settings(planner, ram, ctx, 2, kv))
            for ram, ctx, kv in (
                ("64MiB", 1, "f32"),
                ("200MiB", None, "q8_0"),
                ("8GiB", None, "f16"),
            )
        ]
        for plan in plans:
            _check_plan(planner, plan)
        tokenizer = Tokenizer.from_source(source, planner.program.n_vocab)
        for tools in (False, True):
            find_template(source, tools)
        special_tokens(source, tokenizer)
    # The whole engine for one in eight: its threads cost milliseconds.
    if zlib.crc32(data) % 8 == 0:
        with bounded():
            _generate()


def _generate() -> None:
    try:
        engine = Engine(_PATH, ram="400MiB", ctx=8, threads=2, weight_cap="0")
    except EdgeRTError:
        engine = Engine(_PATH, ram="400MiB", ctx=8, threads=1)
    with engine:
        tokens = engine.generate([0], max_tokens=3, ignore_eos=True).tokens
        require(all(0 <= token < engine.n_vocab for token in tokens), f"tokens {tokens}")
        engine.generate("ab a", max_tokens=1, temperature=0.8, seed=1)


def _check_directory(found: GGUFFile, size: int) -> None:
    end = 0
    for t in sorted(found.tensors.values(), key=lambda t: t.offset):
        require(end <= t.offset, f"tensor {t.name!r} at {t.offset} overlaps")
        end = t.offset + t.n_bytes
        require(end <= size, f"tensor {t.name!r} ends at {end} of {size}")
        require(min(t.shape) > 0 and len(t.shape) <= 4, f"shape {t.shape}")


def _check_plan(planner: Planner, plan: Plan) -> None:
    if not plan.fits:
        require(plan.floor_bytes > plan.settings.budget // PAGE * PAGE, "refused above its floor")
        return
    total = sum(plan.roles.values())
    require(total <= plan.settings.budget, f"{total} bytes planned of {plan.settings.budget}")
    require(plan.floor_bytes <= plan.settings.budget, "a plan below its floor")
    require(plan.arena_bytes <= total + MIB, f"an arena of {plan.arena_bytes} of {total}")
    spans = planner._spans_bytes(plan.settings)
    extents = [(plan.kv_offset, plan.kv_bytes), (plan.ring_offset, plan.ring_bytes)]
    extents.append((plan.spans_offset, spans))
    extents.append((plan.staging_offset, plan.pass_tokens * plan.staging_bytes))
    extents += [
        (offset, planner._buffer_bytes(name, plan.pass_tokens, plan.logit_rows))
        for name, offset in plan.buffers.items()
    ]
    extents += [
        (plan.vector_offsets[name], 4 * vector.n)
        for name, vector in planner.program.vectors.items()
    ]
    extents += [(run.arena_offset, run.n_bytes) for run in plan.runs]
    end = 0
    for start, n_bytes in sorted(e for e in extents if e[1]):
        require(start >= end, f"arena extents overlap at {start}")
        end = start + n_bytes
    require(end <= plan.arena_bytes, f"the arena ends before {end}")
