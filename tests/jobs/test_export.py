"""What is exported loads in the libraries that others use, without this project, and tells nothing that should stay private."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pyarrow.parquet
import pytest
from datasets import load_dataset
from peft import PeftModel
from PIL import Image
from transformers import AutoProcessor, BlipForQuestionAnswering

import vqa
from data_prep.curate.export import ImageReader
from data_prep.files import read_jsonl
from data_prep.outcomes import UserError
from data_prep.records import Example
from jobs.run.layout import RunDir
from jobs.run.run import load_run
from tests.conftest import launch, launch_args, output, write_config

pytestmark = pytest.mark.xdist_group("pipeline")


@pytest.fixture(scope="module")
def exported(finished: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "mine"
    done = launch("export", finished[0], "--to", folder, "--merged", GEMINI_API_KEY="a-secret-key")
    assert done.returncode == 0, output(done)
    assert f"hf upload YOUR_NAME/mine {folder}/dataset --repo-type dataset" in done.stdout
    assert f"hf upload YOUR_NAME/mine-blip {folder}/blip" in done.stdout
    return folder


def test_the_datasets_library_loads_every_question_with_its_own_image(
    exported: Path, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    loaded = load_dataset(str(exported / "dataset"), cache_dir=str(tmp_path))
    for ours, theirs in (("train", "train"), ("val", "validation"), ("test", "test")):
        rows = {row.id: row for row in read_jsonl(RunDir(finished[0]).split(ours), Example)}
        assert loaded[theirs].num_rows == len(rows)
        raw = loaded[theirs].cast_column("image", loaded[theirs].features["image"].__class__(decode=False))
        for row in raw:
            known = rows[row["id"]]
            assert (row["question"], row["answer"], row["item_id"]) == (known.question, known.answer, known.item_id)
            assert hashlib.sha256(row["image"]["bytes"]).hexdigest() == known.image_sha256
    assert isinstance(loaded["test"][0]["image"], Image.Image)


def test_an_image_is_stored_once_in_each_form_and_all_forms_hold_the_same_questions(exported: Path) -> None:
    for path in sorted((exported / "dataset/data").glob("*.parquet")):
        split = path.name.split("-")[0]
        lines = (exported / f"dataset/jsonl/{split}.jsonl").read_bytes().splitlines()
        questions = [json.loads(line) for line in lines]
        table = pyarrow.parquet.read_table(path).to_pylist()
        assert [{name: value for name, value in row.items() if name != "image"} for row in table] == questions
        images = {row["image_sha256"]: len(row["image"]["bytes"]) for row in table}
        stored = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
        assert stored < 1.1 * sum(images.values()) + 5_000
        samples = []
        with tarfile.open(exported / f"dataset/webdataset/{split}-00000.tar") as tar:
            members = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
        for name in sorted(members):
            if name.endswith(".json"):
                sample = json.loads(members[name])
                image = members[name.replace(".json", ".jpg")]
                assert hashlib.sha256(image).hexdigest() == sample["image_sha256"]
                samples += [sample["image_sha256"]] * len(sample["questions"])
        assert samples == [row["image_sha256"] for row in table]


def test_adapter_and_merged_model_answer_in_peft_and_transformers_as_in_the_run(
    exported: Path, finished: tuple[Path, Path]
) -> None:
    run, config = load_run(finished[0])
    base = config.models["blip"].weights
    adapted = PeftModel.from_pretrained(BlipForQuestionAnswering.from_pretrained(base), str(exported / "blip"))
    merged = BlipForQuestionAnswering.from_pretrained(exported / "blip-merged")
    processor = AutoProcessor.from_pretrained(exported / "blip-merged", backend="pil")
    example = next(iter(read_jsonl(run.split("test"), Example)))
    with Image.open(config.data.image_root / example.image_path) as image:
        inputs = processor(images=image.convert("RGB"), text=example.question, return_tensors="pt")
        said = vqa.load(finished[0]).ask(image, example.question).text
    for model in (adapted, merged):
        tokens = model.generate(**inputs, max_new_tokens=config.evaluate.max_new_tokens)
        assert processor.decode(tokens[0], skip_special_tokens=True) == said


def test_cards_state_teacher_terms_licenses_and_verdict(exported: Path) -> None:
    dataset, model = ((exported / name / "README.md").read_text() for name in ("dataset", "blip"))
    for card in (dataset, model):
        assert "gemini" in card and "Terms of Service" in card and "CC BY 4.0" in card
        assert "The listing's own field" in card
    assert "## Results" in model and "| fine-tuned |" in model
    assert "a guesser who sees no image" in model


def test_nothing_that_is_exported_names_a_key_or_a_path_of_this_machine(
    exported: Path, finished: tuple[Path, Path]
) -> None:
    weights = load_run(finished[0])[1].models["blip"].weights
    private = [b"a-secret-key", str(finished[0].parent).encode(), weights.encode(), b"/tmp/", str(Path.home()).encode()]
    for path in exported.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [word for word in private if word in data], path


def test_a_folder_that_is_there_is_not_touched(exported: Path, finished: tuple[Path, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in exported.rglob("*")}
    done = launch("export", finished[0], "--to", exported)
    assert done.returncode == 2 and "is there already: name a new folder" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in exported.rglob("*")} == before


def test_a_run_without_a_dataset_says_what_to_do(tmp_path: Path, catalogue: Path) -> None:
    config = write_config(tmp_path / "c.yaml", catalogue)
    assert launch(*launch_args(config, tmp_path / "run", "--stages", "prepare")).returncode == 0
    done = launch("export", tmp_path / "run", "--to", tmp_path / "out")
    assert done.returncode == 2 and "has no curated dataset yet: python launch.py resume" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_not_the_one_that_was_asked_about_is_never_exported(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"other bytes")
    example = Example(
        "q", "item", "i", "a.jpg", "What?", "mug", "", "object", "MUG", "", hashlib.sha256(b"x").hexdigest()
    )
    with pytest.raises(UserError, match=r"a\.jpg is not the file that the questions about item"):
        ImageReader(tmp_path, 1000)(example)
    with pytest.raises(UserError, match=r"image of item cannot be exported.*Restore"):
        ImageReader(tmp_path, 3)(example)
