"""Text, formats and methods for chat templates, each with its cost charged before it runs.

The methods are the few that templates use, of strings, dicts and lists; others do not exist for
a template.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from string import Formatter
from typing import Any, Final

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined
from jinja2.sandbox import SandboxedFormatter
from markupsafe import Markup

from edge_rt.chat.meter import MAX_BITS, Meter, text_bytes, width_of
from edge_rt.sizes import MIB

_DIGITS: Final = re.compile(r"\d+")
_SCALARS: Final = (bool, int, float, type(None))
_CONTAINERS: Final[tuple[type, ...]] = (
    list, tuple, dict, range, type({}.keys()), type({}.values()), type({}.items()),
)  # fmt: skip


# -- text and comparisons -------------------------------------------------------------------------


def as_text(meter: Meter, value: Any) -> str:
    """``str(value)`` of data; nothing else has a text."""
    if isinstance(value, str):
        meter.make(64 + text_bytes(value))
        return str(value)
    if isinstance(value, (*_SCALARS, Undefined)):
        return str(value)
    if isinstance(value, _CONTAINERS):
        n_values, n_bytes, _ = meter.walk(value)
        meter.make(32 * n_values + 10 * n_bytes)  # repr escapes
        return str(value)
    raise SecurityError(f"a {type(value).__name__} is no text")


def walked(meter: Meter, value: Any) -> Any:
    """``value``, about to be hashed or compared."""
    if not isinstance(value, _SCALARS):
        meter.walk(value)
    return value


def subscript(meter: Meter, value: Any) -> None:
    """Charge the use of ``value`` as a subscript, and an error's text that shows it."""
    if not isinstance(value, _SCALARS) and not (isinstance(value, str) and len(value) < 100):
        meter.make(20 * meter.walk(value)[1])


def contains(meter: Meter, value: Any, where: Any) -> bool:
    """``value in where``."""
    if isinstance(where, str):
        meter.search(where, value)
    elif isinstance(where, dict):
        walked(meter, value)
    else:
        where = meter.hold(where)
        meter.walk(where)
        meter.walk(value)
    return value in where


def checked_int(value: Any) -> Any:
    """``value``, unless it is an integer that is too large."""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise SecurityError("a number is too large")
    return value


def count_of(value: object) -> int:
    """A number of things to be made, 0 for what is no number."""
    return max(0, value) if isinstance(value, int) else 0


# -- formatting -----------------------------------------------------------------------------------


def _widths(form: str) -> int:
    """At least the sum of all widths and precisions in a format."""
    total = 0
    for digits in _DIGITS.findall(form):
        if len(digits) > 6:
            raise SecurityError("a format is too wide")
        total += int(digits)
    return total


def charge_percent(meter: Meter, form: str, values: Any) -> None:
    """Charge ``form % values``."""
    if isinstance(form, Markup):
        raise SecurityError("escaped text is no format")
    _, n_bytes, _ = meter.walk(values)
    widths = _widths(form)
    if "*" in form and isinstance(values, tuple):  # widths among the values
        widths += sum(abs(value) for value in values if isinstance(value, int))
    meter.make(text_bytes(form) + 4 * widths + form.count("%") * (10 * n_bytes + 400))


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        """Format data; nothing else has a text."""
        if not isinstance(value, str | int | float):
            value = as_text(self._env.meter, value)  # type: ignore[attr-defined]
        return format(value, format_spec)


def str_format(environment: Any, form: str, /, *args: Any, **kwargs: Any) -> str:
    """``form.format(...)`` without widths that come from arguments."""
    meter: Meter = environment.meter
    _, n_bytes, _ = meter.walk([args, kwargs])
    meter.make(128 * form.count("{"))
    specs = [(spec or "") for _, _, spec, _ in Formatter().parse(form)]
    if any("{" in spec for spec in specs):
        raise SecurityError("a format's width must not come from an argument")
    meter.make(text_bytes(form) + 4 * sum(map(_widths, specs)) + len(specs) * (10 * n_bytes + 400))
    return _Formatter(environment).vformat(form, args, kwargs)


# -- methods --------------------------------------------------------------------------------------


def _linear(name: str) -> Callable[..., Any]:
    """A method of strings whose result is no longer than its arguments."""
    method = getattr(str, name)

    def call(meter: Meter, text: str, *args: Any) -> Any:
        meter.make(text_bytes(text))
        for arg in args:
            meter.walk(arg)
        return method(text, *args)

    return call


def charge_strip(meter: Meter, text: str, chars: object) -> None:
    """Charge ``text.strip(chars)``."""
    meter.make(text_bytes(text))
    if isinstance(chars, str):
        meter.step(len(text) * len(chars) >> 8)  # each letter is sought among chars


def _strip(name: str) -> Callable[..., str]:
    method = getattr(str, name)

    def call(meter: Meter, text: str, chars: str | None = None) -> Any:
        charge_strip(meter, text, chars)
        return method(text, chars)

    return call


def _cased(name: str) -> Callable[..., str]:
    method = getattr(str, name)

    def call(meter: Meter, text: str) -> Any:
        meter.make(len(text) if text.isascii() else 24 * len(text))  # 3 letters for 1, in UCS-4
        return method(text)

    return call


def _searching(name: str) -> Callable[..., Any]:
    method, backwards = getattr(str, name), name.startswith("r")

    def call(meter: Meter, text: str, part: str, *args: Any) -> Any:
        meter.search(text, part, backwards)
        if name.endswith("partition"):
            meter.make(text_bytes(text))
        return method(text, part, *args)

    return call


def _padded(name: str) -> Callable[..., str]:
    method = getattr(str, name)

    def call(meter: Meter, text: str, width: int, *fill: str) -> Any:
        meter.make((len(text) + count_of(width)) * width_of(text, *fill))
        return method(text, width, *fill)

    return call


def _splitting(name: str) -> Callable[..., list[str]]:
    method = getattr(str, name)

    def call(meter: Meter, text: str, sep: str | None = None, maxsplit: int = -1) -> Any:
        meter.make(text_bytes(text))
        if sep is not None:
            meter.search(text, sep, name == "rsplit")
        most = max(meter.room, MIB) // 128
        few = isinstance(maxsplit, int) and 0 <= maxsplit < most
        parts = method(text, sep, maxsplit if few else most)
        if len(parts) > most:
            raise SecurityError(f"a text is split into more than {most} parts")
        meter.make(128 * len(parts))
        return parts

    return call


def charge_lines(meter: Meter, text: str) -> int:
    """Charge ``text.splitlines()``; returns at least the number of lines."""
    n_lines = 1 + sum(map(text.count, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))
    meter.make(text_bytes(text) + 128 * n_lines)
    return n_lines


def _splitlines(meter: Meter, text: str, keepends: bool = False) -> list[str]:
    charge_lines(meter, text)
    return text.splitlines(keepends)


def charge_replace(meter: Meter, text: str, old: str, new: str, count: object) -> None:
    """Charge ``text.replace(old, new, count)``."""
    meter.search(text, old)
    times = text.count(old)
    if isinstance(count, int) and count >= 0:
        times = min(times, count)
    meter.make((len(text) + times * len(new)) * width_of(text, new))


def _replace(meter: Meter, text: str, old: str, new: str, count: int = -1) -> str:
    if isinstance(old, str) and isinstance(new, str):
        charge_replace(meter, text, old, new, count)
    return text.replace(old, new, count)


def _str_join(meter: Meter, text: str, items: Any) -> str:
    held = meter.hold(items)
    n_chars = sum(len(item) for item in held if isinstance(item, str))
    width = width_of(text, *(item for item in held if isinstance(item, str)))
    meter.make((n_chars + len(text) * len(held)) * width)
    return text.join(held)


def _index(meter: Meter, items: list[Any] | tuple[Any, ...], value: Any) -> int:
    if not contains(meter, value, items):  # Python's error would show the value
        raise ValueError("the value is not in the list")
    return items.index(value)


def _count(meter: Meter, items: list[Any] | tuple[Any, ...], value: Any) -> int:
    meter.walk(items)
    meter.walk(value)
    return items.count(value)


def _copied(meter: Meter, value: Any) -> Any:
    meter.make(100 * len(value))
    return value.copy()


def _get(meter: Meter, value: dict[Any, Any], key: Any, default: Any = None) -> Any:
    return value.get(walked(meter, key), default)


_LINEAR: Final = (
    "startswith", "endswith", "removeprefix", "removesuffix", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace",
    "istitle", "isupper",
)  # fmt: skip
_LIST_METHODS: Final[dict[str, Callable[..., Any]]] = {"index": _index, "count": _count}
METHODS: Final[dict[type, dict[str, Callable[..., Any]]]] = {
    str: {
        **{name: _strip(name) for name in ("strip", "lstrip", "rstrip")},
        **{
            name: _cased(name)
            for name in ("lower", "upper", "title", "capitalize", "casefold", "swapcase")
        },
        **{
            name: _searching(name)
            for name in ("find", "rfind", "index", "rindex", "count", "partition", "rpartition")
        },
        **{name: _linear(name) for name in _LINEAR},
        **{name: _padded(name) for name in ("center", "ljust", "rjust", "zfill")},
        **{name: _splitting(name) for name in ("split", "rsplit")},
        "splitlines": _splitlines,
        "replace": _replace,
        "join": _str_join,
    },
    dict: {
        "get": _get,
        "items": lambda meter, value: value.items(),
        "keys": lambda meter, value: value.keys(),
        "values": lambda meter, value: value.values(),
        "copy": _copied,
    },
    list: {**_LIST_METHODS, "copy": _copied},
    tuple: _LIST_METHODS,
}
