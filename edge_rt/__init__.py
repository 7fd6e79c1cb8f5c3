"""edge-rt: language models inside a hard RAM budget.

``Engine``, ``Tokenizer`` and ``ChatTemplate`` are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_rt.chat.template import ChatTemplate
    from edge_rt.engine import Engine
    from edge_rt.errors import BudgetError, EdgeRTError, ModelError, StorageError, UsageError
    from edge_rt.generation import Completion
    from edge_rt.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = [
    "BudgetError", "ChatTemplate", "Completion", "EdgeRTError", "Engine", "ModelError",
    "StorageError", "Tokenizer", "UsageError",
]  # fmt: skip

_HOMES = {
    "ChatTemplate": "chat.template",
    "Completion": "generation",
    "Engine": "engine",
    "Tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edge_rt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"edge_rt.{_HOMES.get(name, 'errors')}"), name)
