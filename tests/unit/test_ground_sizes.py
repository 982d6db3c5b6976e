"""Sizes that keep a module readable in one sitting. Longer modules and functions are split, not excused."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(module for package in ("worker", "tasks", "simulator") for module in (ROOT / package).rglob("*.py"))
LONGEST_MODULE = 400
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 6

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def parameters_of(function: Function) -> list[str]:
    """Return the names of the parameters, `self` and `cls` aside."""
    given = function.args
    names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in {"self", "cls"}]


def is_decorator(function: Function) -> bool:
    """Tell whether a function hands out one of the functions that it defines, as a decorator does."""
    inner = {node.name for node in functions_of(function) if node is not function}
    returned = {
        node.value.id
        for node in ast.walk(function)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Name)
    }
    return bool(inner & returned)


def complaints_about(source: str) -> list[str]:
    """Return what in a module breaks the rules."""
    found = []
    lines = source.count("\n")
    if lines > LONGEST_MODULE:
        found.append(f"{lines} lines")
    for function in functions_of(ast.parse(source)):
        length = (function.end_lineno or 0) - function.lineno + 1
        if length > LONGEST_FUNCTION:
            found.append(f"{function.name}: {length} lines")
        parameters = parameters_of(function)
        is_command = any("command" in ast.unparse(decorator) for decorator in function.decorator_list)
        if len(parameters) > MOST_PARAMETERS and not is_command:
            found.append(f"{function.name}: {len(parameters)} parameters")
        if any(node is not function for node in functions_of(function)) and not is_decorator(function):
            found.append(f"{function.name}: defines functions inside and does not return one")
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_a_module_is_readable_in_one_sitting(module: Path) -> None:
    assert complaints_about(module.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("x = 1\n" * 401, "401 lines"),
        ("def f():\n" + "    x = 1\n" * 60, "f: 61 lines"),
        ("def f(self, a, b, c, d, *, e, g, h): ...\n", "f: 7 parameters"),
        ("def f():\n    def g(): ...\n    g()\n", "f: defines functions inside and does not return one"),
    ],
)
def test_the_rules_bite(source: str, complaint: str) -> None:
    assert complaints_about(source) == [complaint]


@pytest.mark.parametrize(
    "source",
    [
        "def f(self, a, b, c, d, e, g): ...\n",
        "@app.command()\ndef f(a, b, c, d, e, g, h): ...\n",
        "def decorator(f):\n    def wrapped(): ...\n    return wrapped\n",
    ],
)
def test_the_rules_leave_ordinary_code_alone(source: str) -> None:
    assert complaints_about(source) == []
