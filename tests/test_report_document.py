"""docs/report.md names functions that exist where it says."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import ROOT

NAMED = re.findall(r"^\| [^|]*\| `(\S+\.py)` `(\w+)` \|", (ROOT / "docs/report.md").read_text(), re.MULTILINE)


def test_the_table_names_a_function_in_every_row() -> None:
    table = (ROOT / "docs/report.md").read_text().split("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(NAMED) > 20


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_each_function_that_the_table_names_exists_there(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    found = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    found |= {
        node.target.id for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert name in found
