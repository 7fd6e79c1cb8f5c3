"""safetensors headers, indexes and shards of a Hugging Face folder, damaged in every way."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..safetensors_builder import Safetensors, pack
from .case import REFUSED, RUNS, Case, Make
from .small import FOLDER_NAMES, HIDDEN, shard, write_small_folder

INDEX = "model.safetensors.index.json"


def header_of(file: Safetensors) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(file.header())
    return value


def with_file(data: Callable[[], bytes] | bytes) -> Make:
    """The small folder with other bytes for its weights."""

    def make(folder: Path) -> Path:
        write_small_folder(folder / "m")
        raw = data if isinstance(data, bytes) else data()
        (folder / "m/model.safetensors").write_bytes(raw)
        return folder / "m"

    return make


def with_entries(change: Callable[[dict[str, Any]], object]) -> Make:
    """The small folder with a changed header, as JSON has it."""

    def data() -> bytes:
        file = shard()
        entries = header_of(file)
        change(entries)
        return pack(json.dumps(entries), file.data)

    return with_file(data)


def with_text(change: Callable[[str], str | bytes]) -> Make:
    """The small folder with a changed header, as a text."""

    def data() -> bytes:
        file = shard()
        return pack(change(file.header().decode().rstrip()), file.data)

    return with_file(data)


def _lengths() -> Iterator[Case]:
    file = shard()
    size, length = len(file.pack()), len(file.header())
    edges = (0, 1, 2, 7, 8, length - 1, length + 1, length // 2, size, size - 8, size - 7, size + 1,
             100_000_000, 100_000_001, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63,
             2**64 - 8, 2**64 - 1)  # fmt: skip
    for n in edges:
        yield Case(
            "safetensors",
            f"a header of {n} bytes, really {length}",
            REFUSED,
            with_file(lambda n=n: pack(shard().header(), shard().data, n)),
            REFUSED,
        )
    whole = file.pack()
    cuts = sorted({*range(0, 64), *range(64, length + 8, 16), length + 7, length + 8, length + 9,
                   size - 1, size // 2})  # fmt: skip
    for cut in cuts:
        yield Case(
            "safetensors", f"cut off at {cut} of {size}", REFUSED, with_file(whole[:cut]), REFUSED
        )
    for more in (1, 8, 4096):
        yield Case("safetensors", f"{more} bytes too many", REFUSED, with_file(whole + bytes(more)),
                   REFUSED)  # fmt: skip
    for first in (b"PK\x03\x04", b"\x80\x02}q", b"<html>", b"GGUF", b"version https://git-lfs"):
        raw = (first + bytes(64))[:4096]
        yield Case("safetensors", f"begins with {first!r}", REFUSED, with_file(raw), REFUSED)


def _entries() -> Iterator[Case]:
    entries = header_of(shard())
    names = [name for name in entries if name != "__metadata__"]
    odd: list[Any] = [None, True, -1, 1.5, 2**63, 2**64, 10**30, "F32", "", [], {}, [1], "x" * 5000]
    for name in (names[0], names[3], names[-1]):
        short = name.removeprefix("model.")
        for key in ("dtype", "shape", "data_offsets"):
            for value in odd:
                if value == entries[name][key]:
                    continue
                make = with_entries(lambda e, n=name, k=key, v=value: e[n].update({k: v}))
                yield Case("entries", f"{short} {key} = {value!r:.40}", REFUSED, make, REFUSED)
            make = with_entries(lambda e, n=name, k=key: e[n].pop(k))
            yield Case("entries", f"{short} without {key}", REFUSED, make, REFUSED)
        for value in odd:
            make = with_entries(lambda e, n=name, v=value: e.update({n: v}))
            yield Case("entries", f"{short} = {value!r:.40}", REFUSED, make, REFUSED)
        for dtype in (
            "F64",
            "F16",
            "BF16",
            "I8",
            "U8",
            "I64",
            "BOOL",
            "F8_E4M3",
            "f32",
            "F32 ",
            "C64",
        ):
            make = with_entries(lambda e, n=name, d=dtype: e[n].update(dtype=d))
            yield Case("entries", f"{short} of dtype {dtype}", REFUSED, make, REFUSED)
        for dtype in ("I32", "U32"):  # as many bits
            make = with_entries(lambda e, n=name, d=dtype: e[n].update(dtype=d))
            yield Case("entries", f"{short} of dtype {dtype}", REFUSED, make, RUNS)
        for shape in ([0], [1], [2**32, 2**32], [2**63, 2], [2**61, 8], [2**64 - 1], [2**64],
                      [-1, -64], [8.0, 8], ["8"], [[8]], [True], [8] * 65, [1] * 5000,
                      [0, 2**63, 2**63]):  # fmt: skip
            make = with_entries(lambda e, n=name, s=shape: e[n].update(shape=s))
            yield Case("entries", f"{short} of shape {shape!r:.40}", REFUSED, make, REFUSED)
        begin, end = entries[name]["data_offsets"]
        for offsets in (
            [end, begin],
            [begin, end + 4],
            [begin + 4, end + 4],
            [begin, begin],
            [4, 4],
            [begin],
            [begin, end, end],
            [-begin - 4, end],
            [2**63, 2**63 + end - begin],
            [2**64 - 4, end],
            [begin + 0.0, end],
            [str(begin), end],
            [None, end],
            [begin, 2**63],
            [begin, 2**64 - 1],
        ):
            make = with_entries(lambda e, n=name, o=offsets: e[n].update(data_offsets=o))
            yield Case("entries", f"{short} at {offsets!r:.50}", REFUSED, make, REFUSED)
        shape = entries[name]["shape"]
        for other in ([*shape, 1], [1, *shape], [shape[0] // 2, *shape[1:], 2]):
            make = with_entries(lambda e, n=name, s=other: e[n].update(shape=s))
            yield Case("entries", f"{short} of shape {other}, as many numbers", REFUSED, make, RUNS)
        make = with_entries(lambda e, n=name: e.pop(n))
        yield Case("entries", f"without {short}: a hole", REFUSED, make, REFUSED)
        make = with_entries(lambda e, n=name: e.update({"other.name": e.pop(n)}))
        yield Case("entries", f"{short} has another name", REFUSED, make, RUNS)
    for a, b in ((0, 1), (1, 2), (3, 4), (-2, -1)):
        one, two = names[a], names[b]
        make = with_entries(lambda e, x=one, y=two: e[x].update(data_offsets=e[y]["data_offsets"]))
        yield Case("entries", f"{one} over {two}", REFUSED, make, REFUSED)
    for dtype, scale in (("F16", 2), ("BF16", 2)):  # half the room: a hole in the data
        make = with_entries(lambda e, d=dtype: e[names[0]].update(dtype=d))
        yield Case(
            "entries", f"embedding of {dtype} in the room of F32 ({scale})", REFUSED, make, REFUSED
        )


def _texts() -> Iterator[Case]:
    first = '"model.embed_tokens.weight":'
    deep = 100_000
    changes: dict[str, Callable[[str], str | bytes]] = {
        "the first tensor twice": lambda t: t[:-1]
        + ","
        + t[t.index(first) : t.index("}", t.index(first)) + 1]
        + "}",
        "dtype twice": lambda t: t.replace('"dtype"', '"dtype": "F32", "dtype"', 1),
        "a tensor's name with escapes, twice": lambda t: t[:-1] + ',"model.norm\\u002eweight": '
        '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        "two values of __metadata__": lambda t: '{"__metadata__": {},' + t[1:],
        "__metadata__ of numbers": lambda t: t.replace('"format": "pt"', '"format": 1'),
        "__metadata__ that is a list": lambda t: t.replace('{"format": "pt"}', "[]"),
        "__metadata__ of 9 MiB": lambda t: t.replace('"pt"', '"' + "m" * (9 << 20) + '"'),
        "5000 keys of __metadata__": lambda t: t.replace(
            '"format": "pt"', ",".join(f'"k{i}": "v"' for i in range(5000))
        ),
        "nested arrays": lambda t: t[:-1] + ',"x":' + "[" * deep + "]" * deep + "}",
        "nested objects": lambda t: t[:-1] + ',"x":' + '{"a":' * deep + "1" + "}" * deep + "}",
        "nested in a shape": lambda t: t.replace("[8]", "[" * 1000 + "8" + "]" * 1000, 1),
        "NaN": lambda t: t.replace("[8]", "[NaN]", 1),
        "Infinity": lambda t: t.replace("[8]", "[Infinity]", 1),
        "-Infinity": lambda t: t.replace("[8]", "[-Infinity]", 1),
        "1e999": lambda t: t.replace("[8]", "[1e999]", 1),
        "8e0": lambda t: t.replace("[8]", "[8e0]", 1),
        "-0": lambda t: t.replace('"data_offsets": [0,', '"data_offsets": [-0,', 1),
        "a number of 5000 digits": lambda t: t.replace("[8]", "[" + "9" * 5000 + "]", 1),
        "leading zeros": lambda t: t.replace("[8]", "[08]", 1),
        "hexadecimal": lambda t: t.replace("[8]", "[0x8]", 1),
        "a comment": lambda t: t.replace("{", "{/* */", 1),
        "single quotes": lambda t: t.replace('"', "'"),
        "a trailing comma": lambda t: t[:-1] + ",}",
        "no closing brace": lambda t: t[:-1],
        "two objects": lambda t: t + "{}",
        "NULs behind it": lambda t: t + "\0\0\0\0",
        "text behind it": lambda t: t + "x",
        "a space first": lambda t: " " + t,
        "a BOM first": lambda t: "\ufeff" + t,
        "an array": lambda t: "[" + t + "]",
        "a number": lambda t: "1",
        "nothing": lambda t: "",
        "one brace": lambda t: "{",
        "an empty object": lambda t: "{}",
        "UTF-16": lambda t: t.encode("utf-16"),
        "not UTF-8": lambda t: t.encode().replace(b"model.norm", b"model\xff\xfe\xfd\xfc\xfb", 1),
        "a lone surrogate": lambda t: t.replace("model.norm", "model\\ud800", 1),
        "a NUL in a name": lambda t: t.replace("model.norm", "model\\u0000", 1),
        "a name of 2000 bytes": lambda t: t.replace("model.norm", "n" * 2000, 1),
        "an entry of 8 KiB": lambda t: t.replace('{"dtype"', "{" + " " * 8192 + '"dtype"', 1),
        "70000 tensors": lambda t: t[:-1] + "".join(
            f',"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(70000)
        ) + "}",
        "a newline in a string": lambda t: t.replace("model.norm", "model\n", 1),
    }  # fmt: skip
    for what, change in changes.items():
        inspect = REFUSED
        if what in ("a NUL in a name",):
            inspect = RUNS
        yield Case("header texts", what, REFUSED, with_text(change), inspect)
    harmless: dict[str, Callable[[str], str | bytes]] = {
        "spaces behind it": lambda t: t + " " * 1000,
        "spaces everywhere": lambda t: t.replace(",", " ,\n\t ").replace(":", " : "),
        "another field of an entry": lambda t: t.replace('"dtype"', '"more": [1, {}], "dtype"', 1),
        "an empty tensor nobody needs": lambda t: (
            t[:-1] + ',"x.rotary_emb.inv_freq":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
        ),
        "without __metadata__": lambda t: "{" + t[t.index(first) :],
        "a name written in escapes": lambda t: t.replace("model.norm", "model\\u002enorm", 1),
    }
    for what, change in harmless.items():
        yield Case("header texts", what, RUNS, with_text(change))


def _index() -> Iterator[Case]:
    def split(change: Callable[[Path, dict[str, Any]], object]) -> Make:
        """Two shards and an index; ``change`` may touch the files and the index's value."""

        def make(folder: Path) -> Path:
            one, two, file = Safetensors(), Safetensors(), shard()
            for i, (name, entry) in enumerate(file.entries.items()):
                begin, end = entry["data_offsets"]
                part = two if i % 2 else one
                part.add(name, tuple(entry["shape"]), data=file.data[begin:end])
            path = write_small_folder(folder / "m", shards=[one, two])
            index = json.loads((path / INDEX).read_text())
            changed = change(path, index)
            (path / INDEX).write_text(changed if isinstance(changed, str) else json.dumps(index))
            return path

        return make

    names = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]

    def all_to(name: Any) -> Callable[[Path, dict[str, Any]], object]:
        return lambda _, index: index["weight_map"].update(dict.fromkeys(index["weight_map"], name))

    def one_to(name: Any) -> Callable[[Path, dict[str, Any]], object]:
        return lambda _, index: index["weight_map"].update({"model.norm.weight": name})

    yield Case("index", "two shards", RUNS, split(lambda *_: None))
    outside = (
        "../model.safetensors",
        "/etc/passwd",
        "/dev/zero",
        "a/b.safetensors",
        "",
        ".",
        "..",
        "..\\model.safetensors",
        "model.bin",
        "\0.safetensors",
        "/model.safetensors",
        1,
        None,
        ["x"],
        {},
        True,
        "x" * 5000,
        "missing.safetensors",
        "~/x.safetensors",
        "file:///x.safetensors",
        "\x1b[2J.safetensors",
        ".safetensors",
    )
    for name in outside:
        yield Case("index", f"every tensor in {name!r:.40}", REFUSED, split(all_to(name)), REFUSED)
        yield Case("index", f"one tensor in {name!r:.40}", REFUSED, split(one_to(name)), REFUSED)
    for name in names:
        yield Case("index", f"every tensor in {name}", REFUSED, split(all_to(name)), REFUSED)
        yield Case(
            "index",
            f"without {name}",
            REFUSED,
            split(lambda p, _, n=name: (p / n).unlink()),
            REFUSED,
        )
        yield Case(
            "index",
            f"{name} is empty",
            REFUSED,
            split(lambda p, _, n=name: (p / n).write_bytes(b"")),
            REFUSED,
        )
        yield Case("index", f"{name} links to nothing", REFUSED,
                   split(lambda p, _, n=name: _link(p / n, "nothing")), REFUSED)  # fmt: skip
        yield Case("index", f"{name} links to itself", REFUSED,
                   split(lambda p, _, n=name: _link(p / n, n)), REFUSED)  # fmt: skip
        yield Case(
            "index",
            f"{name} is a folder",
            REFUSED,
            split(lambda p, _, n=name: ((p / n).unlink(), (p / n).mkdir())),
            REFUSED,
        )
        yield Case(
            "index",
            f"{name} is a FIFO",
            REFUSED,
            split(lambda p, _, n=name: ((p / n).unlink(), os.mkfifo(p / n))),
            REFUSED,
        )
        yield Case("index", f"{name} is a device", REFUSED,
                   split(lambda p, _, n=name: _link(p / n, "/dev/zero")), REFUSED)  # fmt: skip
    yield Case("index", "both shards are the first", REFUSED,
               split(lambda p, _: _link(p / names[1], names[0])), REFUSED)  # fmt: skip
    values: dict[str, str] = {
        "empty": "",
        "an array": "[]",
        "a text": '"x"',
        "without a map": "{}",
        "deep": "[" * 10**5,
        "an empty map": '{"weight_map": {}}',
        "a map that is a list": '{"weight_map": []}',
        "two maps": '{"weight_map": {"a": "x.safetensors"}, "weight_map": {"a": "x.safetensors"}}',
        "a map that is null": '{"weight_map": null}',
        "no end": '{"weight_map": {"a": "x.safetensors"',
        "not JSON": "weights: x",
        "text behind": '{"weight_map": {"a": "x.safetensors"}} x',
        "2000 files": json.dumps(
            {"weight_map": {f"t{i}": f"m{i}.safetensors" for i in range(2000)}}
        ),
        "70000 tensors": json.dumps(
            {"weight_map": {f"t{i}": "m.safetensors" for i in range(70000)}}
        ),
    }
    for what, text in values.items():
        yield Case("index", f"that is {what}", REFUSED, split(lambda _, __, t=text: t), REFUSED)
    yield Case(
        "index",
        "a tensor that is nowhere",
        REFUSED,
        split(lambda _, i: i["weight_map"].update(x=names[0])),
        REFUSED,
    )
    yield Case(
        "index",
        "with a tensor fewer",
        RUNS,
        split(lambda _, i: i["weight_map"].pop("model.norm.weight") and None),
    )
    yield Case("index", "with a wrong total_size", RUNS,
               split(lambda _, i: i.update(metadata={"total_size": -1})))  # fmt: skip
    yield Case("index", "numbered shards need none", RUNS, _without_index(split(lambda *_: None)))


def _link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _without_index(make: Make) -> Make:
    def changed(folder: Path) -> Path:
        path = make(folder)
        (path / INDEX).unlink()
        return path

    return changed


def _tensors() -> Iterator[Case]:
    """Whole files with other tensors than the model has."""
    names = [f"model.layers.0.{name}.weight" for name in FOLDER_NAMES.values()]
    for name in (*names, "model.embed_tokens.weight", "model.norm.weight"):

        def without(name: str = name) -> bytes:
            file, other = shard(), Safetensors()
            for one, entry in file.entries.items():
                begin, end = entry["data_offsets"]
                if one != name:
                    other.add(one, tuple(entry["shape"]), data=file.data[begin:end])
            return other.pack()

        yield Case("folder tensors", f"without {name}", REFUSED, with_file(without), RUNS)
    for name in (
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.mlp.up_proj.weight_scale",
        "model.layers.0.block_sparse_moe.gate.weight",
        "lm_head.bias",
        "x",
        "blk.0.attn_q.weight",
        "token_embd.weight",
        "model.layers.99999999999999999999.mlp.up_proj.weight",
        "model.layers.-1.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        ".",
        "",
        "..weight",
        "model.layers.00.mlp.up_proj.weight",
    ):
        yield Case(
            "folder tensors",
            f"with {name!r}",
            REFUSED,
            with_file(lambda n=name: shard().add(n, (HIDDEN,)).pack()),
            RUNS,
        )
    for name in ("vision_tower.x.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"):
        yield Case("folder tensors", f"with {name}, which is left out", RUNS,
                   with_file(lambda n=name: shard().add(n, (HIDDEN,)).pack()))  # fmt: skip
    for raw in (struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 8) + b"{}      "):
        yield Case(
            "folder tensors", f"no tensors in {len(raw)} bytes", REFUSED, with_file(raw), RUNS
        )


def cases() -> Iterator[Case]:
    """All files of these families."""
    yield from _lengths()
    yield from _entries()
    yield from _texts()
    yield from _index()
    yield from _tensors()
