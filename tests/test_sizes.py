"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_rt.errors import UsageError
from edge_rt.sizes import GIB, MIB, align_up, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("512MiB", 512 * MIB), ("1.5GiB", 3 * GIB // 2), ("800M", 800_000_000), ("8MB", 8_000_000),
        ("4096", 4096), (" 2 kib ", 2048), (".5k", 500), ("1b", 1), ("1TiB", 1 << 40), (77, 77),
    ],
)  # fmt: skip
def test_sizes(text: str | int, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1e9", "5 XB", "MiB", "1.2.3M", "9" * 30, "8388608TiB", "٣", 0, -5]
)
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@given(st.integers(1, 2**40))
def test_whole_bytes_stay(n_bytes: int) -> None:
    assert parse_size(str(n_bytes)) == parse_size(n_bytes) == n_bytes


def test_format_and_align() -> None:
    assert [format_size(n) for n in (0, 1023, 1536, 98 * MIB, -2 * GIB)] == [
        "0 B", "1023 B", "1.5 KiB", "98.0 MiB", "-2.0 GiB",
    ]  # fmt: skip
    assert [align_up(n, 32) for n in (0, 1, 32, 33)] == [0, 32, 32, 64]
