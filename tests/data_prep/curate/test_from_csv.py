"""Anybody's CSV and a folder of images give what the stages before curation would have given."""

from __future__ import annotations

import codecs
import csv
import json
from pathlib import Path

import pytest

from data_prep import dataset_csv
from data_prep.curate.curate import curate
from data_prep.curate.from_csv import FromCsv, read_csv
from data_prep.dataset_csv import Row, load_dataset_and_metadata
from data_prep.outcomes import UserError
from data_prep.records import Rejected
from data_prep.settings import CurateSettings, DataSettings, ValidateSettings
from tests.data_prep.conftest import jpeg

PAIRS = [{"question": "What color is the mug?", "answer": "red"}, {"question": "Is it round?", "answer": "yes"}]


def write(path: Path, rows: list[list[str]], header: str = "item_id,image_id,qas") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def gather(folder: Path, csv_path: Path, rejected: list[Rejected] | None = None) -> FromCsv:
    data = DataSettings(root=folder, images="pics", dataset_csv=csv_path)
    return read_csv(data, ValidateSettings(), (rejected if rejected is not None else []).append)


def image(folder: Path, name: str, color: str = "red") -> None:
    (folder / "pics" / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "pics" / name).write_bytes(jpeg(color))


def test_rows_of_all_files_and_the_paths_of_their_images_are_read(tmp_path: Path) -> None:
    first = write(tmp_path / "dataset_0.csv", [["B1", "i1", "[]"]])
    second = write(tmp_path / "dataset_1.csv", [["7", "x", "i2", "B2"]], header="n,qas,image_id,item_id")
    (tmp_path / "images.csv").write_text("image_id,height,width,path\ni1,1,1,aa/a.jpg\ni9,1,1,zz/z.jpg\n")
    rows, paths = load_dataset_and_metadata([first, second], tmp_path / "images.csv")
    assert rows == [Row("B1", "i1", "[]"), Row("B2", "i2", "x")]
    assert paths == {"i1": "aa/a.jpg"}


def test_a_byte_order_mark_in_a_dataset_or_its_metadata_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset_0.csv", [["B1", "i1", "[]"]])
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    (tmp_path / "images.csv").write_text("image_id,path\ni1,aa/a.jpg\n", "utf-8-sig")
    assert load_dataset_and_metadata([path], tmp_path / "images.csv") == ([Row("B1", "i1", "[]")], {"i1": "aa/a.jpg"})
    assert [row.item_id for row in dataset_csv.read(path)] == ["B1"]


def test_a_table_without_the_columns_is_named_with_those_it_has(tmp_path: Path) -> None:
    path = write(tmp_path / "my.csv", [["1", "2"]], header="item,qas")
    with pytest.raises(UserError, match=r"my\.csv lacks the columns image_id, item_id.*it names item, qas"):
        load_dataset_and_metadata([path])


@pytest.mark.parametrize("written", [json.dumps(PAIRS), repr(PAIRS), f"```json\n{json.dumps(PAIRS)}\n```"])
def test_pairs_are_read_as_json_or_as_a_python_literal(written: str, tmp_path: Path) -> None:
    image(tmp_path, "i1.jpg")
    found = gather(tmp_path, write(tmp_path / "my.csv", [["B1", "i1", written]]))
    made = curate(
        found.products, found.facts, found.failures, found.replies,
        CurateSettings(missing_category="keep"), lambda _: None,
    )  # fmt: skip
    rows = [row for split in made.splits.values() for row in split]
    assert [(row.question, row.answer, row.image_path) for row in rows] == [
        (pair["question"], pair["answer"], "i1.jpg") for pair in PAIRS
    ]


def test_rows_about_one_item_keep_all_of_their_pairs(tmp_path: Path) -> None:
    image(tmp_path, "i1.jpg")
    asked = [
        f"Which {thing} is on the mug?" for thing in ("logo", "animal", "plant", "fruit", "letter", "sport", "city")
    ]
    rows = [["B1", "i1", repr([{"question": question, "answer": "one"}])] for question in asked]
    rejected: list[Rejected] = []
    found = gather(tmp_path, write(tmp_path / "my.csv", [*rows, ["B1", "other", "[]"]]), rejected)
    made = curate(
        found.products, found.facts, found.failures, found.replies,
        CurateSettings(missing_category="keep"), lambda _: None, most_pairs=None,
    )  # fmt: skip
    assert [row.question for split in made.splits.values() for row in split] == asked
    assert [(one.item_id, one.reason) for one in rejected] == [("B1", "duplicate_item")]


def test_an_image_that_cannot_be_used_is_a_counted_reason(tmp_path: Path) -> None:
    image(tmp_path, "i1.jpg")
    (tmp_path / "pics/i2.jpg").write_bytes(b"<html>")
    found = gather(tmp_path, write(tmp_path / "my.csv", [[f"B{n}", f"i{n}", repr(PAIRS)] for n in (1, 2, 3)]))
    assert [*found.facts] == ["B1"]
    assert found.failures == {"B2": "image_not_an_image", "B3": "image_file_missing"}


def test_a_hostile_literal_runs_nothing_and_ends_as_an_unparsable_reply(tmp_path: Path) -> None:
    image(tmp_path, "i1.jpg")
    hostile = ["__import__('os').system('touch hacked')", "[" * 50_000, "b'bytes'", ""]
    found = gather(tmp_path, write(tmp_path / "my.csv", [[f"B{n}", "i1", text] for n, text in enumerate(hostile)]))
    made = curate(found.products, found.facts, found.failures, found.replies, CurateSettings(), lambda _: None)
    assert made.stats.products.dropped == {"unparsable_reply": len(hostile)}
