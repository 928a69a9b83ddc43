"""What the report is made of. Whatever is missing becomes a labeled gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.records import Answered, Example, Opinions
from vqa.audit.results import AuditResult
from vqa.evaluation.bertscore import BertSettings
from vqa.report.settings import ReportSettings


@dataclass(frozen=True, slots=True)
class StageSummary:
    """What one stage did."""

    name: str
    counts: Mapping[str, int | float] = field(default_factory=dict)  # "items", "done", "failed", or the stage's own
    seconds: float | None = None
    reasons: Mapping[str, int] = field(default_factory=dict)  # why items were rejected or failed → how many
    input_tokens: int | None = None  # tokens and dollars: generate only
    output_tokens: int | None = None
    dollars: float | None = None
    gpu_hours: float | None = None  # these three: of all attempts, also of those that were killed
    cpu_hours: float | None = None
    max_rss_bytes: int | None = None  # the most memory of one process
    proposal: str = ""  # what to ask the cluster for next time; "" where what was asked for fits


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """All that a run knows about itself. Every field may be missing."""

    run: Mapping[str, Any] = field(default_factory=dict)  # run.json
    stages: Sequence[StageSummary] = ()
    stats: Mapping[str, Any] = field(default_factory=dict)  # 4_curate/stats.json
    sample_sheet: Path | None = None  # an image of sample products with their questions
    train: Sequence[Example] = ()  # for answer frequencies and the blind floor
    test: Sequence[Example] = ()  # the questions that were asked
    predictions: Mapping[str, Mapping[str, Sequence[Answered]]] = field(default_factory=dict)  # model → variant → …
    controls: Mapping[str, Mapping[str, Sequence[Answered]]] = field(default_factory=dict)  # model → "grey", "swap" → …
    failed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # "blip-lora" → reason → questions
    opinions: Mapping[str, Opinions] = field(default_factory=dict)  # question id → what others say of its answer
    audit: AuditResult | None = None  # what people say of a sample
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # model → parameters.json
    training_log: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # model → rows of log.jsonl
    image_root: Path | None = None
    thumbnails: Mapping[str, str] = field(
        default_factory=dict
    )  # image path → data URI of an earlier report, for images that are gone
    warnings: Sequence[str] = ()  # what was skipped, capped, failed or approximated, a sentence each
    stand_in: bool = False  # questions and truths came from the stand-in, not from Gemini
    settings: ReportSettings = field(default_factory=ReportSettings)
    bert: BertSettings | None = None  # None leaves BERTScore out
