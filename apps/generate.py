"""``edge-rt generate``: continue a raw text."""

from __future__ import annotations

import sys
from pathlib import Path

from edge_rt.apps import options as o
from edge_rt.errors import UsageError

_MAX_PROMPT_BYTES = 16 * 1024 * 1024  # far beyond any context; a device file has no end


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The text of ``-p`` (``-``: stdin) or ``-f``."""
    if (prompt is None) == (file is None):
        raise UsageError("give the prompt with -p TEXT (-p - reads stdin) or -f FILE")
    try:
        if prompt == "-":
            data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
        elif prompt is not None:
            return prompt
        else:
            assert file is not None
            with file.open("rb") as stream:
                data = stream.read(_MAX_PROMPT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    if len(data) > _MAX_PROMPT_BYTES:
        raise UsageError("the prompt has more than 16 MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt is not UTF-8: {error.reason} at {error.start}") from None


def generate(
    model: o.Model = None,
    prompt: o.Prompt = None,
    file: o.PromptFile = None,
    ram: o.Ram = None,
    max_tokens: o.MaxTokens = 128,
    temp: o.Temp = 0.0,
    seed: o.Seed = None,
    ctx: o.Ctx = None,
    top_k: o.TopK = 0,
    top_p: o.TopP = 1.0,
    min_p: o.MinP = 0.0,
    repeat_penalty: o.RepeatPenalty = 1.0,
    presence_penalty: o.PresencePenalty = 0.0,
    frequency_penalty: o.FrequencyPenalty = 0.0,
    logit_bias: o.LogitBias = None,
    stop: o.Stop = None,
    ignore_eos: o.IgnoreEos = False,
    threads: o.Threads = None,
    kv: o.Kv = "f16",
    io: o.Io = "auto",
    weight_cap: o.WeightCap = None,
    as_json: o.AsJson = False,
) -> None:
    """Continue a text, taken as it is: no chat template is used."""
    text = read_prompt(prompt, file)
    bias = o.parse_bias(logit_bias)
    path = o.model_path(model)
    with o.open_engine(
        path,
        ram,
        ctx=ctx,
        threads=threads,
        kv=kv,
        io=io,
        weight_cap=weight_cap,
    ) as engine:
        stream = engine.stream(
            text,
            max_tokens,
            temperature=temp,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=bias,
            seed=seed,
            stop=stop or (),
            ignore_eos=ignore_eos,
        )
        for piece in stream:
            if not as_json:
                print(piece, end="", flush=True)
        if as_json:
            o.print_json(o.run_report(engine, stream.completion))
        else:
            print(flush=True)
