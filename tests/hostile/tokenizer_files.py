"""tokenizer.json: fields of wrong types, and vocabularies and merges that contradict another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..tokenizer_files import added
from .case import EITHER, REFUSED, RUNS, USAGE, Case, Make
from .small import RAW_PIECES, byte_tokenizer, raw_tokenizer, write_small_folder

WRONG: list[Any] = [None, True, 0, -1, 2**64, 1.5, "", "x", [], [1], {}, {"type": "x"}]
Change = Callable[[dict[str, Any]], object]


def raw(change: Change) -> Make:
    """A tokenizer in the manner of SentencePiece after ``change``."""
    return _changed(raw_tokenizer, change)


def pairs(change: Change) -> Make:
    """A byte-level one after ``change``."""
    return _changed(byte_tokenizer, change)


def _changed(base: Callable[[], dict[str, Any]], change: Change) -> Make:
    def make(folder: Path) -> Path:
        value = base()
        change(value)
        return write_small_folder(folder / "m", tokenizer=value)

    return make


def text(change: Callable[[str], str | bytes]) -> Make:
    """The raw tokenizer's text after ``change``."""

    def make(folder: Path) -> Path:
        whole = json.dumps(raw_tokenizer(), ensure_ascii=False)
        return write_small_folder(folder / "m", tokenizer__json=change(whole))

    return make


def _fields() -> Iterator[Case]:
    for key in raw_tokenizer():
        for value in WRONG:
            name = f"{key} = {value!r}"
            yield Case(
                "tokenizer.json",
                name,
                _top(key, value),
                raw(lambda t, k=key, v=value: t.update({k: v})),
                RUNS,
            )
        expect = REFUSED if key in ("model", "decoder", "normalizer") else RUNS
        yield Case("tokenizer.json", f"without {key}", expect, raw(lambda t, k=key: t.pop(k)), RUNS)
    for key in raw_tokenizer()["model"]:
        for value in WRONG:
            expect = _model(key, value)
            make = raw(lambda t, k=key, v=value: t["model"].update({k: v}))
            yield Case("tokenizer.json", f"model {key} = {value!r}", expect, make, RUNS)
    for kind in ("BPE ", "bpe", "Unigram", "WordPiece", "WordLevel", "\x1b[2J", "x" * 5000):
        make = raw(lambda t, k=kind: t["model"].update(type=k))
        yield Case("tokenizer.json", f"model type {kind!r:.20}", REFUSED, make, RUNS)
    for base, name in ((raw, "raw"), (pairs, "byte-level")):
        for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            for kind in (
                "Sequence",
                "Nothing",
                "ByteLevel",
                "Metaspace",
                "Replace",
                "Prepend",
                "Split",
                "NFC",
                "Strip",
                "ByteFallback",
                "TemplateProcessing",
                "Precompiled",
            ):
                make = base(lambda t, k=key, v=kind: t.update({k: {"type": v}}))
                yield Case(
                    "components",
                    f"{name} {key} only {kind}",
                    _component(name, key, kind),
                    make,
                    RUNS,
                )
            deep: Any = {"type": "Sequence", "pretokenizers": [], "normalizers": []}
            for _ in range(60):
                deep = {
                    k: [deep] for k in ("normalizers", "pretokenizers", "processors", "decoders")
                }
                deep = {
                    "type": "Sequence",
                    **{
                        k: v[:1]
                        if k
                        == {
                            "normalizer": "normalizers",
                            "pre_tokenizer": "pretokenizers",
                            "post_processor": "processors",
                            "decoder": "decoders",
                        }[key]
                        else []
                        for k, v in deep.items()
                    },
                }
            make = base(lambda t, k=key, v=deep: t.update({k: v}))
            yield Case("components", f"{name} {key} nested 60 deep", REFUSED, make, RUNS)


def _top(key: str, value: Any) -> str:
    if key in ("version", "truncation", "padding"):
        return RUNS
    if key == "added_tokens":  # none: their texts are in the vocabulary
        return REFUSED if isinstance(value, list) and value else RUNS
    if key in ("pre_tokenizer", "post_processor") and value is None:
        return RUNS
    if key == "post_processor" and isinstance(value, dict):
        return RUNS
    return REFUSED


def _model(key: str, value: Any) -> str:
    if key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        return (
            RUNS
            if value is None
            or (key == "dropout" and value == 0 and value is not False)
            or (key != "dropout" and value == "")
            else REFUSED
        )
    if key == "byte_fallback":
        return RUNS if value is True else REFUSED
    if key in ("unk_token", "fuse_unk"):
        return RUNS
    if key == "merges" and value == []:
        return RUNS
    return REFUSED


def _component(name: str, key: str, kind: str) -> str:
    if key == "post_processor":
        return REFUSED if kind == "Sequence" else RUNS
    if name == "raw":
        return RUNS if (key, kind) == ("decoder", "ByteFallback") else REFUSED
    if key == "decoder":
        return RUNS if kind == "ByteLevel" else REFUSED
    return RUNS if (key, kind) in (("normalizer", "NFC"), ("normalizer", "ByteLevel")) else REFUSED


def _vocabulary() -> Iterator[Case]:
    def vocab(change: Change) -> Make:
        return raw(lambda t: change(t["model"]["vocab"]))

    for index in (
        -1,
        0,
        1,
        262,
        264,
        300,
        70000,
        2**22 - 1,
        2**22,
        2**31,
        2**32,
        2**63,
        2**64,
        1.0,
        "263",
        None,
        True,
        [263],
    ):
        expect = REFUSED
        if index in (264, 300) and type(index) is int:
            expect = REFUSED  # beyond the embedding
        yield Case("ids", f"xa = {index!r}", expect, vocab(lambda v, i=index: v.update(xa=i)), RUNS)
    yield Case("ids", "one is missing", REFUSED, vocab(lambda v: v.pop("a")), RUNS)
    yield Case("ids", "a byte's token is missing", REFUSED, vocab(lambda v: v.pop("<0x41>")), RUNS)
    yield Case("ids", "<unk> is missing", REFUSED, vocab(lambda v: v.pop("<unk>")), RUNS)
    yield Case("ids", "two tokens of one id", REFUSED, vocab(lambda v: v.update(xa=v["a"])), RUNS)
    yield Case("ids", "all of id 0", REFUSED, vocab(lambda v: v.update(dict.fromkeys(v, 0))), RUNS)
    yield Case("ids", "no tokens", REFUSED, vocab(lambda v: v.clear()), RUNS)
    for piece in (
        "",
        "\x00",
        "\n",
        "\u202e",
        "y" * (1 << 19),
        "\U0010ffff",
        "<0x-1>",
        "<0xZZ>",
        " ",
    ):
        # One token more than the embedding has rows.
        expect = REFUSED
        yield Case("ids", f"with {piece!r:.20} of {len(piece)}", expect,
                   vocab(lambda v, p=piece: v.update({p: 264})), RUNS)  # fmt: skip

        def renamed(v: dict[str, Any], p: str = piece) -> None:
            v.pop("xa")
            v[p] = 263

        # A merge names the piece that is gone.
        yield Case(
            "ids", f"{piece!r:.20} of {len(piece)} for a merged one", REFUSED, vocab(renamed), RUNS
        )
    for merges in (
        ["▁ x"],
        ["x"],
        [""],
        [" "],
        ["▁  x"],
        ["▁ x a"],
        ["q q"],
        ["a ▁"],
        [["▁", "x"]],
        [["▁"]],
        [["▁", "x", "a"]],
        [[]],
        [None],
        [1],
        [["▁", 1]],
        [["▁", None]],
        [[["▁"], "x"]],
        [{}],
        ["▁ x"] * 100_000,
        [["q", "q"]],
        ["\ud800 x"],
        ["▁ x", ["x", "a"]],
        ["x" * (1 << 19) + " a"],
        [["", "x"]],
        [["x", ""]],
        ["x \x00"],
    ):
        good = merges[0] in ("▁ x", ["▁", "x"])
        short = repr(merges) if len(repr(merges)) < 40 else f"{repr(merges)[:20]}… {len(merges)}"
        make = raw(lambda t, m=merges: t["model"].update(merges=m))
        yield Case("ids", f"merges {short}", RUNS if good else REFUSED, make, RUNS)


def _added_tokens() -> Iterator[Case]:
    fields: dict[str, list[Any]] = {
        "id": [-1, 3, 263, 264, 300, 2**22, 2**31, 2**64, 1.0, "1", None, True, []],
        "content": [
            "",
            "x",
            "a",
            "\x00",
            "<0x41>",
            "y" * 300_000,
            "z" * (2 << 20),
            1,
            None,
            [],
            "\ud800",
        ],
        "special": [None, 1, "yes", [], False],
        "lstrip": [None, 1, True],
        "rstrip": [None, 1, True],
        "normalized": [None, "x", True],
        "single_word": [None, 0, True],
    }
    for key, values in fields.items():
        for value in values:
            make = raw(lambda t, k=key, v=value: t["added_tokens"][1].update({k: v}))
            yield Case("added tokens", f"{key} = {value!r:.30}", _added(key, value), make, RUNS)
        make = raw(lambda t, k=key: t["added_tokens"][1].pop(k))
        yield Case(
            "added tokens",
            f"without {key}",
            REFUSED if key in ("id", "content") else RUNS,
            make,
            RUNS,
        )
    extra: dict[str, tuple[list[Any], str]] = {
        "one more": ([added("<|more|>", 264, True)], RUNS),  # special: no text becomes it
        "one that is ordinary": ([added("<|more|>", 264, False)], RUNS),
        "one of a far id": ([added("<|more|>", 265, True)], REFUSED),
        "one twice": ([added("<|more|>", 264, True)] * 2, RUNS),
        "two of one id": ([added("<|a|>", 264, True), added("<|b|>", 264, True)], REFUSED),
        "16000": ([added(f"<|{i}|>", 264 + i, True) for i in range(16000)], RUNS),
        "17000": ([added(f"<|{i}|>", 264 + i, True) for i in range(17000)], REFUSED),
        "16000 that begin alike": (
            [added("<" * 200 + f"{i}", 264 + i, True) for i in range(16000)],
            RUNS,
        ),
        "16000 lengths": ([added("x" * (i + 2), 264 + i, False) for i in range(4000)], RUNS),
        "one of 900 KiB": ([added("z" * 900_000, 264, True)], RUNS),
        "spaces only": ([added("   ", 264, True)], RUNS),
        "no object": ([1], REFUSED),
        "null": ([None], REFUSED),
        "a list": ([[]], REFUSED),
    }
    for what, (more, expect) in extra.items():
        make = raw(lambda t, m=more: t["added_tokens"].extend(m))
        yield Case("added tokens", what, expect, make, RUNS)


def _added(key: str, value: Any) -> str:
    if key in ("id", "content"):
        # The vocabulary has <s> as 1; another text or id contradicts it.
        return RUNS if value is True or value == "" else REFUSED
    return RUNS if isinstance(value, bool) else REFUSED


def _patterns() -> Iterator[Case]:
    """Expressions that a backtracking engine never ends with, and ones that are no expressions."""
    patterns = {
        "(a+)+$": RUNS,
        "(a|a)*b": RUNS,
        "(x+x+)+y": RUNS,
        "((x*)*)*y": RUNS,
        "(?:x?){60}x{60}": EITHER,
        r"(\w+\s?)*$": RUNS,
        "x{1,100000}": EITHER,
        "x{99999999}": EITHER,
        "(((x{100}){100}){100}){100}": EITHER,
        "(": REFUSED,
        "[": REFUSED,
        "*": EITHER,
        "(?<=x*)y": EITHER,
        r"\p{Nothing}": EITHER,
        "(?P<": EITHER,
        "": EITHER,
        "\x00": EITHER,
        "(?i)" * 5000: EITHER,
        "(" * 5000 + ")" * 5000: EITHER,
        "x" * 100_000: EITHER,
        r"(x)\1*\1*\1*y": EITHER,
        "(?R)": EITHER,
        r"\G": EITHER,
    }
    for pattern, expect in patterns.items():
        parts = {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            },
            "normalizer": {"type": "Replace", "pattern": {"Regex": pattern}, "content": "x"},
        }
        for key, part in parts.items():

            def change(t: dict[str, Any], k: str = key, p: Any = part) -> None:
                if k == "pre_tokenizer":
                    last = t["pre_tokenizer"]
                    t[k] = {"type": "Sequence", "pretokenizers": [p, last]}
                else:
                    t[k] = p

            yield Case(
                "patterns", f"{key} {pattern[:24]!r} of {len(pattern)}", expect, pairs(change), RUNS
            )
            yield Case("patterns", f"raw {key} {pattern[:24]!r} of {len(pattern)}", REFUSED,
                       raw(lambda t, k=key, p=part: t.update({k: p})), RUNS)  # fmt: skip


def _growing() -> Iterator[Case]:
    """Normalizers whose output is much longer than their input."""
    for times, n, expect in ((8, 1, RUNS), (9, 1, REFUSED), (2, 3, RUNS), (2, 4, REFUSED),
                             (100, 1, REFUSED), (100, 20, REFUSED), (2, 60, REFUSED),
                             (10**6, 1, REFUSED)):  # fmt: skip
        step = {"type": "Replace", "pattern": {"String": "x"}, "content": "x" * times}
        many = {"type": "Sequence", "normalizers": [step] * n}
        yield Case(
            "growing",
            f"byte-level x{times}, {n} times",
            expect,
            pairs(lambda t, m=many: t.update(normalizer=m)),
            RUNS,
            prompt="x" * 7,
        )

        def change(t: dict[str, Any], n: int = n, step: Any = step) -> None:
            t["normalizer"]["normalizers"].extend([step] * n)

        # Short texts may grow by more: 63 letters just fit the context.
        grown = RUNS if times**n == 9 else expect
        yield Case(
            "growing",
            f"raw x{times}, {n} times",
            USAGE if grown == REFUSED and times**n < 140 else grown,
            raw(change),
            RUNS,
            prompt="x" * 7,
        )
    for prefix, expect in (
        ("", RUNS),
        ("▁", RUNS),
        ("\x00", RUNS),
        ("x" * 50, RUNS),
        ("x" * 65, REFUSED),
        ("x" * 1000, REFUSED),
        ("x" * 500_000, REFUSED),
    ):

        def prepend(t: dict[str, Any], p: str = prefix) -> None:
            t["normalizer"]["normalizers"][0]["prepend"] = p

        yield Case(
            "growing", f"a prefix of {len(prefix)} {prefix[:1]!r}", expect, raw(prepend), RUNS
        )


def _texts() -> Iterator[Case]:
    size = len(json.dumps(raw_tokenizer(), ensure_ascii=False))
    for cut in range(0, size - 1, max(1, size // 150)):
        yield Case("tokenizer text", f"cut off at {cut} of {size}", REFUSED,
                   text(lambda t, c=cut: t[:c]), RUNS)  # fmt: skip
    changes: dict[str, tuple[Callable[[str], str | bytes], str]] = {
        "the model twice": (lambda t: t[:-1] + ',"model": {}}', REFUSED),
        "vocab twice": (lambda t: t.replace('"vocab":', '"vocab": {}, "vocab":'), REFUSED),
        "merges twice": (lambda t: t.replace('"merges":', '"merges": [], "merges":'), REFUSED),
        "merges before vocab": (_merges_first, RUNS),
        "the model first": (_model_first, RUNS),
        "a token twice": (lambda t: t.replace('"a": 262', '"a": 262, "a": 262'), REFUSED),
        "a token twice, once in escapes": (
            lambda t: t.replace('"a": 262', '"a": 262, "\\u0061": 262'),
            REFUSED,
        ),
        "a number of 30 digits": (lambda t: t.replace(": 262", ": " + "9" * 30), REFUSED),
        "a number with a point": (lambda t: t.replace(": 262", ": 262.0"), REFUSED),
        "a leading zero": (lambda t: t.replace(": 262", ": 0262"), EITHER),
        "text behind it": (lambda t: t + "x", REFUSED),
        "unknown members": (lambda t: t[:-1] + ',"x": [[[1, {"y": null}]]]}', RUNS),
        "unknown members, 100000 deep": (
            lambda t: t[:-1] + ',"x": ' + "[" * 10**5 + "]" * 10**5 + "}",
            REFUSED,
        ),
        "300000 unknown values": (lambda t: t[:-1] + ',"x": [' + "1," * 300_000 + "1]}", REFUSED),
        "a lone surrogate": (lambda t: t.replace('"a": 262', '"\\ud800": 262'), REFUSED),
        "half an escape": (lambda t: t.replace('"a": 262', '"\\u00": 262'), REFUSED),
        "a newline in a string": (lambda t: t.replace('"a": 262', '"a\n": 262'), REFUSED),
        "NaN": (lambda t: t.replace('"dropout": null', '"dropout": NaN'), REFUSED),
        "1e999": (lambda t: t.replace('"dropout": null', '"dropout": 1e999'), REFUSED),
        "not UTF-8": (lambda t: t.encode().replace(b'"a": 262', b'"\xff": 262'), REFUSED),
        "8 MiB of white space": (lambda t: t.replace("{", "{" + " " * (8 << 20), 1), RUNS),
    }
    for what, (change, expect) in changes.items():
        yield Case("tokenizer text", what, expect, text(change), RUNS)


def _merges_first(whole: str) -> str:
    value = json.loads(whole)
    model = value["model"]
    value["model"] = {"merges": model.pop("merges"), **model}
    return json.dumps(value)


def _model_first(whole: str) -> str:
    value = json.loads(whole)
    return json.dumps({"model": value.pop("model"), **value})


def cases() -> Iterator[Case]:
    """All files of these families."""
    assert RAW_PIECES[262] == "a"
    yield from _fields()
    yield from _vocabulary()
    yield from _added_tokens()
    yield from _patterns()
    yield from _growing()
    yield from _texts()
