"""The formulas of claim files: arithmetic on numbers and names, and nothing that takes long or much memory."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

from simpleeval import InvalidExpression, SimpleEval

from clmem.harness.text import clean

LONGEST = 1000
"""Characters of one formula; the longest of ours has a tenth of that."""

DEEPEST = 64
"""Levels of one formula: what it is nested in decides nothing then, such as how deep Python's stack is already."""

LARGEST = 10**30
"""What a formula may come to: far more than any memory or count of operations, and still a number to draw with."""

OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
FUNCTIONS: dict[str, Callable[..., float]] = {"max": max, "min": min}
NODES = (ast.Name, ast.UnaryOp, ast.BinOp, ast.Call)
ALLOWED = "numbers, names, + - * / **, max and min"


def calculate(formula: str, look_up: Callable[[str], float]) -> float:
    """Return what a formula comes to. look_up: the value of a name; what it raises is passed on.

    Numbers are floats, so that none grows beyond a fixed size. Raises ValueError naming a formula that cannot be worked
    out, is too long, or does not come to a finite number of at most LARGEST.
    """
    shown = clean(repr(formula), 200)
    if len(formula) > LONGEST or not formula.isprintable():
        raise ValueError(f"{shown} cannot be computed: a formula is one line of at most {LONGEST} characters")
    evaluator = SimpleEval(operators=OPERATORS, functions=FUNCTIONS, names=lambda node: look_up(node.id))
    evaluator.nodes = {kind: evaluator.nodes[kind] for kind in NODES}
    evaluator.nodes[ast.Constant] = _number
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's own, about how a formula is written
            parsed = ast.parse(formula.strip(), mode="eval")
        if _depth(parsed.body) > DEEPEST:
            raise ValueError(f"{shown} cannot be computed: it is nested too deeply")
        value = evaluator.eval(formula, parsed.body)
    except (InvalidExpression, NotImplementedError) as error:
        raise ValueError(f"{shown} cannot be computed: it may hold {ALLOWED}, and nothing else") from error
    except (SyntaxError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{shown} cannot be computed: {clean(str(error), 200)}") from error
    except (RecursionError, MemoryError) as error:  # so does the parser say it
        raise ValueError(f"{shown} cannot be computed: it is nested too deeply") from error
    if not isinstance(value, float) or not math.isfinite(value) or abs(value) > float(LARGEST):
        raise ValueError(f"{shown} gives {clean(repr(value), 80)}, not a number of at most {LARGEST:g}")
    return value


def _depth(tree: ast.AST) -> int:
    """Return the number of levels of a tree: about n for a sum of n numbers."""
    depth, level = 0, [tree]
    while level:
        depth, level = depth + 1, [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def _number(node: Any) -> float:
    if isinstance(node.value, bool) or not isinstance(node.value, int | float):
        raise TypeError(f"{clean(repr(node.value), 80)} is no number")
    return float(node.value)
