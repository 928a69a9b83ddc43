"""The report of a run: one self-contained page, and every figure of it as JSON.

>>> figures = build(ReportInputs(predictions={"blip": {"base": [...], "lora": [...]}}, test=[...]), Path("7_report"))
"""

from vqa.report.build import build
from vqa.report.inputs import ReportInputs

__all__ = ["ReportInputs", "build"]
