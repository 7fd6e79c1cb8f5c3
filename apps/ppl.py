"""``edge-rt ppl``: perplexity of a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edge_rt.apps import options as o
from edge_rt.errors import UsageError


def ppl(
    model: o.Model = None,
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="UTF-8 text to score")] = None,
    ctx: Annotated[int, typer.Option(metavar="N", help="tokens per window")] = 512,
    chunks: Annotated[
        int | None, typer.Option(metavar="N", help="windows to score; all if omitted")
    ] = None,
    ram: o.Ram = None,
    threads: o.Threads = None,
    kv: o.Kv = "f16",
    io: o.Io = "auto",
    weight_cap: o.WeightCap = None,
    as_json: o.AsJson = False,
) -> None:
    """Score a text by the protocol of llama-perplexity."""
    if text is None:
        raise UsageError("give the text with --text FILE")
    if not text.is_file():
        raise UsageError(f"no such file: {text}")
    path = o.model_path(model)
    from edge_rt.perplexity import Perplexity, perplexity, read_text

    def show(now: Perplexity) -> None:
        if sys.stderr.isatty():
            print(f"\rwindow {now.chunks}: {now.ppl:.4f} ", end="", file=sys.stderr, flush=True)

    with o.open_engine(
        path,
        ram,
        ctx=ctx,
        threads=threads,
        kv=kv,
        io=io,
        weight_cap=weight_cap,
    ) as engine:
        result = perplexity(engine, read_text(text), ctx, chunks, show)
        peak = engine.memory()["peak"]
    if as_json:
        o.print_json(
            {
                "ppl": result.ppl,
                "nll": result.nll,
                "tokens": result.tokens,
                "chunks": result.chunks,
                "peak_rss_bytes": peak,
            }
        )
    else:
        print(f"ppl {result.ppl:.4f} over {result.chunks} windows of {ctx} tokens")
