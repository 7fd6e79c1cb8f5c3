"""Random schedules of requests, cancellations, closing, resizing and failing drives.

EDGE_RT_TEST_SCHEDULES=1000 runs a thousand; EDGE_RT_TEST_SEED repeats.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from .conftest import ROOT, load_script

N_SCHEDULES = int(os.environ.get("EDGE_RT_TEST_SCHEDULES", "60"))


def test_random_schedules(stories_model: Path, tmp_path: Path) -> None:
    seed = int(os.environ.get("EDGE_RT_TEST_SEED") or random.randrange(2**32))
    maker = load_script("make_model")
    config = maker.Config(  # windows whose KV rings wrap, several tiles
        arch="gemma3_text", layers=6, hidden=128, ffn=384, heads=4, kv_heads=2, head_dim=32,
        vocab=512, context=128, window=12, format="Q8_0",
    )  # fmt: skip
    windowed = tmp_path / "windowed.gguf"
    maker.build(config, 5).write(windowed)
    command = [
        sys.executable, str(ROOT / "tests/random_schedules.py"), str(stories_model), str(windowed),
        "--seed", str(seed), "--count", str(N_SCHEDULES),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert f"{N_SCHEDULES} schedules of seed {seed}" in done.stdout
