"""Images and splits as training reads them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.utils.data import DataLoader

from data_prep.images import validate
from data_prep.images.decode import MOST_PIXELS
from data_prep.images.locate import locator
from data_prep.outcomes import UserError
from data_prep.records import Example, Product
from data_prep.settings import ValidateSettings
from tests.vqa.training_data import Material, make_material, write_splits
from vqa.dataset import (
    IMAGES_CHECKED,
    VQADataset,
    as_batch,
    load_splits,
    locate_image_path,
    open_image,
    verify_dataset,
)
from vqa.models import known_models
from vqa.models.base import Processor, model_class
from vqa.models.tiny import make_tiny_model
from vqa.settings import ModelSettings


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("material"))


def processor_of(material: Material) -> Processor:
    return model_class("blip").load(material.model()).processor


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png", "link.png"])
def test_image_outside_of_the_image_folder_is_not_opened(path: str, tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="must lie inside"):
        locate_image_path(root, path)


def test_missing_image_is_named_with_what_to_check(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no image .*mug\.jpg\. Is .* the right image folder"):
        open_image(tmp_path, "mug.jpg")


def test_transparent_parts_are_white_and_the_camera_is_held_upright(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path, "clear.png").getpixel((1, 1)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    Image.new("RGB", (20, 10), "red").save(tmp_path / "turned.jpg", exif=exif)
    turned = open_image(tmp_path, "turned.jpg")
    assert (turned.size, turned.mode) == ((10, 20), "RGB")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("value", [0x00, 0x1B, 0x4E, 0xFF])
def test_a_broken_orientation_tag_spoils_no_image(value: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "x", 6
    tags = exif.tobytes()
    for place in range(len(tags)):
        Image.new("RGB", (20, 10)).save(tmp_path / "1.jpg", exif=tags[:place] + bytes([value]) + tags[place + 1 :])
        assert sorted(open_image(tmp_path, "1.jpg").size) == [10, 20]


def test_an_image_that_broke_since_validation_is_named_with_what_to_do(material: Material, tmp_path: Path) -> None:
    shutil.copytree(material.images, tmp_path / "images")
    splits = load_splits(material.data)
    path = tmp_path / "images" / material.examples[0].image_path
    path.write_bytes(path.read_bytes()[:100])
    dataset = VQADataset(splits["train"], tmp_path / "images", processor_of(material))
    with pytest.raises(UserError, match=rf"{path.name}.*Restore the file"):
        dataset[0]


def test_dataset_finds_its_examples_and_their_images(material: Material) -> None:
    dataset = VQADataset(load_splits(material.data)["train"], material.images, processor_of(material))
    assert len(dataset) == len(material.examples)
    assert dataset.examples[3] == material.examples[3]
    assert dataset.locate_image_path(3) == material.images / material.examples[3].image_path


def test_a_folder_that_is_no_dataset_is_named_with_what_it_lacks(material: Material, tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", material.examples, [])
    (folder / "val.jsonl").unlink()
    with pytest.raises(UserError, match=r"lacks val\.jsonl\. Run the stage curate first"):
        load_splits(folder)


def test_a_sound_dataset_has_no_problems(material: Material) -> None:
    half = len(material.examples) // 2
    splits = {"train": material.examples[:half], "val": material.examples[half:]}
    check = verify_dataset(splits, material.images, processor_of(material))
    assert check.problems == []
    assert check.lines[:2] == [f"{name}: 8 questions about 4 images; 4 of 4 images found" for name in splits]
    assert "8 samples processed (pixels 1 x 3 x 64 x 64," in check.lines[2]
    assert check.lines[2].endswith("labels decode back to the answer in 8")


@pytest.mark.parametrize("kind", known_models())
def test_labels_that_lose_the_answer_are_a_problem(kind: str, material: Material, tmp_path: Path) -> None:
    make_tiny_model(kind, tmp_path / kind, [f"{e.question} {e.answer}" for e in material.examples])
    settings = ModelSettings(kind=kind, weights=str(tmp_path / kind))
    processor = model_class(kind).load(settings, [e.answer for e in material.examples]).processor
    assert not verify_dataset({"train": material.examples}, material.images, processor).problems
    odd = [dataclasses.replace(material.examples[0], answer="\N{SNOWMAN}"), *material.examples[1:]]
    (problem,) = verify_dataset({"train": odd}, material.images, processor).problems
    assert odd[0].id in problem and "its labels decode to" in problem


def test_a_sample_is_what_the_model_takes(material: Material) -> None:
    processor = processor_of(material)
    dataset = VQADataset(material.examples, material.images, processor)
    first, image = material.examples[0], open_image(material.images, material.examples[0].image_path)
    expected = processor.collate([image], [[first.question]], [[first.answer]])
    sample = dataset[0]
    assert sample.keys() == expected.keys()
    assert all(torch.equal(sample[name], expected[name]) for name in expected)


def test_batches_come_from_getitems_with_an_image_decoded_once(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def watched(root: Path, example: Example) -> Image.Image:
        decoded.append(example.image_path)
        return open_image(root, example.image_path)

    monkeypatch.setattr("vqa.dataset.needed_image", watched)
    dataset = VQADataset(material.examples, material.images, processor_of(material))
    batches = [*DataLoader(dataset, 4, collate_fn=as_batch)]
    assert [batch["image_of_question"].tolist() for batch in batches] == [[0, 0, 1, 1]] * 4
    assert decoded == [e.image_path for e in material.examples[::2]]


def test_images_of_a_large_split_are_looked_up_by_sample(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    monkeypatch.setattr("vqa.dataset.locate_image_path", lambda root, path, image_id: looked_up.append(path))
    many = [
        dataclasses.replace(material.examples[0], id=str(n), image_path=f"{n:05}.png")
        for n in range(2 * IMAGES_CHECKED)
    ]
    monkeypatch.setattr("vqa.dataset._check_samples", lambda *_: None)
    assert verify_dataset({"train": many}, tmp_path, processor_of(material)).problems == []
    assert len(looked_up) == IMAGES_CHECKED and looked_up[-1] > f"{2 * IMAGES_CHECKED - 5:05}"


def test_what_validation_accepts_at_its_limit_training_evaluation_and_predict_open(tmp_path: Path) -> None:
    """Also beyond the 179 megapixels that Pillow by itself refuses."""
    Image.new("L", (18_000, 10_000), 200).save(tmp_path / "large.png")
    product = Product("B1", "i1", "large.png", "", "", "", [])
    facts = validate.image_facts(product, locator(tmp_path), ValidateSettings(max_pixels=MOST_PIXELS))
    assert (facts.width, facts.height) == (18_000, 10_000)
    assert open_image(tmp_path, "large.png").size == (18_000, 10_000)
    assert validate.open_image(tmp_path, "large.png").size == (18_000, 10_000)  # the dataset's sample sheet
    with pytest.raises(ValidationError, match="max_pixels"):
        ValidateSettings(max_pixels=MOST_PIXELS + 1)


def test_every_problem_of_a_dataset_is_told(material: Material) -> None:
    first, second, *_, last = material.examples
    wrong = {
        "train": [first, dataclasses.replace(second, answer=" "), first],
        "val": [
            dataclasses.replace(last, id="v", item_id=first.item_id, image_id=first.image_id, image_path="lost.png")
        ],
        "test": [],
    }
    told = "\n".join(verify_dataset(wrong, material.images, processor_of(material)).problems)
    for words in (
        f"{second.id} has no question or no answer",
        f"duplicate id {first.id}",
        f"item {first.item_id} is in both train and val",
        f"image {first.image_id} is in both train and val",
        "There is no image",
        "test is empty",
    ):
        assert words in told, told
