"""Write every variant, or those named, with its token ids and transformers' logits.

    python -m tests.parity DIR [VARIANT ...]

DIR/<variant>/ gets hf/, ids.npy, hf_logits.npy and, where a GGUF can say it, model.gguf and
gguf_logits.npy: transformers' logits of what the GGUF says. Needs torch and transformers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from . import gguf_models, hugging_face
from .variants import VARIANTS
from .weights import token_ids


def main(folder: Path, names: list[str]) -> None:
    for name in names or VARIANTS:
        variant, out = VARIANTS[name], folder / name
        out.mkdir(parents=True, exist_ok=True)
        ids = token_ids(variant)
        model = hugging_face.build(variant)
        logits = hugging_face.logits(model, ids)
        hugging_face.save(model, out / "hf")
        np.save(out / "ids.npy", ids)
        np.save(out / "hf_logits.npy", logits)
        if variant.gguf is not None:
            gguf_models.write(variant, out / "model.gguf")
            if variant.gguf:
                described = hugging_face.build(gguf_models.as_gguf_says(variant))
                logits = hugging_face.logits(described, ids)
            np.save(out / "gguf_logits.npy", logits)
        facts = {"llama_cpp_rows": variant.llama_cpp_rows, "llama_cpp_note": variant.llama_cpp_note}
        (out / "about.json").write_text(json.dumps(facts))
        print(f"{name}: logits of standard deviation {logits.std():.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
