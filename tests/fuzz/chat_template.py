"""A chat template, hostile or not, over any conversation: source, messages, arguments.

The input are the three (`harness.join`), the latter two as JSON.
"""

from __future__ import annotations

import json
import random
import sys

from edge_rt.chat import meter
from edge_rt.chat.filters import FILTERS
from edge_rt.chat.functions import METHODS
from edge_rt.chat.template import RESERVED, ChatTemplate
from tests.chat_templates import CONVERSATIONS, TEMPLATES, TOOLS
from tests.fuzz.harness import bounded, join, raw_of, require, split, text_of
from tests.fuzz.mutate import mutate_json_text, mutate_text
from tests.hostile_templates import ATTACKS

# A tenth of what a rendering may use: ten times the inputs, and what is charged too little shows
# against the same clock.
meter._STEPS //= 10  # type: ignore[misc]
_EXPRESSIONS = [
    "messages", "messages[0]", "messages[-1].content", "message['role']", "tools", "bos_token",
    "loop.index0", "loop.first", "loop.previtem", "loop", "x", "y", "n", "n.v", "n.w", "m", "none",
    "nothing", "'ab'", "'é' * 3", "1", "0", "-1", "2**62", "1.5", "1e308", "true", "[]", "[1, 2]",
    "()", "{}", "{'a': 1}", "range(3)", "range(99999)", "dict(a=1)", "namespace(v=1)", "caller()",
    "namespace(v=[1], w='x')", "cycler(1, 2)", "joiner(', ')", "strftime_now('%Y')", "varargs",
    "kwargs", "x is defined", "x is string", "x is mapping", "x in y", "x not in y", "x == y",
    "x < y", "x ~ y", "x + y", "x * 999", "x % y", "x ** y", "x // 2", "x / 0", "x and y", "not x",
    "x if y else n", "x[1:]", "x[::-1]", "x['a']", "x.a.b", "x.items()", "x()", "m(1, a=2)",
    "(x, y)", "'%s' % x", "'%99999d' % 1", "'{0}'.format(x)", "'{:>9999}'.format(1)", "x.__class__",
    "x|attr('__class__')", "messages|map(attribute='content')|list", "[x]|sum(start=[])",
    "x|tojson(indent=2)", "x|dictsort", "x|groupby('a')", "x|batch(3, 0)|list", "x|slice(3)|list",
    "x|replace('a', 'bb')", "x|indent(4, true)", "x|wordwrap(1)", "x|truncate(5)", "x|center(999)",
    "x|urlize", "x|xmlattr", "x|select('equalto', y)|list", "x|selectattr('a', 'in', y)|list",
    "x|unique|list", "x|min", "x|format(y)", "x|default('d', true)", "x|escape", "x|safe",
    "x|string", "x|int(base=36)", "x|float", "x|round(2)", "x|length", "x|reverse|list", "x|first",
    "x|join(y, 'a')", "x|random", "x|filesizeformat", "x|pprint", "x|striptags", "x|title",
    *(f"x|{name}" for name in FILTERS),
    *(f"x.{name}(y)" for methods in METHODS.values() for name in methods),
]  # fmt: skip
_STATEMENTS = [  # § stands for an expression
    "{% for x in § %}{{ x }}{% endfor %}", "{% for x in § recursive %}{{ loop([x]) }}{% endfor %}",
    "{% for x in § if x %}", "{% else %}", "{% endfor %}", "{% if § %}", "{% elif § %}",
    "{% endif %}", "{% set x = § %}", "{% set y = § %}", "{% set n = namespace(v=§) %}",
    "{% set n.v = § %}", "{% set x, y = § %}", "{% set x %}", "{% endset %}", "{{ § }}",
    "{{- § -}}", "{% macro m(a, b=§) %}", "{% macro m(a) %}{{ m(a) }}{% endmacro %}{{ m(§) }}",
    "{% endmacro %}", "{% call(x) m(§) %}", "{% endcall %}", "{% filter upper %}",
    "{% endfilter %}", "{% with x = § %}", "{% endwith %}", "{% break %}", "{% continue %}",
    "{% generation %}", "{% endgeneration %}", "{% do x.append(§) %}", "{{ raise_exception(§) }}",
    "{% raw %}", "{% endraw %}", "{# § #}", "{% include § %}", "{% extends § %}", "{% block b %}",
    "{% endblock %}", "{% import § as z %}", "{% autoescape § %}",
    "{% for i in range(99999) %}{% set x = § %}{% endfor %}",
    "{% for i in range(60) %}{% set n.v = [n.v, §] %}{% endfor %}",
]  # fmt: skip
_WORDS = [
    *_EXPRESSIONS, "{{", "}}", "{%", "%}", "|", "(", ")", "[", "]", "'", "~", "==", ".", ",", " ",
    *("role", "content", "user", "system", "assistant", "tool", "tool_calls", "function", "name",
      "arguments", "type", "text", "thinking", "reasoning_content", "documents", "enable_thinking",
      "add_generation_prompt", "date_string", "image", "tool_call_id"),
]  # fmt: skip


def seeds() -> list[bytes]:
    conversations = list(CONVERSATIONS.values())
    templates = [*TEMPLATES.values(), *ATTACKS.values()]
    arguments = [b"{}", json.dumps({"tools": TOOLS, "enable_thinking": True}).encode()]
    return [
        join({
            "template": raw_of(source),
            "messages": json.dumps(conversations[i % len(conversations)]).encode(),
            "arguments": arguments[i % 2],
        })
        for i, source in enumerate(templates)
        if len(source) < 4000
    ]  # fmt: skip


def _statement(rng: random.Random) -> str:
    statement = rng.choice(_STATEMENTS)
    expression = rng.choice(_EXPRESSIONS)
    while rng.random() < 0.5:
        expression = expression.replace("x", f"({rng.choice(_EXPRESSIONS)})", 1)[:300]
    return statement.replace("§", expression)


def mutate(data: bytes, rng: random.Random) -> bytes:
    files = split(data)
    name = rng.choice(("template",) * 7 + ("messages", "arguments"))
    if name != "template":
        files[name] = mutate_json_text(files.get(name, b"[]"), rng, _WORDS[-20:])
        return join(files)
    text = text_of(files.get(name, b""))
    match rng.randrange(4):
        case 0:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + _statement(rng) + text[at:]
        case 1:
            # An expression in the place of one that is there.
            at = text.find("x", rng.randrange(len(text) + 1))
            if at >= 0:
                text = text[:at] + rng.choice(_EXPRESSIONS) + text[at + 1 :]
        case _:
            text = mutate_text(text, rng, _WORDS)
    files[name] = raw_of(text)
    return join(files)


def run(data: bytes) -> None:
    files = split(data)
    try:
        messages = json.loads(files.get("messages", b"[]"))
        arguments = json.loads(files.get("arguments", b"{}"))
    except (ValueError, RecursionError):
        return
    if not isinstance(arguments, dict):
        arguments = {"tools": arguments}
    tools = arguments.pop("tools", None)
    generate = bool(arguments.pop("add_generation_prompt", True))
    for name in RESERVED:
        arguments.pop(name, None)
    size = len(data)
    with bounded():
        source = text_of(files.get("template", b""))
        template = ChatTemplate(source, "<s>", "</s>", unk_token="<unk>")
        for _ in range(2):  # nothing of the first rendering may be left over
            text = template.render(messages, generate, tools, **arguments)
            require(type(text) is str, f"a {type(text).__name__}")
        require(len(text) < (64 << 20) + 64 * size, f"a prompt of {len(text)} characters")
    modules = {"os", "subprocess", "socket", "pty"}
    require(not (modules - _LOADED) & set(sys.modules), "a template imported something")


_LOADED = set(sys.modules)
