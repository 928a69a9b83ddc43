"""What all pages have in common: templates that escape every value, and one style sheet."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from vqa.evaluation.statistics import FEW

TEMPLATES = Path(__file__).parent / "templates"


def page_environment() -> Environment:
    """The templates, with ``css`` and ``few`` known to all of them."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")), few=FEW)
    return environment
