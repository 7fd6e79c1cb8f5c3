"""Make tests/goldens/tokenizers: two small vocabularies, and what llama.cpp makes of texts.

    python scripts/make_tokenizer_goldens.py LLAMA_PYTHON

LLAMA_PYTHON is an interpreter with llama-cpp-python; this one needs the tokenizers library. The
vocabularies are trained here on this repository's own documents and test texts, without any
splitting, so that many tokens reach over the places where pre-tokenizers cut: a wrong cut shows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import gguf_builder as g  # noqa: E402
from tokenizer_texts import texts  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # noqa: E402

from edge_rt.tokenizer.bpe import LETTER_OF_BYTE  # noqa: E402
from edge_rt.tokenizer.pre_tokenizers import PRE_TOKENIZERS  # noqa: E402

OUT = ROOT / "tests/goldens/tokenizers"
N_TEXTS = 100


def corpus() -> list[str]:
    """What the vocabularies are trained on."""
    documents = [path.read_text() for path in sorted(ROOT.glob("*.md"))]
    lines = [line for document in documents for line in document.splitlines()]
    # llama.cpp reads a token up to its first zero byte.
    return lines + [text.replace("\0", "") for text in texts(1000, 4000)]


def train(lines: list[str], alphabet: list[str], raw: bool) -> dict[str, Any]:
    """A byte-pair model as JSON; ``raw``: "▁" for spaces instead of the byte-level alphabet."""
    tokenizer = Tokenizer(models.BPE())
    if not raw:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=alphabet, limit_alphabet=600, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def vocabularies() -> None:
    lines = corpus()
    model = train(lines, LETTER_OF_BYTE, raw=False)
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(merge) for merge in model["merges"]]
    write("bytes", [*tokens, "<bos>"], merges, [1] * len(tokens) + [3], "gpt-2")

    model = train([line.replace(" ", "▁") for line in lines], list("▁\n"), raw=True)
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(merge) for merge in model["merges"]]
    types = [6] * 256 + [1] * len(model["vocab"])
    write("raw", [*pieces, "<bos>"], merges, [*types, 3], "gemma4")


def write(name: str, pieces: list[str], merges: list[str], types: list[int], pre: str) -> None:
    builder = g.bpe_vocabulary(pieces, merges, types, pre)
    builder.add("general.architecture", g.STRING, "llama")
    builder.add("tokenizer.ggml.bos_token_id", g.U32, len(pieces) - 1)
    builder.write(OUT / f"{name}.gguf")


def golden_texts() -> list[str]:
    """Short texts, the same whenever this runs."""
    return [text for text in texts(7, 1000) if len(text) <= 40][:N_TEXTS]


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    vocabularies()
    wanted = golden_texts()
    runs = [
        {"file": str(OUT / ("raw.gguf" if pre.raw else "bytes.gguf")), "pre": name}
        for name, pre in PRE_TOKENIZERS.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        request, response = Path(folder) / "request.json", Path(folder) / "response.json"
        request.write_text(json.dumps({"texts": wanted, "special": False, "runs": runs}))
        script = ROOT / "scripts/llama_tokenize.py"
        subprocess.run([sys.argv[1], str(script), str(request), str(response)], check=True)
        found = json.loads(response.read_text())
    # Most names give the same ids for most texts: each list once, and its place by name.
    distinct: list[list[list[int]]] = [[] for _ in wanted]
    places: dict[str, str] = {}
    for run, result in zip(runs, found, strict=True):
        numbers = []
        for ids, lists in zip(result["ids"], distinct, strict=True):
            if ids not in lists:
                lists.append(ids)
            numbers.append("0123456789abcdefghijklmnopqrstuvwxyz"[lists.index(ids)])
        places[str(run["pre"])] = "".join(numbers)
    golden = {"texts": wanted, "ids": distinct, "names": places}
    (OUT / "pre.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
