"""A catalog of hostile input through the real tasks: each item gets a record with a reason, in bounded memory and time.

tests/data_prep/abo/test_listings.py and tests/data_prep/images/test_images.py test the cases one by one. This file runs the tasks
as processes and measures their peak memory.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from pathlib import Path

import orjson
import pytest
from PIL import Image

from data_prep.images.decode import ImageProblem, decode
from jobs.config import load_config
from jobs.run.run import open_run
from jobs.shards.journal import ReadReport
from jobs.shards.store import read_records
from tests.chaos.measure import measured_task
from tests.conftest import launch, launch_args, output, write_config
from tests.data_prep.conftest import jpeg, listing

MB = 1 << 20


def many_scans(scans: int, side: int = 8000) -> bytes:
    """A progressive JPEG that repeats its last scan: a hundred bytes each, and one more pass over all pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (3, 200, 90)).save(buffer, "JPEG", progressive=True, quality=30)
    data = buffer.getvalue()
    last = data[data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda")) : -2]
    return data[:-2] + last * scans + b"\xff\xd9"


def png_with_chunk(kind: bytes, body: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    data = buffer.getvalue()
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.effect_noise((80, 40), 60).convert("RGB"), "JPEG", exif=exif)


def hostile_images() -> dict[str, tuple[bytes, str]]:
    """File name → content and the expected reason, "" if the image is valid."""
    noise = Image.effect_noise((64, 64), 80)
    frames = {"save_all": True, "append_images": [noise.rotate(90).convert("P")]}
    return {
        "good.jpg": (jpeg(), ""),
        "cmyk.jpg": (encoded(noise.convert("CMYK"), "JPEG"), ""),
        "palette.png": (encoded(noise.convert("P"), "PNG", transparency=0), ""),
        "turned.jpg": (turned(), ""),
        "largest.png": (encoded(Image.new("RGBA", (8000, 8000)), "PNG"), ""),
        "icc.png": (png_with_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(500 * MB))), "image_broken"),
        "text.png": (png_with_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(500 * MB))), "image_broken"),
        "deep.png": (encoded(Image.new("I;16", (64, 64), 40_000), "PNG"), "image_mode_unsupported"),
        "animated.gif": (encoded(noise.convert("P"), "GIF", **frames), "image_animated"),
        "huge.jpg": (encoded(Image.new("L", (20_000, 20_000)), "JPEG", quality=1), "image_too_many_pixels"),
        "huge.png": (encoded(Image.new("1", (20_000, 20_000)), "PNG"), "image_too_many_pixels"),
        "scans.jpg": (many_scans(20_000), "image_too_many_scans"),
        "empty.jpg": (b"", "image_empty_file"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "image_not_an_image"),
        "svg.jpg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_not_an_image"),
        "cut.jpg": (jpeg(size=(300, 300))[:-500], "image_truncated"),
        "program.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ls) system\n", "image_not_an_image"),
    }


def write_catalogue(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Write the hostile catalog; return the expected reasons by item, of listings and of images."""
    images, outside = root / "images" / "small", root / "outside"
    for folder in (root / "listings/metadata", root / "images/metadata", images, outside):
        folder.mkdir(parents=True)
    (root / "facts.jsonl").touch()
    (outside / "secret.jpg").write_bytes(jpeg("blue"))
    (images / "link.jpg").symlink_to(outside / "secret.jpg")
    (images / "folder").symlink_to(outside)
    os.mkfifo(images / "pipe.jpg")
    (images / "zero.jpg").symlink_to("/dev/zero")
    expected_images: dict[str, str] = {}
    paths: dict[str, str] = {}
    for name, (data, reason) in hostile_images().items():
        (images / name).write_bytes(data)
        expected_images[name], paths[name] = reason, name
    with (images / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)
    for name, path, reason in (
        ("absolute", str(outside / "secret.jpg"), "path_outside_root"),
        ("dots", "../../outside/secret.jpg", "path_outside_root"),
        ("link", "link.jpg", "path_outside_root"),
        ("folder", "folder/secret.jpg", "path_outside_root"),
        ("device", "zero.jpg", "path_outside_root"),
        ("pipe", "pipe.jpg", "image_not_a_file"),
        ("sparse", "sparse.jpg", "image_file_too_large"),
        ("missing", "none.jpg", "image_file_missing"),
        ("long", "n/" * 3000 + "x.jpg", "image_unreadable"),
    ):
        paths[name], expected_images[name] = path, reason
    lines = [orjson.dumps(listing(name, main_image_id=name)) for name in paths]
    bad: dict[str, tuple[bytes, str]] = {
        "100 MB": (b'{"item_id": "L", "x": "' + b"a" * 100_000_000 + b'"}', "line_too_long"),
        "not UTF-8": (b'{"item_id": "U\xff\xfe"}', "invalid_utf8"),
        "NaN": (b'{"item_id": "N", "item_weight": NaN}', "broken_json"),
        "Infinity": (b'{"item_id": "I", "item_weight": -Infinity}', "broken_json"),
        "deep": (b"[" * 100_000 + b"]" * 100_000, "broken_json"),
        "dots": (orjson.dumps(listing("../../etc/passwd", main_image_id="nowhere")), "image_not_in_images_csv"),
        "id of 5000": (orjson.dumps(listing("B" * 5000)), "bad_item_id"),
        "line end in id": (orjson.dumps(listing("B\nB")), "bad_item_id"),
        "a number": (b"7", "not_an_object"),
        "no fields": (b"{}", "no_item_id"),
    }
    huge = b'{"item_id":"huge","main_image_id":"good.jpg","item_weight":' + b"9" * 5000 + b"}"
    bad["huge number"] = (huge, "broken_json")  # beyond any range that a parser accepts
    content = b"\n".join([*lines, *(line for line, _ in bad.values())])
    (root / "listings/metadata/listings_0.json.gz").write_bytes(gzip.compress(content, 1))
    # a gigabyte compressed into a megabyte, on one line
    endless = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(endless.compress(b"a" * (10 * MB)) for _ in range(100)) + endless.flush()
    (root / "listings/metadata/listings_1.json.gz").write_bytes(bomb)
    rows = ["image_id,height,width,path", *(f"{name},1,1,{path}" for name, path in paths.items()), "x," + "y" * 300_000]
    (root / "images/metadata/images.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    return {name: reason for name, (_, reason) in bad.items()} | {"bomb": "line_too_long"}, expected_images


@pytest.mark.slow
def test_hostile_input_ends_as_records_in_bounded_memory_and_time(tmp_path: Path) -> None:
    bad, expected = write_catalogue(tmp_path / "abo")
    config = write_config(tmp_path / "c.yaml", tmp_path / "abo", validate={"shards": 1})
    run, _ = open_run(tmp_path / "run", load_config(config), [])
    megabytes, seconds, _ = measured_task(run.path, "prepare")
    rejected = [orjson.loads(line) for line in run.rejected("prepare").read_bytes().splitlines()]
    assert sorted(r["reason"] for r in rejected) == sorted(bad.values())
    assert all("listings_" in r["detail"] and len(r["detail"]) < 500 for r in rejected)
    print(f"prepare: {megabytes} MB, {seconds:.1f} s")
    assert megabytes < 300
    megabytes, seconds, _ = measured_task(run.path, "validate", "--shard", "0")
    print(f"validate: {megabytes} MB, {seconds:.1f} s")
    records = list(read_records(run.store("validate"), ReadReport()))
    assert {r.key: r.reason for r in records} == expected
    assert megabytes < 1500  # some twenty bytes for each of the 64 million pixels allowed
    assert seconds < 60
    shown = launch("status", run.path)
    assert shown.returncode == 0, output(shown)
    assert f"{sum(map(bool, expected.values()))} of {len(expected)} items failed" in " ".join(shown.stdout.split())


def test_a_jpeg_of_many_scans_is_rejected_before_it_costs_hours() -> None:
    """100 kB would take a minute: each scan of a hundred bytes takes 40 ms. A photo with ten scans passes."""
    decode(many_scans(5, side=500), 64_000_000)
    with pytest.raises(ImageProblem, match="image_too_many_scans"):
        decode(many_scans(200, side=500), 64_000_000)


def test_status_of_hostile_items_prints_no_terminal_codes(tmp_path: Path) -> None:
    """Item names come from untrusted files, and a terminal obeys the escape codes it is sent."""
    bad = [listing("B\x1b[31m"), listing("[red]B[/red]"), listing("\u202eB")]
    root = tmp_path / "abo"
    for folder in (root / "listings/metadata", root / "images/metadata", root / "images/small"):
        folder.mkdir(parents=True)
    (root / "listings/metadata/listings_0.json.gz").write_bytes(gzip.compress(b"\n".join(map(orjson.dumps, bad))))
    (root / "images/metadata/images.csv.gz").write_bytes(gzip.compress(b"image_id,path\nx,\x1b[31mred.jpg\n"))
    config = write_config(tmp_path / "c.yaml", root)
    done = launch(*launch_args(config, tmp_path / "run", "--stages", "prepare,validate"))
    assert "\x1b" not in output(done)
    assert "\x1b" not in output(launch("status", tmp_path / "run"))
