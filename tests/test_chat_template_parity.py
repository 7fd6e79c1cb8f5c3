"""Chat templates: the same text as plain Jinja with transformers' settings, and transformers."""

from __future__ import annotations

import datetime
import functools
import importlib.util
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import pytest

from edge_rt.chat.template import ChatTemplate
from edge_rt.errors import EdgeRTError

from .conftest import load_script

ours = load_script("chat_templates", "tests")
SETTINGS = list(itertools.product((True, False), (None, True, False), (False, True)))
DOCUMENTS = [{"title": "A", "text": "first"}, {"title": "B", "text": "zwöi"}]


class _Generation(jinja2.ext.Extension):
    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_show")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _show(self, caller: Any) -> str:
        return str(caller())


@functools.lru_cache
def plain_jinja(source: str) -> jinja2.Template:
    """What transformers documents: an immutable sandbox, these settings, these helpers."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(x: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda f: datetime.datetime.now().strftime(f)
    return environment.from_string(source)


def cases(conversations: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of every rendering: conversations, with and without the rest."""
    for context in conversations.values():
        for prompt, thinking, documents in SETTINGS:
            arguments = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, **context}
            arguments["documents"] = DOCUMENTS if documents else None
            arguments["add_generation_prompt"] = prompt
            if thinking is not None:
                arguments["enable_thinking"] = thinking
            yield arguments


def check(source: str, conversations: dict[str, Any], reference: Any) -> int:
    """Compare all cases; where the reference refuses, so must we, unless we fold a system role."""
    same = 0
    template = ChatTemplate(source, "<s>", "</s>")
    for arguments in cases(conversations):
        rest = {k: v for k, v in arguments.items() if k != "messages"}
        try:
            expected = reference(source, **arguments)
        except Exception:
            if arguments["messages"][0]["role"] != "system":
                with pytest.raises(EdgeRTError):
                    template.render(arguments["messages"], **rest)
            continue
        assert template.render(arguments["messages"], **rest) == expected
        same += 1
    return same


def own_conversations() -> dict[str, Any]:
    found = {name: {"messages": m} for name, m in ours.CONVERSATIONS.items()}
    return found | {name + ", tools": {"messages": m, "tools": ours.TOOLS}
                    for name, m in ours.CONVERSATIONS.items()}  # fmt: skip


def aliased(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """transformers gives reasoning under each of its names."""
    found = []
    for message in messages:
        for name in ("reasoning_content", "thinking", "reasoning"):
            if message.get(name) is not None:
                said = message[name]
                message = {"thinking": said, **message, "reasoning_content": said}
                break
        found.append(message)
    return found


def by_jinja(source: str, messages: Any, **arguments: Any) -> str:
    return plain_jinja(source).render(messages=aliased(messages), **arguments)


def by_transformers(source: str, messages: Any, **arguments: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template([messages], chat_template=source, **arguments)
    return str(rendered[0])


def shared(shared_data: Path) -> tuple[dict[str, str], dict[str, Any]]:
    folder = shared_data / "templates"
    if not folder.is_dir():
        pytest.skip(f"NO TEMPLATES at {folder}: set EDGE_RT_SHARED to the folder holding them")
    contexts = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("contexts/*.json"))}
    for context in contexts.values():
        context.pop("_test_metadata", None)
    # Some templates want arguments as dicts and contents that are texts.
    decoded = json.loads(json.dumps(contexts["tool_use"]))
    for message in decoded["messages"]:
        message["content"] = message["content"] or ""
        message.setdefault("tool_call_id", "abcdefghi")
        for call in message.get("tool_calls", []):
            call["id"] = "abcdefghi"
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    contexts["decoded"] = decoded
    templates = {path.stem: path.read_text() for path in sorted(folder.glob("*.jinja"))}
    assert len(templates) >= 7 and len(contexts) >= 4
    return templates, contexts


REFERENCES = [
    pytest.param(by_jinja, id="jinja"),
    pytest.param(
        by_transformers,
        id="transformers",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("transformers") is None,
            reason="NO TRANSFORMERS: pip install 'edge-rt[parity]'",
        ),
    ),
]


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", ours.TEMPLATES)
def test_own_templates(name: str, reference: Any) -> None:
    same = check(ours.TEMPLATES[name], own_conversations(), reference)
    assert same >= len(SETTINGS) * (2 if name == "no_system_role" else 8)


@pytest.mark.parametrize("reference", REFERENCES)
def test_shared_templates(shared_data: Path, reference: Any) -> None:
    templates, contexts = shared(shared_data)
    conversations = contexts | own_conversations()
    same = {name: check(source, conversations, reference) for name, source in templates.items()}
    assert min(same.values()) >= 2 * len(SETTINGS), same


@pytest.mark.parametrize("name", ours.TEMPLATES)
def test_long_conversations_fit_the_limits(name: str) -> None:
    """1000 messages, results of tools of 100 KiB: no limit is near."""
    talk: list[dict[str, Any]] = []
    while len(talk) < 1000:
        talk += [{"role": "user", "content": "question " * 9},
                 {"role": "assistant", "content": "answer " * 30}]  # fmt: skip
    template = ChatTemplate(ours.TEMPLATES[name])
    text = template.render(talk, tools=ours.TOOLS)
    assert len(text) > 100
    meter = template._environment.meter
    assert meter.steps < meter._n_steps / 4 and meter._made > meter._n_made / 4
    large = ("word 😀 " * 14_000)[:100_000] + "end"
    text = template.render(
        [{"role": ("user", "assistant")[i % 2], "content": large} for i in range(21)]
    )
    assert large in text or name == "filters"


def test_templates_that_look_at_pairs_or_letters_fit_the_limits() -> None:
    talk = [{"role": ("user", "assistant")[i % 2], "content": f"words {i} " * 8}
            for i in range(400)]  # fmt: skip
    pairs = (
        "{% for m in messages %}{% for later in messages[loop.index0:] %}"
        "{% if later.role == 'x' %}{% break %}{% endif %}{% endfor %}{{ m.content }}{% endfor %}"
    )
    letters = (
        "{% for m in messages %}{% for c in m.content %}{% if c['type'] == 'image' %}!{% endif %}"
        "{% endfor %}{{ m.content }}{% endfor %}"
    )
    grown = (
        "{% set n = namespace(s='') %}{% for m in messages %}{% set n.s = n.s ~ m.content %}"
        "{% set n.s = n.s + '.' %}{% endfor %}{{ n.s }}"
    )
    for source in (pairs, letters, grown):
        text = ChatTemplate(source).render(talk)
        assert text.replace(".", "") == "".join(m["content"] for m in talk)
