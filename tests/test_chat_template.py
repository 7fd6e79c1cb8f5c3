"""Chat templates: what transformers renders, and what a hostile template cannot do."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edge_rt.chat_template import ChatTemplate
from edge_rt.errors import ModelError, UsageError
from edge_rt.loaders.gguf import GGUFFile

USER = [{"role": "user", "content": "hi"}]


def render(source: str, messages: Any = None, **kwargs: Any) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(messages or USER, **kwargs)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>hi</s>"),
        ("{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m['content'] }}\n"
         "  {% endif %}\n{% endfor %}\nend", "hi\nend"),
        ("{{ add_generation_prompt }} {{ tools }} {{ tools is none }}", "True None True"),
        ("{{ {'é': '<b>', 'n': [1, none]} | tojson }}", '{"é": "<b>", "n": [1, null]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{% generation %}x{{ messages | length }}{% endgeneration %}", "x1"),
        ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}"
         "{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}", "023"),
        ("{% for i in 'abc' %}{{ loop.index }}{{ loop.length }}{{ loop.last }} {% endfor %}",
         "13False 23False 33True "),
        ("{% set ns = namespace(s='') %}{% for i in [1, 2] %}{% set ns.s = ns.s ~ i ~ '-' %}"
         "{% endfor %}{{ ns.s }}", "1-2-"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x + x }}{{ 'a' * 3 }}{{ 'abc'[::-1] }}", "a1a1aaacba"),
        ("{{ [1, 2] | join('-') }} {{ 'aba' | replace('a', 'cc') }} {{ 'a\nb' | indent(2) }}"
         " {{ 'a,b'.split(',') | last }} {{ ' x '.strip() }}", "1-2 ccbcc a\n  b b x"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) }}{{ f('<') }}", "[1][<]"),
        ("{{ strftime_now.__globals__ }}{{ messages.__class__ }}", ""),
        ("{{ strftime_now('%Y') | int > 2000 }}{{ missing is defined }}{{ extra }}", "TrueFalse7"),
    ],
)  # fmt: skip
def test_renders(source: str, text: str) -> None:
    assert render(source, extra=7) == text


HOSTILE = [
    "{{ 'x' * 10**10 }}",
    "{{ [0] * 10**9 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% set l = range(90000) | list %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = [n.s, n.s] | join %}"
    "{% endfor %}",
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s.replace('x', 'xx') %}"
    "{% endfor %}",
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set x %}{{ n.s }}{{ n.s }}"
    "{% endset %}{% set n.s = x %}{% endfor %}",
    "{% set n = namespace(l=[]) %}{% for i in range(90000) %}"
    "{% set n.l = n.l + [range(100000) | list] %}{% endfor %}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x' | center(10**10) }}",
    "{{ '{:9999999999d}'.format(1) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ {'a': 1} | tojson(indent=10**9) }}",
    "{{ 'a\n' | indent(10**10) }}",
    "{{ 7 ** (7 ** 99) }}",
    "{{ (1,) * 10**10 }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__.mro()[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include 'x' %}",
    "{{ messages[0].content.no.such }}",
    "{{ 1 / 0 }}",
    "{% if %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 50000 + "1 }}",
    " " * 2_000_000,
]


@pytest.mark.parametrize("source", HOSTILE, ids=lambda s: s[:30])
def test_hostile_templates_are_stopped(source: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ModelError, match="template") as caught:
        render(source)
    assert len(str(caught.value)) < 400
    assert time.perf_counter() - start < 10


def test_hostile_templates_need_little_memory() -> None:
    program = (
        "import sys, ast\nfrom edge_rt.chat_template import ChatTemplate\n"
        "from edge_rt.errors import ModelError\n"
        "for source in ast.literal_eval(sys.stdin.read()):\n"
        "    try: ChatTemplate(source).render([{'role': 'user', 'content': 'hi'}])\n"
        "    except ModelError: pass\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", program], input=repr(HOSTILE), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert int(done.stdout) < 256 * 1024


def test_what_the_template_refuses_is_the_users_error() -> None:
    with pytest.raises(UsageError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("messages", ["hi", [1], [{}], [{"role": 1}], {"role": "user"}, 7])
def test_messages_are_checked(messages: Any) -> None:
    with pytest.raises(UsageError, match="message"):
        render("x", messages)


def test_a_template_can_be_rendered_again() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{{ i }}{% endfor %}")
    assert len({template.render(USER) for _ in range(15)}) == 1


def test_the_demo_models_template(demo_model: Path) -> None:
    source = GGUFFile.open(demo_model).get_str("tokenizer.chat_template")
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert ChatTemplate(source).render(USER) == (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
