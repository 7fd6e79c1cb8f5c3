"""Vocabularies of a GGUF: tokens, scores, types, merges and special ids that contradict another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .. import gguf_builder as g
from ..gguf_builder import Array, GGUFBuilder
from .case import REFUSED, RUNS, USAGE, Case, Make
from .small import PIECES, byte_pairs, letters_of_bytes, replace_key, small

MIB = 1 << 20


def pieces(tokens: list[Any], types: list[int] | None = None, scores: list[float] | None = None,
           **keys: tuple[int, Any] | None) -> Make:  # fmt: skip
    """The small model with another vocabulary of SentencePiece."""
    n = len(tokens)
    values: dict[str, tuple[int, Any] | None] = {
        "tokenizer.ggml.tokens": (g.ARRAY, Array(g.STRING, tokens)),
        "tokenizer.ggml.scores": (g.ARRAY, Array(g.F32, scores or [-float(i) for i in range(n)])),
        "tokenizer.ggml.token_type": (g.ARRAY, Array(g.I32, types or [2, 3, 3, *[1] * (n - 3)])),
    }
    return lambda folder: small(**(values | keys)).write(folder / "m.gguf")


def pairs(change: Callable[[GGUFBuilder], object] | None = None, **arguments: Any) -> Make:
    """The small model with another byte-level vocabulary."""

    def make(folder: Path) -> Path:
        builder = byte_pairs(**arguments)
        if change is not None:
            change(builder)
        return builder.write(folder / "m.gguf")

    return make


def _tokens() -> Iterator[Case]:
    base: list[Any] = list(PIECES)
    for at in range(len(base)):
        for other in range(len(base)):
            if other != at:
                changed = [*base[:at], base[other], *base[at + 1 :]]
                yield Case("vocabulary", f"token {at} like token {other}", REFUSED, pieces(changed))
    bytes_of = {
        "empty": b"", "one NUL": b"\0", "NULs": b"x\0" * 40, "not UTF-8": b"\xff\xfe",
        "half a character": b"\xe2\x96", "an escape": b"\x1b]0;evil\x07", "a newline": b"\n",
        "64 KiB": b"y" * 65536, "1 MiB": b"y" * MIB, "a surrogate": b"\xed\xa0\x80",
        "overlong": b"\xc0\x80", "beyond Unicode": b"\xf5\x80\x80\x80", "a BOM": b"\xef\xbb\xbf",
        "a lone ▁": "▁▁▁".encode(), "right to left": "\u202e".encode(),
    }  # fmt: skip
    for what, raw in bytes_of.items():
        yield Case("vocabulary", f"a token of {what}", RUNS, pieces([*base, raw]))
        for kind in (3, 4):
            expect = RUNS
            make = pieces([*base, raw], [2, 3, 3, *[1] * 5, kind])
            yield Case("vocabulary", f"a token of {what}, type {kind}", expect, make)
    yield Case(
        "vocabulary", "a token of more than 1 MiB", REFUSED, pieces([*base, b"y" * (MIB + 9)])
    )
    for n in (1, 2, 33):  # together more than the blob may have
        expect = RUNS if n < 32 else REFUSED
        many: list[Any] = [bytes([97 + i % 26]) * (MIB - i) for i in range(n)]
        make = pieces([*base, *many])
        yield Case("vocabulary", f"{n} tokens of 1 MiB", expect, make, ram="512M")
    for piece in ("<0x-1>", "<0xZZ>", "<0x100>", "<0x0>", "<0x 1>", "<0xff>", "<0X41>", "0x41", "",
                  "<0x41>\x00", "<0x４１>", "<0x18446744073709551615>"):  # fmt: skip
        make = pieces([*base, piece], [2, 3, 3, *[1] * 5, 6])
        yield Case("vocabulary", f"byte token {piece!r}", REFUSED, make)
        make = pieces([*base, piece])
        yield Case("vocabulary", f"ordinary token {piece!r}", RUNS, make)
    yield Case("vocabulary", "no token for what is asked, none unknown", REFUSED,
               pieces(["<unk>", "<s>", "</s>", "q"],
                      **{"tokenizer.ggml.unknown_token_id": (g.U32, 2**32 - 1)}))  # fmt: skip
    yield Case(
        "vocabulary", "no token for what is asked", RUNS, pieces(["<unk>", "<s>", "</s>", "q"])
    )
    yield Case("vocabulary", "no tokens", REFUSED, pieces([], [], []))
    for n in (1, 2, 3):
        yield Case("vocabulary", f"{n} tokens", RUNS if n > 2 else REFUSED,
                   pieces(list(base[:n]), [2, 3, 3][:n]))  # fmt: skip


def _lengths() -> Iterator[Case]:
    for key, kind in (("scores", g.F32), ("token_type", g.I32), ("tokens", g.STRING)):
        for n in (0, 1, 7, 9, 16, 300, 5000):
            values: list[Any] = [f"t{i}" for i in range(n)] if kind == g.STRING else [1] * n

            def make(folder: Path, k: str = key, t: int = kind, v: Any = values) -> Path:
                builder = small()
                replace_key(builder, f"tokenizer.ggml.{k}", g.ARRAY, Array(t, v))
                return builder.write(folder / "m.gguf")

            yield Case("vocabulary", f"{n} {key} of 8", REFUSED, make, RUNS)
    for n in (4, 7, 9, 64, 4096):  # a vocabulary of its own, longer or shorter than the embedding
        tokens = [f"t{i}" for i in range(n)]

        def other(folder: Path, t: list[str] = tokens) -> Path:
            builder = small()
            n = len(t)
            for k, kind, v in (("tokens", g.STRING, t), ("scores", g.F32, [0.0] * n),
                               ("token_type", g.I32, [1] * n)):  # fmt: skip
                replace_key(builder, f"tokenizer.ggml.{k}", g.ARRAY, Array(kind, list(v)))
            return builder.write(folder / "m.gguf")

        yield Case(
            "vocabulary", f"{n} tokens, 8 rows of embedding", RUNS if n < 8 else REFUSED, other
        )
    for kind in (0, 7, 8, 255, 256, -1, 2**31 - 1, -(2**31)):
        for at in (0, 4, 7):
            types = [2, 3, 3, 1, 1, 1, 1, 1]
            types[at] = kind
            yield Case(
                "vocabulary", f"token {at} of type {kind}", REFUSED, pieces(list(PIECES), types)
            )
    for kind in range(1, 6):
        yield Case(
            "vocabulary", f"all tokens of type {kind}", RUNS, pieces(list(PIECES), [kind] * 8)
        )
    for score in (math.inf, -math.inf, 3.4e38, -3.4e38, 1e-45, -0.0):
        yield Case(
            "vocabulary", f"all scores {score}", RUNS, pieces(list(PIECES), scores=[score] * 8)
        )
    for at in range(8):
        scores = [0.0] * 8
        scores[at] = math.nan
        yield Case("vocabulary", f"score {at} is NaN", REFUSED, pieces(list(PIECES), scores=scores))


def _special_ids() -> Iterator[Case]:
    read = ("bos", "eos", "eot", "eom", "unknown", "fim_pre", "fim_suf", "fim_mid", "fim_pad",
            "fim_rep", "fim_sep", "prefix", "suffix", "middle")  # fmt: skip
    for name in (*read, "padding", "seperator", "mask", "cls"):
        for kind, value in ((g.U32, 0), (g.U32, 7), (g.U32, 8), (g.U32, 2**31), (g.U32, 2**31 - 1),
                            (g.U32, 2**32 - 1), (g.U32, 2**32 - 2), (g.I32, -1), (g.I32, -2),
                            (g.I32, -(2**31)), (g.U64, 2**63), (g.U64, 2**64 - 1), (g.I64, -1),
                            (g.I64, -(2**63)), (g.U64, 2**32 + 1), (g.F32, 1.0), (g.STRING, "1"),
                            (g.BOOL, 1), (g.ARRAY, Array(g.U32, [1]))):  # fmt: skip
            whole = kind in (g.U32, g.I32, g.U64, g.I64)
            fits = whole and (0 <= value < 8 or value in (-1, 2**32 - 1))
            expect = RUNS if fits or name not in read else REFUSED
            make = pieces(list(PIECES), **{f"tokenizer.ggml.{name}_token_id": (kind, value)})
            text = value.values if isinstance(value, Array) else value
            yield Case("special ids", f"{name} = {text!r} of type {kind}", expect, make, RUNS)
    every = {f"tokenizer.ggml.{name}_token_id": (g.U32, 4) for name in read}
    yield Case("special ids", "all of them one token", RUNS, pieces(list(PIECES), **every))
    no_bos = {"tokenizer.ggml.bos_token_id": (g.U32, 2**32 - 1)}
    yield Case(
        "special ids", "a BOS is wanted and there is none", RUNS, pieces(list(PIECES), **no_bos)
    )


def _merges() -> Iterator[Case]:
    letters = letters_of_bytes()
    good = ["x a", "xa x"]
    wrong = {
        "empty": "",
        "one piece": "xa",
        "a space": " ",
        "two spaces": "x  a",
        "three pieces": "x a x",
        "a space before": " x a",
        "a space after": "x a ",
        "unknown left": "q1 a",
        "unknown right": "x zz",
        "unknown result": "a x",
        "a tab": "x\ta",
        "a NUL": "x a\0",
        "not UTF-8": b"x \xff",
        "an escape": "\x1b[2J a",
        "64 KiB": "x " + "a" * 65536,
    }
    for what, merge in wrong.items():
        yield Case("merges", f"one that is {what}", REFUSED, pairs(merges=[*good, merge]), RUNS)
    yield Case(
        "merges", "one of 1 MiB", REFUSED, pairs(merges=[*good, "x " + "a" * (MIB - 2)]), RUNS
    )
    yield Case("merges", "one of more than 1 MiB", REFUSED, pairs(merges=[*good, "a" * (MIB + 1)]))
    yield Case("merges", "none", RUNS, pairs(merges=[]))
    yield Case("merges", "the same twice", RUNS, pairs(merges=[*good, *good]))
    yield Case("merges", "the same 100000 times", RUNS, pairs(merges=good * 50000), ram="192M")
    yield Case("merges", "backwards", RUNS, pairs(merges=good[::-1]))
    yield Case("merges", "without the key", REFUSED,
               pairs(**{"tokenizer.ggml.merges": None}))  # fmt: skip
    for kind, array in (("numbers", Array(g.U32, [1, 2])), ("bools", Array(g.BOOL, [1])),
                        ("floats", Array(g.F32, [1.0]))):  # fmt: skip
        make = pairs(**{"tokenizer.ggml.merges": (g.ARRAY, array)})
        yield Case("merges", f"{kind}", REFUSED, make, RUNS)
    yield Case("merges", "a text", REFUSED, pairs(**{"tokenizer.ggml.merges": (g.STRING, "x a")}))
    for at in (0, 32, 120, 255):  # "x" is letter 120
        fewer = [*letters[:at], *letters[at + 1 :], "<|end|>", "xa", "xax"]
        expect = REFUSED if at in (120,) else RUNS
        yield Case(
            "merges", f"no token for the byte {at}", expect, pairs(pieces=fewer, merges=good)
        )
    keys = {"tokenizer.ggml.eos_token_id": (g.U32, 1)}
    nothing = ["<|end|>", "q"]
    yield Case(
        "merges", "no token for any byte", USAGE, pairs(pieces=nothing, merges=[], **keys), RUNS
    )
    for pre in ("", "default", "no-such", "x" * 5000, "\x1b[2J", "gpt-2\0", "GPT-2", "bert-bge"):
        known = pre in ("default",)
        expect = RUNS if known else REFUSED
        yield Case(
            "merges", f"pre-tokenizer {pre[:20]!r} of {len(pre)}", expect, pairs(pre=pre), RUNS
        )
    yield Case("merges", "without a pre-tokenizer", REFUSED, pairs(**{"tokenizer.ggml.pre": None}))
    for model in ("bert", "t5", "rwkv", "plamo2", "none", "no_vocab", "", "GPT2", "x" * 9999):
        make = pairs(**{"tokenizer.ggml.model": (g.STRING, model)})
        yield Case("merges", f"tokenizer model {model[:20]!r}", REFUSED, make, RUNS)
    make = pairs(**{"tokenizer.ggml.model": (g.STRING, "llama")})
    yield Case("merges", "said to be SentencePiece's", RUNS, make)
    make = pairs(**{"tokenizer.ggml.model": (g.STRING, "gemma4")})
    yield Case("merges", "said to be gemma 4's", RUNS, make)
    types = [[3] * 259, [4] * 259, [1] * 258, [1] * 260, [6] * 259, [0] * 259]
    for kinds in types:
        expect = RUNS if len(kinds) == 259 and 1 <= kinds[0] <= 5 else REFUSED
        make = pairs(types=kinds)
        yield Case("merges", f"{len(kinds)} tokens of type {kinds[0]}", expect, make)


def _many() -> Iterator[Case]:
    """Vocabularies as large as they may be, and larger."""

    def special(n: int) -> Make:
        letters = letters_of_bytes()
        tokens = [*letters, "<|end|>", *(f"<|{i}|>" for i in range(n))]
        return pairs(pieces=tokens, merges=[], types=[1] * 256 + [3] * (n + 1))

    def tokens(n: int) -> Make:
        def make(folder: Path) -> Path:
            builder = small()
            raw = b"".join(g.string(b"%x" % i) for i in range(n))
            replace_key(
                builder, "tokenizer.ggml.tokens", g.ARRAY, Array(g.STRING, length=n, raw=raw)
            )
            for key, kind, size in (("scores", g.F32, 4), ("token_type", g.I32, 4)):
                one = b"\1\0\0\0" if key == "token_type" else bytes(4)
                array = Array(kind, length=n, raw=one * n)
                replace_key(builder, f"tokenizer.ggml.{key}", g.ARRAY, array)
                assert size == len(one)
            return builder.write(folder / "m.gguf")

        return make

    yield Case("vocabulary", "16000 special tokens", RUNS, special(16000))
    yield Case("vocabulary", "16385 special tokens", REFUSED, special(16385))
    # The embedding has 8 rows, which is found once the vocabulary is there.
    for n in (300_000, 1_000_000):
        yield Case("vocabulary", f"{n} tokens for 8 rows", REFUSED, tokens(n), RUNS, ram="512M")
    yield Case("vocabulary", "4200000 tokens", REFUSED, tokens(4_200_000), REFUSED, ram="1G")


def cases() -> Iterator[Case]:
    """All files of these families."""
    yield from _tokens()
    yield from _lengths()
    yield from _special_ids()
    yield from _merges()
    yield from _many()
