"""Damaged and hostile files: every one is refused with an `EdgeRTError`, or it simply works."""

from __future__ import annotations

import gc
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_rt import EdgeRTError, Engine, ModelError, UsageError
from edge_rt.loaders.gguf import GGUFFile
from edge_rt.opening import make_settings, open_planner

from . import gguf_builder as g
from .gguf_builder import Array, GGUFBuilder

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 32, 64, 4, 2, 8, 300, 2


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Every engine collects garbage: torch's and pytest's objects would take most of the time."""
    gc.freeze()
    yield
    gc.unfreeze()


def tiny(
    change: Callable[[GGUFBuilder], object] | None = None, ggml_id: int = 0, **keys: Any
) -> GGUFBuilder:
    """A model that works; ``keys`` replace (type, value) of keys, None leaves one out."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
    pieces += [(f"▁w{i}", -float(i), 1) for i in range(VOCAB - len(pieces))]
    builder = g.spm_vocabulary(pieces, bos_token_id=1, eos_token_id=2, add_bos_token=True)
    values: dict[str, Any] = {
        "general.architecture": (g.STRING, "llama"),
        "llama.block_count": (g.U32, LAYERS),
        "llama.context_length": (g.U32, 64),
        "llama.embedding_length": (g.U32, HIDDEN),
        "llama.feed_forward_length": (g.U32, FFN),
        "llama.attention.head_count": (g.U32, HEADS),
        "llama.attention.head_count_kv": (g.U32, KV_HEADS),
        "llama.attention.key_length": (g.U32, HEAD_DIM),
        "llama.attention.layer_norm_rms_epsilon": (g.F32, 1e-5),
        "llama.rope.dimension_count": (g.U32, HEAD_DIM),
        "llama.rope.freq_base": (g.F32, 10000.0),
    } | keys
    for key, value in values.items():
        if value is not None:
            builder.add(key, *value)
    rng = random.Random(1)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = [rng.uniform(-0.3, 0.3) for _ in range(rows * columns)]
        builder.tensor(name, (columns, rows), ggml_id, struct.pack(f"<{len(values)}f", *values))

    def norm(name: str) -> None:
        builder.tensor(name, (HIDDEN,), 0, struct.pack(f"<{HIDDEN}f", *[1.0] * HIDDEN))

    matrix("token_embd.weight", VOCAB, HIDDEN)
    for layer in range(LAYERS):
        p = f"blk.{layer}."
        norm(p + "attn_norm.weight")
        matrix(p + "attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        matrix(p + "attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(p + "attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(p + "attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        norm(p + "ffn_norm.weight")
        matrix(p + "ffn_gate.weight", FFN, HIDDEN)
        matrix(p + "ffn_up.weight", FFN, HIDDEN)
        matrix(p + "ffn_down.weight", HIDDEN, FFN)
    norm("output_norm.weight")
    if change is not None:
        change(builder)
    return builder


def use(path: Path) -> Exception | None:
    """Plan, inspect, open and run ``path``; anything but an `EdgeRTError` is a failure."""
    outcome: Exception | None = None
    try:
        GGUFFile.open(path, allow_unsupported=True)
    except EdgeRTError as error:
        outcome = error
    try:
        planner = open_planner(path)[1]
        planner.plan(make_settings(planner, "4GiB"))
        with Engine(path, ram="4GiB", ctx=8, threads=1, weight_cap="0") as engine:
            assert engine.generate([1, 2], max_tokens=2, ignore_eos=True).tokens
            engine.generate("a", max_tokens=1)
            engine.tokenizer.decode([0, 1, 2])
            return None
    except EdgeRTError as error:
        outcome = error
    text = str(outcome)
    assert 0 < len(text) < 2000 and text.replace("\n", " ").isprintable(), repr(text)
    return outcome


def refuse(path: Path, match: str = "") -> None:
    outcome = use(path)
    assert isinstance(outcome, ModelError), repr(outcome)
    assert match in str(outcome)


def test_the_tiny_model_works(tmp_path: Path) -> None:
    assert use(tiny().write(tmp_path / "m.gguf")) is None


# --- bytes --------------------------------------------------------------------------------------


def test_truncated(tmp_path: Path, stories_model: Path) -> None:
    data, path = stories_model.read_bytes(), tmp_path / "m.gguf"
    source = GGUFFile.open(stories_model)
    edges = [0, 1, 3, 4, 8, 16, 23, 24, source.data_offset - 1, source.data_offset]
    edges += [t.offset for t in source.tensors.values()] + [len(data) - 1]
    rng = random.Random(2)
    for size in [*edges, *(rng.randrange(len(data)) for _ in range(30))]:
        path.write_bytes(data[:size])
        refuse(path)


def test_single_bytes_of_the_header(tmp_path: Path) -> None:
    """300 mutations of a small header, a third of them in the keys and tensor entries behind the
    vocabulary; weights may become others, but nothing else may happen."""
    data, path = tiny().pack(), tmp_path / "m.gguf"
    header = len(tiny().header())
    start = data.index(b"general.architecture")
    rng, refused = random.Random(3), 0
    for i in range(300):
        at = rng.randrange(start if i % 3 else 0, header)
        value = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
        try:
            refused += use(path) is not None
        except Exception as error:
            raise AssertionError(f"byte {at} = {value}: {error!r}") from error
    assert refused > 60


def test_random_tensor_bytes(tmp_path: Path) -> None:
    """NaN and infinite weights are refused, zeros give some token; never a crash."""
    for fill, refused in ((b"\xff", True), (b"\x7f\x80\x00\x00"[::-1], True), (b"\x00", False)):
        builder = tiny()
        for tensor in builder.tensors:
            tensor.data = (fill * len(tensor.data))[: len(tensor.data)]
        error = use(builder.write(tmp_path / "m.gguf"))
        assert (error is not None) == refused
        assert not refused or "not finite" in str(error)


# --- hyperparameters ----------------------------------------------------------------------------

INTEGERS = [
    (g.U32, 0), (g.U32, 1), (g.U32, 3), (g.U32, 2**31 - 1), (g.U32, 2**31), (g.U32, 2**32 - 1),
    (g.I32, -1), (g.I32, -(2**31)), (g.U64, 2**63 - 1), (g.U64, 2**63), (g.U64, 2**64 - 1),
    (g.I64, -(2**63)), (g.U8, 255), (g.BOOL, 1), (g.F32, 2.0), (g.STRING, "32"),
    (g.ARRAY, Array(g.U32, [32] * 2)), None,
]  # fmt: skip
FLOATS = [
    (g.F32, 0.0), (g.F32, -1.0), (g.F32, float("nan")), (g.F32, float("inf")),
    (g.F32, float("-inf")), (g.F32, 1e-45), (g.F32, 3.4e38), (g.F64, 1e300), (g.F64, 5e-324),
    (g.U32, 10000), (g.STRING, "1e-5"), (g.ARRAY, Array(g.F32, [1.0])),
]  # fmt: skip
INTEGER_KEYS = (
    "llama.block_count", "llama.context_length", "llama.embedding_length",
    "llama.feed_forward_length", "llama.attention.head_count", "llama.attention.head_count_kv",
    "llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count",
    "tokenizer.ggml.padding_token_id", "general.alignment",
)  # fmt: skip


@pytest.mark.parametrize("key", INTEGER_KEYS)
def test_integers_at_the_edges_of_their_types(tmp_path: Path, key: str) -> None:
    for value in INTEGERS:
        try:
            use(tiny(**{key: value}).write(tmp_path / "m.gguf"))
        except Exception as error:
            raise AssertionError(f"{key} = {value}: {error!r}") from error


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.block_count", (g.U32, 0)), ("llama.block_count", (g.U32, 2**32 - 1)),
        ("llama.block_count", (g.U32, LAYERS + 1)), ("llama.block_count", None),
        ("llama.embedding_length", (g.U32, HIDDEN + 1)), ("llama.embedding_length", (g.I32, -1)),
        ("llama.feed_forward_length", (g.U32, FFN - 1)), ("llama.context_length", (g.U32, 0)),
        ("llama.attention.head_count", (g.U32, 3)), ("llama.attention.head_count_kv", (g.U32, 3)),
        ("llama.attention.head_count_kv", (g.U32, 0)), ("llama.attention.key_length", (g.U32, 7)),
        ("llama.rope.dimension_count", (g.U32, 3)), ("llama.rope.dimension_count", (g.U32, 10)),
        ("llama.attention.value_length", (g.U32, 16)), ("general.architecture", None),
        ("llama.attention.layer_norm_rms_epsilon", None),
        ("general.architecture", (g.STRING, "mamba")), ("general.architecture", (g.U32, 1)),
        ("general.architecture", (g.STRING, "x" * 100000)),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_wrong_hyperparameters_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    refuse(tiny(**{key: value}).write(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    "key",
    [
        "llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base", "llama.rope.scale_linear",
    ],
)  # fmt: skip
def test_floats_at_the_edges_of_their_types(tmp_path: Path, key: str) -> None:
    for kind, value in FLOATS:
        path = tiny(**{key: (kind, value)}).write(tmp_path / "m.gguf")
        try:
            outcome = use(path)
        except Exception as error:
            raise AssertionError(f"{key} = {value}: {error!r}") from error
        if isinstance(value, float) and not 0 < value < float("inf"):
            assert isinstance(outcome, ModelError), (key, value)


def test_rope_scaling(tmp_path: Path) -> None:
    path, kind = tmp_path / "m.gguf", "llama.rope.scaling.type"
    refuse(tiny(**{kind: (g.STRING, "dynamic")}).write(path), "dynamic")
    refuse(tiny(**{kind: (g.STRING, "linear")}).write(path), "rope.scaling.factor")
    for factor in (0.0, -1.0, float("nan"), float("inf"), 1e-30):
        keys = {kind: (g.STRING, "linear"), "llama.rope.scaling.factor": (g.F32, factor)}
        refuse(tiny(**keys).write(path))
    for factor in (0.0, -1.0, float("nan"), float("inf")):
        data = struct.pack("<4f", 1.0, factor, 1.0, 1.0)
        model = tiny(lambda b, d=data: b.tensor("rope_freqs.weight", (4,), 0, d))
        refuse(model.write(path), "rope_freqs")
    refuse(tiny(lambda b: b.tensor("rope_freqs.weight", (3,), 0, bytes(12))).write(path))
    tiny_factors = struct.pack("<4f", *[1e-45] * 4)
    assert use(
        tiny(lambda b: b.tensor("rope_freqs.weight", (4,), 0, tiny_factors)).write(path)
    ) is (None)


# --- tensors ------------------------------------------------------------------------------------

NAMES = [t.name for t in tiny().tensors]


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("blk.1")])
def test_each_tensor_is_needed_as_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.gguf"
    at = NAMES.index(name)
    refuse(tiny(lambda b: b.tensors.pop(at)).write(path), name)

    def flatten(b: GGUFBuilder) -> None:
        dims = b.tensors[at].dims
        b.tensors[at].dims = (dims[0] * 2, dims[1] // 2) if len(dims) == 2 else (dims[0] // 2,)

    refuse(tiny(flatten).write(path), name)

    def more_dimensions(b: GGUFBuilder) -> None:
        b.tensors[at].dims = (*b.tensors[at].dims, 1, 1)

    use(tiny(more_dimensions).write(path))  # trailing ones may be accepted

    def integers(b: GGUFBuilder) -> None:
        b.tensors[at].ggml_id = 26  # I32

    refuse(tiny(integers).write(path), name)

    def k_quants(b: GGUFBuilder) -> None:
        b.tensors[at].ggml_id = 10  # Q2_K

    refuse(tiny(k_quants).write(path))

    def unknown(b: GGUFBuilder) -> None:
        b.tensors[at].ggml_id = 4711

    refuse(tiny(unknown).write(path), "4711")


def test_unsupported_formats_are_named(tmp_path: Path) -> None:
    """Q8_1 has blocks of 32 as Q4_0, so only its name tells."""

    def change(b: GGUFBuilder) -> None:
        b.tensors[0].ggml_id = 9

    refuse(tiny(change).write(tmp_path / "m.gguf"), "Q8_1")


@pytest.mark.parametrize("offset", [1, 2**31, 2**63 - 1, 2**64 - 1, 2**64 - 32])
def test_tensor_offsets(tmp_path: Path, offset: int) -> None:
    def change(b: GGUFBuilder) -> None:
        b.tensors[3].offset = offset

    refuse(tiny(change).write(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    "dims", [(0, 300), (32, 0), (2**63, 2), (2**32, 2**32), (2**64 - 1,), (32, 2**40), ()], ids=str
)
def test_tensor_shapes(tmp_path: Path, dims: tuple[int, ...]) -> None:
    def change(b: GGUFBuilder) -> None:
        b.tensors[0].dims = dims

    refuse(tiny(change).write(tmp_path / "m.gguf"))


def test_bias_of_the_wrong_shape(tmp_path: Path) -> None:
    name = "blk.0.attn_q.bias"
    good = tiny(lambda b: b.tensor(name, (HEADS * HEAD_DIM,), 0, bytes(4 * HEADS * HEAD_DIM)))
    assert use(good.write(tmp_path / "m.gguf")) is None
    refuse(tiny(lambda b: b.tensor(name, (8,), 0, bytes(32))).write(tmp_path / "m.gguf"), name)


# --- tokenizer and template ---------------------------------------------------------------------


def replace_key(builder: GGUFBuilder, name: str, kind: int, value: Any) -> None:
    builder.keys = [k for k in builder.keys if k[0] != name] + [(name, kind, value)]


def test_a_tokenizer_longer_than_the_embedding(tmp_path: Path) -> None:
    def change(b: GGUFBuilder) -> None:
        n = VOCAB + 1
        values = {
            "tokens": Array(g.STRING, [f"t{i}" for i in range(n)]),
            "scores": Array(g.F32, [0.0] * n),
            "token_type": Array(g.I32, [1] * n),
        }
        for name, array in values.items():
            replace_key(b, f"tokenizer.ggml.{name}", g.ARRAY, array)

    refuse(tiny(change).write(tmp_path / "m.gguf"), f"{VOCAB + 1} tokens")


@pytest.mark.parametrize(
    "key", ["bos_token_id", "eos_token_id", "unknown_token_id", "eot_token_id"]
)
@pytest.mark.parametrize(
    "value",
    [
        (g.U32, VOCAB), (g.U32, 2**32 - 1), (g.I32, -1), (g.I32, -7), (g.U64, 2**63),
        (g.STRING, "1"), (g.F32, float("nan")),
    ],
    ids=str,
)  # fmt: skip
def test_special_tokens_out_of_range(tmp_path: Path, key: str, value: tuple[int, Any]) -> None:
    use(tiny(lambda b: replace_key(b, f"tokenizer.ggml.{key}", *value)).write(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**12) %}x{% endfor %}", "{{ 1 // 0 }}", "{% if %}",
        "{{ nothing.there }}",
        "{{ messages[99].content }}", "{{ raise_exception('no') }}", "{{ 'x' * 10**12 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% include '/etc/passwd' %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999999) %}"
        "{% set ns.x = ns.x + [i] %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 9**9**9 }}", "\x00\x01", "",
    ],
    ids=lambda source: source[:30],
)  # fmt: skip
def test_hostile_chat_templates(tmp_path: Path, source: str) -> None:
    path = tiny(**{"tokenizer.chat_template": (g.STRING, source)}).write(tmp_path / "m.gguf")
    with Engine(path, ram="4GiB", ctx=32, threads=1) as engine:
        try:
            list(engine.chat([{"role": "user", "content": "hi"}], max_tokens=1))
        except EdgeRTError as error:
            assert len(str(error)) < 2000
        assert engine.generate([1], max_tokens=1, ignore_eos=True).tokens


@pytest.mark.parametrize(
    "value", [(g.U32, 1), (g.STRING, b"\xff\xfe"), (g.ARRAY, Array(g.U8, []))], ids=str
)
def test_chat_templates_of_other_types(tmp_path: Path, value: tuple[int, Any]) -> None:
    path = tiny(**{"tokenizer.chat_template": value}).write(tmp_path / "m.gguf")
    with pytest.raises((ModelError, UsageError)), Engine(path, ram="4GiB", ctx=32) as engine:
        list(engine.chat([{"role": "user", "content": "hi"}], max_tokens=1))


# --- through the command line -------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b.tensors.pop(3),
        lambda b: replace_key(b, "llama.block_count", g.U32, 2**32 - 1),
        lambda b: replace_key(b, "general.architecture", g.STRING, "\x1b[31mmamba"),
        lambda b: setattr(b.tensors[2], "offset", 2**63),
        lambda b: setattr(b, "n_tensors", 2**63),
        lambda b: setattr(b, "n_keys", 2**64 - 1),
    ],
    ids=["missing", "layers", "architecture", "offset", "tensors", "keys"],
)
def test_exit_code(tmp_path: Path, damage: Callable[[GGUFBuilder], object]) -> None:
    path = tiny(damage).write(tmp_path / "m.gguf")
    for command in (["generate", str(path), "-p", "a"], ["plan", str(path), "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "edge_rt.apps.cli", *command, "--ram", "256MiB"],
            capture_output=True, text=True, timeout=60, env=os.environ,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (4, ""), done.stderr
        assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
        assert "\x1b" not in done.stderr, "a file must not drive the terminal"


def test_inspect_of_a_hostile_file_stays_readable(tmp_path: Path) -> None:
    path = tiny(**{"general.name": (g.STRING, "\x1b[2J\u202eevil\x07")}).write(tmp_path / "m.gguf")
    for flags in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "edge_rt.apps.cli", "inspect", str(path), *flags],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0
        assert "\x1b" not in done.stdout and "\x07" not in done.stdout
    assert json.loads(done.stdout)["metadata"]["general.name"].startswith("\x1b")
