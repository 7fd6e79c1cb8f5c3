"""Compare two dumps of logits: KL(reference || ours) per position, and how often top-1 agrees.

    python scripts/compare_kl.py LLAMA.npy OURS.npy [--scored] [--json]

Both are (positions, vocab) arrays of float16 or float32; they are mapped, not loaded. A callable
that yields rows can stand in for ours: ``compare(reference, rows)``. ``--scored`` keeps positions
256..510 of each window of 512, the ones that perplexity counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Rows = Iterable[npt.NDArray[np.floating]]


@dataclass(frozen=True)
class Comparison:
    """KL in nats over ``positions`` next-token distributions."""

    positions: int
    kl_mean: float
    kl_median: float
    kl_p999: float
    kl_max: float
    same_top1_percent: float
    logit_rms_difference: float


def _log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = x - x.max()
    return np.asarray(x - np.log(np.exp(x).sum()))


def compare(reference: Rows, ours: Rows | Callable[[], Rows]) -> Comparison:
    """Compare rows (vocab,) in step; both must have the same number of them."""
    rows = ours() if callable(ours) else ours
    kl: list[float] = []
    squares: list[float] = []
    same = 0
    for p_row, q_row in zip(reference, rows, strict=True):
        p64, q64 = np.asarray(p_row, np.float64), np.asarray(q_row, np.float64)
        if p64.shape != q64.shape or not (np.isfinite(p64).all() and np.isfinite(q64).all()):
            raise ValueError(f"row {len(kl)}: shapes differ or values are not finite")
        same += int(p64.argmax() == q64.argmax())
        log_p, log_q = _log_softmax(p64), _log_softmax(q64)
        kl.append(float((np.exp(log_p) * (log_p - log_q)).sum()))
        squares.append(float(np.square(p64 - q64).mean()))
    if not kl:
        raise ValueError("no rows to compare")
    return Comparison(
        positions=len(kl),
        kl_mean=float(np.mean(kl)),
        kl_median=float(np.median(kl)),
        kl_p999=float(np.quantile(kl, 0.999)),
        kl_max=float(np.max(kl)),
        same_top1_percent=100.0 * same / len(kl),
        logit_rms_difference=float(np.sqrt(np.mean(squares))),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("reference", type=Path)
    parser.add_argument("ours", type=Path)
    parser.add_argument("--scored", action="store_true", help="positions 256..510 of each 512")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    p, q = (np.load(path, mmap_mode="r") for path in (args.reference, args.ours))
    if p.shape != q.shape or p.ndim != 2:
        print(f"shapes differ: {p.shape} and {q.shape}", file=sys.stderr)
        return 2
    keep = [i for i in range(len(p)) if not args.scored or 256 <= i % 512 <= 510]
    result = compare((p[i] for i in keep), (q[i] for i in keep))
    if args.json:
        print(json.dumps(asdict(result)))
    else:
        for key, value in asdict(result).items():
            print(f"{key:22} {value:.6g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
