"""Every block format through the whole engine: embedding rows, products, tiles and streaming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_rt import Engine
from edge_rt.quant.blocks import FORMATS, BlockFormat

from .conftest import load_script

QUANTIZED = [fmt for fmt in FORMATS.values() if fmt.quantized]
IDS = [1, *((i * 97 + 11) % 250 + 3 for i in range(20))]


def logits(path: Path, **options: object) -> np.ndarray:
    with Engine(path, **{"ram": "2GiB", "ctx": 32, "threads": 2} | options) as engine:
        return engine.logits(IDS).copy()


@pytest.mark.parametrize("fmt", QUANTIZED, ids=lambda f: f.name)
def test_engine(fmt: BlockFormat, tmp_path: Path) -> None:
    """The format's logits are those of its dequantized weights but for int8 activations, and the
    same bits whether the weights are resident or streamed."""
    maker = load_script("make_model")
    config = maker.Config(
        layers=2, hidden=256, ffn=512, heads=4, kv_heads=2, head_dim=64, vocab=320, context=32,
        format=fmt.name, embedding_std=0.25,
    )  # fmt: skip
    model = maker.build(config, 11)
    model.write(tmp_path / "packed.gguf")
    maker.dequantized(model).write(tmp_path / "float.gguf")
    packed, floats = (logits(tmp_path / f"{name}.gguf") for name in ("packed", "float"))
    streamed = logits(tmp_path / "packed.gguf", weight_cap=0, threads=1)
    assert streamed.tobytes() == packed.tobytes()
    error = np.sqrt(np.square(packed - floats).mean()) / floats.std()
    assert 0 < error < 0.03, error
