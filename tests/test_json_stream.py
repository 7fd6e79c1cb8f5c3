"""The reader of JSON: sections of files, any chunk size, its grammar and its limits."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from edge_rt.errors import ModelError, StorageError, UsageError
from edge_rt.flash_io._flash_io import Faults
from edge_rt.flash_io.files import open_file
from edge_rt.loaders.gguf_cursor import Cursor
from edge_rt.loaders.json_stream import JsonStream


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(6 if depth < 5 else 4)
    if kind == 5:
        return {f'k{i}\\"é{{': random_value(rng, depth + 1) for i in range(rng.randrange(5))}
    if kind == 4:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(5))]
    text = "".join(rng.choice('ab"\\{}[],:\n é😀') for _ in range(rng.randrange(20)))
    return [text, rng.randrange(-(10**9), 10**9), rng.random() * 1e-9, rng.choice([True, None])][
        kind
    ]


def open_all(path: Path, content: bytes) -> Any:
    path.write_bytes(content)
    return JsonStream.open(path)


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 18])
def test_values_in_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """What lies before and behind the section is not seen; seeking goes back over chunks."""
    monkeypatch.setattr("edge_rt.loaders.gguf_cursor.CHUNK_BYTES", chunk)
    monkeypatch.setattr("edge_rt.loaders.gguf_cursor.PAGE", 1)
    rng = random.Random()
    path = tmp_path / "x"
    for _ in range(20):
        wanted = {str(i): random_value(rng) for i in range(8)}
        text = json.dumps(wanted, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
        document = f" {text}\n\t".encode()
        path.write_bytes(b'{"a' + document + b'"x": 1}')
        stream = JsonStream(Cursor(open_file(path), 3, 3 + len(document)))
        places = {}
        for key in stream.members():
            places[key] = stream.tell()
            stream.skip()
        stream.end()
        assert list(places) == list(wanted)
        for key in rng.sample(sorted(wanted), len(wanted)):
            stream.seek(places[key])
            assert stream.value() == wanted[key]


@pytest.mark.parametrize(
    "text",
    [
        "", "tru", "01", "1.", "+1", ".5", "1e", "- 1", "nul", "'a'", '"a', '"\n"', '"\\x"', '"\\',
        '"\\ud800"', "[1,]", "[,1]", "[1 2]", "[1", "{1:2}", '{"a" 1}', '{"a":1,}', '{"a":[1}}',
        '{"a":1 "b":2}', '{"a":"\x01"}', '{"a":{},}', "]", "1 2", "[" * 66 + "]" * 66, "9" * 65,
        '["' + "x" * (1 << 20) + '"]', "[" + "[]," * (1 << 18) + "1]",
        '{"a":' + "[" * 3000 + "]" * 3000 + "}", '{"a":' + "[" * 70 + "]" * 70 + "}",
    ],
    ids=range(34),
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, text: str) -> None:
    for take in (JsonStream.skip, JsonStream.value):
        with open_all(tmp_path / "x", text.encode()) as stream:
            with pytest.raises(ModelError, match=r"x: .*\(near byte \d+\)") as caught:
                take(stream)
                stream.end()
            assert len(str(caught.value)) < 300 + len(str(tmp_path))
    with open_all(tmp_path / "x", b'{"a\xff":1}') as stream, pytest.raises(ModelError):
        stream.skip()


def test_what_is_accepted(tmp_path: Path) -> None:
    for text in (
        "[" * 65 + "]" * 65,
        "9" * 64,
        "NaN",
        "-Infinity",
        "-0",
        "1.5E+7",
        ' {"a" : {} } ',
    ):
        with open_all(tmp_path / "x", text.encode()) as stream:
            assert repr(stream.value()) == repr(json.loads(text))
            stream.end()
            stream.seek(0)
            stream.skip()
            stream.end()


def test_limits(tmp_path: Path) -> None:
    with open_all(tmp_path / "x", b'["12345678", {"1234":[{}]}]') as stream:
        for limit in (9, 10):
            stream.seek(1)
            if limit == 9:
                with pytest.raises(ModelError, match="not a string of at most 9 bytes"):
                    stream.string(limit)
            else:
                assert stream.string(limit) == "12345678"
        stream.seek(12)
        with pytest.raises(ModelError, match="more than 12 bytes"):
            stream.value(12)
        stream.seek(12)
        assert stream.value(13) == {"1234": [{}]}
        stream.seek(12)
        with pytest.raises(ModelError, match="not a string of at most 5 bytes"):
            next(stream.members(5))


def test_a_drive_that_fails(tmp_path: Path, faults: Faults) -> None:
    with open_all(tmp_path / "x", b"[1]") as stream:
        faults.add("error", errno.EIO)
        with pytest.raises(StorageError, match=r"at 0 of .*x: Input/output"):
            stream.skip()
    faults.clear()
    with pytest.raises(UsageError, match="no such file"), JsonStream.open(tmp_path / "none"):
        pass


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with (
        pytest.raises(StorageError, match="became shorter while in use"),
        open_all(path, b"[1, 2]" + b" " * (1 << 20)) as stream,
    ):
        next(stream.items())
        os.truncate(path, 7)
        with pytest.raises(StorageError, match="became shorter while in use"):
            stream.seek(6)
            stream.end()
