"""Reads metadata of ABO's size, and compares it with only decompressing and parsing the same files, each in one process.

``python benchmarks/ingest.py --out ingest.json`` makes 147,702 listings in 16 files and an index of 398,212 images, with some
5 kB per listing as in ABO, and measures in turns:

- ours: `listings.prepare`, from the files to products and rejections;
- floor: ``for line in gzip.open(file): orjson.loads(line)`` for the same listings, and the index decompressed.

The bar is a ratio of 1 / 1.5 = 0.67 or more, and a peak memory below 1 GB, measured in a separate process.
"""

from __future__ import annotations

import argparse
import gzip
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import alternate, compare, report
from data_prep.abo import listings
from data_prep.records import Rejected
from data_prep.settings import DataSettings, PrepareSettings

LISTINGS, IMAGES, FILES = 147_702, 398_212, 16
_LANGUAGES = ("en_US", "en_GB", "en_IN", "de_DE", "fr_FR", "es_ES", "ja_JP", "zh_CN")


def make_metadata(root: Path, listings: int = LISTINGS, images: int = IMAGES, seed: int = 0) -> None:
    """Make files like ABO's: the same fields, texts in several languages, up to 48 keywords and 3 to 7 images per item.

    Args:
        root: the folder to make listings/metadata, images/metadata and an empty images/small in.
        listings, images: how many.
        seed: seed of the random content.
    """
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(3, 11))) for _ in range(5_000)]
    for folder in ("listings/metadata", "images/metadata", "images/small"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    ids = [f"{rng.getrandbits(40):010x}L" for _ in range(images)]
    with gzip.open(root / "images/metadata/images.csv.gz", "wt", compresslevel=6) as index:
        index.write("image_id,height,width,path\n")
        for name in ids:
            index.write(f"{name},2000,1600,{name[:2]}/{name[:8]}.jpg\n")

    def text(count: int, length: int) -> list[dict[str, str]]:
        return [
            {"language_tag": rng.choice(_LANGUAGES), "value": " ".join(rng.choices(words, k=length))}
            for _ in range(count)
        ]

    for number in range(FILES):
        path = root / f"listings/metadata/listings_{number:x}.json.gz"
        with gzip.open(path, "wb", compresslevel=6) as file:
            for position in range(number, listings, FILES):
                main = ids[position] if position % 266 else f"{position}gone"  # ABO has 555 main images without a path
                listing = {
                    "brand": text(2, 1),
                    "bullet_point": text(10, 16),
                    "color": [{"language_tag": "en_US", "standardized_values": ["Blue"], "value": "navy blue"}],
                    "item_id": f"B{position:09d}",
                    "item_name": text(3, 10),
                    "item_weight": [
                        {"normalized_value": {"unit": "pounds", "value": 1.25}, "unit": "pounds", "value": 1.25}
                    ],
                    "model_number": [{"value": "AB-1234"}],
                    "product_type": [{"value": f"TYPE_{position % 576}"}],
                    "main_image_id": main,
                    "other_image_id": rng.choices(ids, k=rng.randrange(3, 7)),
                    "item_keywords": text(rng.choice((0, 20, 30, 48)), 2),
                    "country": "US",
                    "marketplace": "Amazon",
                    "domain_name": "amazon.com",
                    "node": [{"node_id": 1063278, "path": "/Categories/Home & Kitchen/Rugs/Area Rugs"}],
                }
                file.write(orjson.dumps(listing) + b"\n")


def ours(root: Path) -> tuple[int, int]:
    """The number of products and of rejections."""
    rejected = 0

    def reject(record: Rejected) -> None:
        nonlocal rejected
        rejected += 1

    sources = listings.find_sources(DataSettings(root=root))
    return sum(1 for _ in listings.prepare(sources, PrepareSettings(), reject)), rejected


def floor(root: Path) -> int:
    """Decompress and parse the same files, and nothing else."""
    count = 0
    for path in sorted((root / "listings/metadata").iterdir()):
        with gzip.open(path, "rb") as lines:
            for line in lines:
                orjson.loads(line)
                count += 1
    with gzip.open(root / "images/metadata/images.csv.gz", "rb") as lines:
        for _ in lines:
            pass
    return count


def peak_megabytes(root: Path) -> float:
    """Peak memory of a separate process that only prepares."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from benchmarks import ingest\n"
        "ingest.ours(Path(sys.argv[2]))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    here = str(Path(__file__).resolve().parents[1])
    done = subprocess.run([sys.executable, "-c", program, here, str(root)], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def main() -> None:
    """Make the files, measure, print and write."""
    parser = argparse.ArgumentParser(
        description="Compare ingesting ABO-sized metadata with only decompressing and parsing it"
    )
    parser.add_argument("--listings", type=int, default=LISTINGS)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="keep the generated files in this folder and reuse them")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.data or Path(temporary)
        if not (root / "images/small").is_dir():
            make_metadata(root, options.listings, options.images)
        products, rejected = ours(root)
        times = alternate({"ours": lambda: ours(root), "floor": lambda: floor(root)}, rounds=options.rounds, warm_up=0)
        listings = products + rejected
        report(
            "ingest",
            {
                "ingest": compare(times, "ours", "floor", work=listings, unit="listings"),
                "listings": listings,
                "products": products,
                "peak_megabytes": round(peak_megabytes(root), 1),
                "bar": "at least 0.67 x, below 1000 MB",
            },
            options.out,
        )


if __name__ == "__main__":
    main()
