"""docs/reliability.md names only files and tests that exist."""

import ast
import re

from tests.conftest import ROOT


def test_every_test_that_the_document_names_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text))
    assert len(named) > 60
    for path, name in named:
        functions = {n.name for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.FunctionDef)}
        assert not name or name in functions, f"{path}::{name}"
