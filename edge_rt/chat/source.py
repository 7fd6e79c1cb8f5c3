"""Where models keep their chat templates and the texts of their special tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from edge_rt.errors import ModelError
from edge_rt.flash_io.files import File
from edge_rt.loaders.gguf_cursor import read_whole
from edge_rt.loaders.source import WeightSource
from edge_rt.loaders.text_files import TextFiles
from edge_rt.sizes import MIB

if TYPE_CHECKING:
    from edge_rt.tokenizer import Tokenizer

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
    named = _in_gguf(source, tools) if folder is None else _in_folder(source.texts, tools)
    chosen = (named.get("tool_use") if tools else None) or named.get("default")
    return chosen or None


def _in_gguf(source: WeightSource, tools: bool) -> dict[str, str]:
    named = {"default": source.get_str(_KEY, "")}
    if tools:
        named["tool_use"] = source.get_str(f"{_KEY}.tool_use", "")
    return named


def _in_folder(files: TextFiles, tools: bool) -> dict[str, str]:
    """As transformers looks: files of templates go before ``tokenizer_config.json``."""
    named = {}
    if file := files.get("chat_template.jinja"):
        named["default"] = _read_text(file)
    if tools and (file := files.get("additional_chat_templates/tool_use.jinja")):
        named["tool_use"] = _read_text(file)
    if "default" in named:
        return named
    # chat_template.json is what processors of older models have.
    in_json = _in_json(files, "tokenizer_config.json") or _in_json(files, "chat_template.json")
    return {**in_json, **named}


def _in_json(files: TextFiles, name: str) -> dict[str, str]:
    return _named(_settings(files, name, "chat_template").get("chat_template"))


def _settings(files: TextFiles, name: str, *keys: str) -> dict[str, Any]:
    from edge_rt.tokenizer.folder import read_settings  # what only folders need

    return read_settings(files, name, keys)


def _read_text(file: File) -> str:
    try:
        return read_whole(file, _MAX_BYTES).decode()
    except UnicodeDecodeError:
        raise ModelError(f"{file.path} is not UTF-8") from None


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
        settings = _settings(source.texts, "tokenizer_config.json", *_TOKEN_KEYS)
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
