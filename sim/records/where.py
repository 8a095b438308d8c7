"""`width >= 64 and family == 'dense'` as a condition of SQL: names, numbers and text, compared.

The words are Python's: and, or, not, ==, !=, <, <=, >, >=, in, not in, is None, + - * /, brackets.
They are parsed, never evaluated, and every value becomes a parameter. A name is a column, with its
dots (`flops.executed`); one that is no name of Python's stands in backquotes (`` `flops.6ND` ``). A
cell that a run has not is None, and compares with nothing.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import json
import re
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from isoflop.models.errors import UserError, listed, quoted

COMPARED = {
    ast.Eq: "=",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "IN",
    ast.NotIn: "NOT IN",
    ast.Is: "IS",
    ast.IsNot: "IS NOT",
}
COMPUTED = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
DEEPEST = 100  # brackets in brackets

Sql = tuple[str, list[Any]]  # with a ? for each value


def condition(text: str, column: Callable[[str], Sql], known: Collection[str]) -> Sql:
    """The expression as SQL; `column` is the SQL of one of the names `known`. UserError, with what
    was not understood, for any other.
    """
    names: list[str] = []

    def name(found: re.Match) -> str:
        names.append(found[1])
        return f"_column{len(names) - 1}_"

    def refuse(node: ast.AST | None, why: str) -> UserError:
        part = ast.unparse(node) if node is not None else text
        for i, one in enumerate(names):
            part = part.replace(f"_column{i}_", f"`{one}`")
        return UserError(
            f"--where {quoted(part, 200)}: {why}; write comparisons of columns, as in width >= 64 "
            "and family == 'dense'"
        )

    def column_of(node: ast.expr) -> str:
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            raise refuse(node, "is no column")
        found = re.fullmatch(r"_column(\d+)_", node.id)
        parts.append(names[int(found[1])] if found else node.id)
        called = ".".join(reversed(parts))
        if called not in known:
            near = difflib.get_close_matches(called, known, n=1)
            hint = f"perhaps {near[0]} is meant" if near else f"there are {listed(sorted(known))}"
            raise UserError(f"--where names the column {quoted(called)}, which no run has; {hint}")
        return called

    def value(node: ast.expr) -> Sql:
        match node:
            case ast.Constant(value=None):
                return "NULL", []
            case ast.Constant(value=bool() | int() | float() | str() as constant):
                return "?", [constant]
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                sql, values = value(inner)
                return f"(-{sql})", values
            case ast.BinOp(op=op) if type(op) in COMPUTED:
                (left, some), (right, more) = value(node.left), value(node.right)
                # a quotient of whole numbers is not whole in Python
                return f"({left} * 1.0 {COMPUTED[type(op)]} {right})", [*some, *more]
            case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
                parts = [value(item) for item in items]
                inside = ", ".join(sql for sql, _ in parts)
                return f"({inside})", [one for _, values in parts for one in values]
            case ast.Name() | ast.Attribute():
                return column(column_of(node))
            case _:
                raise refuse(node, "is not understood")

    def truth(node: ast.expr) -> Sql:
        match node:
            case ast.BoolOp(op=joint, values=parts):
                each = [truth(part) for part in parts]
                word = " AND " if isinstance(joint, ast.And) else " OR "
                return f"({word.join(sql for sql, _ in each)})", [
                    v for _, some in each for v in some
                ]
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                sql, values = truth(inner)
                return f"(NOT coalesce({sql}, 0))", values
            case ast.Compare(left=first, ops=ops, comparators=others):
                sides, said, values = [first, *others], [], list[Any]()
                for left, op, right in zip(sides, ops, others, strict=False):
                    if type(op) not in COMPARED:
                        raise refuse(node, "is not understood")
                    if isinstance(op, ast.In | ast.NotIn) != isinstance(
                        right, ast.Tuple | ast.List | ast.Set
                    ):
                        raise refuse(node, "`in` stands before values in brackets")
                    (a, some), (b, more) = value(left), value(right)
                    said.append(f"{a} {COMPARED[type(op)]} {b}")
                    values += [*some, *more]
                return f"({' AND '.join(said)})", values
            case _:
                raise refuse(node, "is no comparison")

    try:
        tree = ast.parse(re.sub(r"`([^`]+)`", name, text.strip()), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise refuse(None, f"cannot be read ({getattr(error, 'msg', None) or error})") from None
    if _depth(tree) > DEEPEST:
        raise refuse(None, f"is nested more than {DEEPEST} deep")
    return truth(tree.body)


def chosen(text: str, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Which rows meet the condition. Raises as `condition`."""
    known = {name for row in rows for name in row}
    met, values = condition(text, lambda name: ("json_extract(cells, ?)", [path(name)]), known)
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE rows(number INTEGER PRIMARY KEY, cells TEXT)")
        lines = ((i, json.dumps(dict(row))) for i, row in enumerate(rows))
        database.executemany("INSERT INTO rows VALUES(?, ?)", lines)
        found = {i for (i,) in database.execute(f"SELECT number FROM rows WHERE {met}", values)}
    return [i in found for i in range(len(rows))]


def path(name: str) -> str:
    """Of a column in a row that is JSON."""
    return f'$."{name}"'


def _depth(tree: ast.AST) -> int:
    deepest, level = 0, [tree]
    while level:
        deepest += 1
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return deepest
