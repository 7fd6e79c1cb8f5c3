"""Byte sizes as people write them: ``512MiB``, ``1.5GiB``, ``800M`` (decimal), plain bytes."""

from __future__ import annotations

import os
import re

from edge_rt.errors import UsageError

KIB = 1024
MIB = 1024**2
GIB = 1024**3
PAGE = os.sysconf("SC_PAGE_SIZE")  # 16 or 64 KiB on some ARM machines

_UNITS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb":
    10**12, "kib": KIB, "mib": MIB, "gib": GIB, "tib": 1024**4,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)


def parse_size(text: str | float) -> int:
    """Return the number of bytes that ``text`` means; raises `UsageError` when it means none."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if text != text or abs(text) >= 2**63:
            raise UsageError(f"a size must be positive and below 8 EiB, not {text}")
        text = int(text)
        if text <= 0:
            raise UsageError(f"a size must be positive, not {text}")
        return text
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    unit = match and _UNITS.get(match[2].lower())
    if not match or not unit or len(match[1]) > 20:
        raise UsageError(f"not a size: {text!r} (write 512MiB, 1.5GiB, 800M or plain bytes)")
    n_bytes = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if not 0 < n_bytes < 2**63:
        raise UsageError(f"a size must be positive and below 8 EiB, not {text!r}")
    return n_bytes


def format_size(n_bytes: float) -> str:
    """Write bytes for people, in binary units: ``93.8 MiB``."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(n_bytes) >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def align_up(value: int, alignment: int) -> int:
    """Round ``value`` up to a multiple of ``alignment``."""
    return -(-value // alignment) * alignment
