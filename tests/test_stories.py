"""stories260K against its golden texts and llama.cpp's perplexity: a whole model, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_rt import Engine
from edge_rt.perplexity import perplexity, read_text

# llama2.c, doc/stories260K.md: greedy, 256 tokens from BOS alone.
GOLDEN = Path(__file__).parent / "goldens/stories260K.txt"
FIRST_SENTENCE = [403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426]
ZOO = (
    "Zoo was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but she didn't want to play with"
)
# llama-cpp-python 0.3.36: 4 windows of 512 tokens, F32 weights, f16 KV cache.
TINYSTORIES_PPL = 6.6656


def test_golden_text_from_bos(stories_model: Path) -> None:
    with Engine(stories_model, ram="4GiB") as engine:
        assert engine.encode_prompt("") == [1]
        done = engine.generate("", max_tokens=256)
    assert done.tokens[: len(FIRST_SENTENCE)] == FIRST_SENTENCE
    assert done.text == GOLDEN.read_text().rstrip("\n")
    assert (len(done.tokens), done.finish_reason) == (256, "length")


@pytest.mark.parametrize(
    "options", [{}, {"weight_cap": "0"}, {"kv": "f32"}, {"threads": 1}], ids=str
)
def test_golden_text_of_a_prompt(stories_model: Path, options: dict) -> None:
    with Engine(stories_model, ram="4GiB", **options) as engine:
        text = "Zoo" + engine.generate("Zoo", max_tokens=64).text
    assert text.startswith(ZOO)


@pytest.mark.parametrize("weight_cap", [None, "0"])
def test_perplexity_is_llama_cpps(
    stories_model: Path, shared_data: Path, weight_cap: str | None
) -> None:
    text = shared_data / "texts/tinystories_valid_excerpt.txt"
    with Engine(stories_model, ram="4GiB", ctx=512, weight_cap=weight_cap) as engine:
        result = perplexity(engine, read_text(text), 512, chunks=4)
    # llama-perplexity scores the predictions 256 .. 510 of each window.
    assert (result.chunks, result.tokens) == (4, 4 * 255)
    assert result.ppl == pytest.approx(TINYSTORIES_PPL, rel=1e-3)
