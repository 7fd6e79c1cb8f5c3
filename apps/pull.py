"""``edge-rt pull``: fetch a model."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_rt.demo import pull_demo
from edge_rt.errors import UsageError


def pull(
    name: Annotated[str, typer.Argument(metavar="demo", help="the demo model")],
) -> None:
    """Fetch the demo model (93.8 MiB, once) and print where it is."""
    if name != "demo":
        raise UsageError(f"cannot pull {name!r}: only `demo` can be fetched so far")
    print(pull_demo())
