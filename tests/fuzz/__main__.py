"""Fuzz a Python target under atheris: ``python tests/fuzz TARGET [libFuzzer's options] CORPUS``.

``scripts/fuzz.py`` starts this for all targets and reads what it prints.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What guides the search beside our own code.
ALSO = {"chat_template": ("jinja2.lexer", "jinja2.parser", "jinja2.compiler", "jinja2.sandbox")}


@contextmanager
def instrumented(prefixes: tuple[str, ...]) -> Iterator[None]:
    """Modules imported here report their branches, where their names have one of ``prefixes``.

    atheris's own import hook knows the loaders of Python, not those around them that an editable
    install has; all of them ask this one for the code.
    """
    import atheris

    original = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, fullname: str) -> types.CodeType | None:
        code = original(self, fullname)
        if code is None or not f"{fullname}.".startswith(prefixes):
            return code
        return atheris.patch_code(code, True)  # type: ignore[no-any-return]

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    try:
        yield
    finally:
        SourceFileLoader.get_code = original  # type: ignore[method-assign]


def main() -> None:
    # The checkout itself must not be on the path: it has edge_rt without its siblings.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    package = types.ModuleType("tests")
    package.__path__ = [str(HERE.parent)]
    sys.modules["tests"] = package
    name, *arguments = sys.argv[1:]
    prefixes = ("edge_rt", *ALSO.get(name, ()))
    with instrumented(tuple(f"{prefix}." for prefix in prefixes)):
        target = importlib.import_module(f"tests.fuzz.{name}")
        # Imported by those who need them, so not yet.
        for late in ("edge_rt.models.huggingface", "edge_rt.chat.sandbox"):
            importlib.import_module(late)
    from tests.fuzz import harness

    harness.fuzz(target, arguments)


if __name__ == "__main__":
    main()
