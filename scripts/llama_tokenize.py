"""Token ids by llama.cpp, for comparison: run it with an interpreter that has llama-cpp-python.

Usage: python scripts/llama_tokenize.py REQUEST.json RESPONSE.json

The request is {"texts": [...], "special": bool, "runs": [{"file": GGUF, "pre": NAME or null}]};
with a name, a copy of the file with that ``tokenizer.ggml.pre`` is read instead. The response has
for each run its ids, one list for a text, and the ids that end a generation, or an error.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp


def with_pre(content: bytes, name: str) -> bytes:
    """A GGUF file's ``content`` with another ``tokenizer.ggml.pre`` (it must have one)."""
    key = b"tokenizer.ggml.pre"
    at = content.index(struct.pack("<Q", len(key)) + key + struct.pack("<I", 8)) + 8 + len(key) + 4
    (length,) = struct.unpack_from("<Q", content, at)
    value = name.encode()
    return content[:at] + struct.pack("<Q", len(value)) + value + content[at + 8 + length :]


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def quiet(level: int, text: bytes, data: Any) -> None:
    """llama.cpp's log is not wanted."""


def tokenize(path: Path, texts: list[str], special: bool) -> dict[str, Any]:
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        return {"error": "llama.cpp does not read it"}
    vocab = llama_cpp.llama_model_get_vocab(model)
    found = []
    for text in texts:
        raw = text.encode()
        room = len(raw) + 16
        buffer = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(vocab, raw, len(raw), buffer, room, False, special)
        found.append(list(buffer[:count]))
    n_tokens = llama_cpp.llama_vocab_n_tokens(vocab)
    ends = [i for i in range(n_tokens) if llama_cpp.llama_vocab_is_eog(vocab, i)]
    result = {
        "ids": found,
        "ends": ends,
        "bos": llama_cpp.llama_vocab_bos(vocab),
        "add_bos": bool(llama_cpp.llama_vocab_get_add_bos(vocab)),
    }
    llama_cpp.llama_model_free(model)
    return result


def main() -> None:
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    request = json.loads(Path(sys.argv[1]).read_text())
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for run in request["runs"]:
            path = Path(run["file"])
            if run.get("pre"):
                copy = Path(folder) / "vocabulary.gguf"
                copy.write_bytes(with_pre(path.read_bytes(), run["pre"]))
                path = copy
            runs.append(tokenize(path, request["texts"], request["special"]))
    Path(sys.argv[2]).write_text(json.dumps(runs))


if __name__ == "__main__":
    main()
