"""What one rendering of a chat template may use: steps, bytes made, processor time.

Python cannot interrupt one call of C, so everything is charged before it is done, by a bound on
what it will cost. The clock is the last line of defence, for what a bound misjudges.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from itertools import chain
from typing import Any, Final

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

from edge_rt.process import resident_bytes
from edge_rt.sizes import KIB, MIB

# What a rendering may use whatever the conversation, and what each value (a dict, list, string,
# number or key) and each byte of the conversation adds. Some templates look at every later message
# for each (so pairs of values count), some at every letter. With short conversations the templates
# that were measured need less than a fiftieth.
_STEPS: Final = 400_000  # a step: a node of the template, or 256 bytes of text
_STEPS_PER_VALUE: Final = 1_000
_STEPS_PER_BYTE: Final = 12
_PAIRS_PER_STEP: Final = 8
_MADE: Final = 12 * MIB  # in total; beyond it the process's memory is looked at
_MADE_PER_VALUE: Final = 4 * KIB
_MADE_PER_BYTE: Final = 16
_SECONDS: Final = 0.6  # of this thread on the processor: what others do must not matter
_SECONDS_PER_STEP: Final = 1e-6  # beyond the first
_LOOK: Final = 2_000  # steps between two looks at the clock
_MAX_DEPTH: Final = 200  # hashing a tuple recurses in C without a check
MAX_BITS: Final = 64  # of an integer; larger ones collide in a set (hash is modulo 2**61 - 1)


def text_bytes(text: str) -> int:
    """At least what the characters of ``text`` take."""
    return len(text) if text.isascii() else 4 * len(text)


def width_of(*texts: object) -> int:
    """Bytes of a character in a string that is made of ``texts``."""
    return 1 if all(t.isascii() for t in texts if isinstance(t, str)) else 4


class Meter:
    """Counts down; `start` begins a rendering."""

    def __init__(self) -> None:
        self.start(0, 0)

    def start(self, n_values: int, n_bytes: int) -> None:
        """Begin a rendering of ``n_values`` values with ``n_bytes`` of text."""
        more = _STEPS_PER_VALUE * n_values + _STEPS_PER_BYTE * n_bytes
        more += n_values * n_values // _PAIRS_PER_STEP
        self._n_steps = _STEPS + more
        self._n_made = _MADE + _MADE_PER_VALUE * n_values + _MADE_PER_BYTE * n_bytes
        self._seconds = _SECONDS + _SECONDS_PER_STEP * more
        self._resident = resident_bytes()
        self._steps, self._made = self._n_steps, self._n_made
        self._look = self._steps - _LOOK
        self._started = time.thread_time()

    @property
    def steps(self) -> int:
        """Steps since the start."""
        return self._n_steps - self._steps

    def step(self, n: int = 1) -> None:
        """Charge ``n`` steps."""
        self._steps -= n
        if self._steps < self._look:
            self._look = self._steps - _LOOK
            if self._steps < 0:
                raise SecurityError(f"it takes more than {self._n_steps} steps")
            if time.thread_time() - self._started > self._seconds:
                raise SecurityError(f"it takes more than {self._seconds:.1f} s")

    def make(self, n_bytes: int) -> None:
        """Charge ``n_bytes`` of memory about to be made, and the time of writing them."""
        self._made -= n_bytes
        if self._made < 0:
            self._look_at_memory(n_bytes)
        self.step(1 + (n_bytes >> 8))

    def _look_at_memory(self, n_bytes: int) -> None:
        """Much has been made; go on if little of it was kept (some templates grow one text)."""
        now = resident_bytes()
        left = self._n_made - (now - self._resident) - n_bytes
        if not now or left < 0:
            raise SecurityError(f"it makes more than {self._n_made} bytes")
        self._made = min(left // 2, MIB)

    @property
    def room(self) -> int:
        """Bytes that can be made without another look at the process's memory."""
        return max(self._made, 0)

    def walk(self, value: Any) -> tuple[int, int, int]:
        """Charge a visit of everything in ``value``, shared parts as often as they occur.

        Returns the number of values, bytes of their text in one string, and levels. What recurses
        in C (``==``, ``str``, ``hash``, JSON) takes no longer than this, which can stop.
        """
        n_values = n_inner = n_chars = deepest = counted = 0
        width = 1
        levels: list[Iterator[Any]] = [iter((value,))]
        while levels:
            for item in levels[-1]:
                n_values += 1
                if isinstance(item, str):
                    n_chars += len(item)
                    if not item.isascii():
                        width = 4
                    continue
                inside = _inside(item)
                if inside is not None:
                    n_inner += 1
                    levels.append(inside)
                    break
            else:
                levels.pop()
            deepest = max(deepest, len(levels))
            if deepest > _MAX_DEPTH:
                raise SecurityError(f"values are nested more than {_MAX_DEPTH} deep")
            cost = n_values + 4 * n_inner + (n_chars >> 8)
            if cost - counted > _LOOK:
                self.step(cost - counted)
                counted = cost
        self.step(n_values + 4 * n_inner + (n_chars >> 8) - counted)
        return n_values, width * n_chars, deepest

    def hold(self, value: Any) -> Any:
        """``value`` as something that can be iterated again, its list of elements charged."""
        if isinstance(value, str):
            self.make(80 * len(value))  # a string a character
            return value
        if isinstance(value, Sized):
            self.make((40 if isinstance(value, range) else 16) * len(value))
            return value
        if not isinstance(value, Iterable):
            return value  # whoever wants to iterate says so
        held = []
        for item in value:
            self.make(16)
            held.append(item)
        return held

    def search(self, text: str, part: object, backwards: bool = False) -> None:
        """Charge a search for ``part`` in ``text``, at its worst where that is quadratic."""
        n, m = len(text), len(part) if isinstance(part, str) else 0
        naive = backwards or n < 2500 or m < 6 or (m < 100 and n < 30_000)
        self.step(1 + ((n * min(m, n) if naive else 8 * (n + m)) >> 8))


def _inside(item: Any) -> Iterator[Any] | None:
    if isinstance(item, dict):
        return chain.from_iterable(item.items())
    if isinstance(item, list | tuple | set | frozenset | type({}.keys()) | type({}.values())):
        return iter(item)
    if isinstance(item, type({}.items())):
        return chain.from_iterable(item)
    if isinstance(item, Namespace):
        attributes: dict[str, Any] = object.__getattribute__(item, "_Namespace__attrs")
        return chain.from_iterable(attributes.items())
    return None
