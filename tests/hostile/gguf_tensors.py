"""Tensor entries of a GGUF: shapes, formats, offsets and names that do not fit together."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_rt.quant.blocks import FORMATS, UNSUPPORTED

from .. import gguf_builder as g
from ..gguf_builder import GGUFBuilder, Tensor
from .case import EITHER, REFUSED, RUNS, Case, Make
from .small import FFN, HEAD_DIM, HEADS, HIDDEN, small

NAMES = [t.name for t in small().tensors]
EXTENTS = [len(t.data) for t in small().tensors]
FLOATS = (0, 1, 30)  # F32, F16, BF16


def changed(change: Callable[[GGUFBuilder], object]) -> Make:
    """The small model after ``change``; packed when it is written."""

    def make(folder: Path) -> Path:
        return small(change).write(folder / "m.gguf")

    return make


def set_tensor(at: int, **attributes: object) -> Make:
    def change(builder: GGUFBuilder) -> None:
        for name, value in attributes.items():
            setattr(builder.tensors[at], name, value)

    return changed(change)


def _formats() -> Iterator[Case]:
    """Every format with the shape as it is, and with as much room as it needs."""
    ids = sorted({*FORMATS, *UNSUPPORTED, 42, 63, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1})
    for at, name in enumerate(NAMES):
        # All of them for the embedding, a norm and a matrix; the first and last ones for others.
        for ggml_id in ids if at in (0, 1, 2) else (0, 1, 2, 12, 24, 42, 2**31, 2**32 - 1):
            # Rows of 8 or 16 are no whole blocks of any quantized format.
            expect = REFUSED
            if ggml_id in FLOATS:  # halves of other floats may be finite or not
                expect = RUNS if ggml_id == 0 or "norm" in name else EITHER
            make = set_tensor(at, ggml_id=ggml_id)
            yield Case("formats", f"{name} as {ggml_id}", expect, make)


def _shapes() -> Iterator[Case]:
    wrapping = (
        (2**32, 2**32), (2**63, 2), (2**62, 4), (2**62, 2**2, 2), (2**16,) * 4, (2**40, 2**22, 4),
        (2**64 - 1, 2**64 - 1), (2**33, 2**31, 8), (2**61 + 1, 8), (2**64 - 8, 1), (2**63, 1),
        (2**62 + 8, 4), (2**64 // 4 + 2, 2, 2), (2**32 + 1, 2**32 - 1), (3, 2**63 + 1),
    )  # fmt: skip
    for at, name in enumerate(NAMES):
        dims = small().tensors[at].dims
        for wrong in wrapping:
            make = set_tensor(at, dims=wrong)
            yield Case("shapes", f"{name} of {wrong}, which wraps", REFUSED, make, REFUSED)
        for k in range(len(dims)):
            zero = tuple(0 if i == k else n for i, n in enumerate(dims))
            yield Case("shapes", f"{name} of {zero}", REFUSED, set_tensor(at, dims=zero), REFUSED)
        for wrong in ((), (0, 0, 0, 0), (*dims, 0), (1,) * 5, (2**63,) * 4):
            make = set_tensor(at, dims=wrong)
            yield Case("shapes", f"{name} of {wrong}", REFUSED, make, REFUSED)
        for n_dims in (0, 5, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1):
            make = set_tensor(at, n_dims=n_dims)
            yield Case("shapes", f"{name} of {n_dims} dimensions", REFUSED, make, REFUSED)
        if len(dims) == 2:
            flat = (dims[0] * dims[1],)
            other = {dims[::-1], flat, (1, *flat), (*flat, 1), (dims[0] // 2, dims[1] * 2)} - {dims}
        else:
            other = {(dims[0] // 2, 2), (2, dims[0] // 2), (1, *dims)}
        for shape in sorted(other):
            make = set_tensor(at, dims=shape)
            yield Case("shapes", f"{name} of {shape}, as many numbers", REFUSED, make, RUNS)
        for shape in ((*dims, 1), (*dims, 1, 1)):
            if len(shape) <= 4:
                yield Case(
                    "shapes", f"{name} of {shape}", REFUSED, set_tensor(at, dims=shape), RUNS
                )


def _offsets() -> Iterator[Case]:
    starts, at = [], 0
    for n_bytes in EXTENTS:
        starts.append(at)
        at += -(-n_bytes // 32) * 32
    end = at
    for k, name in enumerate(NAMES):
        fixed = {
            "1": 1, "one byte on": starts[k] + 1, "half its alignment on": starts[k] + 16,
            "at the end": end, "far beyond": 2**40, "2^31": 2**31, "2^32": 2**32, "2^62": 2**62,
            "2^63 - 32": 2**63 - 32, "2^63": 2**63, "wraps to 0": 2**64 - 32,
            "wraps to its place": 2**64 - 32 + starts[k] % 32, "2^64 - 1": 2**64 - 1,
            "wraps into the header": 2**64 - 1024,
        }  # fmt: skip
        for what, offset in fixed.items():
            expect = REFUSED
            make = set_tensor(k, offset=offset)
            yield Case("offsets", f"{name} at {offset} ({what})", expect, make, REFUSED)
        for other in range(len(NAMES)):
            if other != k:
                make = set_tensor(k, offset=starts[other])
                yield Case("offsets", f"{name} over {NAMES[other]}", REFUSED, make, REFUSED)
        if k + 1 < len(NAMES):
            shift = EXTENTS[k] - 32
            if shift > 0:
                make = set_tensor(k + 1, offset=starts[k] + shift)
                yield Case(
                    "offsets", f"{NAMES[k + 1]} over the end of {name}", REFUSED, make, REFUSED
                )


def _names() -> Iterator[Case]:
    for at, name in enumerate(NAMES):
        for other in range(len(NAMES)):
            if other != at:
                make = set_tensor(at, name=NAMES[other])
                yield Case("names", f"{name} called {NAMES[other]}", REFUSED, make, REFUSED)
        yield Case("names", f"without {name}", REFUSED, changed(lambda b, k=at: b.tensors.pop(k)),
                   RUNS)  # fmt: skip
        for new in (
            "",
            "x",
            name.upper(),
            f"{name}.",
            f" {name}",
            f"{name}\x00",
            "../../etc/passwd",
            "\x1b[31m",
            "blk.18446744073709551615.attn_q.weight",
            "blk.-1.attn_q.weight",
            "blk.00.attn_q.weight",
            "n" * 64,
        ):
            yield Case(
                "names", f"{name} called {new!r:.60}", REFUSED, set_tensor(at, name=new), RUNS
            )
        for raw in (b"\xff\xfe", b"n" * 65, b"n" * 70000, b"\xc3"):
            make = set_tensor(at, name=raw)
            yield Case("names", f"{name} called {raw[:8]!r} of {len(raw)}", REFUSED, make, REFUSED)


def _exchanged() -> Iterator[Case]:
    """Shapes of two tensors exchanged; equal ones only exchange the numbers."""
    dims = [t.dims for t in small().tensors]
    for i in range(len(NAMES)):
        for k in range(i):
            if dims[i] == dims[k]:
                continue

            def change(builder: GGUFBuilder, i: int = i, k: int = k) -> None:
                a, b = builder.tensors[i], builder.tensors[k]
                a.dims, b.dims = b.dims, a.dims
                a.data, b.data = b.data, a.data

            name = f"the shapes of {NAMES[i]} and {NAMES[k]} exchanged"
            yield Case("exchanged", name, REFUSED, changed(change), RUNS)


def _more() -> Iterator[Case]:
    ones = struct.pack(f"<{HIDDEN}f", *[1.0] * HIDDEN)
    extra = (
        "blk.1.attn_q.weight", "blk.0.attn_q.scale", "blk.0.ffn_gate_inp.weight", "output.scale",
        "blk.0.attn_qkv.bias", "v.blk.0.attn_q.weight", "blk.0.attn_rot_embd", "cls.weight", "x",
        "blk.1023.ffn_up.weight", "blk.4294967296.ffn_up.weight",
    )  # fmt: skip
    for name in extra:
        make = changed(lambda b, n=name: b.tensor(n, (HIDDEN,), 0, ones))
        yield Case("extra", f"with {name}", REFUSED, make, RUNS)
    for name, n in (("blk.0.attn_q.bias", HEADS * HEAD_DIM), ("blk.0.ffn_down.bias", HIDDEN),
                    ("blk.0.ffn_up.bias", FFN), ("output.bias", 8)):  # fmt: skip
        for size in (n, n - 1, n + 1, 1):
            data = bytes(4 * size)
            make = changed(lambda b, m=name, d=data, s=size: b.tensor(m, (s,), 0, d))
            expect = RUNS if size == n else REFUSED
            yield Case("extra", f"with {name} of {size}", expect, make, RUNS)
    for factor in (1.0, 0.0, -1.0, float("nan"), float("inf"), 1e-45, 3e38):
        for n in (1, 2, 3):
            data = struct.pack(f"<{n}f", *[factor] * n)
            make = changed(lambda b, d=data, s=n: b.tensor("rope_freqs.weight", (s,), 0, d))
            runs = n == 2 and 0 < factor < float("inf")
            expect = RUNS if runs else REFUSED
            yield Case("extra", f"with {n} rope factors of {factor}", expect, make, RUNS)
    for n, expect in ((1000, REFUSED), (30000, REFUSED), (65537, REFUSED)):

        def many(folder: Path, n: int = n) -> Path:
            builder = small()
            for i in range(n):
                builder.tensors.append(Tensor(f"t{i}", (1,), 0, bytes(4)))
            return builder.write(folder / "m.gguf")

        yield Case("extra", f"with {n} tensors more", expect, many, REFUSED if n > 65536 else RUNS)
    for ggml_id in (24, 25, 26, 27, 28):  # integers and F64 of the right size
        make = changed(lambda b, k=ggml_id: b.tensor("extra", (1,), k, bytes(32)))
        yield Case("extra", f"with one of format {ggml_id}", REFUSED, make, RUNS)
    for n_bytes in (1, 31, 32, 4096, 1 << 20):

        def longer(folder: Path, n: int = n_bytes) -> Path:
            path = folder / "m.gguf"
            path.write_bytes(small().pack() + b"\xff" * n)
            return path

        yield Case("extra", f"with {n_bytes} bytes behind the tensors", RUNS, longer)


def _claims() -> Iterator[Case]:
    """Counts in the header that its bytes cannot hold."""
    base = small()
    edges = (0, 1, 2**16, 2**16 + 1, 2**31, 2**32, 2**59, 2**60, 2**61, 2**63 - 1, 2**63, 2**64 - 1)
    for count in edges:
        for what in ("n_tensors", "n_keys"):
            make = changed(lambda b, w=what, c=count: setattr(b, w, c))
            shown = RUNS if what == "n_tensors" and count <= len(base.tensors) else REFUSED
            yield Case("claims", f"{what} = {count}", REFUSED, make, shown)
    for magic in (b"\0\0\0\0", b"FUGG", b"GGML", b"ggjt", b"GGUf", b"PK\x03\x04", b"\x80\x02}q",
                  b"<htm", b"\x7fELF", b"vers"):  # fmt: skip
        make = changed(lambda b, m=magic: setattr(b, "magic", m))
        yield Case("claims", f"magic {magic!r}", REFUSED, make, REFUSED)
    for version in (0, 1, 4, 255, 0x01000000, 0x03000000, 2**31, 2**32 - 1):
        make = changed(lambda b, v=version: setattr(b, "version", v))
        yield Case("claims", f"version {version}", REFUSED, make, REFUSED)
    empty = GGUFBuilder().add("general.architecture", g.STRING, "llama").pack()
    for n in (24, len(empty)):
        yield Case("claims", f"nothing but {n} bytes of header", REFUSED,
                   lambda folder, n=n: _written(folder, empty[:n]))  # fmt: skip


def _written(folder: Path, data: bytes) -> Path:
    path = folder / "m.gguf"
    path.write_bytes(data)
    return path


def cases() -> Iterator[Case]:
    """All files of these families."""
    yield from _formats()
    yield from _shapes()
    yield from _offsets()
    yield from _names()
    yield from _exchanged()
    yield from _more()
    yield from _claims()
