"""Mutants of Python source: every place where one small change makes a module say something else.

Changes: a comparison, arithmetic or bit operator becomes another; ``and`` becomes ``or`` and the reverse; ``not`` and
minus signs go; a condition is turned round; a number grows by one; True becomes False and the reverse; a string is
another; what is assigned or returned becomes None; a keyword argument is left out; a call that stands alone is left
out; ``break`` becomes ``continue`` and the reverse. Left alone are annotations, docstrings, decorators, the words of
errors, ``__future__`` imports and what only type checkers see.
"""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Callable, Iterator
from typing import NamedTuple

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}  # fmt: skip


class Mutant(NamedTuple):
    """One change of one module.

    Attributes:
        number: of the place among all places of the module, in order.
        line: where the changed statement begins.
        last_line: where it ends.
        what: the sort of change.
    """

    number: int
    line: int
    last_line: int
    what: str


Change = Callable[[], None]


def find_mutants(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of the source."""
    changes = _changes(ast.parse(source))
    return [Mutant(number, *_head(statement), what) for number, (statement, what, _) in enumerate(changes)]


def apply_mutant(source: str, number: int) -> ast.Module:
    """The module with one change made."""
    tree = ast.parse(source)
    for place, (_, _, change) in enumerate(_changes(tree)):
        if place == number:
            change()
            return ast.fix_missing_locations(tree)
    raise ValueError(f"number must be that of a mutant, got {number}")


def show_mutant(source: str, number: int) -> str:
    """The change as lines of a diff; of the code as Python writes it, without comments."""
    before = ast.unparse(ast.parse(source)).splitlines()
    after = ast.unparse(apply_mutant(source, number)).splitlines()
    changed = [line for line in difflib.unified_diff(before, after, n=0, lineterm="") if line[:3] not in ("---", "+++")]
    return "\n".join(line for line in changed if not line.startswith("@@"))


def _head(statement: ast.stmt) -> tuple[int, int]:
    """First and last line of a statement, without the statements inside of it."""
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
    return statement.lineno, max(last, statement.lineno)


def _changes(tree: ast.Module) -> Iterator[tuple[ast.stmt, str, Change]]:
    """Every change as (the statement that it is in, its sort, what makes it); none is found once one is made."""
    for node, statement in list(_walk(tree, tree.body[0])):
        for what, change in _of_node(node):
            yield statement, what, change


def _walk(node: ast.AST, statement: ast.stmt) -> Iterator[tuple[ast.AST, ast.stmt]]:
    for field, value in ast.iter_fields(node):
        if _is_left_alone(node, field):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _never_runs(child):
                here = child if isinstance(child, ast.stmt) else statement
                yield child, here
                yield from _walk(child, here)


def _is_left_alone(node: ast.AST, field: str) -> bool:
    if isinstance(node, ast.Raise):
        return True
    return field in ("annotation", "returns", "decorator_list", "format_spec")


def _never_runs(node: ast.AST) -> bool:
    return _is_docstring(node) or _is_for_types(node) or _is_kernel(node)


def _is_kernel(node: ast.AST) -> bool:
    """Triton reads a kernel from the text of its file: what is changed in memory is not what runs."""
    return isinstance(node, ast.FunctionDef) and "triton.jit" in map(ast.unparse, node.decorator_list)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _set(node: ast.AST, field: str, value: object) -> Change:
    return lambda: setattr(node, field, value)


def _of_node(node: ast.AST) -> Iterator[tuple[str, Change]]:
    if isinstance(node, ast.Constant):
        yield from _of_constant(node)
    elif isinstance(node, ast.stmt):
        yield from _of_statement(node)
    yield from _of_expression(node)


def _of_expression(node: ast.AST) -> Iterator[tuple[str, Change]]:  # noqa: C901  (one branch per sort of node)
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            if type(operator) in _COMPARE:
                yield "comparison", _put(node.ops, place, _COMPARE[type(operator)]())
    elif isinstance(node, (ast.BinOp, ast.AugAssign)):
        if type(node.op) in _ARITHMETIC:
            yield "operator", _set(node, "op", _ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield "and/or", _set(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        if not (isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)):  # whose "not" goes anyway
            yield "condition", _set(node, "test", _negated(node.test))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield "sign", _become(node, node.operand)
    elif isinstance(node, ast.Call):
        for place, word in enumerate(node.keywords):
            if word.arg is not None:
                yield "keyword", _without(node, place)


def _of_statement(node: ast.stmt) -> Iterator[tuple[str, Change]]:
    nothing = ast.Constant(None)
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.Return)):
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield ("result" if isinstance(node, ast.Return) else "assignment"), _set(node, "value", nothing)
    elif isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Yield, ast.YieldFrom)):
        yield "statement", _set(node, "value", nothing)
    elif isinstance(node, (ast.Break, ast.Continue)):
        other = ast.Continue if isinstance(node, ast.Break) else ast.Break
        yield "loop", _set(node, "__class__", other)


def _of_constant(node: ast.Constant) -> Iterator[tuple[str, Change]]:
    value = node.value
    if isinstance(value, bool):
        yield "truth", _set(node, "value", not value)
    elif isinstance(value, (int, float)):
        yield "number", _set(node, "value", value + 1)
    elif isinstance(value, str):
        yield "string", _set(node, "value", f"{value}_")


def _negated(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), copy.deepcopy(test))


def _put(items: list[ast.cmpop], place: int, value: ast.cmpop) -> Change:
    return lambda: items.__setitem__(place, value)


def _without(call: ast.Call, place: int) -> Change:
    def change() -> None:
        del call.keywords[place]

    return change


def _become(node: ast.UnaryOp, operand: ast.expr) -> Change:
    def change() -> None:
        node.__class__ = type(operand)  # type: ignore[assignment]
        node.__dict__.clear()
        node.__dict__.update(operand.__dict__)

    return change
