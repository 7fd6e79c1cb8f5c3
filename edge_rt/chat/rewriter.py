"""Rewriting of a parsed chat template, so that it charges for what it does.

Bodies that can run more than once begin with a charge for their nodes, and what compiled templates
would leave to Python by itself (``str``, ``==``, ``in``, hashing, slicing, ``*args``) becomes a
filter of our own. Only nodes that chat templates use are let through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from jinja2 import nodes
from jinja2.exceptions import SecurityError

from edge_rt.chat.functions import checked_int

_MAX_NESTING: Final = 150  # of nodes: Jinja and Python compile recursively
_ALLOWED_NODES: Final = frozenset((
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.NSRef, nodes.Const,
    nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.CondExpr, nodes.Filter,
    nodes.Test, nodes.Call, nodes.Getitem, nodes.Getattr, nodes.Slice, nodes.Concat, nodes.Compare,
    nodes.Operand, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Add, nodes.Sub, nodes.Mod,
    nodes.Pow, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.For, nodes.If,
    nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.With, nodes.Assign, nodes.AssignBlock,
    nodes.ExprStmt, nodes.Scope, nodes.Continue, nodes.Break,
))  # fmt: skip
# Bodies that run on their own, with the fields evaluated along.
_BODIES: Final[dict[type[nodes.Node], tuple[str, ...]]] = {
    nodes.For: ("body", "else_"),
    nodes.If: ("body", "else_"),
    nodes.Macro: ("body", "args", "defaults"),
    nodes.CallBlock: ("body", "args", "defaults"),
}
# Names of our own filters; templates cannot write them, and `Sandbox.call_filter` refuses them.
TICK, TEXT, WALKED, CONTAINS, SLICED, SPREAD = (
    f"edge-rt {name}" for name in ("tick", "text", "walked", "contains", "sliced", "spread")
)


def _call(name: str, value: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


def _tick(steps: int, n_bytes: int, line: int) -> nodes.Filter:
    return _call(TICK, nodes.Const(steps, lineno=line), nodes.Const(n_bytes, lineno=line))


def _is_text(node: nodes.Node) -> bool:
    return isinstance(node, nodes.TemplateData) or (
        isinstance(node, nodes.Const) and isinstance(node.value, str)
    )


class Rewriter:
    """Bounds a parsed template; `visit` returns the new node and the cost of evaluating it."""

    def visit(self, node: Any, depth: int) -> tuple[Any, int, int]:
        kind = type(node)
        if kind not in _ALLOWED_NODES:
            raise SecurityError(f"{kind.__name__} is not supported in chat templates")
        if depth > _MAX_NESTING:
            raise SecurityError(f"it is nested more than {_MAX_NESTING} deep")
        if isinstance(node, nodes.Const):
            checked_int(node.value)
        steps, n_bytes = 1, 0
        apart = _BODIES.get(kind, ())
        body_steps = body_bytes = 1
        for name, value in list(node.iter_fields()):
            children = value if isinstance(value, list) else [value]
            done = []
            for child in children:
                if isinstance(child, nodes.Node):
                    child, child_steps, child_bytes = self.visit(child, depth + 1)
                    if name in apart:
                        body_steps, body_bytes = body_steps + child_steps, body_bytes + child_bytes
                    elif name != "test" or kind is not nodes.For:
                        steps, n_bytes = steps + child_steps, n_bytes + child_bytes
                    else:
                        child = nodes.And(
                            _tick(child_steps, child_bytes, node.lineno), child, lineno=node.lineno
                        )
                done.append(child)
            if isinstance(value, list):
                setattr(node, name, done)
            else:
                setattr(node, name, done[0])
        if apart:
            self._charge_bodies(node, body_steps, body_bytes)
        rewrite: Callable[[Any], Any] | None = getattr(self, f"_{kind.__name__.lower()}", None)
        # Other values that a node makes are transient, or charged by what makes them.
        if isinstance(node, nodes.List | nodes.Tuple):
            n_bytes += 80 * len(node.items) + 80
        elif isinstance(node, nodes.Dict):
            n_bytes += 180 * len(node.items) + 240
        return (rewrite(node) if rewrite else node), steps, n_bytes

    def _charge_bodies(self, node: Any, steps: int, n_bytes: int) -> None:
        for name in ("body", "else_"):
            body: list[nodes.Node] = getattr(node, name, [])
            if name == "body" or body:
                tick = nodes.ExprStmt(_tick(steps, n_bytes, node.lineno), lineno=node.lineno)
                body.insert(0, tick)

    def _output(self, node: nodes.Output) -> nodes.Node:
        node.nodes = [n if _is_text(n) else _call(TEXT, n) for n in node.nodes]
        return node

    def _concat(self, node: nodes.Concat) -> nodes.Node:
        node.nodes = [_call(TEXT, n) for n in node.nodes]
        return node

    def _compare(self, node: nodes.Compare) -> nodes.Node:
        if any(operand.op in ("in", "notin") for operand in node.ops):
            if len(node.ops) > 1:
                raise SecurityError("chained comparisons with 'in' are not supported")
            found = _call(CONTAINS, node.expr, node.ops[0].expr)
            return nodes.Not(found, lineno=node.lineno) if node.ops[0].op == "notin" else found
        parts: list[Any] = [node, *node.ops]
        for part in parts:
            if not isinstance(part.expr, nodes.Const):
                part.expr = _call(WALKED, part.expr)
        return node

    def _pair(self, node: nodes.Pair) -> nodes.Node:
        if not isinstance(node.key, nodes.Const):
            node.key = _call(WALKED, node.key)
        return node

    def _getitem(self, node: nodes.Getitem) -> nodes.Node:
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        nothing = nodes.Const(None, lineno=node.lineno)
        return _call(SLICED, node.node, *(bound or nothing for bound in bounds))

    def _call(self, node: Any) -> Any:
        for name in ("dyn_args", "dyn_kwargs"):
            if (value := getattr(node, name)) is not None:
                setattr(node, name, _call(SPREAD, value))
        return node

    _filter = _test = _call
