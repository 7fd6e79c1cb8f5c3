"""Models against llama.cpp's recorded answers (scripts/make_goldens.py regenerates them).

The demo model: llama.cpp itself, with another KV type or batch size, differs from its own record by
a mean KL of 0.0035 and in 3.8 % of the likeliest tokens: both engines round activations to int8,
and any change in the order of summation draws that rounding anew (docs/measurements.md). The bounds
here are a little above that noise.

Tiny F32 models of every architecture: ours is within 1e-4 of transformers
(test_parity_transformers.py), llama.cpp within the noise recorded with its logits, so ours is
within the sum of llama.cpp. The noise is 2e-6 to 6e-5; 1.1e-4 for one Ministral 3 model; 2e-3 to
1.1e-2 for Gemma, whose GELU llama.cpp looks up in a table of float16 (docs/parity.md).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from edge_rt import Engine

from .parity import gguf_models
from .parity.variants import VARIANTS
from .parity.weights import token_ids

GOLDEN = Path(__file__).parent / "goldens/smollm2_llama_cpp.npz"
FIRST, LAST = 256, 511  # scored positions of a window of 512
ARCHITECTURES = np.load(Path(__file__).parent / "goldens/architectures_llama_cpp.npz")
NOISE = json.loads(str(ARCHITECTURES["settings"]))["variants"]
OURS = 1e-4  # the largest difference to transformers that our own tests accept


@pytest.fixture(scope="module")
def scored(demo_model):
    """Our log-probabilities at the scored positions: what the comparisons need of each row."""
    golden = np.load(GOLDEN)
    detail = {int(row): i for i, row in enumerate(golden["kl_index"])}
    nll, top1 = np.empty((8, 255)), np.empty((8, 255), int)
    logp = np.empty(golden["kl_ids"].shape)
    row_logits = np.empty(49152, np.float32)
    with Engine(demo_model, ram="4GiB", ctx=512) as engine:
        for window, ids in enumerate(golden["ids"].astype(int).tolist()):
            for index, row in engine.score_rows(ids[:LAST], FIRST):
                engine._running().copy_logits(row, row_logits)
                x = row_logits.astype(np.float64)
                x -= x.max() + np.log(np.exp(x - x.max()).sum())
                place = index - FIRST
                nll[window, place] = -x[ids[index + 1]]
                top1[window, place] = x.argmax()
                if (flat := window * 255 + place) in detail:
                    logp[detail[flat]] = x[golden["kl_ids"][detail[flat]].astype(int)]
    return golden, nll, top1, logp


def test_perplexity(scored):
    golden, nll, _, _ = scored
    ppl = float(np.exp(nll.mean()))
    assert abs(ppl / 24.608 - 1) < 0.005  # the published reference
    assert abs(ppl / golden["ppl"][-1] - 1) < 0.005


def test_each_prediction(scored):
    golden, nll, top1, _ = scored
    assert np.abs(nll - golden["nll"]).mean() < 0.065
    assert (top1 == golden["top1"]).mean() > 0.94


def test_kl_divergence(scored):
    """KL over llama.cpp's 32 likeliest tokens and the mass of all others."""
    golden, _, _, logp = scored
    log_p, log_q = golden["kl_logp"].astype(np.float64), logp
    rest_p, rest_q = (np.clip(1 - np.exp(x).sum(1), 1e-9, 1) for x in (log_p, log_q))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(1) + rest_p * np.log(rest_p / rest_q)
    assert kl.mean() < 0.005
    assert np.quantile(kl, 0.99) < 0.06


def test_greedy_continuations(demo_model):
    """Greedy texts begin alike; where they part, it is by a near-tie."""
    golden = np.load(GOLDEN)
    texts = json.loads(str(golden["settings"]))
    assert texts["flash_attn"] is False
    with Engine(demo_model, ram="4GiB", ctx=512) as engine:
        same = []
        for prompt, expected in zip(golden["prompt_ids"], golden["greedy_ids"], strict=True):
            ids = [int(i) for i in prompt if i >= 0]
            ours = engine.generate(ids, max_tokens=48, ignore_eos=True).tokens
            pairs = zip(ours, expected.tolist(), strict=True)
            same.append(next((i for i, (a, b) in enumerate(pairs) if a != b), 48))
    assert min(same) >= 3 and max(same) >= 16, same


def test_every_gguf_has_a_golden():
    assert set(NOISE) == {name for name, variant in VARIANTS.items() if variant.gguf is not None}


@pytest.mark.parametrize("name", NOISE)
def test_each_architecture(name, tmp_path):
    variant, golden = VARIANTS[name], NOISE[name]
    path = gguf_models.write(variant, tmp_path / f"{name}.gguf")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == golden["sha256"], "another model"
    with Engine(path, ram="4GiB", ctx=variant.tokens, kv="f32") as engine:
        found = engine.logits(token_ids(variant).tolist())[golden["rows"], ::2]
    expected = ARCHITECTURES[name]
    assert found.shape == expected.shape and expected.std() > 0.5
    assert np.abs(found - expected).max() <= OURS + golden["noise"]
