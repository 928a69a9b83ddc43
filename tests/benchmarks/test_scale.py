"""The tables of docs/scale.md are those that the script computes."""

from __future__ import annotations

from benchmarks import scale
from tests.conftest import ROOT


def test_the_document_has_the_tables_that_are_computed() -> None:
    document = (ROOT / "docs/scale.md").read_text()
    for make in (scale.money, scale.work, scale.space):
        assert make() in document, "python -m benchmarks.scale prints other tables: put them into docs/scale.md"
