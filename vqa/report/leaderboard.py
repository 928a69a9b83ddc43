"""The page of a comparison: one self-contained file, with the report's style sheet and bars."""

from __future__ import annotations

from pathlib import Path

from data_prep.files import write_atomic
from data_prep.outcomes import UserError
from vqa.evaluation.compare import Leaderboard, Standing, headline, left_out, pair_facts
from vqa.evaluation.entries import BLIND
from vqa.report.page import page_environment


def write_page(board: Leaderboard, path: Path) -> None:
    """Write the page.

    Raises:
        UserError: it cannot be written there.
    """
    text = (
        page_environment()
        .get_template("leaderboard.html")
        .render(
            board=board,
            said=headline(board),
            facts=pair_facts(board),
            left_out=left_out(board),
            colors={one.name: _color(board, one) for one in board.standings},
        )
    )
    try:
        write_atomic(path, text.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"Cannot write the page {path}: {error.strerror}. Choose another --output.") from error


def _color(board: Leaderboard, one: Standing) -> str:
    """The style sheet's class of an entry's bars: the reference is gray, like the report's base."""
    if one.name == board.reference:
        return "base"
    return "blind" if one.kind == BLIND else "lora"
