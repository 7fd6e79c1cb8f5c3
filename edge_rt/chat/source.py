"""Where models keep their chat templates and the texts of their special tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from edge_rt.errors import ModelError
from edge_rt.loaders.gguf_cursor import read_whole
from edge_rt.loaders.source import WeightSource
from edge_rt.sizes import MIB
from edge_rt.tokenizer import Tokenizer
from edge_rt.tokenizer.folder import read_settings

_KEY: Final = "tokenizer.chat_template"
_MAX_BYTES: Final = 1 * MIB
# transformers' names of special tokens, and GGUF's for their ids.
_TOKEN_KEYS: Final = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding",
    "sep_token": "seperator", "mask_token": "mask",
}  # fmt: skip


def find_template(source: WeightSource, tools: bool) -> str | None:
    """The source of a model's chat template, None if it has none.

    ``tools``: prefer the template named ``tool_use``, where there is one.
    """
    folder = source.folder
    named = _in_gguf(source, tools) if folder is None else _in_folder(Path(folder), tools)
    chosen = (named.get("tool_use") if tools else None) or named.get("default")
    return chosen or None


def _in_gguf(source: WeightSource, tools: bool) -> dict[str, str]:
    named = {"default": source.get_str(_KEY, "")}
    if tools:
        named["tool_use"] = source.get_str(f"{_KEY}.tool_use", "")
    return named


def _in_folder(folder: Path, tools: bool) -> dict[str, str]:
    """As transformers looks: files of templates go before ``tokenizer_config.json``."""
    named = {}
    if (path := folder / "chat_template.jinja").is_file():
        named["default"] = _read_text(path)
    path = folder / "additional_chat_templates" / "tool_use.jinja"
    if tools and path.is_file():
        named["tool_use"] = _read_text(path)
    if "default" in named:
        return named
    return {
        **(
            _named(
                read_settings(folder / "tokenizer_config.json", ("chat_template",)).get(
                    "chat_template"
                )
            )
            or _in_json(folder)
        ),
        **named,
    }


def _in_json(folder: Path) -> dict[str, str]:
    """``chat_template.json``, which processors of older models have."""
    return _named(
        read_settings(folder / "chat_template.json", ("chat_template",)).get("chat_template")
    )


def _read_text(path: Path) -> str:
    try:
        return read_whole(path, _MAX_BYTES).decode()
    except UnicodeDecodeError:
        raise ModelError(f"{path} is not UTF-8") from None


def _named(value: Any) -> dict[str, str]:
    """Templates by name, of a text or a list of ``{"name": ..., "template": ...}``."""
    if isinstance(value, str):
        return {"default": value}
    return {
        entry["name"]: entry["template"]
        for entry in (value if isinstance(value, list) else ())
        if isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("template"), str)
    }


def special_tokens(source: WeightSource, tokenizer: Tokenizer) -> dict[str, str]:
    """The texts of special tokens by the names templates use; only those the model has.

    ``source`` as for `find_template`. In a GGUF they are the tokenizer's ids, in a folder what
    ``tokenizer_config.json`` says.
    """
    folder = source.folder
    found = {}
    if folder is not None:
        settings = read_settings(Path(folder) / "tokenizer_config.json", tuple(_TOKEN_KEYS))
        for name in _TOKEN_KEYS:
            value = settings.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[name] = text
    else:
        for name, key in _TOKEN_KEYS.items():
            token = source.get_int(f"tokenizer.ggml.{key}_token_id", -1)
            if 0 <= token < tokenizer.n_vocab:
                found[name] = tokenizer.token_text(token)
    if tokenizer.bos_id is not None:
        found.setdefault("bos_token", tokenizer.token_text(tokenizer.bos_id))
    return found
