"""A tiny base is made whole or not at all, in transformers' own format, and knows the words it was given."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from data_prep.outcomes import UserError
from jobs.verbs import weights
from vqa.models.base import model_class
from vqa.settings import ModelSettings

WORDS = '{"image_sha256": "d76f", "qas": [{"question": "What is the sofa made of?", "answer": "velvet"}]}\n'


def make(folder: Path, kind: str = "blip", words: str = WORDS, images: int = 4) -> str:
    """A base taught on a few images, and what was printed meanwhile."""
    file = folder.parent / "words.jsonl"
    file.write_text(words)
    said = io.StringIO()
    weights.make_tiny_base(folder, kind, [file], Console(file=said, width=120), images=images)
    return said.getvalue()


@pytest.mark.parametrize("kind", ["blip", "vilt"])
def test_a_tiny_base_loads_and_knows_whole_words_only(kind: str, tmp_path: Path) -> None:
    said = make(tmp_path / "base", kind)
    model_class(kind).load(ModelSettings(kind=kind, weights=str(tmp_path / "base")))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert tokenizer.tokenize("Is the crimson mug velvet?") == ["is", "the", "crimson", "mug", "velvet", "?"]
    assert not [word for word in tokenizer.get_vocab() if word.startswith("##")], "no piece can become an answer"
    assert "drawing images for the base: step 4 of 4" in said and "training the base: step 5 of 5, loss" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "words.jsonl"]


def test_a_folder_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(UserError, match="base exists already"):
        make(tmp_path / "base")


@pytest.mark.parametrize("words", ['{"qas": [{"question": "What?"}]}', "no JSON", '{"image_sha256": "d76f"}'])
def test_a_file_without_questions_is_refused_with_the_form_it_needs(words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"words\.jsonl: each line must hold .*qas"):
        make(tmp_path / "base", words=words)
    assert not (tmp_path / "base").exists()


def test_a_base_is_taught_in_exactly_ten_steps_too(tmp_path: Path) -> None:
    """torch's one-cycle schedule divides by zero there, unless it is asked for more than one step of rise."""
    assert "step 10 of 10" in make(tmp_path / "base", images=40)
