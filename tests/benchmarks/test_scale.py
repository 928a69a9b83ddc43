"""The tables of the documents are those that the script computes."""

from __future__ import annotations

from benchmarks import scale
from tests.conftest import ROOT


def test_the_document_has_the_tables_that_are_computed() -> None:
    document = (ROOT / "docs/scale.md").read_text()
    for make in (scale.money, scale.work, scale.space):
        assert make() in document, "python -m benchmarks.scale prints other tables: put them into docs/scale.md"


def test_the_models_and_prices_in_the_documents_are_those_of_the_cards() -> None:
    document = (ROOT / "docs/gemini.md").read_text()
    assert scale.models_table() in document, (
        "python -m benchmarks.scale prints another table: put it into docs/gemini.md"
    )
    for name in ("docs/gemini.md", "docs/scale.md"):
        assert f"as of {scale.AS_OF}" in (ROOT / name).read_text(), f"{name} states the date of its prices"
