"""Chat templates of models: where they are found, what the engine and the command line do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_rt import Engine
from edge_rt.chat.source import find_template, special_tokens
from edge_rt.errors import ModelError, UsageError
from edge_rt.loaders.gguf import GGUFFile
from edge_rt.tokenizer import Tokenizer

from .conftest import load_script

builder = load_script("gguf_builder", "tests")
EDGE_RT = [sys.executable, "-m", "edge_rt.apps.cli"]
USER = [{"role": "user", "content": "Zoo"}]


@dataclass
class Folder:
    folder: str


def gguf(tmp_path: Path, **templates: str) -> GGUFFile:
    vocabulary = builder.spm_vocabulary(
        [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<pad>", 0.0, 3), ("a", -1.0, 1)],
        bos_token_id=1, eos_token_id=2, padding_token_id=3, unknown_token_id=0,
    )  # fmt: skip
    for key, source in templates.items():
        vocabulary.add(key.replace("__", "."), builder.STRING, source)
    return GGUFFile.open(vocabulary.write(tmp_path / "m.gguf"))


def test_templates_of_a_gguf(tmp_path: Path) -> None:
    key = "tokenizer__chat_template"
    assert find_template(gguf(tmp_path), tools=True) is None
    one = gguf(tmp_path, **{key: "plain"})
    assert find_template(one, tools=False) == find_template(one, tools=True) == "plain"
    two = gguf(tmp_path, **{key: "plain", key + "__tool_use": "with tools", key + "__rag": "x"})
    assert find_template(two, tools=False) == "plain"
    assert find_template(two, tools=True) == "with tools"
    assert find_template(gguf(tmp_path, **{key: ""}), tools=False) is None


def test_templates_of_a_folder(tmp_path: Path) -> None:
    source = Folder(str(tmp_path))

    def config(value: Any) -> None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))

    assert find_template(source, tools=True) is None
    (tmp_path / "chat_template.json").write_text('{"chat_template": "processor"}')
    assert find_template(source, tools=True) == "processor"
    config("text")
    assert find_template(source, tools=True) == "text"
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    config(named)
    assert find_template(source, tools=False) == "d" and find_template(source, tools=True) == "t"
    config([{"name": 1}, "x", None, {"name": "default"}, *named[:1]])
    assert find_template(source, tools=True) == "d"
    (tmp_path / "chat_template.jinja").write_text("file ä")
    assert find_template(source, tools=True) == "file ä"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_text("file for tools")
    assert find_template(source, tools=True) == "file for tools"
    assert find_template(source, tools=False) == "file ä"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelError, match="UTF-8"):
        find_template(source, tools=False)
    (tmp_path / "chat_template.jinja").write_text(" " * 2**21)
    with pytest.raises(ModelError, match="1048576 at most"):
        find_template(source, tools=False)


@pytest.mark.parametrize("wrong", ["{", "[]", '{"chat_template": 7}', "[" * 9999])
def test_damaged_files_of_a_folder(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "chat_template.json").write_text(wrong)
    if wrong == '{"chat_template": 7}':
        assert find_template(Folder(str(tmp_path)), tools=False) is None
    else:
        with pytest.raises(ModelError, match=r"chat_template\.json"):
            find_template(Folder(str(tmp_path)), tools=False)


def test_special_tokens(tmp_path: Path) -> None:
    source = gguf(tmp_path)
    tokenizer = Tokenizer.from_source(source)
    expected = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                "pad_token": "<pad>"}  # fmt: skip
    assert special_tokens(source, tokenizer) == expected
    config = {"eos_token": {"content": "<end>"}, "pad_token": "<p>", "unk_token": None, "x": 1}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = special_tokens(Folder(str(tmp_path)), tokenizer)
    assert found == {"bos_token": "<s>", "eos_token": "<end>", "pad_token": "<p>"}


@pytest.fixture(scope="module")
def engine(stories_model: Path) -> Any:
    with Engine(stories_model, ram="4GiB", threads=1) as engine:
        yield engine


def prompt_of(engine: Engine, source: str, **options: Any) -> list[int]:
    """The token ids that a chat starts from."""
    stream = engine.chat(USER, max_tokens=1, template=source, **options)
    list(stream)
    return engine._history[: stream.prompt_tokens]


def test_bos_is_written_once(engine: Engine) -> None:
    bos = engine.tokenizer.bos_id
    assert engine.tokenizer.add_bos and bos is not None
    expected = [bos, *engine.tokenizer.encode("Zoo")]
    assert prompt_of(engine, "{{ messages[0].content }}") == expected
    written = prompt_of(engine, "{{ bos_token }}{{ messages[0].content }}")
    assert written.count(bos) == 1 and written[0] == bos
    turns = prompt_of(engine, "{{ bos_token }}a{{ bos_token }}b")
    assert turns.count(bos) == 2, "what a template writes for each turn stays"


def test_chat_options(engine: Engine) -> None:
    source = "{{ word }}{{ tools[0].name if tools else '' }}"
    encode = engine.encode_prompt
    assert prompt_of(engine, source, template_args={"word": "Zoo"}) == encode("Zoo", special=True)
    found = prompt_of(engine, source, tools=[{"name": "Lily"}], template_args={"word": "a"})
    assert found == encode("aLily", special=True)
    for name in ("messages", "tools", "add_generation_prompt"):
        with pytest.raises(UsageError, match=name):
            engine.chat(USER, template=source, template_args={name: 1})
    with pytest.raises(UsageError, match="no chat template"):
        engine.chat(USER)
    with pytest.raises(ModelError, match=r"broken: .* line 1$"):  # all in one line
        engine.chat(USER, template="{% if %}")
    assert engine.template(source=source) is engine.template(source=source)


def chat(model: Path, *args: object, code: int = 0) -> str:
    base = ("chat", model, "--ram", "64MiB", "--temp", 0, "-n", 5, *args)
    done = subprocess.run(
        [*EDGE_RT, *map(str, base)], input=b"Zoo\n", capture_output=True, timeout=120,
        env=os.environ,
    )  # fmt: skip
    err = done.stderr.decode()
    assert done.returncode == code and "Traceback" not in err, (done.returncode, err)
    return done.stdout.decode() if not code else err


def test_command_line(stories_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
                    "{{ messages[-1].content }}{{ ' ran' if fast else ' sat' }}")  # fmt: skip
    chat(stories_model, code=2)  # it has no template of its own
    plain = chat(stories_model, "--template", file)
    fast = chat(stories_model, "--template", file, "--template-arg", "fast=true")
    assert plain != fast
    assert chat(stories_model, "--template", file, "--template-arg", "fast=false") == plain
    named = chat(stories_model, "--template", file, "--template-arg", 'fast=""', "--template-arg",
                 'other={"a": [1]}')  # fmt: skip
    assert named == plain
    longer = chat(stories_model, "--template", file, "-n", 40)
    told = chat(stories_model, "--template", file, "-n", 40, "--system", "Lily had a red ball.")
    assert told != longer
    for wrong in ("fast", "fast=", "fast=yes", "=1", "a b=1", "fast={"):
        assert "KEY=JSON" in chat(
            stories_model, "--template", file, "--template-arg", wrong, code=2
        )
    assert "messages" in chat(stories_model, "--template", file, "--template-arg", "messages=1",
                              code=2)  # fmt: skip
    chat(stories_model, "--template", tmp_path / "none", code=2)
    chat(stories_model, "--template", tmp_path, code=2)
    chat(stories_model, "--template", "/dev/zero", code=2)
    file.write_bytes(b"\xff")
    assert "UTF-8" in chat(stories_model, "--template", file, code=2)
    file.write_text("{{ 'a' * 10**9 }}")
    assert "template" in chat(stories_model, "--template", file, code=4)
    file.write_text("{% if %}")
    assert "template" in chat(stories_model, "--template", file, code=4)
    file.write_text("{{ raise_exception('never') }}")
    assert "never" in chat(stories_model, "--template", file, code=2)
