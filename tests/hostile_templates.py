"""Chat templates that mean harm, by what they try. Each must end as a `ModelError`, soon and small.

Run as a program it reads the names of attacks from its arguments (all without any), and prints for
each, from a process of its own: the error's class, seconds, KiB of extra resident memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def _repeat(body: str, times: int = 99_999, before: str = "", after: str = "") -> str:
    return before + "{% for i in range(" + str(times) + ") %}" + body + "{% endfor %}" + after


def _grow(step: str, start: str = "'xx'", after: str = "", times: int = 60) -> str:
    before = "{% set n = namespace(v=" + start + ", w=" + start + ") %}"
    return _repeat("{% set n.v = " + step + " %}", times, before, after)


# A value of 2**60 elements, all shared, beside another one; then something that visits it.
def _shared(use: str, one: str = "[n.v, n.v]", two: str = "[n.w, n.w]", start: str = "[1]") -> str:
    before = "{% set n = namespace(v=" + start + ", w=" + start + ") %}"
    return _repeat(f"{{% set n.v = {one} %}}{{% set n.w = {two} %}}", 60, before, use)


def _deep(use: str, step: str = "(n.v,)", start: str = "()") -> str:
    before = "{% set n = namespace(v=" + start + ") %}"
    return _repeat("{% set n.v = " + step + " %}", 30_000, before, use)


_BIG = "{% set x = 'ab' * 4000000 %}"  # 8 MB
_MODULUS = 2**61 - 1  # of the hashes of integers

ESCAPES = {
    "class of a string": "{{ ''.__class__ }}",
    "subclasses": "{{ ''.__class__.mro()[1].__subclasses__() }}",
    "item syntax": "{{ ''['__class__']['__base__'] }}",
    "attr filter": "{{ ''|attr('__class__')|attr('__mro__') }}",
    "attr by parts": "{{ ''|attr('__cla' ~ 'ss__') }}",
    "map attribute": "{{ ['']|map(attribute='__class__')|list }}",
    "sort by attribute": "{{ ['', 'a']|sort(attribute='__class__')|list }}",
    "groupby attribute": "{{ ['']|groupby('__class__') }}",
    "cycler globals": "{{ cycler.__init__.__globals__.os.system('id') }}",
    "joiner globals": "{{ joiner.__init__.__globals__ }}",
    "namespace globals": "{{ namespace.__init__.__globals__ }}",
    "lipsum globals": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "function globals": "{{ strftime_now.__globals__ }}",
    "function code": "{{ raise_exception.__code__.co_consts }}",
    "macro globals": "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "macro environment": "{% macro m() %}{% endmacro %}{{ m._environment.globals }}",
    "macro function": "{% macro m() %}{% endmacro %}{{ m._func }}",
    "caller function": "{% macro m() %}{{ caller._func }}{% endmacro %}{% call m() %}{% endcall %}",
    "self": "{{ self._TemplateReference__context.environment }}",
    "self as a block": "{% block b %}{{ self.b() }}{% endblock %}",
    "loop internals": "{% for i in [1] %}{{ loop._iterator.__class__ }}{% endfor %}",
    "loop recursion object": "{% for i in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "undefined internals": "{{ nothing._undefined_exception }}",
    "undefined globals": "{{ nothing.__init__.__globals__ }}",
    "generator frame": "{{ (['a']|map('upper')).gi_frame.f_globals }}",
    "namespace attributes": "{{ namespace(a=1)._Namespace__attrs }}",
    "namespace underscore": "{% set n = namespace(__class__=1) %}{{ n }}",
    "namespace set": "{% set n = namespace() %}{% set n.__init__ = 1 %}",
    "dict class": "{{ dict.__class__.__base__ }}",
    "dict mro": "{{ dict.mro() }}",
    "range class": "{{ range(1).__class__ }}",
    "str.format attribute": "{{ '{0.__class__.__mro__}'.format('') }}",
    "str.format item": "{{ '{0[__class__]}'.format('') }}",
    "format method by attr": "{{ ('{0.__class__}'|attr('format'))('') }}",
    "format method by map": "{% for f in ['{0.__class__}']|map(attribute='format') %}"
                            "{{ f('') }}{% endfor %}",
    "format method by item": "{{ '{0.__class__}'['format']('') }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "format method in a namespace": "{% set n = namespace(f='{0.__class__}'.format) %}"
                                    "{{ n.f(1) }}",
    "escaped format": "{{ ('{0.__class__}'|safe).format(1) }}",
    "xmlattr": "{{ {'a=b onclick': 1}|xmlattr }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.system('id') }}",
    "from import": "{% from 'os' import system %}{{ system('id') }}",
    "extends": "{% extends '/etc/passwd' %}",
    "own filters": "{{ [-10**9]|map('edge-rt tick', 0)|list }}",
    "own test defaults": "{{ 1 is odd(raise_exception) }}",
    "messages change": "{{ messages.append(1) }}",
    "a message changes": "{{ messages[0].update(role='x') }}",
    "a message is cleared": "{{ messages[0].clear() }}",
    "sort in place": "{{ messages.sort() }}",
    "pop": "{{ messages[0].pop('role') }}",
    "int.to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "encode": "{{ 'a'.encode() }}",
    "translate": "{{ 'a'.translate({97: 'b' * 99999}) }}",
}  # fmt: skip
LOOPS = {
    "nested loops": _repeat(_repeat("")),
    "nested loops of nothing": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
                               "{% endfor %}",
    "filtered loops": _repeat("{% for j in range(99999) if false %}{% endfor %}"),
    "else of loops": _repeat("{% for j in [] %}{% else %}x{% endfor %}" * 20),
    "huge bodies": _repeat("{% if true %}" + "{{ i }}" * 800 + "{% endif %}"),
    "huge expressions": _repeat("{{ " + " + ".join(["i"] * 120) + " }}"),
    "huge range": "{% for i in range(10**9) %}x{% endfor %}",
    "range of huge numbers": "{{ range(0, 10**30, 10**25)|list }}",
    "recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"
                       "{% endmacro %}{{ m(60) }}",
    "macro defaults": "{% macro m(n, a=m(n), b=m(n)) %}{% endmacro %}{{ m(1) }}",
    "call blocks": "{% macro m(n) %}{% if n %}{% call m(n - 1) %}{{ caller() }}{% endcall %}"
                   "{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "recursive loop, filtered": "{% for i in range(50000) if i < 3 recursive %}"
                                "{{ loop(range(50000)) }}{% endfor %}",
    "wide recursive loop": "{% set n = namespace(d=0) %}{% for i in range(99999) recursive %}"
                           "{% set n.d = n.d + 1 %}{% if n.d < 9 %}{{ loop(range(99999)) }}"
                           "{% endif %}{% endfor %}",
    "map of map": "{% set l = [range(99999)] * 999 %}{{ l|map('list')|list|length }}",
    "map of map of map": "{% set l = [[range(999)] * 999] * 999 %}"
                         "{{ l|map('map', 'list')|map('list')|list }}",
    "select chains": _repeat("{{ range(99999)|select|reject|select|list|length }}", 999),
    "selectattr chains": _repeat("{{ messages|selectattr('a.b.c.d.e')|list }}" * 40),
    "long attribute": "{{ range(9999)|map(attribute='" + "a." * 10_000 + "')|list }}",
    "batch": "{{ range(99999)|batch(1)|map('join')|list|join|length }}{{ 1/0 }}",
    "batch filled": "{{ [1]|batch(10**9, 'x')|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "cycler": _repeat(_repeat("{{ c.next() }}"), before="{% set c = cycler(1, 2) %}"),
    "loop.cycle": _repeat(_repeat("{{ loop.cycle(1, 2) }}")),
    "sum of lists": "{{ ([[1] * 9] * 90000)|sum(start=[]) }}",
}  # fmt: skip
GROWTH = {
    "multiplication": "{{ 'a' * 10**9 }}",
    "multiplication from the left": "{{ 10**9 * 'a' }}",
    "tuple multiplication": "{{ (1,) * 10**9 }}",
    "list multiplication": "{{ ([1] * 10**6) * 10**3 }}",
    "many multiplications": _repeat("{{ 'x' * 1000 }}"),
    "wide letters": "{{ '\U0001f600' * 5000000 }}",
    "power": "{{ 7 ** (7 ** 99) }}",
    "tower of powers": "{{ 9**9**9 }}",
    "powers in a loop": _grow("n.v * n.v", "3"),
    "shift by multiplication": _grow("n.v * 10**18", "10**18"),
    "int filter": "{{ '9' * 100000|int }}{{ ('9' * 399)|int }}",
    "int of another base": "{{ ('f' * 9999999)|int(base=16) }}",
    "round": "{{ 1.5|round(10**9, 'ceil') }}",
    "doubling by ~": _grow("n.v ~ n.v"),
    "doubling by +": _grow("n.v + n.v"),
    "doubling by join": _grow("[n.v, n.v]|join"),
    "doubling by str.join": _grow("''.join([n.v, n.v])"),
    "doubling by replace": _grow("n.v.replace('x', 'xx')"),
    "doubling by the filter replace": _grow("n.v|replace('x', 'xx')"),
    "doubling by %": _grow("'%s%s' % (n.v, n.v)"),
    "doubling by the filter format": _grow("'%s%s'|format(n.v, n.v)"),
    "doubling by str.format": _grow("'{0}{0}'.format(n.v)"),
    "doubling by lists": _grow("n.v + n.v", "[1, 2]"),
    "doubling by str": _grow("[n.v, n.v]|string"),
    "doubling by tojson": _grow("[n.v, n.v]|tojson"),
    "doubling by escapes": _grow("n.v|tojson", "'\"'"),
    "doubling by html": _grow("((n.v ~ n.v)|escape) ~ ''", "'&'"),
    "doubling by a set block": "{% set n = namespace(v='xx') %}"
        + _repeat("{% set x %}{{ n.v }}{{ n.v }}{% endset %}{% set n.v = x %}", 60),
    "doubling by a macro": "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}" + _grow("m(n.v)"),
    "doubling by a filter block": "{% set n = namespace(v='xx') %}"
        + _repeat("{% set x %}{% filter upper %}{{ n.v }}{{ n.v }}{% endfilter %}{% endset %}"
                  "{% set n.v = x %}", 60),
    "doubling by slices": _grow("(n.v, n.v)|join|list|join"),
    "many slices": _repeat("{% set n.v = [x[1:], n.v] %}",
                           before=_BIG + "{% set n = namespace(v=0) %}"),
    "many copies in a list": _grow("n.v + [range(100000)|list]", "[]", times=90_000),
    "empty lists": _repeat("{% set n.v = [n.v" + ", []" * 1000 + "] %}",
                           before="{% set n = namespace(v=0) %}"),
    "empty dicts": _repeat("{% set n.v = [n.v" + ", {'a': i}" * 500 + "] %}",
                           before="{% set n = namespace(v=0) %}"),
    "letters of a text": "{{ ('\U0001f600' * 900000)|list|length }}",
    "spread text": "{{ cycler(*('a' * 9999999)) }}",
    "spread macro": "{% macro m() %}{{ varargs|length }}{% endmacro %}{{ m(*'a' * 9999999) }}",
    "split into letters": "{{ ('a ' * 4000000).split()|length }}",
    "split at letters": "{{ ('ab' * 4000000).split('a')|length }}",
    "split lines": "{{ ('\\n' * 8000000).splitlines()|length }}",
    "indent": "{{ 'a\n' | indent(10**9) }}",
    "indent of many lines": "{{ ('a\\n' * 99999)|indent(999) }}",
    "indent with text": "{{ ('a\\n' * 9999)|indent('x' * 99999) }}",
    "tojson indent": "{{ {'a': 1} | tojson(indent=10**9) }}",
    "tojson indent with text": "{{ ([1] * 9999) | tojson(indent='x' * 99999) }}",
    "tojson separators": "{{ ([1] * 9999)|tojson(separators=('x' * 99999, 'y')) }}",
    "tojson of much": "{{ ([['x' * 1000] * 1000] * 1000) | tojson }}",
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "zfill": "{{ '1'.zfill(10**10) }}",
    "center": "{{ 'x' | center(10**10) }}",
    "center method": "{{ 'x'.center(10**10) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**10) }}",
    "% width": "{{ '%9999999999d' % 1 }}",
    "% precision": "{{ '%.999999999f' % 1 }}",
    "% width from a value": "{{ '%*d' % (10**9, 1) }}",
    "% width of a name": "{{ '%(aaa)999999999d' % {'aaa': 1} }}",
    "% by a test": "{{ '%999999999d' is even }}",
    "% by divisibleby": "{{ '%999999999d' is divisibleby(2) }}",
    "% of escaped text": "{{ ('%999999999d'|safe) % 1 }}",
    "filter format": "{{ '%9999999999d' | format(1) }}",
    "format width": "{{ '{:9999999999d}'.format(1) }}",
    "format width from a value": "{{ '{:{}}'.format(1, 10**9) }}",
    "format precision": "{{ '{:.999999999f}'.format(1.5) }}",
    "strftime width": "{{ strftime_now('%999999999d') }}",
    "strftime length": "{{ strftime_now('%c' * 999999) }}",
    "output flood": _repeat("{{ x }}", before=_BIG),
    "output flood of constants": _repeat("y" * 9999),
    "messages flood": _repeat("{{ messages }}{{ messages[0].content }}" * 50),
    "join with a long text": "{{ range(99999)|join('x' * 99999) }}",
    "join method": "{{ ('x' * 99999).join('y' * 99999) }}",
    "title": "{{ ('a ' * 2000000)|title|length }}",
    "upper": "{{ ('\u0390' * 2000000)|upper|length }}",
    "dict of a range": "{{ dict.fromkeys(range(99999), 1)|tojson|length }}"
        + _repeat("{% set n.v = [n.v, dict.fromkeys(range(99999))] %}",
                  before="{% set n = namespace(v=0) %}"),
    "copies": _repeat("{% set n.v = [n.v, messages[0].copy(), messages.copy()] %}",
                      before="{% set n = namespace(v=0) %}"),
}  # fmt: skip
SLOW_CALLS = {
    "equality of shared values": _shared("{{ n.v == n.w }}"),
    "test of shared values": _shared("{{ n.v is eq(n.w) }}"),
    "order of shared values": _shared("{{ n.v < n.w }}"),
    "select by shared values": _shared("{{ [n.v]|select('eq', n.w)|list }}"),
    "in with shared values": _shared("{{ n.v in [n.w] }}"),
    "test in with shared values": _shared("{{ n.v is in([n.w]) }}"),
    "list.index of shared values": _shared("{{ [n.v].index(n.w) }}"),
    "list.count of shared values": _shared("{{ [n.v].count(n.w) }}"),
    "loop.changed of shared values": _shared(
        "{% for i in [n.v, n.w] %}{{ loop.changed(i) }}{% endfor %}"),
    "sort of shared values": _shared("{{ [n.v, n.w]|sort }}"),
    "max of shared values": _shared("{{ [n.v, n.w]|max }}"),
    "text of shared values": _shared("{{ n.v }}"),
    "~ of shared values": _shared("{{ n.v ~ '' }}"),
    "string of shared values": _shared("{{ n.v|string }}"),
    "upper of shared values": _shared("{{ n.v|upper }}"),
    "join of shared values": _shared("{{ [n.v]|join }}"),
    "% of shared values": _shared("{{ '%s' % n.v }}"),
    "% of a shared tuple": _shared("{{ '%s' % (n.v,) }}"),
    "format of shared values": _shared("{{ '{}'.format(n.v) }}"),
    "tojson of shared values": _shared("{{ n.v|tojson }}"),
    "raise_exception of shared values": _shared("{{ raise_exception(n.v) }}"),
    "raise_exception by name": _shared("{{ raise_exception(message=n.v) }}"),
    "message of a list that is searched": "{{ [].index(['x' * 999999] * 90) }}",
    "message of a subscript": "{{ [][['x' * 999999] * 90].y }}",
    "message of a long subscript": "{{ {}['\x01' * 9999999].y }}",
    "message of a long attribute": "{{ ({}|attr('\x01' * 9999999)).y }}",
    "message of a filter's name": "{{ [1]|map('x' * 9999999)|list }}",
    "message of an argument's name": "{% macro m() %}{% endmacro %}{{ m(**{'x' * 9999999: 1}) }}",
    "hash of shared tuples": _shared("{{ {n.v: 1} }}", "(n.v, n.v)", "1", "(1,)"),
    "key of shared tuples": _shared("{{ {}[n.v] }}", "(n.v, n.v)", "1", "(1,)"),
    "get of shared tuples": _shared("{{ {}.get(n.v) }}", "(n.v, n.v)", "1", "(1,)"),
    "unique of shared tuples": _shared("{{ [n.v]|unique|list }}", "(n.v, n.v)", "1", "(1,)"),
    "fromkeys of shared tuples": _shared("{{ dict.fromkeys([n.v]) }}", "(n.v, n.v)", "1", "(1,)"),
    "filter named by shared tuples": _shared("{{ [1]|map(n.v)|list }}", "(n.v, n.v)", "1", "(1,)"),
    "test named by shared tuples": _shared("{{ n.v is test }}", "(n.v, n.v)", "1", "(1,)"),
    "message of shared tuples": _shared("{{ [1][n.v].x }}", "(n.v, n.v)", "1", "(1,)"),
    "shared namespaces": _shared("{{ n.v ~ '' }}", "namespace(a=n.v, b=n.v)", "1"),
    "shared dicts": _shared("{{ n.v == n.w }}", "{'a': n.v, 'b': n.v}", "{'a': n.w, 'b': n.w}"),
    "hash of deep tuples": _deep("{{ {n.v: 1} }}"),
    "equality of deep lists": _deep("{{ n.v == [n.v] }}", "[n.v]", "[]"),
    "text of deep lists": _deep("{{ n.v }}", "[n.v]", "[]"),
    "tojson of deep lists": _deep("{{ n.v|tojson }}", "[n.v]", "[]"),
    "tojson of deep dicts": _deep("{{ n.v|tojson }}", "{'a': n.v}", "{}"),
    "deep generators": _deep("{{ n.v|list }}{{ 1/0 }}", "n.v|map('upper')", "['a']"),
    "deep reversed": _deep("{{ n.v|list }}{{ 1/0 }}", "n.v|reverse", "['a']"),
    "deep closures": "{% macro f(p) %}{% macro g() %}{{ p }}{% endmacro %}{% set n.v = g %}"
                     "{% endmacro %}" + _repeat("{{ f(n.v) }}", 30_000,
                                                "{% set n = namespace(v=0) %}", "{{ 1/0 }}"),
    "colliding integers": "{{ range(0, 99999 * " + str(_MODULUS) + ", " + str(_MODULUS)
                          + ")|unique|list|length }}",
    "colliding numerals": "{% set s %}" + _repeat("{{ i * " + str(_MODULUS) + " }},", 3000)
                          + "{% endset %}{{ s.split(',')|map('int')|unique|list|length }}",
    "searching": _repeat("{{ y in x }}", before=_BIG + "{% set y = 'ab' * 1000000 ~ 'c' %}"),
    "searching short": _repeat("{{ y in x }}", before="{% set x = 'a' * 2400 %}"
                               "{% set y = 'a' * 1100 ~ 'b' %}"),
    "searching backwards": "{{ ('a' * 4000000).rfind('b' ~ 'a' * 2000000) }}",
    "splitting backwards": "{{ ('a' * 4000000).rsplit('b' ~ 'a' * 2000000) }}",
    "counting": _repeat("{{ x.count('ba') }}", before=_BIG),
    "stripping": "{{ (('a' * 1000000) ~ 'b').strip('c' * 1000000 ~ 'a') }}",
    "stripping by the filter": "{{ ('a' * 1000000)|trim('c' * 1000000 ~ 'a') }}",
    "comparing": _repeat("{{ x == y }}", before=_BIG + "{% set y = 'ab' * 4000000 %}"),
    "sorting": _repeat("{{ (range(99999)|list + range(99999)|list)|sort|length }}", 99),
    "sorting long texts": "{{ (['x' * 9999] * 99999)|sort|length }}",
    "unique long texts": "{{ (['x' * 99999] * 99999)|unique|list|length }}",
    "groupby": _repeat("{{ range(99999)|groupby('real')|length }}", 99),
    "dictsort": _repeat("{{ dict.fromkeys(range(99999))|dictsort|length }}", 99),
    "escaping": _repeat("{{ x|escape|length }}", before=_BIG),
    "json of long texts": _repeat("{{ x|tojson|length }}", before=_BIG),
    "letters in a range": _repeat("{{ 1.5 in range(99999) }}"),
}  # fmt: skip
COMPILING = {
    "folded multiplication": "{% set x = 'a' * 10**9 %}",
    "folded power": "{% if false %}{{ 9**9**9 }}{% endif %}{{ 1/0 }}",
    "folded filters": "{{ 'a'|center(10**9) }}",
    "folded chain": "{{ ('a'|center(99999)|list|join('x' * 99999)) }}",
    "folded range": "{{ [1]|batch(10**9, 1)|list }}",
    "folded tests": "{{ '%999999999d' is odd }}",
    "folded defaults": "{% macro m(a='x' * 10**9) %}{{ a }}{% endmacro %}{{ m() }}",
    "folded join": "{{ ['a', 'b']|join('c' * 10**9) }}",
    "folded %": "{{ '%999999999d' % 1 }}",
    "folded ~": "{{ ('a' * 9999999) ~ ('b' * 9999999) }}",
    "long sum": "{{ " + " + ".join(["1"] * 100_000) + " }}",
    "sum of 2000": "{{ " + " + ".join(["1"] * 2000) + " }}",
    "long ~": "{{ " + " ~ ".join(["1"] * 100_000) + " }}",
    "long and": "{{ " + " and ".join(["1"] * 2000) + " }}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep lists": "{{ " + "[" * 2000 + "]" * 2000 + " }}",
    "deep minus": "{{ " + "-" * 50_000 + "1 }}",
    "deep not": "{{ " + "not " * 3000 + "1 }}",
    "deep filters": "{{ x" + "|upper" * 2000 + " }}",
    "deep attributes": "{{ x" + ".a" * 2000 + " }}",
    "deep calls": "{{ x" + "()" * 1500 + " }}",
    "deep conditions": "{{ " + "1 if 1 else " * 1000 + "1 }}",
    "deep ifs": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "deep fors": "{% for a in b %}" * 100 + "{% endfor %}" * 100,
    "deep macros": "{% macro m() %}" * 100 + "{% endmacro %}" * 100,
    "long elif": "{% if 1 %}" + "{% elif 1 %}" * 1250 + "{% endif %}{{ 1/0 }}",
    "many variables": "".join(f"{{% set a{i} = 1 %}}" for i in range(640))
                      + "{% if 1 %}" * 15 + "{% endif %}" * 15 + "{{ 1/0 }}",
    "many variables and ifs": "".join(f"{{% set a{i} = 1 %}}" for i in range(350))
                              + "{% if 1 %}{% endif %}" * 230 + "{{ 1/0 }}",
    "many outputs": "{{ a }}" * 1300 + "{{ 1/0 }}",
    "many sums": "{{a+b+c+d+e+f}}" * 300 + "{{ 1/0 }}",
    "many macros": "{% macro m(a) %}{% endmacro %}" * 390 + "{{ 1/0 }}",
    "many loops": "{% for a in b %}{% endfor %}" * 380 + "{{ 1/0 }}",
    "too many outputs": "{{ a }}" * 80_000,
    "giant source": " " * 2_000_000,
    "giant text": "\U0001f600" * 60_000 + "{{ 1/0 }}",
    "giant numeral": "{{ " + "9" * 200_000 + " }}",
    "giant hexadecimal numeral": "{{ 0x" + "f" * 200_000 + " }}",
    "giant float": "{{ 1." + "9" * 200_000 + " }}",
    "giant name": "{{ " + "a" * 200_000 + ".b.c }}",
    "unclosed text": "{{ '" + "\\'" * 100_000,
    "unclosed comment": "{#" * 100_000,
    "unclosed raw": "{% raw %}" + "{% " * 60_000,
    "unclosed raw, spaces": ("{% raw" + " " * 2000) * 100,
    "not a template": "{% if %}",
    "unknown tag": "{% do messages.append(1) %}",
    "unknown filter": "{{ 'a'|pprint }}",
    "translations": "{% trans %}a{% endtrans %}",
    "Python keyword": "{{ cycler(**{'class': 1}).None }}{{ 1/0 }}",
    "surrogates": "\ud800{{ 1/0 }}",
    "null": "\0{{ 1/0 }}",
    "break outside": "{% break %}",
    "async": "{% for i in messages %}{{ await i }}{% endfor %}",
}  # fmt: skip
MISTAKES = {
    "missing attribute": "{{ messages[0].content.no.such }}",
    "division by zero": "{{ 1 / 0 }}",
    "call of a text": "{{ 'a'() }}",
    "call of nothing": "{{ nothing() }}",
    "wrong types": "{{ 'a' + 1 }}",
    "slice of a number": "{{ (1)[1:] }}",
    "unhashable": "{{ {[]: 1} }}",
    "printing a function": "{{ range }}",
    "printing a loop": "{% for i in [1] %}{{ loop }}{% endfor %}",
}
CLASSES = {
    "escapes": ESCAPES, "loops": LOOPS, "growth": GROWTH, "slow calls": SLOW_CALLS,
    "compiling": COMPILING, "mistakes": MISTAKES,
}  # fmt: skip
ATTACKS = {name: source for group in CLASSES.values() for name, source in group.items()}


def peak_kib() -> int:
    """The most resident memory this process had, in KiB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def attack(source: str) -> tuple[str, str, float, int]:
    """(class of the error, its text, seconds, KiB of extra resident memory)."""
    from edge_rt.chat.template import ChatTemplate

    before, started = peak_kib(), time.perf_counter()
    try:
        text = ChatTemplate(source).render([{"role": "user", "content": "hi"}])
        kind, said = "", text[:80]
    except Exception as error:
        kind, said = type(error).__name__, str(error)
    return kind, said, time.perf_counter() - started, peak_kib() - before


def main(names: list[str]) -> None:
    """Print one JSON line for each attack: its name and what `attack` says, from a fork."""
    attack("{{ messages[0].content }}")  # imports
    for name in names or list(ATTACKS):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            print(json.dumps([name, *attack(ATTACKS[name])]), flush=True)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status:
            print(json.dumps([name, f"died with status {status}", "", 0, 0]))


if __name__ == "__main__":
    main(sys.argv[1:])
