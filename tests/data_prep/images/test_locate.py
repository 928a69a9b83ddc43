"""Images are found in every layout that copies of ABO have, never by a guess, and never outside the image folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from data_prep.abo import listings
from data_prep.images.decode import ImageProblem
from data_prep.images.locate import STRATEGIES, ImageLocator
from data_prep.images.validate import validate
from data_prep.outcomes import Failed, Ok, Todo
from data_prep.records import ImageFacts, Product
from data_prep.settings import DataSettings, PrepareSettings, ValidateSettings
from tests.data_prep.conftest import jpeg, validated

Files = dict[str, bytes]  # by recorded path


def put(root: Path, path: str, data: bytes) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)


def product(path: str, image_id: str = "i1") -> Product:
    return Product(f"item-{image_id}", image_id, path, "", "", "", [])


def rendered() -> tuple[list[Product], Files]:
    files = {f"{n:02}/{n:02}c0ffee.jpg": jpeg(("red", "green", "blue")[n % 3], (60 + n, 64)) for n in range(12)}
    return [product(path, f"id{n}") for n, path in enumerate(files)], files


def real(sample: Path) -> tuple[list[Product], Files]:
    sources = listings.find_sources(DataSettings(root=sample))
    kept = [*listings.prepare(sources, PrepareSettings(max_items=30), lambda rejected: None)]
    whole = [p for p in kept if (sources.image_root / p.image_path).is_file()]
    return whole, {p.image_path: (sources.image_root / p.image_path).read_bytes() for p in whole}


def facts_and_reasons(records: dict[str, Ok | Failed]) -> dict[str, object]:
    return {item: record.value if isinstance(record, Ok) else record.reason for item, record in records.items()}


def flat(root: Path, path: str, data: bytes) -> None:
    put(root, PurePosixPath(path).name, data)


def kaggle_mount(root: Path, path: str, data: bytes) -> None:
    put(root, f"abo-images-small/images/small/{path}", data)


def colab_mount(root: Path, path: str, data: bytes) -> None:
    put(root, f"small/{path}", data)


def originals_beside_small_ones(root: Path, path: str, data: bytes) -> None:
    put(root, path, data)
    put(root.parent / "original", path, jpeg("black", (300, 200)))


def upper_case_extensions(root: Path, path: str, data: bytes) -> None:
    put(root, str(PurePosixPath(path).with_suffix(".JPG")), data)


def moved_root(root: Path, path: str, data: bytes) -> None:
    put(root, f"copy of abo/images/small/{path}", data)


LAYOUTS = [flat, kaggle_mount, colab_mount, originals_beside_small_ones, upper_case_extensions, moved_root]


@pytest.mark.parametrize("source", ["rendered", "real"])
@pytest.mark.parametrize("lay_out", LAYOUTS)
def test_every_layout_gives_the_records_of_the_recorded_one(
    lay_out: Callable[[Path, str, bytes], None], source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    products, files = rendered() if source == "rendered" else real(request.getfixturevalue("sample"))
    for path, data in files.items():
        put(tmp_path / "recorded", path, data)
        lay_out(tmp_path / "other/small", path, data)
    records = validated(products, tmp_path / "recorded")
    assert (
        sum(isinstance(record, Ok) for record in records.values()) > len(files) * 0.9
    )  # the real sample has broken files
    # The detail of a failure names the file that was found, for a person to look at.
    assert facts_and_reasons(validated(products, tmp_path / "other/small")) == facts_and_reasons(records)


@pytest.mark.parametrize(
    ("recorded", "there", "strategy"),
    [
        ("ab/ab1.jpg", "ab/ab1.jpg", "recorded"),
        ("images/small/ab/ab1.jpg", "ab/ab1.jpg", "prefix"),
        ("ab/ab1.jpg", "small/ab/ab1.jpg", "prefix"),
        ("old.jpg", "cd/cd2.jpg", "images_csv"),
        ("", "cd/cd2.jpg", "images_csv"),
        ("old/ab1.jpg", "ab/ab1.jpg", "two_letter_folder"),
        ("old/ab1.jpg", "ab1.jpg", "flat"),
        ("ab/ab1.jpg", "ab/AB1.PNG", "similar_name"),
        ("", "ID1.jpeg", "similar_name"),
    ],
)
def test_each_strategy_finds_its_image_and_is_counted(recorded: str, there: str, strategy: str, tmp_path: Path) -> None:
    put(tmp_path, "metadata/images.csv", b"image_id,height,width,path\nid1,1,1,cd/cd2.jpg\n")
    put(tmp_path / "small", there, jpeg())
    images = ImageLocator(tmp_path / "small")
    for _ in range(2):
        assert images.locate(recorded, "id1") == there
    assert images.found == {strategy: 1}
    assert (STRATEGIES[strategy] in images.summary()) == (strategy != "recorded")


def test_two_candidates_are_an_error_that_names_both(tmp_path: Path) -> None:
    for folder in ("small", "original"):
        put(tmp_path, f"{folder}/ab/ab1.jpg", jpeg(size=(64 + len(folder), 64)))
    with pytest.raises(ImageProblem, match=r"image_ambiguous.*original/ab/ab1\.jpg.*small/ab/ab1\.jpg.*data\.images"):
        ImageLocator(tmp_path).locate("ab/ab1.jpg")
    assert ImageLocator(tmp_path).locate("small/ab/ab1.jpg") == "small/ab/ab1.jpg"


def test_same_name_in_an_unrelated_folder_is_not_taken(tmp_path: Path) -> None:
    put(tmp_path, "bags/1.jpg", jpeg())
    with pytest.raises(ImageProblem, match="image_file_missing"):
        ImageLocator(tmp_path).locate("shoes/1.jpg", "1")


@pytest.mark.parametrize("path", ["../ab/ab1.jpg", "/ab/ab1.jpg", "images/../../ab/ab1.jpg"])
def test_a_path_that_leaves_the_folder_is_not_searched_for(path: str, tmp_path: Path) -> None:
    put(tmp_path, "root/ab/ab1.jpg", jpeg())
    put(tmp_path, "ab/ab1.jpg", jpeg())
    for ask in (lambda images: images.locate(path), lambda images: images.read(path, "", 10_000)):
        with pytest.raises(ImageProblem, match="path_outside_root"):
            ask(ImageLocator(tmp_path / "root"))


def test_a_link_found_by_another_strategy_does_not_lead_outside(tmp_path: Path) -> None:
    put(tmp_path, "secret.jpg", jpeg())
    put(tmp_path, "root/a.jpg", jpeg())
    (tmp_path / "root/ab1.jpg").symlink_to(tmp_path / "secret.jpg")
    images = ImageLocator(tmp_path / "root")
    for ask in (lambda: images.read("ab/ab1.jpg", "", 10_000), lambda: images.locate("ab/ab1.jpg")):
        with pytest.raises(ImageProblem, match="path_outside_root"):
            ask()


def test_the_folder_is_searched_once_and_only_when_an_image_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    products, files = rendered()
    for path, data in files.items():
        put(tmp_path / "recorded", path, data)
        flat(tmp_path / "flat", path, data)
    searches, walk = [], os.walk

    def counted(*arguments: Any, **options: Any) -> Any:
        searches.append(arguments)
        return walk(*arguments, **options)

    monkeypatch.setattr("os.walk", counted)
    validated(products, tmp_path / "recorded")
    assert not searches
    validated(products, tmp_path / "flat")
    assert len(searches) == 1


def test_validation_says_how_images_were_found(tmp_path: Path) -> None:
    put(tmp_path, "ab/ab1.jpg", jpeg())
    put(tmp_path, "cd2.jpg", jpeg())
    products = [product("ab/ab1.jpg", "i1"), product("cd/cd2.jpg", "i2")]

    def run(some: list[Product]) -> str:
        todos = (Todo(one, lambda outcome, *, durable=False: None) for one in some)
        return validate(todos, image_root=tmp_path, settings=ValidateSettings())

    assert run(products[:1]) == ""
    assert run(products) == "images found: 1 at the recorded path, 1 by the file name alone"


def test_the_record_keeps_the_recorded_path(tmp_path: Path) -> None:
    put(tmp_path, "ab1.jpg", jpeg())
    found = validated([product("ab/ab1.jpg")], tmp_path)["item-i1"]
    assert isinstance(found, Ok) and isinstance(found.value, ImageFacts)
    assert found.value.image_path == "ab/ab1.jpg"
