"""Regenerate the runs of edge_rt.tokenizer.unicode_classes from llama.cpp's code points.

Usage: python scripts/make_unicode_classes.py path/to/llama.cpp/src/unicode-data.cpp
"""

from __future__ import annotations

import re
import sys
import textwrap
from itertools import groupby, pairwise
from pathlib import Path

# llama.cpp's flags of a range, one bit per general category.
CLASS_OF_FLAG = {0x02: "N", 0x04: "L", 0x10: "M", 0x20: "P", 0x40: "S"}
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36(number: int) -> str:
    """``number`` in base 36, "" for 1."""
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = DIGITS[digit] + text
    return "" if text == "1" else text


def classes(source: str) -> list[str]:
    """The class of every code point: N L M P S, W for white space, X for the rest."""
    body = source.split("unicode_ranges_flags")[1].split("};")[0]
    pairs = re.findall(r"\{0x([0-9A-F]+), 0x([0-9A-F]+)\}", body)
    ranges = [(int(start, 16), int(flags, 16)) for start, flags in pairs]
    found = ["X"] * 0x110000
    for (start, flags), (end, _) in pairwise(ranges):
        found[start:end] = [CLASS_OF_FLAG.get(flags, "X")] * (end - start)
    spaces = source.split("unicode_set_whitespace")[1].split("};")[0]
    for code in re.findall(r"0x([0-9A-F]+)", spaces):
        found[int(code, 16)] = "W"
    return found


def main() -> None:
    runs = groupby(classes(Path(sys.argv[1]).read_text()))
    text = "".join(base36(len(list(run))) + letter for letter, run in runs)
    for line in textwrap.wrap(text, 92):
        print(f'    "{line}"')


if __name__ == "__main__":
    main()
