"""Declared ceilings: what each role other than the arena may hold, whatever the machine.

`floor_bytes` must not depend on luck, so it is made of these constants; tests measure that reality
stays below each. Bytes are resident memory (VmHWM) plus kernel memory charged to us.
"""

from __future__ import annotations

from edge_rt.loaders.gguf import GGUFFile
from edge_rt.sizes import KIB, MIB
from edge_rt.tokenizer_cost import tokenizer_ceilings

# CPython, our extensions, typer, jinja2 and the tokenizers library, imported and idle.
INTERPRETER_BYTES = 34 * MIB
# Growth of Python's and malloc's heaps after the arena is sized: prompts, answers, templates.
SLACK_BYTES = 4 * MIB
# A thread's touched stack and the kernel's stack and task structures for it.
COMPUTE_THREAD_BYTES = 64 * KIB
READ_THREAD_BYTES = 64 * KIB
# Kernel memory of a process that has no arena yet: page tables, files, mappings.
KERNEL_BASE_BYTES = 1536 * KIB
# NumPy in a process that did not import it (only `logits` and `iter_logits` do).
NUMPY_BYTES = 26 * MIB


def kernel_bytes(arena_bytes: int) -> int:
    """Kernel memory for a process with an arena: page tables take 8 bytes per 4 KiB page."""
    return KERNEL_BASE_BYTES + arena_bytes // 512


def tokenizer_bytes(source: GGUFFile) -> tuple[int, int]:
    """Ceilings of (build peak, what stays) for the tokenizer in ``source``, 0 where it has none."""
    tokens = source.get_array("tokenizer.ggml.tokens", None)
    if tokens is None:
        return 0, 0
    merges = source.get_array("tokenizer.ggml.merges", None)
    n_merges = len(merges) if merges is not None else 0
    return tokenizer_ceilings(len(tokens), n_merges, tokens.n_bytes - 8 * len(tokens))
