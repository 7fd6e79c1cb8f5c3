"""config.json and the small files of a Hugging Face folder, with values of every wrong type."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .case import REFUSED, RUNS, Case, Make
from .small import CONFIG, FFN, HEAD_DIM, HIDDEN, write_small_folder

NAN, INF = float("nan"), float("inf")
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 2**31, 2**53, 2**53 + 1, 2**63, 10**400, 0.5, -0.0, 1e308, NAN,
    INF, -INF, "", "8", "x" * 9000, [], [8], [[]], {}, {"a": 1},
]  # fmt: skip
_SIZES = {
    "num_hidden_layers": 1, "hidden_size": HIDDEN, "intermediate_size": FFN,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": HEAD_DIM,
}  # fmt: skip
# Not asked for in a llama's config.json.
_UNUSED = ("vocab_size", "bos_token_id", "architectures", "torch_dtype", "sliding_window",
           "layer_types", "initializer_range", "use_cache", "auto_map", "query_pre_attn_scalar_x",
           "max_window_layers", "no_rope_layers", "attention_bias", "_name_or_path")  # fmt: skip
_REFUSED_IF_SET = (
    "clip_qkv", "use_bidirectional_attention", "num_local_experts", "num_experts",
    "attention_chunk_size", "alibi", "num_kv_shared_layers",
)  # fmt: skip


def with_config(key: str, value: Any) -> Make:
    return lambda folder: write_small_folder(folder / "m", {**CONFIG, key: value})


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expected(key: str, value: Any) -> str:
    """What generate does with one value of config.json."""
    if type(value) is int and value == 10**400:
        return REFUSED  # the tokenizer's reader of this file takes numbers of 64 characters
    if key in _SIZES:
        default = {"num_key_value_heads": 2, "head_dim": HEAD_DIM}
        if value is None:
            return RUNS if default.get(key) == _SIZES[key] else REFUSED
        return RUNS if type(value) is int and value == _SIZES[key] else REFUSED
    if key in _REFUSED_IF_SET:
        return REFUSED if value else RUNS
    number = is_number(value)
    if key == "max_position_embeddings":
        return RUNS if type(value) is int and 1 <= value <= 1 << 28 else REFUSED
    if key in ("rms_norm_eps", "rope_theta"):
        lowest = 1e-30
        return RUNS if number and lowest < value <= 2**53 else REFUSED
    if key == "eos_token_id":
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        fits = type(one) is int and 0 <= one < 264
        return RUNS if value is None or value == [] or fits else REFUSED
    if key == "hidden_act":
        return RUNS if not value else REFUSED
    if key in ("rope_scaling", "rope_parameters"):
        return RUNS if not value or value == {"a": 1} else REFUSED
    if key in ("quantization_config", "quantization"):
        return REFUSED if value else RUNS
    if key == "partial_rotary_factor":
        return RUNS if value is None or (number and value == 1) else REFUSED
    if key == "original_max_position_embeddings":
        return RUNS if value is None or (type(value) is int and 1 <= value <= 1 << 28) else REFUSED
    if key == "tie_word_embeddings":
        return RUNS if value else REFUSED  # there is no lm_head
    if key == "model_type":
        return REFUSED
    if key == "text_config":
        return RUNS
    assert key in _UNUSED, key
    return RUNS


def _config() -> Iterator[Case]:
    keys = (*_SIZES, *_REFUSED_IF_SET, "max_position_embeddings", "rms_norm_eps", "rope_theta",
            "eos_token_id", "hidden_act", "rope_scaling", "rope_parameters", "quantization_config",
            "quantization", "partial_rotary_factor", "original_max_position_embeddings",
            "tie_word_embeddings", "model_type", "text_config")  # fmt: skip
    for key in keys:
        for value in ODD:
            text = repr(value) if len(repr(value)) < 30 else f"{repr(value)[:12]}…"
            make = with_config(key, value)
            yield Case("config.json", f"{key} = {text}", _expected(key, value), make, RUNS)
    for key in _UNUSED:
        for value in (None, -1, 10**40, NAN, "x", [[]], {"a": {}}):
            yield Case("config.json", f"{key} = {value!r:.20}", RUNS, with_config(key, value))
    for key in CONFIG:
        config = {k: v for k, v in CONFIG.items() if k != key}
        expect = REFUSED if key in ("model_type", "num_key_value_heads", "num_hidden_layers",
                                    "hidden_size", "intermediate_size", "num_attention_heads",
                                    "tie_word_embeddings") else RUNS  # fmt: skip
        yield Case("config.json", f"without {key}", expect,
                   lambda folder, c=config: write_small_folder(folder / "m", c), RUNS)  # fmt: skip


def _rope() -> Iterator[Case]:
    odd: list[Any] = [None, True, -1, 0, 1e-9, 2**60, NAN, INF, "2", [], [1.0], {}]
    kinds: dict[str, dict[str, Any]] = {
        "linear": {"factor": 2.0},
        "yarn": {"factor": 2.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
                 "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.0},
        "llama3": {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 32},
        "longrope": {"short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0], "factor": 2.0,
                     "original_max_position_embeddings": 32, "attention_factor": 1.0},
    }  # fmt: skip
    for kind, settings in kinds.items():
        whole = {"rope_type": kind, **settings}
        yield Case("rope", f"{kind}", RUNS, with_config("rope_scaling", whole))
        for key in (*settings, "rope_theta", "rope_type"):
            for value in odd:
                make = with_config("rope_scaling", {**whole, key: value})
                expect = _rope_expected(kind, key, value)
                yield Case("rope", f"{kind} {key} = {value!r}", expect, make, RUNS)
    for kind in ("dynamic", "su", "mrope", "x" * 5000, "\x1b[2J", "linear\x00"):
        yield Case(
            "rope",
            f"kind {kind!r:.20}",
            REFUSED,
            with_config("rope_scaling", {"rope_type": kind, "factor": 2.0}),
            RUNS,
        )
    for factors in (
        [1.5],
        [1.0] * 3,
        [0.0, 1.0],
        [-1.0, 1.0],
        [NAN, 1.0],
        ["1", 1],
        [None, 1],
        [[1], 1],
    ):
        for key in ("short_factor", "long_factor"):
            whole = {"rope_type": "longrope", **kinds["longrope"], key: factors}
            yield Case("rope", f"longrope {key} = {factors!r}", REFUSED,
                       with_config("rope_scaling", whole), RUNS)  # fmt: skip


def _rope_expected(kind: str, key: str, value: Any) -> str:
    number = is_number(value) and abs(value) <= 1 << 53
    if key == "rope_type":
        return REFUSED
    if key == "rope_theta":
        if value is None:
            return RUNS
        lowest = 1.0 if kind == "yarn" else 1e-30
        return RUNS if number and value > lowest else REFUSED
    if key == "factor":
        if kind == "longrope":  # for nothing but the attention factor, which is given
            return RUNS if value is None or number else REFUSED
        return RUNS if value is None or (number and value >= 1e-3) else REFUSED
    if key == "original_max_position_embeddings":
        return RUNS if type(value) is int and 1 <= value <= 1 << 28 else REFUSED
    if key in ("beta_fast", "beta_slow"):
        # 0, "" and the like mean the default, as in transformers.
        return RUNS if not value or (number and value > 0) else REFUSED
    if key in ("mscale", "mscale_all_dim"):
        return RUNS if value is None or (number and value >= 0) else REFUSED
    if key == "attention_factor":
        return RUNS if value is None or (number and value > 0) else REFUSED
    if key == "low_freq_factor":
        return RUNS if number and 0 < value < 4 else REFUSED
    if key == "high_freq_factor":
        return RUNS if number and value > 1 else REFUSED
    return REFUSED  # lists of factors


def _json_texts() -> Iterator[Case]:
    """What is no JSON object under the name of one."""
    texts: dict[str, bytes] = {
        "empty": b"",
        "a list": b"[]",
        "a text": b'"x"',
        "null": b"null",
        "a number": b"1",
        "cut off": b'{"model_type": "lla',
        "not UTF-8": b'{"a": "\xff"}',
        "UTF-16": '{"a": 1}'.encode("utf-16"),
        "a BOM": b"\xef\xbb\xbf{}",
        "NULs": bytes(100),
        "deep arrays": b'{"a":' + b"[" * 10**5,
        "deep objects": b'{"a":' * 10**5,
        "2 MiB": b'{"a": "' + b"x" * (2 << 20) + b'"}',
        "a lone surrogate": b'{"a": "\\ud800"}',
        "a web page": b"<!DOCTYPE html><html>",
        "a pointer of LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "a pickle": b"\x80\x04\x95",
        "a zip": b"PK\x03\x04" + bytes(60),
        "5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
        "single quotes": b"{'a': 1}",
        "a trailing comma": b'{"a": 1,}',
        "two objects": b"{}{}",
    }
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
                 "special_tokens_map.json"):  # fmt: skip
        for what, raw in texts.items():
            make = _with_file(name, raw)
            yield Case("folder texts", f"{name}: {what}", REFUSED, make)
    for name in ("config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json",
                 "chat_template.jinja", "special_tokens_map.json"):  # fmt: skip
        for what in ("folder", "FIFO", "device", "loop", "dangling"):
            optional = name in (
                "tokenizer_config.json",
                "chat_template.jinja",
                "special_tokens_map.json",
            )
            # What is no file is not there, where it need not be.
            expect = RUNS if optional else REFUSED
            yield Case("folder texts", f"{name} is a {what}", expect, _special(name, what))


def _with_file(name: str, raw: bytes) -> Make:
    return lambda folder: write_small_folder(folder / "m", **{name.replace(".", "__"): raw})


def _special(name: str, what: str) -> Make:
    def make(folder: Path) -> Path:
        path = write_small_folder(folder / "m") / name
        path.unlink(missing_ok=True)
        if what == "folder":
            path.mkdir()
        elif what == "FIFO":
            os.mkfifo(path)
        elif what == "device":
            path.symlink_to("/dev/zero")
        else:
            path.symlink_to(name if what == "loop" else "nothing")
        return folder / "m"

    return make


def _small_files() -> Iterator[Case]:
    """Values in the files beside tokenizer.json and config.json."""
    for value in ODD:
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        fits = value in (None, []) or (type(one) is int and 0 <= one < 264)
        fits = fits and not isinstance(value, bool)
        make = _with_json("generation_config.json", {"eos_token_id": value})
        yield Case("small files", f"generation_config eos_token_id = {value!r:.30}",
                   RUNS if fits else REFUSED, make, RUNS)  # fmt: skip
        for key in ("bos_token", "eos_token", "add_bos_token", "add_eos_token", "chat_template",
                    "unk_token"):  # fmt: skip
            make = _with_json("tokenizer_config.json", {key: value})
            expect = REFUSED if value == 10**400 else RUNS
            yield Case("small files", f"tokenizer_config {key} = {value!r:.30}", expect, make, RUNS)
        make = _with_json("tokenizer_config.json", {"added_tokens_decoder": value})
        wrong = value == 10**400 or (isinstance(value, dict) and value)
        expect = REFUSED if wrong else RUNS
        yield Case("small files", f"added_tokens_decoder = {value!r:.30}", expect, make, RUNS)
        make = _with_json("tokenizer_config.json", {"added_tokens_decoder": {"1": value}})
        yield Case("small files", f"added_tokens_decoder of 1 = {value!r:.30}", REFUSED, make, RUNS)
    for number in ("1", "-1", "99999", "x", "1" * 5000, "", "0x1", "１"):
        entry = {"content": "<s>", "special": True}
        make = _with_json("tokenizer_config.json", {"added_tokens_decoder": {number: entry}})
        expect = REFUSED if number in ("-1", "x", "", "0x1", "1" * 5000) else RUNS
        yield Case("small files", f"added_tokens_decoder {number!r:.20}", expect, make, RUNS)
    for text in ("{{ 1/0 }}", "{% for", "{{ ''.__class__ }}", "x" * (2 << 20), "{{" * 5000, "\x00"):
        make = _with_json("tokenizer_config.json", {"chat_template": text})
        yield Case(
            "small files",
            f"chat_template {text[:20]!r}",
            RUNS if len(text) < 1 << 20 else REFUSED,
            make,
            RUNS,
        )
        make = _with_file("chat_template.jinja", text.encode())
        yield Case("small files", f"chat_template.jinja {text[:20]!r}", RUNS, make, RUNS)
    make = _with_file("chat_template.jinja", b"\xff\xfe")
    yield Case("small files", "chat_template.jinja that is not UTF-8", RUNS, make, RUNS)
    for name in ("adapter_config.json", "model.safetensors.index.json"):
        yield Case("small files", f"{name} beside a whole model", RUNS, _with_file(name, b"\xff"))
    for missing in ("config.json", "tokenizer.json", "model.safetensors"):

        def make_without(folder: Path, name: str = missing) -> Path:
            path = write_small_folder(folder / "m")
            (path / name).unlink()
            return path

        shown = {"tokenizer.json": RUNS, "config.json": "", "model.safetensors": ""}[missing]
        expect = REFUSED
        yield Case("small files", f"without {missing}", expect, make_without, shown)


def _with_json(name: str, value: Any) -> Make:
    return _with_file(name, json.dumps(value).encode())


def cases() -> Iterator[Case]:
    """All files of these families."""
    yield from _config()
    yield from _rope()
    yield from _json_texts()
    yield from _small_files()
