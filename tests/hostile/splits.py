"""Split GGUFs whose parts are missing, of other models, or do not say what they are."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .. import gguf_builder as g
from ..gguf_builder import GGUFBuilder
from .case import REFUSED, RUNS, Case, Make
from .small import replace_key, small

Parts = list[GGUFBuilder]


def parts(n: int = 3) -> Parts:
    """The small model in ``n`` files, the first with the keys."""
    whole = small()
    tensors, built = whole.tensors, [whole]
    built += [GGUFBuilder() for _ in range(n - 1)]
    for number, part in enumerate(built):
        part.tensors = tensors[number::n]
        replace_key(part, "split.no", g.U16, number)
        replace_key(part, "split.count", g.U16, n)
        replace_key(part, "split.tensors.count", g.I32, len(tensors))
    return built


def name_of(number: int, count: int) -> str:
    return f"m-{number + 1:05}-of-{count:05}.gguf"


def split(
    change: Callable[[Parts], object] = lambda _: None,
    after: Callable[[Path], object] = lambda _: None,
    give: int = 0,
    n: int = 3,
) -> Make:
    """Write the parts after ``change``, then ``after`` may touch the folder; part ``give`` is what
    the command line gets."""

    def make(folder: Path) -> Path:
        built = parts(n)
        change(built)
        for number, part in enumerate(built):
            part.write(folder / name_of(number, n))
        after(folder)
        return folder / name_of(give, n)

    return make


def cases() -> Iterator[Case]:
    """All files of this family."""

    def case(name: str, expect: str, make: Make, inspect: str = REFUSED) -> Case:
        return Case("splits", name, expect, make, RUNS if expect == RUNS else inspect)

    for give in range(3):
        yield case(f"part {give + 1} of three whole ones", RUNS, split(give=give))
        for missing in range(3):
            if missing != give:
                yield case(
                    f"part {give + 1} without part {missing + 1}",
                    REFUSED,
                    split(after=lambda f, m=missing: (f / name_of(m, 3)).unlink(), give=give),
                )
    for n in (2, 9, 12):
        yield case(f"{n} parts", RUNS, split(n=n))
    edges: list[tuple[int, Any]] = [
        (g.U16, 0),
        (g.U16, 1),
        (g.U16, 2),
        (g.U16, 4),
        (g.U16, 1024),
        (g.U16, 1025),
        (g.U16, 65535),
        (g.I32, -1),
        (g.I32, 2**31 - 1),
        (g.U32, 2**32 - 1),
        (g.U64, 2**63),
        (g.U64, 2**64 - 1),
        (g.I64, -(2**63)),
        (g.STRING, "3"),
        (g.F32, 3.0),
        (g.BOOL, 1),
        (g.ARRAY, g.Array(g.U16, [3])),
    ]
    for key in ("split.no", "split.count", "split.tensors.count"):
        for at in range(3):
            for kind, value in edges:
                text = value.values if isinstance(value, g.Array) else value
                if at != 0 and key == "split.tensors.count":
                    expect = RUNS  # only the first one's counts
                elif at == 0 and key == "split.count" and kind == g.U16 and value in (0, 1):
                    continue  # then the first part is a model of its own, which lacks tensors
                else:
                    same = value == at and kind == g.U16 and key == "split.no"
                    expect = RUNS if same else REFUSED

                def change(
                    p: Parts, a: int = at, k: str = key, t: int = kind, v: Any = value
                ) -> None:
                    replace_key(p[a], k, t, v)

                yield case(
                    f"{key} of part {at + 1} = {text!r} of type {kind}", expect, split(change)
                )
            without = split(
                lambda p, a=at, k=key: setattr(p[a], "keys", [x for x in p[a].keys if x[0] != k])
            )
            expect = RUNS if key == "split.tensors.count" else REFUSED
            if at == 0 and key == "split.count":
                yield case(f"without {key} in part 1", expect, without, RUNS)
            else:
                yield case(f"without {key} in part {at + 1}", expect, without)
    for value in (0, 1):
        yield case(
            f"split.count of part 1 = {value}",
            REFUSED,
            split(lambda p, v=value: replace_key(p[0], "split.count", g.U16, v)),
            RUNS,
        )

    def twice(p: Parts) -> None:
        p[1].tensors.append(p[0].tensors[0])

    yield case("a tensor in two parts", REFUSED, split(twice))
    yield case("a tensor too few", REFUSED, split(lambda p: p[2].tensors.pop()))
    yield case("a part without tensors", REFUSED, split(lambda p: p[2].tensors.clear()))
    yield case("part 2 is another model's", REFUSED,
               split(lambda p: setattr(p[1], "tensors", small().tensors[:3])))  # fmt: skip
    yield case("part 2 is the first", REFUSED, split(lambda p: p.__setitem__(1, p[0])))
    yield case(
        "all parts are the first",
        REFUSED,
        split(lambda p: p.__setitem__(slice(1, 3), [p[0], p[0]])),
    )
    yield case(
        "parts 2 and 3 exchanged", REFUSED, split(lambda p: p.__setitem__(slice(1, 3), p[:0:-1]))
    )
    yield case("the first is last", REFUSED, split(lambda p: p.reverse()))
    for number in range(3):
        name = name_of(number, 3)
        for what, after in {
            "empty": lambda f, n=name: (f / n).write_bytes(b""),
            "a web page": lambda f, n=name: (f / n).write_bytes(b"<html>"),
            "cut off": lambda f, n=name: os.truncate(f / n, 60),
            "cut off by a byte": lambda f, n=name: os.truncate(f / n, (f / n).stat().st_size - 1),
            "a folder": lambda f, n=name: ((f / n).unlink(), (f / n).mkdir()),
            "a FIFO": lambda f, n=name: ((f / n).unlink(), os.mkfifo(f / n)),
            "a loop": lambda f, n=name: ((f / n).unlink(), (f / n).symlink_to(n)),
            "a device": lambda f, n=name: ((f / n).unlink(), (f / n).symlink_to("/dev/zero")),
        }.items():
            give = (number + 1) % 3
            yield case(f"part {number + 1} is {what}", REFUSED, split(after=after, give=give))
    for given, expect in (
        ("m.gguf", REFUSED),
        ("m-1-of-3.gguf", REFUSED),
        ("m-00001-of-00004.gguf", REFUSED),
        ("m-00002-of-00003.gguf", REFUSED),
        ("m-00001-of-00003.GGUF", REFUSED),
    ):

        def renamed(folder: Path, n: str = given) -> Path:
            path = split()(folder)
            path.rename(folder / n)
            return folder / n

        yield case(f"the first called {given}", expect, renamed)

    def without_numbers(folder: Path) -> Path:
        return split()(folder).with_name("m")

    yield case("by the name before the numbers", RUNS, without_numbers)

    def own_alignment(p: Parts) -> None:
        replace_key(p[1], "general.alignment", g.U32, 64)
        p[1].alignment = 64

    yield case("a part of another alignment", RUNS, split(own_alignment))
    yield case("a part of version 2", RUNS, split(lambda p: setattr(p[1], "version", 2)))
    yield case("a part of version 1", REFUSED, split(lambda p: setattr(p[1], "version", 1)))
    many = g.Array(g.STRING, length=1_500_000, raw=struct.pack("<Q", 0) * 1_500_000)
    yield case("each part with 1.5 million strings", REFUSED,
               split(lambda p: [part.add("x", g.ARRAY, many) for part in p]))  # fmt: skip
