"""The dataset card: README.md of a curated dataset, written for somebody who finds the folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_prep.curate.stats import DatasetStats
from data_prep.records import Teacher
from data_prep.settings import CurateSettings

# As the curated folder has them; the hub calls val validation.
SPLIT_FILES = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}


def card(
    stats: DatasetStats,
    settings: CurateSettings,
    teacher: Teacher,
    *,
    files: Mapping[str, str] = SPLIT_FILES,
    trust: str = "",
) -> str:
    """The card in Markdown.

    Args:
        stats: what stats.json holds.
        settings: the rules the dataset was made by.
        teacher: who generated the questions and answers.
        files: of each split, by the name that the hub gives it.
        trust: what second opinions and people said of the answers, in Markdown; "" where nobody looked at them.
    """
    # No autoescaping: the card is Markdown. What a table shows of the data goes through `cell`.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": "{:,}".format, "percent": _percent, "cell": _cell, "counts": _counts}
    template = environment.get_template("card.md.jinja")
    return template.render(stats=stats, settings=settings, teacher=teacher, files=files, trust=trust)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _counts(answers: list[tuple[str, int]]) -> str:
    return ", ".join(f"{answer} {count:,}" for answer, count in answers)
