"""Declared ceilings: what each role other than the arena may hold, whatever the machine.

`floor_bytes` must not depend on luck, so it is made of these constants; tests measure that reality
stays below each. Bytes are resident memory (VmHWM) plus kernel memory charged to us.
"""

from __future__ import annotations

import re

from edge_rt.sizes import KIB, MIB, align_up

# CPython, our extensions and typer, imported, and a model's directory; no chat, no tokenizer.
INTERPRETER_BYTES = 25 * MIB
# Growth of Python's and malloc's heaps after the arena is sized: prompts, answers.
SLACK_BYTES = 3 * MIB
# A position of the context: the objects, lists and text of its token while a request runs.
CONTEXT_TOKEN_BYTES = 96
# What a measured baseline does not show yet: the tokenizer's word caches (2.4 MiB at most) and the
# code pages that only a running model touches.
UNSEEN_BYTES = 3 * MIB
# jinja2, imported with our sandbox, and a rendered conversation.
CHAT_BYTES = 7 * MIB
# What compiling makes of one lexeme of a template, and how many of them are not refused.
_LEXEME_BYTES = 3000
_MAX_LEXEMES = 4000
_LEXEME = re.compile(r"\w+|[^\w\s]")
# A thread's touched stack and the kernel's stack and task structures for it.
COMPUTE_THREAD_BYTES = 64 * KIB
READ_THREAD_BYTES = 64 * KIB
# Kernel memory of a process that has no arena yet: page tables, files, mappings.
KERNEL_BASE_BYTES = 1536 * KIB
# NumPy in a process that did not import it (only `logits` and `iter_logits` do).
NUMPY_BYTES = 26 * MIB


def baseline_bytes(resident: int) -> int:
    """What a process with a built tokenizer will hold besides arena and chat, from its RSS now.

    Rounded to whole MiB, so that equal runs get equal plans.
    """
    return align_up(resident + UNSEEN_BYTES, MIB)


def template_bytes(template: str) -> int:
    """A ceiling of what compiling a chat template takes, besides `CHAT_BYTES`."""
    # At least as many as Jinja's tokens, of which edge_rt.chat.sandbox allows no more.
    n_lexemes = sum(1 for _ in _LEXEME.finditer(template))
    return _LEXEME_BYTES * min(n_lexemes, _MAX_LEXEMES)


def kernel_bytes(arena_bytes: int) -> int:
    """Kernel memory for a process with an arena: page tables take 8 bytes per 4 KiB page."""
    return KERNEL_BASE_BYTES + arena_bytes // 512
