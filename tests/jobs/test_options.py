"""Each option is documented once, under one name, and the documentation names no option that is not there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
import typer

from jobs.cli import app
from tests.conftest import ROOT, environment, launch

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = typer.main.get_command(app)
VERBS = {"": COMMAND, **COMMAND.commands}  # type: ignore[attr-defined]
# The same word for the same idea, of which the verbs say what it is there: a table, a model's folder, a page.
SAID_DIFFERENTLY = {"--output", "--model", "--adapter"}
# Of other programs: sbatch, git, pip, apptainer, this project's benchmarks and chaos tests.
FOREIGN = {"--array", "--quiet", "--nv", "--gpus-per-node", "--kills", "--full", "--mem", "--gres"}


def options(verb: str) -> dict[str, click.Option]:
    """The options of a verb by every name that they have."""
    found = VERBS[verb].params
    return {name: one for one in found if one.param_type_name == "option" for name in one.opts}


def named(text: str) -> Iterator[str]:
    yield from re.findall(r"(?<![-\w])--[a-z][a-z_-]*[a-z]", text)


def test_every_option_says_what_it_is_and_is_explained_in_one_way() -> None:
    explained: dict[str, set[str]] = defaultdict(set)
    for verb in VERBS:
        for name, option in options(verb).items():
            assert option.help, f"{verb} {name}"
            explained[name].add(option.help)
    several = {name: words for name, words in explained.items() if len(words) > 1}
    assert several.keys() <= SAID_DIFFERENTLY


def test_every_verb_begins_with_a_sentence_that_fits_the_list_of_verbs() -> None:
    listed = launch("--help").stdout.partition("Commands:")[2]
    for verb in VERBS:
        assert verb in listed
    assert "..." not in listed, listed


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_no_option_that_is_not_there(document: Path) -> None:
    text = document.read_text()
    ours = {name for verb in VERBS for name in options(verb)}
    assert set(named(text)) <= ours | FOREIGN
    # A command as typed: `launch.py predict --image mug.jpg ...`
    for verb, arguments in re.findall(r"launch\.py(?: ([a-z][a-z-]+))?((?: [^\n`#]*)?)", text):
        verb = verb if verb in VERBS else ""
        assert set(named(arguments)) <= set(options(verb)) | set(options("")), f"launch.py {verb}{arguments}"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_h_helps_everywhere_and_nothing_is_loaded_for_it(verb: str) -> None:
    context = VERBS[verb].make_context(
        "launch.py", [], parent=None if not verb else COMMAND.make_context("launch.py", [], resilient_parsing=True),
        resilient_parsing=True,
    )  # fmt: skip
    assert context.help_option_names == ["-h", "--help"]


def test_the_version_is_said_and_a_script_of_the_same_name_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    done = launch("--version")
    assert (done.returncode, done.stdout) == (0, f"product-vqa {project['version']}\n")
    module, _, function = project["scripts"]["product-vqa"].partition(":")
    assert callable(getattr(import_module(module), function))


def test_a_shell_completes_the_verbs() -> None:
    program = "import sys; from jobs.cli import main; sys.argv[:] = ['product-vqa']; sys.exit(main())"
    asked = {"_PRODUCT_VQA_COMPLETE": "complete_bash", "COMP_WORDS": "product-vqa pred", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(**asked), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["predict"], done.stderr
