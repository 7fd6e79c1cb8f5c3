"""The Jinja environment of chat templates: a sandbox that also bounds time and memory.

Jinja's sandbox keeps a template away from Python, but not from ``'x' * 10**10``, from loops inside
loops or from ``a == b`` of values that hold themselves a million times. Here the parsed template is
rewritten before it is compiled: a body that can be repeated charges its nodes to a `Meter` each
time, and whatever Python would do by itself (``str``, ``==``, ``in``, hashing, slicing, ``*args``)
goes through a function that charges first. Nothing is calculated while compiling.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Final, NoReturn

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, missing
from markupsafe import Markup

from edge_rt.chat.filters import FILTERS, add_up, guarded, guarded_tests, length_of, to_json
from edge_rt.chat.functions import (
    METHODS,
    as_text,
    charge_percent,
    checked_int,
    contains,
    str_format,
    subscript,
    walked,
)
from edge_rt.chat.meter import MAX_BITS, Meter, text_bytes, width_of
from edge_rt.chat.rewriter import CONTAINS, SLICED, SPREAD, TEXT, TICK, WALKED, Rewriter

MAX_TOKENS: Final = 4_000  # of a template's code; the longest known has 2350
_LONG_NUMERAL: Final = re.compile(r"[0-9][xXoO]?[0-9a-fA-F_]{400}")  # int() is quadratic
_NUMBER: Final = (int, float)
_HIDDEN: Final = ("_loop_vars", "_block_vars")  # arguments that Jinja adds to calls
_NAMES: Final = {dict: frozenset(dir(dict)), str: frozenset(dir(str))}
_ATTRIBUTES: Final[dict[type, frozenset[str]]] = {
    **{kind: frozenset(methods) for kind, methods in METHODS.items()},
    str: frozenset((*METHODS[str], "format")),
    LoopContext: frozenset((
        "index", "index0", "revindex", "revindex0", "first", "last", "length", "cycle", "changed",
        "depth", "depth0", "previtem", "nextitem",
    )),
    Cycler: frozenset(("next", "current", "reset", "items", "pos")),
    Macro: frozenset(("name", "arguments", "catch_kwargs", "catch_varargs", "caller")),
}  # fmt: skip


class RaisedByTemplate(Exception):
    """What a template says with ``raise_exception``."""


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's text for training; here it is only shown."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja's own declaration

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)

    def filter_stream(self, stream: Any) -> Iterator[Any]:
        """Refuse templates that would take long to compile."""
        for count, token in enumerate(stream):
            if count > MAX_TOKENS:
                raise SecurityError(f"it has more than {MAX_TOKENS} tokens")
            yield token


# -- global functions -----------------------------------------------------------------------------


def _raise_exception(message: object) -> NoReturn:
    raise RaisedByTemplate(message)


def _strftime_now(format: str) -> str:
    if len(format) > 256 or re.search(r"%[-_0^#+]*\d{3}", format):
        raise SecurityError("the format of the time is too long")
    return datetime.now().strftime(format)


def _range(*args: int) -> range:
    numbers = range(*map(checked_int, args))
    if len(numbers) > MAX_RANGE:
        raise OverflowError(f"the range has more than {MAX_RANGE} numbers")
    return numbers


class _Namespace(Namespace):
    """As in transformers: names that begin with an underscore are refused."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        Namespace.__init__(self)
        for name, value in dict(*rest, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: Any, value: Any) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise SecurityError(f"{str(name)[:40]!r} is no name for a namespace")
        super().__setitem__(name, value)


class _Dict:
    """As in transformers: ``dict(...)`` without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _metered(meter: Meter, function: Callable[..., Any]) -> Callable[..., Any]:
    # With the context as an argument, Jinja does not call it while compiling.
    return pass_context(lambda _, *args: function(meter, *args))


# -- the environment ------------------------------------------------------------------------------


class Sandbox(ImmutableSandboxedEnvironment):
    """One environment for one template; its `meter` is started for each rendering."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self) -> None:
        # Without optimization nothing that a template says is calculated while it is compiled.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation],
            optimized=False,
        )  # fmt: skip
        self.meter = meter = Meter()
        filters: dict[str, Any] = self.filters
        self.concat = self._concat  # type: ignore[method-assign]
        self.filters = {
            name: guarded(meter, guard, filters[name]) for name, guard in FILTERS.items()
        }
        self.filters["tojson"] = lambda *args, **kwargs: to_json(meter, *args, **kwargs)
        self.filters["sum"] = lambda *args, **kwargs: add_up(self, *args, **kwargs)
        self._own: dict[str, Any] = {
            TICK: self._tick, TEXT: as_text, WALKED: walked, CONTAINS: contains,
            SLICED: self._sliced, SPREAD: self._spread,
        }  # fmt: skip
        self.filters.update({name: _metered(meter, f) for name, f in self._own.items()})
        tests: Any = self.tests
        tests = guarded_tests(meter, tests)
        self.tests = tests
        self.globals = {
            "range": _range, "dict": _Dict(), "namespace": _Namespace, "cycler": Cycler,
            "joiner": Joiner, "raise_exception": _raise_exception, "strftime_now": _strftime_now,
        }  # fmt: skip
        self._functions = tuple(self.globals.values())

    # -- compiling ----------------------------------------------------------------------------

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if _LONG_NUMERAL.search(source):
            raise SecurityError("a numeral is too long")
        template: nodes.Template = super()._parse(source, name, filename)
        template = Rewriter().visit(template, 0)[0]
        template.set_environment(self)
        return template

    def handle_exception(self, source: str | None = None) -> NoReturn:
        """Let the error pass: Jinja would compile a function for each level of its traceback."""
        raise

    # -- called by compiled templates ---------------------------------------------------------

    @staticmethod
    def _tick(meter: Meter, steps: int, n_bytes: int) -> bool:
        if n_bytes:
            meter.make(n_bytes)
        meter.step(steps)
        return True

    @staticmethod
    def _sliced(meter: Meter, value: Any, start: Any, stop: Any, step: Any) -> Any:
        part = slice(start, stop, step)
        if isinstance(value, str | list | tuple):
            n = len(range(*part.indices(len(value))))
            meter.make(64 + n * (width_of(value) if isinstance(value, str) else 8))
        elif not isinstance(value, range | Undefined):
            raise TypeError(f"a {type(value).__name__} has no slices")
        return value[part]

    @staticmethod
    def _spread(meter: Meter, value: Any) -> Any:
        held = meter.hold(value)
        meter.make(100 * len(held) + (meter.walk(held.keys())[1] if isinstance(held, dict) else 0))
        return held

    def _concat(self, parts: Iterable[str]) -> str:
        held = list(parts)
        self.meter.make(sum(map(len, held)) * (1 if all(map(str.isascii, held)) else 4))
        return "".join(held)

    def call_filter(self, name: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        """For ``map``: a filter by its name."""
        if not isinstance(name, str | Undefined) or len(name) > 99 or name in self._own:
            raise SecurityError("that is no name of a filter")
        return super().call_filter(str(name), value, *args, **kwargs)

    def call_test(self, name: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        """For ``select`` and the like: a test by its name."""
        if not isinstance(name, str | Undefined) or len(name) > 99:
            raise SecurityError("that is no name of a test")
        return super().call_test(str(name), value, *args, **kwargs)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``obj.attribute``: an attribute that is allowed, else ``obj["attribute"]``."""
        kind = type(obj)
        if len(attribute) > 99:
            subscript(self.meter, attribute)
        if kind is dict and attribute not in _NAMES[dict]:
            value = obj.get(attribute, missing)
            return self.undefined(obj=obj, name=attribute) if value is missing else value
        try:
            value = getattr(obj, attribute)
        except AttributeError:
            try:
                return obj[attribute]
            except (TypeError, LookupError):
                return self.undefined(obj=obj, name=attribute)
        self._check_attribute(kind, attribute)
        return value

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]``: an element, else an attribute that is allowed."""
        subscript(self.meter, argument)
        if type(obj) is str and type(argument) is str and argument not in _NAMES[str]:
            return self.undefined(obj=obj, name=argument)  # some ask each letter for its type
        try:
            return obj[argument]
        except (TypeError, LookupError):
            if isinstance(argument, str):
                try:
                    value = getattr(obj, argument)
                except AttributeError:
                    pass
                else:
                    self._check_attribute(type(obj), argument)
                    return value
        return self.undefined(obj=obj, name=argument)

    def _check_attribute(self, kind: type, attribute: str) -> None:
        if (
            attribute in _ATTRIBUTES.get(kind, ())
            or (issubclass(kind, Namespace) and not attribute.startswith("_"))
            or (kind is _Dict and attribute == "fromkeys")
            or (kind.__name__ == "_GroupTuple" and attribute in ("grouper", "list"))
        ):
            return
        raise SecurityError(f"{attribute[:80]!r} of a {kind.__name__} is not allowed")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Calculate, unless the result is too large."""
        meter = self.meter
        if isinstance(left, _NUMBER) and isinstance(right, _NUMBER):
            if (
                operator == "**"
                and isinstance(left, int)
                and isinstance(right, int)
                and (left.bit_length() * right > MAX_BITS)
            ):
                raise SecurityError("a number is too large")
        elif isinstance(left, str) and operator == "%":
            charge_percent(meter, left, right)
        elif isinstance(left, str) and isinstance(right, str):
            escaped = 6 if isinstance(left, Markup) or isinstance(right, Markup) else 1
            meter.make(64 + escaped * (len(left) + len(right)) * width_of(left, right))
        elif (
            operator == "*"
            and isinstance(left, str | list | tuple | int)
            and (isinstance(right, str | list | tuple | int))
        ):
            value, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int) and not isinstance(value, int):
                size = text_bytes(value) if isinstance(value, str) else 8 * len(value)
                meter.make(64 + size * max(0, times))
        elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
            meter.make(64 + 8 * (len(left) + len(right)))
        elif not isinstance(left, str | list | tuple | int | float | Undefined | None):
            raise TypeError(f"{operator} of a {type(left).__name__}")
        return checked_int(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method that is allowed, a macro, a recursive loop or one of our functions."""
        meter = __self.meter
        meter.step(4)
        kind = type(__obj)
        if kind is types.BuiltinMethodType:
            owner, name = __obj.__self__, __obj.__name__
            for hidden in _HIDDEN:
                kwargs.pop(hidden, None)
            if type(owner) is str and name == "format":
                return str_format(__self, owner, *args, **kwargs)
            method = METHODS.get(type(owner), {}).get(name)
            if method is None:
                raise SecurityError(f"{name!r} of a {type(owner).__name__} is not allowed")
            return method(meter, owner, *args, **kwargs)
        if kind is types.MethodType and isinstance(__obj.__self__, LoopContext | Cycler | _Dict):
            __self._charge_arguments(args, {})
        elif kind in (_Dict, Joiner) or any(__obj is function for function in __self._functions):
            __self._charge_arguments(args, kwargs)
        elif kind not in (Macro, LoopContext) and not isinstance(__obj, Undefined):
            raise SecurityError(f"a {kind.__name__} cannot be called")
        if __obj is _raise_exception:
            args, kwargs = (
                tuple(as_text(meter, v) for v in args),
                {
                    name: value if name in _HIDDEN else as_text(meter, value)
                    for name, value in kwargs.items()
                },
            )
        return super().call(__context, __obj, *args, **kwargs)

    def _charge_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Of a function that may hash, compare or copy them."""
        for value in args:
            n_bytes = self.meter.walk(value)[1]
            self.meter.make(n_bytes if isinstance(value, str) else 100 * length_of(value))
        self.meter.make(100 * len(kwargs))
