"""Sizes that keep the code readable."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("jobs", "slurm", "vqa", "data_prep", "benchmarks", "tests", "launch.py")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[str, Function]]:
    """Every function of the project with the place where it is."""
    for name in CODE:
        for file in sorted((ROOT / name).rglob("*.py")) or [ROOT / name]:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, Function):
                    yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node


def lines(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters(function: Function) -> int:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_no_function_is_longer_than_60_lines() -> None:
    assert [f"{place}: {lines(function)} lines" for place, function in functions() if lines(function) > 60] == []


def test_no_function_has_more_than_7_parameters() -> None:
    found = [
        f"{place}: {parameters(function)} parameters"
        for place, function in functions()
        if not function.name.startswith("test_")  # a test's parameters are its fixtures
        if parameters(function) > 7
    ]
    assert found == []


def test_no_name_of_a_test_is_longer_than_80_characters() -> None:
    assert [place for place, function in functions() if re.match("test_.{76}", function.name)] == []
