"""Descriptions become programs: what each architecture does, and what is refused by its name.

Models here are directories without weights; tests/parity computes with real ones.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from edge_rt import ModelError
from edge_rt.loaders.safetensors import SafetensorsFolder
from edge_rt.loaders.source import TensorInfo, WeightSource
from edge_rt.lowering import build_program
from edge_rt.models import ARCHITECTURES
from edge_rt.models.description import Rope
from edge_rt.models.huggingface import FAMILIES, WRAPPERS, huggingface_source
from edge_rt.plan import Settings
from edge_rt.planner import Planner
from edge_rt.program import HEAD, LAYERS, Operation, Program
from edge_rt.quant.blocks import BF16, F16, F32, Q4_0, BlockFormat
from edge_rt.sizes import MIB
from edge_rt.tokenizer.cost import tokenizer_ceilings

TINY = {
    "num_hidden_layers": 6, "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "vocab_size": 300,
}  # fmt: skip
POST_NORMED = ("gemma2", "gemma3_text", "olmo2", "olmo3")


def shapes(family: str, c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face names and shapes of the language model's tensors."""
    hidden, ffn, dim = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    found: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (c["vocab_size"], hidden)}
    for layer in range(c["num_hidden_layers"]):
        part: dict[str, tuple[int, ...]] = {"post_attention_layernorm": (hidden,)}
        if not family.startswith("olmo"):
            part["input_layernorm"] = (hidden,)
        if family.startswith("gemma") and family != "gemma":
            part["pre_feedforward_layernorm"] = (hidden,)
        if family in POST_NORMED:
            part["post_feedforward_layernorm"] = (hidden,)
        if family == "phi3":
            part["self_attn.qkv_proj"] = (q + 2 * kv, hidden)
            part["mlp.gate_up_proj"] = (2 * ffn, hidden)
        else:
            part["self_attn.q_proj"] = (q, hidden)
            part["self_attn.k_proj"] = part["self_attn.v_proj"] = (kv, hidden)
            part["mlp.gate_proj"] = part["mlp.up_proj"] = (ffn, hidden)
        part["self_attn.o_proj"], part["mlp.down_proj"] = (hidden, q), (hidden, ffn)
        if family in ("qwen3", "gemma3_text"):
            part["self_attn.q_norm"] = part["self_attn.k_norm"] = (dim,)
        if family.startswith("olmo"):
            part["self_attn.q_norm"], part["self_attn.k_norm"] = (q,), (kv,)
        found |= {f"layers.{layer}.{name}.weight": shape for name, shape in part.items()}
    return found | {"norm.weight": (hidden,)}


def folder(
    family: str,
    prefix: str = "model.",
    head: str = "lm_head",
    dtype: BlockFormat = F32,
    change: dict[str, Any] | None = None,
    **more: Any,
) -> SafetensorsFolder:
    """A Hugging Face folder of ``family``; ``more`` are keys of config.json."""
    c = TINY | (change or {})
    names = {prefix + name: shape for name, shape in shapes(family, c).items()}
    if head:
        names[f"{head}.weight"] = (c["vocab_size"], c["hidden_size"])
    raw, at = SafetensorsFolder("/models/some"), 4096
    for name, shape in names.items():
        n_bytes = dtype.row_bytes(shape[-1]) * math.prod(shape[:-1])
        raw.raw[name] = TensorInfo(name, shape, dtype, dtype.name, at, n_bytes)
        at += n_bytes
    raw.parts, raw.file_size = ("/models/some/model.safetensors",), at
    raw.config = {"model_type": family} | c | more
    return raw


def no_floats(tensor: TensorInfo) -> bytes:
    raise AssertionError(f"{tensor.name} was read")


def program(raw: SafetensorsFolder) -> Program:
    return build_program(huggingface_source(raw), no_floats)


def of(raw: SafetensorsFolder, **keys: Any) -> WeightSource:
    """A source with other metadata; keys are without the architecture, None leaves one out."""
    source = huggingface_source(raw)
    prefix = source.get_str("general.architecture")
    for key, value in keys.items():
        full = f"{prefix}.{key.replace('__', '.')}"
        source.metadata.pop(full, None)
        if value is not None:
            source.metadata[full] = value
    return source


def refuse(raw: SafetensorsFolder, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        program(raw)
    assert all(word in str(caught.value) for word in words), caught.value


def kinds(p: Program, segment: int) -> list[str]:
    return [operation.kind for operation in p.operations[segment]]


def attentions(p: Program) -> list[Operation]:
    return [o for o in p.operations[LAYERS] if o.kind == "attention"]


# -- every family ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_used_once(family: str) -> None:
    raw = folder(family)
    p = program(raw)
    used: dict[str, list[tuple[int, int]]] = {}
    for use in p.matrices:
        assert use.file_offset == use.tensor.offset + use.first_row * use.row_bytes
        used.setdefault(use.tensor.name, []).append((use.first_row, use.n_rows))
    for name, info in raw.raw.items():
        if name == "model.embed_tokens.weight":  # the head is another matrix
            assert name not in used and p.embedding is info
        elif len(info.shape) == 2:
            row = 0  # the slices cover it, in order
            for first, n in used[name]:
                assert first == row
                row += n
            assert row == info.shape[0]
        else:
            assert name in {vector.tensor.name for vector in p.vectors.values()}
    offset = FAMILIES[family][1].norm_offset
    assert {vector.offset for vector in p.vectors.values()} == {offset}


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_join(family: str) -> None:
    """Every step reads what an earlier one of the pass wrote, and the head begins with a norm."""
    p = program(folder(family, sliding_window=16, dtype=F16))
    written = {"x", ""} | {name for name in p.buffers if name.startswith("rope")}
    for operation in [*p.operations[LAYERS], *p.operations[HEAD]]:
        parts = [(part.src, part.dst) for part in operation.parts]
        for src, dst in [(operation.src, operation.dst), (operation.src2, ""), *parts]:
            assert src in written, operation
            written.add(dst)
    assert kinds(p, HEAD)[0] == "rms_norm" and kinds(p, LAYERS)[0] == "rope_tables"
    norms = [o for o in p.operations[LAYERS] if o.kind == "rms_norm"]
    assert all(p.vectors[o.vector].n == o.width for o in norms)
    assert all(p.buffers[o.src] % o.width == 0 for o in norms)


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_of_any_float_type(family: str) -> None:
    for dtype in (F16, BF16):
        p = program(folder(family, dtype=dtype))
        assert {v.format for v in p.vectors.values()} == {m.format for m in p.matrices} == {dtype}


def test_layers_differ_as_the_family_says() -> None:
    def windows(family: str, **more: Any) -> list[int]:
        return [o.window for o in attentions(program(folder(family, **more)))]

    types = ["full_attention", "sliding_attention"]
    assert windows("llama", sliding_window=16) == [0] * 6
    assert windows("mistral", sliding_window=16) == [16] * 6
    assert windows("mistral", sliding_window=None) == windows("mistral") == [0] * 6
    assert (
        windows("phi3", sliding_window=16) == windows("ministral3", sliding_window=16) == [16] * 6
    )
    assert windows("gemma2", sliding_window=16) == [16, 0] * 3
    assert windows("gemma3_text", sliding_window=16) == [16] * 5 + [0]
    assert windows("gemma3_text", sliding_window=16, sliding_window_pattern=2) == [16, 0] * 3
    assert windows("olmo3", sliding_window=16) == [16, 16, 16, 0, 16, 16]
    assert windows("gemma2", sliding_window=16, layer_types=types * 3) == [0, 16] * 3
    assert windows("qwen2", sliding_window=16, max_window_layers=4) == [0] * 6
    late = {"sliding_window": 16, "max_window_layers": 4, "use_sliding_window": True}
    assert windows("qwen3", **late) == [0] * 4 + [16] * 2
    assert windows("smollm3", sliding_window=16, use_sliding_window=True) == [0, 0, 0, 16, 0, 0]


def test_ropes() -> None:
    def tables(family: str, **more: Any) -> list[int | None]:
        return [layer.rope for layer in program(folder(family, **more)).hyper.layers]

    assert tables("llama") == [0] * 6
    assert tables("smollm3") == [0, 0, 0, None, 0, 0]
    assert tables("smollm3", no_rope_layers=[1, 0, 1, 1, 1, 0]) == [0, None, 0, 0, 0, None]
    assert tables("gemma3_text", sliding_window=16) == [1] * 5 + [0]
    assert tables("olmo3", sliding_window=16) == [1, 1, 1, 0, 1, 1]
    # A window that shows everything is none, but its layers keep their table.
    wide = program(folder("gemma3_text", sliding_window=512)).hyper.layers
    assert [(layer.window, layer.rope) for layer in wide] == [(0, 1)] * 5 + [(0, 0)]
    local, far = (
        program(folder("gemma3_text", sliding_window=16)).hyper.ropes[i].frequencies[1]
        for i in (1, 0)
    )
    assert local == pytest.approx(1e4 ** (-1 / 16)) and far == pytest.approx(1e6 ** (-1 / 16))


def test_scales() -> None:
    gemma = program(folder("gemma2", query_pre_attn_scalar=16))
    assert attentions(gemma)[0].value == 0.25 and attentions(gemma)[0].cap == 50.0
    assert kinds(gemma, HEAD)[-1] == "softcap"
    assert gemma.operations[LAYERS][1] == Operation("scale", dst="x", value=math.sqrt(96))
    plain = program(folder("gemma2", final_logit_softcapping=None, attn_logit_softcapping=None))
    assert attentions(plain)[0].cap == 0 and kinds(plain, HEAD)[-1] == "matmul"
    for architecture, layers in (("gemma2", 46), ("gemma3_text", 62)):  # GGUFs do not say
        big = of(folder(architecture, change={"num_hidden_layers": layers}), attention__scale=None)
        assert attentions(build_program(big, no_floats))[0].value == 16**-0.5  # hidden / heads
    granite = program(
        folder("granite", residual_multiplier=0.5, logits_scaling=4.0, attention_multiplier=0.125)
    )
    assert attentions(granite)[0].value == 0.125
    assert [o.value for o in granite.operations[LAYERS] if o.kind == "add"] == [0.5] * 12
    assert granite.operations[HEAD][-1] == Operation("scale", dst="logits", value=0.25)
    switched = of(folder("granite"), rope__scaling__finetuned=False)
    assert all(layer.rope is None for layer in build_program(switched, no_floats).hyper.layers)


# -- rope scalings ---------------------------------------------------------------------------------


def main_rope(family: str = "llama", **scaling: Any) -> Rope:
    return program(folder(family, rope_scaling=scaling)).hyper.ropes[0]


def test_rope_scalings() -> None:
    plain = main_rope().frequencies
    assert main_rope(type="linear", factor=4.0).frequencies == tuple(f / 4 for f in plain)
    old = {"original_max_position_embeddings": 64}
    llama3 = main_rope(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **old
    )
    yarn = main_rope(rope_type="yarn", factor=8.0, **old)
    for rope in (llama3, yarn):  # fast pairs stay, slow ones are stretched, the others between
        ratios = [f / g for f, g in zip(plain, rope.frequencies, strict=True)]
        assert ratios[0] == 1 and ratios[-1] == pytest.approx(8)
        assert ratios == sorted(ratios) and any(1.01 < r < 7.9 for r in ratios)
    assert llama3.magnitude == 1 and yarn.magnitude == pytest.approx(0.1 * math.log(8) + 1)
    assert main_rope(rope_type="yarn", factor=8.0, attention_factor=1.5, **old).magnitude == 1.5
    both = main_rope(rope_type="yarn", factor=8.0, mscale=1.0, mscale_all_dim=1.0, **old)
    assert both.magnitude == 1


def test_longrope_follows_the_context() -> None:
    long, short = [2.0 + i for i in range(16)], [1.0 + i / 8 for i in range(16)]
    settings = {"type": "longrope", "long_factor": long, "short_factor": short}
    raw = folder("phi3", rope_scaling=settings, original_max_position_embeddings=128)
    rope = program(raw).hyper.ropes[0]
    plain = main_rope().frequencies
    for ctx, factors in ((128, short), (129, long)):
        expected = [f / factor for f, factor in zip(plain, factors, strict=True)]
        assert rope.for_ctx(ctx) == pytest.approx(expected)
    assert rope.magnitude == pytest.approx(math.sqrt(1 + math.log(4) / math.log(128)))


# -- refusals --------------------------------------------------------------------------------------


def test_unknown_models_are_refused_with_the_list() -> None:
    refuse(folder("llama", model_type="mamba"), "mamba", *FAMILIES, *WRAPPERS)
    source = huggingface_source(folder("llama"))
    source.metadata["general.architecture"] = "mamba"
    with pytest.raises(ModelError) as caught:
        build_program(source, no_floats)
    assert all(name in str(caught.value) for name in ("mamba", *ARCHITECTURES))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"hidden_act": "relu"}, "relu"), ({"hidden_act": ["silu"]}, "silu"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
        ({"rope_scaling": {"rope_type": "linear"}, "max_position_embeddings": "x"}, "max_position"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"), ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"num_local_experts": 8}, "num_local_experts"), ({"hidden_size": True}, "hidden_size"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"), ({"rms_norm_eps": 0}, "epsilon"),
        ({"head_dim": 10**400}, "head_dim"), ({"rope_theta": 10**400}, "rope_theta"),
        ({"rope_scaling": {"full_attention": {}}}, "windowed layers"),
        ({"model_type": "gemma3", "text_config": 3}, "text_config"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_are_refused_by_name(settings: dict[str, Any], word: str) -> None:
    refuse(folder("llama", **settings), word)


def test_layer_types_and_windows_are_refused_by_name() -> None:
    refuse(folder("gemma2", layer_types=["chunked_attention"] * 6), "chunked_attention")
    refuse(folder("gemma2", layer_types=["full_attention"] * 5), "layer_types")
    refuse(folder("gemma3_text", use_bidirectional_attention=True), "use_bidirectional_attention")
    refuse(folder("mistral", sliding_window=0), "sliding_window")
    refuse(folder("smollm3", no_rope_layers=[1, 0]), "no_rope_layers")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("qwen2", {"attention__sliding_window": 16}),  # of which layers?
        ("gemma2", {"attention__sliding_window": 16, "rope__freq_base_swa": 1e4}),
        ("llama", {"logit_scale": 2.0}),
        ("llama", {"expert_count": 8}),
        ("llama", {"attention__clamp_kqv": 8.0}),
        ("llama", {"attention__causal": False}),
    ]
    for family, keys in cases:
        name = [key.replace("__", ".") for key in keys][-1]
        source = of(folder(family), **keys)
        source.metadata.pop(f"{family}.attention.sliding_window_pattern", None)
        with pytest.raises(ModelError, match=name):
            build_program(source, no_floats)


def test_tensors_that_nothing_uses_are_refused() -> None:
    raw = folder("llama")
    some = raw.raw["model.norm.weight"]
    for name in ("model.layers.1.self_attn.sinks", "model.layers.6.mlp.up_proj.weight"):
        other = folder("llama")
        other.raw[name] = replace(some, name=name)
        refuse(other, "no use", name)
    for name in ("vision_tower.encoder.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"):
        raw.raw[name] = some
    program(raw)


def test_heads() -> None:
    tied = program(folder("llama", head="", tie_word_embeddings=True))
    assert tied.matrices[-1].tensor is tied.embedding
    refuse(folder("llama", head=""), "lm_head")
    assert program(folder("gemma", head="")).matrices[-1].tensor.name == "model.embed_tokens.weight"
    # transformers keeps a head that is stored, whatever config.json says of tying.
    kept = program(folder("llama", tie_word_embeddings=True))
    assert kept.matrices[-1].tensor.name == "lm_head.weight"


@pytest.mark.parametrize(
    ("prefix", "head"),
    [("language_model.model.", "language_model.lm_head"), ("model.language_model.", "lm_head")],
)
def test_wrappers(prefix: str, head: str) -> None:
    for outer, inner in WRAPPERS.items():
        raw = folder(inner, prefix, head)
        text = {key: value for key, value in raw.config.items() if key != "model_type"}
        raw.config = {"model_type": outer, "text_config": text}
        raw.raw["multi_modal_projector.linear.weight"] = raw.raw[f"{prefix}norm.weight"]
        assert program(raw).architecture is FAMILIES[inner][0]


def test_broken_config_files_are_refused_or_work() -> None:
    """Any value anywhere: a `ModelError` or a program, nothing else."""
    rng = random.Random()
    seed = rng.randrange(1 << 30)
    rng.seed(seed)
    strange: list[Any] = [
        None, True, False, 0, -1, 1, 2, 7, 10**30, -(10**400), 0.0, -2.5, 1e-320, 1e300,
        float("nan"), float("inf"), "", "yarn", "silu", [], [1], [None] * 6, [0.0] * 16,
        ["full_attention"] * 6, {}, {"rope_type": "yarn"}, {"rope_type": "longrope"},
        {"full_attention": {"rope_type": "llama3"}, "sliding_attention": {}}, {"rope_type": [1]},
    ]  # fmt: skip
    rope_keys = ("rope_type", "factor", "original_max_position_embeddings", "beta_fast", "mscale",
                 "beta_slow", "mscale_all_dim", "attention_factor", "long_factor", "short_factor",
                 "low_freq_factor", "high_freq_factor", "rope_theta")  # fmt: skip
    scaled = ("yarn", "longrope", "llama3", "linear")
    for round_ in range(1500):
        family = rng.choice(list(FAMILIES))
        defaults = FAMILIES[family][1].defaults
        settings = {
            rng.choice([*defaults, *TINY, "layer_types", "use_sliding_window", "no_rope_layers",
                        "hidden_act", "tie_word_embeddings", "rope_scaling", "model_type"]):
                rng.choice(strange)
            for _ in range(rng.randrange(4))
        }  # fmt: skip
        if rng.random() < 0.5:
            settings["rope_scaling"] = {
                "rope_type": rng.choice(scaled), "factor": 4.0,
            } | {key: rng.choice(strange) for key in rng.sample(rope_keys, 3)}  # fmt: skip
        raw = folder(family)
        raw.config |= settings
        try:
            program(raw)
        except ModelError:
            pass
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {round_}: {family} {settings}") from error


# -- floors ----------------------------------------------------------------------------------------

# layers, hidden, ffn, heads, kv heads, head size, vocabulary, byte-pair merges
REAL = {
    "gemma3 270M": ("gemma3_text", 18, 640, 2048, 4, 1, 256, 262144),
    "gemma3 1B": ("gemma3_text", 26, 1152, 6912, 4, 1, 256, 262144),
    "gemma3 4B": ("gemma3_text", 34, 2560, 10240, 8, 4, 256, 262144),
    "gemma3 12B": ("gemma3_text", 48, 3840, 15360, 16, 8, 256, 262144),
    "gemma2 2B": ("gemma2", 26, 2304, 9216, 8, 4, 256, 256000),
    "qwen3 0.6B": ("qwen3", 28, 1024, 3072, 16, 8, 128, 151936),
    "qwen3 8B": ("qwen3", 36, 4096, 12288, 32, 8, 128, 151936),
    "llama3 8B": ("llama", 32, 4096, 14336, 32, 8, 128, 128256),
    "phi4 mini": ("phi3", 32, 3072, 8192, 24, 8, 128, 200064),
    "olmo2 1B": ("olmo2", 16, 2048, 8192, 16, 16, 128, 100352),
    "smollm2 135M": ("llama", 30, 576, 1536, 9, 3, 64, 49152),
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("dtype", [Q4_0, BF16], ids=lambda f: f.name)
def test_floors_of_real_sizes(name: str, dtype: BlockFormat) -> None:
    """What the floor adds to tokenizer, ring, cache, norms and one row of the vocabulary's logits
    stays small, whatever the family."""
    family, *numbers = REAL[name]
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
            "num_key_value_heads", "head_dim", "vocab_size")  # fmt: skip
    change = dict(zip(keys, numbers, strict=True)) | {"max_position_embeddings": 32768}
    source = huggingface_source(folder(family, head="", dtype=dtype, tie_word_embeddings=True,
                                       change=change))  # fmt: skip
    for key, info in source.tensors.items():
        if len(info.shape) == 1:  # norms are floats in every file
            source.tensors[key] = TensorInfo(info.name, info.shape, F32, "F32", info.offset,
                                             4 * info.shape[0])  # fmt: skip
    source.folder = None  # no tokenizer: its ceilings have their own tests
    p = build_program(source, no_floats)
    planner = Planner(source, p, 4096)
    _, roles = planner.floor(Settings(budget=0, ctx=2048, n_threads=2))
    vocabulary = 12 * p.n_vocab  # a row of logits, a candidate for each
    explained = sum(
        roles[r] for r in ("interpreter", "tokenizer", "ring", "kv", "slack", "weights")
    )
    explained += vocabulary + roles["kv"] // 512  # and its page tables
    assert sum(roles.values()) - explained <= 10 * MIB
    assert roles["ring"] <= 16.5 * MIB and roles["weights"] <= 3 * MIB
    assert planner.min_logit_rows * p.n_vocab * 4 <= 3 * MIB
    assert tokenizer_ceilings(p.n_vocab, p.n_vocab, 8 * p.n_vocab, 1024)[0] < 40 * MIB


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo3", "phi3", "qwen3"])
def test_missing_tensors_are_named_as_the_folder_does(family: str) -> None:
    for name in folder(family).raw:
        if name.startswith(("lm_head", "model.embed")) or "qkv_proj" in name:
            continue  # refused before, in words of their own; one of three ways to have q, k, v
        raw = folder(family)
        del raw.raw[name]
        refuse(raw, f"no tensor {name}")


def test_an_endless_vocabulary_is_refused() -> None:
    refuse(folder("llama", change={"vocab_size": 1 << 31}), "2147483648 rows")
