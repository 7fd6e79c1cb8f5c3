"""Declared ceilings: what each role other than the arena may hold, whatever the machine.

`floor_bytes` must not depend on luck, so it is made of these constants; tests measure that reality
stays below each. Bytes are resident memory (VmHWM) plus kernel memory charged to us.
"""

from __future__ import annotations

from edge_rt.sizes import KIB, MIB, align_up
from edge_rt.tokenizer_cost import tokenizer_bytes

__all__ = ["baseline_bytes", "kernel_bytes", "tokenizer_bytes"]

# CPython, our extensions, typer, jinja2 and the tokenizers library, imported and idle.
INTERPRETER_BYTES = 32 * MIB
# Growth of Python's and malloc's heaps after the arena is sized: prompts, answers, templates.
SLACK_BYTES = 4 * MIB
# What a measured baseline does not show yet: the tokenizer's word caches (2.4 MiB at most) and the
# code pages that only a running model touches; and jinja2, where no chat was prepared so far.
UNSEEN_BYTES = 3 * MIB
UNSEEN_CHAT_BYTES = 6 * MIB
# A thread's touched stack and the kernel's stack and task structures for it.
COMPUTE_THREAD_BYTES = 64 * KIB
READ_THREAD_BYTES = 64 * KIB
# Kernel memory of a process that has no arena yet: page tables, files, mappings.
KERNEL_BASE_BYTES = 1536 * KIB
# NumPy in a process that did not import it (only `logits` and `iter_logits` do).
NUMPY_BYTES = 26 * MIB


def baseline_bytes(resident: int, chat_is_loaded: bool) -> int:
    """What a process with a built tokenizer will hold besides its arena, from its RSS now.

    Rounded to whole MiB, so that equal runs get equal plans.
    """
    return align_up(resident + UNSEEN_BYTES + (0 if chat_is_loaded else UNSEEN_CHAT_BYTES), MIB)


def kernel_bytes(arena_bytes: int) -> int:
    """Kernel memory for a process with an arena: page tables take 8 bytes per 4 KiB page."""
    return KERNEL_BASE_BYTES + arena_bytes // 512
