"""Chat templates: what transformers renders, and what a hostile template cannot do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edge_rt.chat.template import ChatTemplate
from edge_rt.errors import UsageError
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
        ("{{ strftime_now('%Y') | int > 2000 }}{{ missing is defined }}{{ extra }}", "TrueFalse7"),
    ],
)  # fmt: skip
def test_renders(source: str, text: str) -> None:
    assert render(source, extra=7) == text


def test_what_the_template_refuses_is_the_users_error() -> None:
    with pytest.raises(UsageError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("messages", ["hi", [1], [{}], [{"role": 1}], {"role": "user"}, 7])
def test_messages_are_checked(messages: Any) -> None:
    with pytest.raises(UsageError, match="message"):
        render("x", messages)


SYSTEM = {"role": "system", "content": "Be brief."}
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}:{{ m.content }};"
    "{% endfor %}"
)


def test_a_system_message_that_is_refused_goes_to_the_user() -> None:
    assert render(ALTERNATING, [SYSTEM, *USER]) == "user:Be brief.\n\nhi;"
    assert render(ALTERNATING, [SYSTEM]) == "user:Be brief.;"
    talk = [SYSTEM, *USER, {"role": "assistant", "content": "a"}, *USER]
    assert render(ALTERNATING, talk) == "user:Be brief.\n\nhi;assistant:a;user:hi;"
    assert talk[0] == SYSTEM and talk[1] == {"role": "user", "content": "hi"}, "not changed"
    # A template that takes the role gets it, and one that refuses something else says so.
    assert render("{{ messages[0].role }}", [SYSTEM, *USER]) == "system"
    with pytest.raises(UsageError, match="roles must alternate"):
        render(ALTERNATING, [SYSTEM, *USER, *USER])
    with pytest.raises(UsageError, match="first reason"):
        render(
            "{{ raise_exception('first reason' if messages[0].role == 'system' else 'second') }}",
            [SYSTEM, *USER],
        )


def parts(*texts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


def test_parts_become_text_where_the_template_knows_only_texts() -> None:
    assert render("{{ messages[0].content + '!' }}", [parts("a", "b")]) == "a\nb!"
    assert render("{{ messages[0].content | trim }}", [parts("a")]) == "a"
    knows = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text }}{% if not loop.last %}+{% endif %}{% endfor %}"
        "{% endif %}{% endfor %}"
    )
    assert render(knows, [parts("a", "b")]) == "a+b"
    assert render(knows, [parts("a", "b"), *USER]) == "a+bhi"
    both = [{"role": "system", "content": parts("s")["content"]}, parts("a", "b")]
    assert render(ALTERNATING, both) == "user:s\n\na\nb;"


@pytest.mark.parametrize("part", [
    {"type": "image_url", "image_url": {"url": "data:"}}, {"type": "image"}, {"text": "a"},
    {"type": "text"}, {"type": "text", "text": 1}, "a", 1, None, {"type": ["image"]},
])  # fmt: skip
def test_parts_that_are_no_text_are_refused(part: Any) -> None:
    with pytest.raises(UsageError, match="text only"):
        render("x", [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}])


class _Sly(str):
    def steal(self) -> str:
        return "stolen"


def test_templates_get_plain_data() -> None:
    message = {"role": "user", "content": _Sly("hi")}
    assert render("{{ messages[0].content }}", [message]) == "hi"
    assert render("{{ messages[0].content.steal is defined }}", [message]) == "False"
    for value in (object(), b"x", {1, 2}, print):
        with pytest.raises(UsageError, match="templates take"):
            render("x", [{"role": "user", "content": value}])
        with pytest.raises(UsageError, match="templates take"):
            render("x", tools=[value])
        with pytest.raises(UsageError, match="the argument thing"):
            render("x", thing=[value])
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(UsageError, match="nested"):
        render("x", tools=deep)


def test_arguments_and_special_tokens() -> None:
    source = "{{ enable_thinking }}{{ pad_token }}{{ unk_token is defined }}{{ documents }}"
    template = ChatTemplate(source, "<s>", "</s>", pad_token="<pad>")
    assert template.render(USER, enable_thinking=False) == "False<pad>FalseNone"
    assert template.render(USER, pad_token="<p>", documents=[]) == "<p>False[]"
    assert render("{{ messages[0].thinking }}{{ messages[0].reasoning_content }}",
                  [{"role": "assistant", "reasoning": "r"}]) == "rr"  # fmt: skip


def test_renderings_in_threads_do_not_share_a_limit() -> None:
    template = ChatTemplate("{% for i in range(20000) %}{{ i % 10 }}{% endfor %}")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: template.render(USER), range(12)))
    assert set(found) == {"0123456789" * 2000}


def test_the_demo_models_template(demo_model: Path) -> None:
    source = GGUFFile.open(demo_model).get_str("tokenizer.chat_template")
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert ChatTemplate(source).render(USER) == (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
