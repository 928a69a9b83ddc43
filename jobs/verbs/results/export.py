"""``launch.py export``: a run's dataset and models as folders that can be published.

::

    shared/
      dataset/      README.md (card), data/*.parquet, jsonl/, webdataset/: `datasets.load_dataset("shared/dataset")`
      blip/         README.md (card), adapter: `PeftModel.from_pretrained(base, "shared/blip")`
      blip-merged/  with --merged: a whole model for transformers
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import TypeAdapter
from rich.console import Console

from data_prep.curate.card import card
from data_prep.curate.stats import DatasetStats
from data_prep.files import read_json, read_jsonl, write_atomic, write_json
from data_prep.outcomes import UserError
from data_prep.records import TEACHER_FILE, Example, Teacher, by_image, from_dict
from data_prep.settings import CurateSettings
from jobs.config import Config
from jobs.pipeline import make_stage
from jobs.progress_line import ProgressLine, progress_text
from jobs.run.layout import RunDir, Step
from jobs.run.run import load_run
from jobs.stages.base import StageMarker
from jobs.stages.report import Report
from jobs.stages.verify import opinions
from jobs.verbs.results.cards import results_section, trust_section
from vqa.report.figures import ReportFigures, figures
from vqa.settings import is_hub_name


def export(run_dir: Path, to: Path, *, merged: bool, out: Console) -> None:
    """Write everything into a new folder, which appears when it is whole. The run is only read.

    Args:
        run_dir: the run's folder.
        to: the new folder.
        merged: also write each adapter merged into its base.
        out: takes progress, and the commands that publish the result.

    Raises:
        UserError: there is nothing to export, the folder is there already, or an image is not what it was.
    """
    run, config = load_run(RunDir(run_dir.resolve()).require().path)
    curated = StageMarker.read(run, Step("curate"))
    if curated is None:
        raise UserError(f"{run.path} has no curated dataset yet: python launch.py resume {run_dir}")
    if to.exists():
        raise UserError(f"{to} is there already: name a new folder.")
    report = make_stage(Step("report"), run, config)
    assert isinstance(report, Report)
    told = figures(report.gather())
    part = to.with_name(f"{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
    part.mkdir(parents=True)
    _export_dataset(run, config, curated, told, part / "dataset", out)
    names = [name for name in config.models if (run.adapter(name) / "adapter_model.safetensors").is_file()]
    for name in names:
        _export_adapter(run, config, name, told, part / name)
        out.print(f"{name}: adapter", markup=False)
        if merged:
            _export_merged(run, config, name, part)
            out.print(f"{name}: merged model", markup=False)
    part.rename(to)
    _say_how_to_publish(to, [path.name for path in sorted(to.iterdir()) if path.name != "dataset"], out)
    if not names:
        out.print("No model has been trained yet, so there is only the dataset.", markup=False)


def _export_dataset(
    run: RunDir, config: Config, curated: StageMarker, told: ReportFigures, folder: Path, out: Console
) -> None:
    try:
        from data_prep.curate.export import SPLIT_NAMES, ImageReader, export_split
    except ImportError as error:  # pragma: no cover - only where the extra is missing
        raise UserError(f"{error.name} is missing: pip install 'product-vqa[export]'") from error
    splits = {name: list(read_jsonl(run.split(name), Example)) for name in SPLIT_NAMES}
    images = sum(len(by_image(rows)) for rows in splits.values())
    read, say = ImageReader(config.data.image_root, config.validate_.max_file_bytes), ProgressLine(out, "exporting")
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        if done == images or say.due():
            say.say(progress_text(done, images, "images"))

    for name, rows in splits.items():
        known = opinions(run, config, rows) if config.verify.enabled else None
        export_split(SPLIT_NAMES[name], rows, known, read, folder, progress)
    stats = TypeAdapter(DatasetStats).validate_python(read_json(run.dataset / "stats.json"))
    settings = CurateSettings.model_validate(curated.settings)
    teacher = from_dict(Teacher, read_json(run.dataset / TEACHER_FILE) or {})
    shutil.copyfile(run.dataset / "samples.jpg", folder / "samples.jpg")
    files = {hub: f"data/{hub}-*.parquet" for hub in SPLIT_NAMES.values()}
    text = card(stats, settings, teacher, files=files, trust=trust_section(told.truth))
    write_atomic(folder / "README.md", text.encode())
    out.print(f"dataset: {sum(map(len, splits.values())):,} questions about {images:,} images", markup=False)


def _export_adapter(run: RunDir, config: Config, name: str, told: ReportFigures, folder: Path) -> None:
    """Copy an adapter. A base that is no name on the hub is named by its folder's name alone: paths stay private."""
    shutil.copytree(run.adapter(name), folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    settings = read_json(folder / "adapter_config.json") or {}
    base = str(settings.get("base_model_name_or_path") or "")
    if not is_hub_name(base):
        write_json(folder / "adapter_config.json", settings | {"base_model_name_or_path": Path(base).name})
        text = text.replace(base, Path(base).name)
    text += f"\n{results_section(told, name)}"
    write_atomic(folder / "README.md", text.encode())


def _export_merged(run: RunDir, config: Config, name: str, part: Path) -> None:
    from vqa.inference.saved_model import merge_adapter

    folder = merge_adapter(config.models[name], run.adapter(name), part / f"{name}-merged")
    text = (
        (part / name / "README.md")
        .read_text(encoding="utf-8")
        .replace("library_name: peft", "library_name: transformers")
    )
    write_atomic(folder / "README.md", text.encode())


def _say_how_to_publish(to: Path, models: list[str], out: Console) -> None:
    out.print(f"Exported into {to}. To publish it on the Hugging Face hub (`hf auth login` first):", markup=False)
    out.print(f"  hf upload YOUR_NAME/{to.name} {to}/dataset --repo-type dataset", markup=False)
    for name in models:
        out.print(f"  hf upload YOUR_NAME/{to.name}-{name} {to}/{name}", markup=False)
