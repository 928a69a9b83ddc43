"""What people said about a sample: the files that the audit page saves.

::

    {"sample": "77c0…", "person": "Ada", "questions": 200,
     "verdicts": {"5f1c…": {"verdict": "right", "at": "2026-11-24T21:05:11Z"},
                  "8e02…": {"verdict": "wrong", "answer": "tan", "at": "…"}}}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.outcomes import UserError
from data_prep.records import from_dict

VERDICTS = {"right": "Right", "wrong": "Wrong", "unseen": "Cannot be seen", "bad": "Bad question"}
RIGHT, WRONG = "right", "wrong"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One person's verdict on one generated answer."""

    verdict: str  # one of `VERDICTS`
    answer: str = ""  # wrong: what is right, if the person said so


@dataclass(frozen=True, slots=True)
class People:
    """Everybody's verdicts on one sample."""

    sample: str  # its digest
    verdicts: dict[str, dict[str, Verdict]]  # person → question id → verdict


def people_from(data: dict[str, Any]) -> People:
    """`People` as it was written to a file of the run."""
    return People(
        data["sample"],
        {
            person: {question: from_dict(Verdict, fields) for question, fields in verdicts.items()}
            for person, verdicts in data["verdicts"].items()
        },
    )


def read_verdicts(files: Sequence[Path]) -> People:
    """Read the files of one or several people.

    Raises:
        UserError: a file is missing or is no file of verdicts, the files are about different samples, or two are one person's.
    """
    found: dict[str, dict[str, Verdict]] = {}
    samples: dict[str, Path] = {}
    for file in files:
        sample, person, verdicts = _read(file)
        samples.setdefault(sample, file)
        name = person or file.stem
        if name in found:
            raise UserError(
                f"{file}: another file is {name}'s, too. Give one file a person; the page's name field tells people apart."
            )
        found[name] = verdicts
    if len(samples) > 1:
        names = " and ".join(f"{file} ({sample})" for sample, file in samples.items())
        raise UserError(f"{names} are about different samples. Read files of one sample at a time.")
    return People(next(iter(samples)), found)


def _read(file: Path) -> tuple[str, str, dict[str, Verdict]]:
    try:
        data = orjson.loads(file.read_bytes())
        verdicts = {
            str(question): Verdict(str(given["verdict"]), str(given.get("answer", "")).strip().lower())
            for question, given in data["verdicts"].items()
        }
        sample, person = str(data["sample"]), str(data.get("person", ""))
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is no file of verdicts ({type(error).__name__}: {error}). The audit page saves one: Save file."
        ) from error
    if unknown := {given.verdict for given in verdicts.values()} - VERDICTS.keys():
        raise UserError(f"{file}: unknown verdict {min(unknown)!r}. Known: {', '.join(VERDICTS)}.")
    return sample, person, verdicts
