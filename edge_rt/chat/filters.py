"""Jinja's filters and tests for chat templates, each behind a guard.

A guard has its filter's signature after the meter. It charges what the filter will cost and
returns what to use as its first argument. Filters without a guard here are not known to be used
by chat templates, and removed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Final

from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.runtime import Undefined

from edge_rt.chat.functions import (
    as_text,
    charge_lines,
    charge_percent,
    charge_replace,
    charge_strip,
    checked_int,
    contains,
    count_of,
    walked,
)
from edge_rt.chat.meter import Meter, text_bytes, width_of

_MAX_NUMERAL: Final = 400  # letters of what becomes a number: int() is quadratic in old Pythons
_MAX_INDENT: Final = 64  # of JSON
_Guard = Callable[..., Any]


def _soft(meter: Meter, value: Any) -> str:
    return value if isinstance(value, str) else as_text(meter, value)


def _number(value: Any) -> Any:
    if not isinstance(value, int | float | Undefined):
        raise SecurityError(f"a {type(value).__name__} is no number")
    return value


def _each(meter: Meter, value: Any, attribute: Any = None) -> Any:
    """Hold ``value`` and charge a small piece of work for each of its elements."""
    parts = 1
    if isinstance(attribute, str):
        if len(attribute) > _MAX_NUMERAL:
            raise SecurityError("the name of an attribute is too long")
        parts += attribute.count(".") + attribute.count(",")
    held = meter.hold(value)
    n = length_of(held)
    meter.make(64 * n)
    meter.step(8 * n * parts)
    return held


def length_of(value: Any) -> int:
    """Its length, 0 of what has none."""
    return len(value) if hasattr(value, "__len__") else 0


def _ordered(meter: Meter, value: Any, attribute: Any = None) -> Any:
    held = _each(meter, value, attribute)
    n_values, n_bytes, _ = meter.walk(held)
    meter.make(3 * n_bytes)  # in lower case, to compare
    meter.step((n_values + (n_bytes >> 8)) * length_of(held).bit_length())
    return held


def _case(meter: Meter, value: Any) -> str:
    text = _soft(meter, value)
    meter.make(len(text) if text.isascii() else 24 * len(text))  # 3 letters for 1, in UCS-4
    return text


def _title(meter: Meter, value: Any) -> str:
    text = _case(meter, value)
    meter.make(128 * len(text))  # as a list of words
    return text


def _escape(meter: Meter, value: Any) -> str:
    text = _soft(meter, value)
    meter.make(6 * text_bytes(text))
    return text


def _batch(meter: Meter, value: Any, linecount: Any, fill_with: Any = None) -> Any:
    meter.make(16 * count_of(linecount))
    return _each(meter, value)


def _slice(meter: Meter, value: Any, slices: Any, fill_with: Any = None) -> Any:
    meter.make(128 * count_of(slices))
    held = _each(meter, value)
    return held if hasattr(held, "__getitem__") else list(held)


def _center(meter: Meter, value: Any, width: Any = 80) -> str:
    text = _soft(meter, value)
    meter.make((len(text) + count_of(width)) * width_of(text))
    return text


def _dictsort(meter: Meter, value: Any, *_: Any, **__: Any) -> Any:
    _ordered(meter, value.items() if isinstance(value, dict) else value)
    return value


def _format(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> str:
    text = _soft(meter, value)
    charge_percent(meter, text, kwargs or args)
    return text


def _groupby(meter: Meter, value: Any, attribute: Any, *_: Any, **__: Any) -> Any:
    held = _ordered(meter, value, attribute)
    meter.make(200 * length_of(held))
    return held


def _indent(meter: Meter, s: Any, width: Any = 4, first: Any = False, blank: Any = False) -> str:
    text = _soft(meter, s)
    each = len(width) if isinstance(width, str) else count_of(width)
    lines = charge_lines(meter, text)
    meter.make((len(text) + lines * (each + 1)) * width_of(text, width))
    return text


def _numeral(meter: Meter, value: Any, default: Any = 0, base: Any = 10) -> Any:
    if isinstance(value, str) and len(value) > _MAX_NUMERAL:
        raise SecurityError("a numeral is too long")
    return value


def _items(meter: Meter, value: Any) -> Any:
    meter.make(80 * len(value) if isinstance(value, dict) else 0)
    return value


def _join(meter: Meter, value: Any, d: Any = "", attribute: Any = None) -> Any:
    held = _each(meter, value, attribute)
    gap = _soft(meter, d)
    n_values, n_bytes, _ = meter.walk([held, gap])
    flat = attribute is None and all(isinstance(item, str) for item in held)
    meter.make((1 if flat else 10) * n_bytes + (0 if flat else 32 * n_values))
    meter.make(length_of(held) * len(gap) * (4 if n_bytes > len(gap) else 1))
    return held


def _map(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
    return _each(meter, value, kwargs.get("attribute"))


def _select(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
    return _each(meter, value)


def _selectattr(meter: Meter, value: Any, attribute: Any, *args: Any, **kwargs: Any) -> Any:
    return _each(meter, value, attribute)


def _extreme(meter: Meter, value: Any, case_sensitive: Any = False, attribute: Any = None) -> Any:
    return _ordered(meter, value, attribute)


def _sort(
    meter: Meter, value: Any, reverse: Any = False, case_sensitive: Any = False,
    attribute: Any = None,
) -> Any:  # fmt: skip
    return _ordered(meter, value, attribute)


def _replace(meter: Meter, s: Any, old: Any, new: Any, count: Any = None) -> str:
    text = _soft(meter, s)
    charge_replace(meter, text, _soft(meter, old), _soft(meter, new), count)
    return text


def _round(meter: Meter, value: Any, precision: Any = 0, method: Any = "common") -> Any:
    if abs(_number(precision)) > 64:
        raise SecurityError("too many digits")
    return _number(value)


def _trim(meter: Meter, value: Any, chars: Any = None) -> str:
    text = _soft(meter, value)
    charge_strip(meter, text, chars)
    return text


def _truncate(meter: Meter, s: Any, *args: Any, **kwargs: Any) -> str:
    text = _soft(meter, s)
    meter.make(2 * text_bytes(text) + 6 * meter.walk([*args, *kwargs.values()])[1])
    meter.search(text, " ", backwards=True)
    return text


def _free(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


def _attr(meter: Meter, obj: Any, name: Any) -> Any:
    if not isinstance(name, str) or len(name) > _MAX_NUMERAL:
        raise SecurityError("that is no name of an attribute")
    return obj


def _hold(meter: Meter, value: Any) -> Any:
    return meter.hold(value)


FILTERS: Final[dict[str, _Guard]] = {
    **dict.fromkeys(("abs", "count", "d", "default", "first", "last", "length"), _free),
    **dict.fromkeys(("capitalize", "lower", "upper"), _case),
    **dict.fromkeys(("e", "escape", "forceescape", "safe", "string"), _escape),
    **dict.fromkeys(("float", "int"), _numeral),
    **dict.fromkeys(("list", "reverse"), _hold),
    **dict.fromkeys(("max", "min", "unique"), _extreme),
    **dict.fromkeys(("reject", "select"), _select),
    **dict.fromkeys(("rejectattr", "selectattr"), _selectattr),
    "attr": _attr, "batch": _batch, "center": _center, "dictsort": _dictsort, "format": _format,
    "groupby": _groupby, "indent": _indent, "items": _items, "join": _join, "map": _map,
    "replace": _replace, "round": _round, "slice": _slice, "sort": _sort, "title": _title,
    "trim": _trim, "truncate": _truncate,
}  # fmt: skip


def guarded(meter: Meter, guard: _Guard, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, a filter of Jinja, behind ``guard``.

    Its result is complete: a lazy one would do its work uncharged, and a chain of many would
    overflow the stack of C when it is freed.
    """
    n_extra = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or environment

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        meter.step(4)
        extra, rest = args[:n_extra], args[n_extra:]
        value = guard(meter, *rest, **kwargs)
        result = function(*extra, value, *rest[1:], **kwargs)
        if isinstance(result, Iterator):
            return iter(list(result))  # like the generator: it has no length and is true
        return checked_int(result)

    return call


def to_json(
    meter: Meter,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: without Jinja's escaping for HTML."""
    n_values, n_bytes, depth = meter.walk(value)
    width = len(indent) if isinstance(indent, str) else count_of(indent)
    if width > _MAX_INDENT or meter.walk(separators)[1] > _MAX_INDENT:
        raise SecurityError("JSON is spaced too widely")
    meter.make(6 * n_bytes + n_values * (64 + 4 * (width * depth + _MAX_INDENT)))
    meter.step(n_values * (2 if indent is None else 20))  # indentation is done in Python
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def add_up(environment: Any, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    """The filter ``sum``, by the environment's own addition."""
    held = _each(environment.meter, iterable, attribute)
    get = None if attribute is None else make_attrgetter(environment, attribute)
    for item in held:
        start = environment.call_binop(None, "+", start, get(item) if get else item)
    return start


# Tests are closures without defaults: a default could be set by the template.


def _comparing(meter: Meter, test: Callable[..., Any]) -> Callable[..., Any]:
    return lambda left, right: test(walked(meter, left), walked(meter, right))


def _of_number(test: Callable[..., Any]) -> Callable[..., Any]:
    return lambda value: test(_number(value))


def _of_text(meter: Meter, test: Callable[..., Any]) -> Callable[..., Any]:
    return lambda value: test(as_text(meter, value))


def _of_name(meter: Meter, test: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(test)  # with its mark for Jinja to pass the environment
    def call(environment: Any, value: Any) -> Any:
        return test(environment, as_text(meter, value))

    return call


def guarded_tests(meter: Meter, tests: dict[str, Callable[..., Any]]) -> dict[str, _Guard]:
    """Jinja's tests; those that look into their values are charged."""
    found = dict(tests)
    for name in (
        "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", "ge", ">=", "<", "lt",
        "lessthan", "<=", "le",
    ):  # fmt: skip
        found[name] = _comparing(meter, tests[name])
    for name in ("odd", "even"):  # of a string they would be % formatting
        found[name] = _of_number(tests[name])
    found["divisibleby"] = lambda value, num: _number(value) % _number(num) == 0
    for name in ("lower", "upper"):
        found[name] = _of_text(meter, tests[name])
    for name in ("filter", "test"):
        found[name] = _of_name(meter, tests[name])
    found["in"] = lambda value, seq: contains(meter, value, seq)
    return found
