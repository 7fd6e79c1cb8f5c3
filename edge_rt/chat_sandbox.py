"""The Jinja environment of chat templates: a sandbox that also bounds time and memory.

Jinja's sandbox keeps a template away from Python, but not from ``'x' * 10**10`` or from loops
inside loops. Here each iteration and call costs a step, and each character or list element that
an operation makes is charged before it is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import datetime
from functools import wraps
from typing import Any, Final, NoReturn

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edge_rt.sizes import MIB

_MAX_STEPS: Final = 1_000_000  # about a second
_MAX_MADE: Final = 32 * MIB  # characters and list elements of one rendering
_MAX_BITS: Final = 4096  # of an integer
# Their output has no bound by their input, and no chat template is known to need them.
_REMOVED_FILTERS: Final = (
    "center", "format", "wordwrap", "pprint", "batch", "slice", "sum", "urlize", "xmlattr",
    "filesizeformat", "random",
)  # fmt: skip
_REMOVED_METHODS: Final = ("expandtabs", "maketrans", "translate")
_PADDING: Final = ("ljust", "rjust", "center", "zfill")


def _size(value: object) -> int:
    """The cost of a copy of ``value`` in characters; an element of a list is an object."""
    if isinstance(value, str):
        return len(value)
    return 16 * len(value) if isinstance(value, Sized) else 0


class RaisedByTemplate(Exception):
    """What a template says with ``raise_exception``."""


def _raise_exception(message: object) -> NoReturn:
    raise RaisedByTemplate(str(message)[:400])


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(str(form)[:80])


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: without Jinja's escaping for HTML."""
    if isinstance(indent, int) and indent > 64:
        raise SecurityError("the indentation is too wide")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's text for training; here it is only shown."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja's own declaration

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Generator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.concat((")
        for part in node.nodes:
            self.write("str(")
            self.visit(part, frame)
            self.write("), ")
        self.write("))")


@pass_context
def _counted(context: Any, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        context.environment.step()
        yield item


class Sandbox(ImmutableSandboxedEnvironment):
    """One environment for one template; `start` begins a rendering."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        self.start()
        self.concat = self._concat  # type: ignore[method-assign]
        for name in _REMOVED_FILTERS:
            self.filters.pop(name, None)
        self.filters["tojson"] = _to_json
        for name, function in self.filters.items():
            self.filters[name] = self._charged(name, function)
        self.filters["counted iteration"] = _counted  # no template can write this name
        self.globals.pop("lipsum", None)
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def start(self) -> None:
        """Begin a rendering: nothing is used up yet."""
        self._steps = self._made = 0

    def step(self) -> None:
        """Count an iteration or a call."""
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise SecurityError(f"more than {_MAX_STEPS} steps")

    def charge(self, length: int) -> None:
        """Count ``length`` characters or elements about to be made."""
        self._made += max(length, 0)
        if self._made > _MAX_MADE:
            raise SecurityError(f"more than {_MAX_MADE} characters are made")

    def _concat(self, parts: Iterable[str]) -> str:
        held = list(parts)
        self.charge(sum(map(len, held)))
        return "".join(held)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            loop.iter = nodes.Filter(
                loop.iter, "counted iteration", [], [], None, None, lineno=loop.lineno
            )
        return template

    def _charged(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            values = [a for a in (*args, *kwargs.values()) if isinstance(a, Sized)]
            self.charge(sum(map(_size, values)))
            if name == "replace":
                self._charge_replace(values)
            elif name == "join":
                items = next((a for a in args if isinstance(a, Iterable)), ())
                if not isinstance(items, str):
                    held = list(items)
                    args = tuple(held if a is items else a for a in args)
                    gap = max((len(a) for a in args if isinstance(a, str)), default=0)
                    gap = max(gap, *(len(v) for v in kwargs.values() if isinstance(v, str)), 0)
                    self.charge(sum(len(str(item)) + gap for item in held))
            elif name == "indent":
                width = max((a for a in (*args, *kwargs.values()) if isinstance(a, int)), default=4)
                self.charge(sum(a.count("\n") + 1 for a in values if isinstance(a, str)) * width)
            elif name == "round" and any(isinstance(a, int) and a > 64 for a in args[1:]):
                raise SecurityError("too many digits")
            return function(*args, **kwargs)

        return call

    def _charge_replace(self, values: list[Any]) -> None:
        texts = [a for a in values if isinstance(a, str)]
        if len(texts) == 3:
            self.charge((texts[0].count(texts[1]) + 1) * len(texts[2]))

    def wrap_str_format(self, value: Any) -> Any:
        """Refuse ``str.format``, whose widths have no bound."""
        if super().wrap_str_format(value) is not None:
            raise SecurityError("str.format is not allowed")
        return None

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Subscribe; a slice is charged."""
        if isinstance(argument, slice) and isinstance(obj, str | list | tuple):
            self.charge(_size(obj))
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Calculate, unless the result is too large."""
        sizes = [_size(a) if isinstance(a, str | list | tuple) else None for a in (left, right)]
        if operator == "%" and sizes[0] is not None:
            raise SecurityError("% formatting has no bound")
        if operator == "+":
            self.charge(sum(size or 0 for size in sizes))
        if operator == "*":
            for size, times in ((sizes[0], right), (sizes[1], left)):
                if size is not None and isinstance(times, int):
                    self.charge(size * times)
        if isinstance(left, int) and isinstance(right, int):
            bits = max(left.bit_length(), right.bit_length())
            if bits > _MAX_BITS or (operator == "**" and left.bit_length() * right > _MAX_BITS):
                raise SecurityError("a number is too large")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method, unless its result is too large."""
        __self.step()
        __self.charge(sum(_size(a) for a in (*args, *kwargs.values())))
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            if name in _REMOVED_METHODS:
                raise SecurityError(f"str.{name} is not allowed")
            __self.charge(len(owner))
            if name in _PADDING:
                __self.charge(sum(a for a in args if isinstance(a, int)))
            elif name == "replace":
                __self._charge_replace([owner, *args, *kwargs.values()])
            elif name == "join" and args:
                held = list(args[0])
                __self.charge(sum(len(str(item)) + len(owner) for item in held))
                args = (held, *args[1:])
        return super().call(__context, __obj, *args, **kwargs)
