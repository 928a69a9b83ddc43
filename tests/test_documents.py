"""The documents beside the code agree with it: index, protocol, version, changes."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

from data_prep.curate.splits import side
from data_prep.settings import CurateSettings
from tests.conftest import ROOT
from vqa.evaluation.metrics import DEFINITIONS

PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "README.md")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


def test_the_index_names_every_page_once() -> None:
    named = re.findall(r"^\| \[(\w+\.md)\]\((\w+\.md)\)", (ROOT / "docs/README.md").read_text(), re.MULTILINE)
    assert all(shown == target for shown, target in named)
    assert sorted(target for _, target in named) == [path.name for path in PAGES]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_links_to_is_there(document: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / document).read_text())
    local = [target for target in targets if not target.startswith(("http:", "https:"))]
    assert [target for target in local if not ((ROOT / document).parent / target).exists()] == []


def test_the_protocol_puts_images_where_the_code_puts_them() -> None:
    text = (ROOT / "docs/benchmark.md").read_text()
    program: dict[str, object] = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], program)  # type: ignore[index]
    named = dict(re.findall(r"^\| `(\w+)` \| (train|val|test) \|", text, re.MULTILINE))
    assert set(named.values()) == {"train", "val", "test"}
    shipped = CurateSettings()
    for image in [*named, *(f"image-{number}" for number in range(2000))]:
        found = side(image, val_share=shipped.val_share, test_share=shipped.test_share, seed=shipped.seed)
        assert program["side"](image) == found == named.get(image, found)  # type: ignore[operator]


def test_the_protocol_describes_near_images_and_the_headline_as_the_code_has_them() -> None:
    text = " ".join((ROOT / "docs/benchmark.md").read_text().split())
    shipped = CurateSettings()
    assert f"within {shipped.dhash_bits} of 64 bits and colors within {shipped.color_distance:.0f} of 255" in text
    words = DEFINITIONS["exact_match"].text.partition("normalization: ")[2].rstrip(".")
    assert words in text


def test_citation_and_changes_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == VERSION and citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    first = re.search(r"^## (\S+?),?\s", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first and first[1] == VERSION


def test_every_file_and_target_that_contributing_names_is_there() -> None:
    text, makefile = (ROOT / "CONTRIBUTING.md").read_text(), (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in re.findall(r"make ([a-z-]+)", text))
    files = re.findall(r"`((?:jobs|vqa|slurm|data_prep|tests|\.ci)/[\w./]*)`", text)
    assert files and [file for file in files if not (ROOT / file).exists()] == []
