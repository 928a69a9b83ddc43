"""The page on which a person judges a sample of test questions: one self-contained file, offline, no server."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from markupsafe import Markup

from data_prep.files import write_atomic
from data_prep.records import Example
from vqa.audit.verdicts import VERDICTS
from vqa.report.browser import script_json
from vqa.report.images import data_uri
from vqa.report.page import TEMPLATES, page_environment

SIDE = 640  # pixels of an embedded image's longer side; ABO's small images have at most 256
_KEYS = {"right": "r", "wrong": "w", "unseen": "c", "bad": "b"}


@dataclass(frozen=True, slots=True)
class Opinion:
    """What somebody else says about a question; shown only after the person has judged it."""

    who: str
    says: str


def sample_digest(questions: Sequence[Example], seed: int) -> str:
    """The name of a sample: what was drawn, and what was asked. Verdicts are kept and read under it."""
    content = [seed, *([e.id, e.question, e.answer, e.image_path] for e in questions)]
    return hashlib.sha256(orjson.dumps(content)).hexdigest()[:16]


def write_page(
    path: Path,
    digest: str,
    questions: Sequence[Example],
    others: Mapping[str, Sequence[Opinion]],
    image_root: Path,
    title: str,
) -> int:
    """Write the page; how many of its questions have no image.

    Args:
        path: of the page.
        digest: the sample's name.
        questions: in the order in which they are judged.
        others: by question id.
        image_root: where the images are.
        title: of the run.
    """
    images = {e.image_path: uri for e in questions if (uri := data_uri(image_root, e.image_path, SIDE))}
    data = {
        "sample": digest,
        "images": images,
        "questions": [
            {
                "id": e.id,
                "path": e.image_path,
                "question": e.question,
                "answer": e.answer,
                "others": [[one.who, one.says] for one in others.get(e.id, ())],
            }
            for e in questions
        ],
    }
    script = (TEMPLATES / "audit.js").read_text(encoding="utf-8")
    text = (
        page_environment()
        .get_template("audit.html")
        .render(
            title=title,
            verdicts=[(name, label, _KEYS[name]) for name, label in VERDICTS.items()],
            data=script_json(data),
            script=Markup(script),
            script_hash=Markup(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        )
    )
    write_atomic(path, text.encode("utf-8", "replace"))
    return sum(e.image_path not in images for e in questions)
