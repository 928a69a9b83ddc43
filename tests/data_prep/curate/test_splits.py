"""A product's side depends on the seed and its image id alone, and no image of train or val is near one of test."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from data_prep.curate import curate
from data_prep.curate.dataset import CuratedDataset, verify, write_dataset
from data_prep.curate.splits import side
from data_prep.images.dhash import fingerprint
from data_prep.images.near_duplicates import first_near, repeats
from data_prep.records import ImageFacts, Rejected, Teacher
from data_prep.settings import CurateSettings
from tests.data_prep.curate.test_curate import PAIRS, facts_of, product, reply, run

SHARES = {"val_share": 0.1, "test_share": 0.2}


def like(
    facts: ImageFacts, number: int, *, bits: int = 0, shift: int = 0, rng: random.Random | None = None
) -> ImageFacts:
    """Facts of product ``number``'s image, which looks like another but for some bits of the hash and some color."""
    flips = sum(1 << place for place in (rng or random.Random(number)).sample(range(64), bits))
    colors = bytes(min(255, c + shift) for c in bytes.fromhex(facts.colors)).hex()
    return facts_of(number, dhash=f"{int(facts.dhash, 16) ^ flips:016x}", colors=colors)


def curated(images: Mapping[int, ImageFacts], **options: object) -> tuple[CuratedDataset, list[Rejected]]:
    """Curate the products that have these numbers and images, in this order."""
    rejected: list[Rejected] = []
    dataset = curate.curate(
        [product(n) for n in images],
        {f"B{n:04}": facts for n, facts in images.items()},
        {},
        [reply(n, PAIRS) for n in images],
        CurateSettings(**options),
        rejected.append,
    )
    return dataset, rejected


def split_of(dataset: CuratedDataset) -> dict[str, str]:
    return {row.item_id: name for name, part in dataset.splits.items() for row in part}


def numbers_in(name: str, count: int, seed: int = 0) -> list[int]:
    """The first products that fall on a side."""
    return [n for n in range(1000) if side(f"i{n}", seed=seed, **SHARES) == name][:count]


def test_a_side_is_the_documented_hash_of_seed_and_image_id() -> None:
    for seed in (0, 7):
        for number in range(300):
            digest = hashlib.sha256(f"{seed}:i{number}".encode()).hexdigest()
            place = int(digest[:16], 16) / 2**64
            expected = "test" if place < 0.2 else "val" if place < 0.2 + 0.1 else "train"
            assert side(f"i{number}", seed=seed, **SHARES) == expected
    # Written out, so that another hash would be noticed: whoever splits ABO by seed 0 has these.
    letters = {"train": ".", "val": "v", "test": "T"}
    drawn = "".join(letters[side(f"i{n}", seed=0, **SHARES)] for n in range(40))
    assert drawn == "T.......v......v......T..v...TvTvv.T...."


def test_sides_have_their_shares_and_another_seed_gives_others() -> None:
    sides = [side(f"i{n}", seed=1, **SHARES) for n in range(3000)]
    counts = Counter(sides)
    assert 0.17 < counts["test"] / 3000 < 0.23
    assert 0.08 < counts["val"] / 3000 < 0.12
    assert sides != [side(f"i{n}", seed=2, **SHARES) for n in range(3000)]


def test_another_process_with_another_hash_seed_finds_the_same_sides() -> None:
    code = (
        "from data_prep.curate.splits import side;"
        "print(*[side(f'i{n}', seed=3, val_share=0.1, test_share=0.2) for n in range(200)])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "99"}, capture_output=True, text=True, check=True
    ).stdout
    assert said.split() == [side(f"i{n}", seed=3, **SHARES) for n in range(200)]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(0, 40), st.sampled_from(["drop", "keep"]))
def test_adding_copies_and_removing_products_moves_no_product(seed, copies, gone, same_image) -> None:
    rng = random.Random(seed)
    images = {n: facts_of(n) for n in range(60)}
    before = split_of(curated(images, seed=seed % 5, same_image=same_image)[0])
    changed = dict(images)
    for n in range(100, 100 + copies):
        changed[n] = like(rng.choice(list(images.values())), n, bits=rng.randrange(3), shift=rng.randrange(3))
    for n in rng.sample(range(60), gone):
        del changed[n]
    order = list(changed)
    rng.shuffle(order)
    after = split_of(curated({n: changed[n] for n in order}, seed=seed % 5, same_image=same_image)[0])
    moved = {item for item in before.keys() & after.keys() if before[item] != after[item]}
    assert not moved
    assert all(side(f"i{int(item[1:])}", seed=seed % 5, **SHARES) == name for item, name in after.items())


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(["drop", "keep"]), st.integers(0, 4), st.floats(0, 4))
def test_no_image_of_test_nor_a_near_one_is_in_train_or_val(seed, same_image, bits, distance) -> None:
    rng = random.Random(seed)
    images: dict[int, ImageFacts] = {}
    for n in range(80):
        fresh = not images or rng.random() < 0.4
        images[n] = (
            facts_of(n)
            if fresh
            else like(rng.choice(list(images.values())), n, bits=rng.randrange(5), shift=rng.randrange(5), rng=rng)
        )
        if not fresh and rng.random() < 0.2:
            images[n] = dataclasses.replace(images[n], sha256=rng.choice(list(images.values())).sha256)
    dataset, rejected = curated(images, seed=seed % 7, same_image=same_image, dhash_bits=bits, color_distance=distance)
    kept = [(name, dataset.images[item]) for item, name in split_of(dataset).items()]
    for one, a in kept:
        for other, b in kept:
            if one != other:
                assert not near(a, b, bits, distance), (one, other)
    # And nothing was dropped without need: what is dropped is near something that is kept.
    counted = Counter(r.reason for r in rejected)
    assert counted == Counter(dataset.stats.products.dropped) + Counter(dataset.stats.pairs.dropped)
    assert dataset.stats.products.read == 80 == len(split_of(dataset)) + sum(dataset.stats.products.dropped.values())
    for name in ("test", "val"):
        for item in {r.item_id for r in rejected if r.reason == f"near_{name}_image"}:
            dropped = images[int(item[1:])]
            assert any(near(dropped, b, bits, distance) for other, b in kept if other == name)


def near(a: ImageFacts, b: ImageFacts, bits: int, distance: float) -> bool:
    colors = [abs(x - y) for x, y in zip(bytes.fromhex(a.colors), bytes.fromhex(b.colors), strict=True)]
    apart = (int(a.dhash, 16) ^ int(b.dhash, 16)).bit_count()
    return a.sha256 == b.sha256 or (apart <= bits and sum(colors) / 48 <= distance)


def test_what_is_near_test_leaves_train_and_val_and_what_is_near_val_leaves_train() -> None:
    test, val, (train, other, alone) = numbers_in("test", 1)[0], numbers_in("val", 2), numbers_in("train", 3)
    images = {n: facts_of(n) for n in (test, *val, train, other, alone)}
    images[val[0]] = like(images[test], val[0], bits=2, shift=1)
    images[train] = like(images[test], train, shift=2)
    images[other] = like(images[val[1]], other, shift=2)
    dataset, rejected = curated(images)
    items = {n: f"B{n:04}" for n in images}
    assert split_of(dataset) == {items[test]: "test", items[val[1]]: "val", items[alone]: "train"}
    assert dataset.stats.products.dropped == {"near_test_image": 2, "near_val_image": 1}
    assert dataset.stats.pairs.dropped == {"near_test_image": 10, "near_val_image": 5}
    said = {(r.item_id, r.reason) for r in rejected}
    assert said == {
        (items[val[0]], "near_test_image"),
        (items[train], "near_test_image"),
        (items[other], "near_val_image"),
    }
    assert any(items[test] in r.detail and "in test" in r.detail for r in rejected if r.item_id == items[train])


def test_a_val_product_that_was_dropped_takes_no_training_product_with_it() -> None:
    test, val, train = (numbers_in(name, 1)[0] for name in ("test", "val", "train"))
    images = {test: facts_of(test)}
    images[val] = like(images[test], val, shift=2)
    images[train] = like(images[val], train, shift=2)  # near val's, but not test's
    assert split_of(curated(images)[0]) == {f"B{test:04}": "test", f"B{train:04}": "train"}


def test_the_same_file_under_another_image_id_is_never_on_two_sides() -> None:
    test, val, train = (numbers_in(name, 1)[0] for name in ("test", "val", "train"))
    for pair in ((test, val), (test, train), (val, train)):
        images = {n: facts_of(n, sha256="0" * 64) for n in pair}
        for option in ("drop", "keep"):
            assert split_of(curated(images, same_image=option)[0]).keys() == {f"B{pair[0]:04}"}


def test_of_equal_images_the_one_in_test_is_kept_and_else_the_lowest_item() -> None:
    test, (a, b, c) = numbers_in("test", 1)[0], numbers_in("train", 3)
    images = {n: facts_of(n) for n in (c, b, a, test)}
    images[b] = dataclasses.replace(images[b], sha256=images[c].sha256)
    images[a] = like(images[test], a)
    dataset, rejected = curated(images)
    assert set(split_of(dataset)) == {f"B{test:04}", f"B{b:04}"}
    assert dataset.stats.products.dropped == {"same_image": 2}
    assert {(r.item_id, r.detail) for r in rejected if r.detail.startswith("product")} == {
        (f"B{a:04}", f"product: shown by item B{test:04}"),
        (f"B{c:04}", f"product: shown by item B{b:04}"),
    }
    kept, _ = curated(images, same_image="keep")
    assert set(split_of(kept)) == {f"B{n:04}" for n in (test, b, c)}  # a is near test


def test_necklaces_on_white_do_not_chain_onto_one_side() -> None:
    """Each is near the next; connected, all would be one group."""
    images: dict[int, ImageFacts] = {}
    for n in range(154):
        picture = Image.new("RGB", (180, 256), "white")
        pen = ImageDraw.Draw(picture)
        pen.line([(40, 0), (90, 150 + n // 2), (140, 0)], fill=(120, 120, 130), width=3)
        pen.ellipse([80, 150 + n // 2, 100, 170 + n // 2], fill=(60, 80, 200 - n))
        images[n] = facts_of(n, **dict(zip(("dhash", "colors"), fingerprint(picture), strict=True)))
    chained = [near(images[n], images[n + 1], 2, 2.0) for n in range(153)]
    assert all(chained) and not near(images[0], images[153], 2, 2.0)
    dataset, _ = curated(images)
    sides = Counter(split_of(dataset).values())
    assert set(split_of(dataset).items()) <= {(f"B{n:04}", side(f"i{n}", seed=0, **SHARES)) for n in range(154)}
    assert sides["test"] > 1
    assert dataset.stats.products.dropped["same_image"] < 154 - sides["test"]


def test_another_color_is_another_image() -> None:
    one = facts_of(0)
    others = [facts_of(1, dhash=one.dhash), like(one, 2)]
    assert first_near([one], others, dhash_bits=3, color_distance=2) == [1]
    assert repeats([one, *others], dhash_bits=3, color_distance=2) == [None, None, 0]


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 8), st.floats(0, 30))
def test_near_images_are_exactly_those_that_comparing_all_with_all_finds(seed, bits, distance) -> None:
    rng = random.Random(seed)
    images: list[ImageFacts] = []
    for number in range(60):
        facts = facts_of(seed + number)
        if images and rng.random() < 0.7:
            facts = like(rng.choice(images), seed + number, bits=rng.randrange(6), shift=rng.randrange(12), rng=rng)
        images.append(facts)
    asked, others = images[:35], images[35:]
    expected = [next((i for i, o in enumerate(others) if near(a, o, bits, distance)), None) for a in asked]
    assert first_near(asked, others, dhash_bits=bits, color_distance=distance) == expected
    kept: list[int] = []
    for index, image in enumerate(images):
        first = next((k for k in kept if near(image, images[k], bits, distance)), None)
        assert repeats(images, dhash_bits=bits, color_distance=distance)[index] == first
        if first is None:
            kept.append(index)


def test_no_images_are_near_none() -> None:
    assert first_near([], [facts_of(0)], dhash_bits=3, color_distance=2) == []
    assert first_near([facts_of(0)], [], dhash_bits=3, color_distance=2) == [None]
    assert repeats([], dhash_bits=3, color_distance=2) == []


def test_verify_names_every_kind_of_leak(tmp_path: Path) -> None:
    dataset, _ = run(dict.fromkeys(range(40), PAIRS))
    train, test = dataset.splits["train"][0], dataset.splits["test"][0]
    leaky = dataclasses.replace(test, image_id=train.image_id, image_path=train.image_path)
    dataset.splits["test"][0] = leaky
    same_file = {"sha256": dataset.images[train.item_id].sha256}
    other = dataset.splits["val"][0]
    dataset.images[other.item_id] = dataclasses.replace(dataset.images[other.item_id], **same_file)
    last = dataset.splits["test"][-1].item_id
    dataset.images[last] = dataclasses.replace(
        dataset.images[train.item_id], image_id=dataset.images[last].image_id, sha256="1" * 64
    )
    write_dataset(dataset, tmp_path / "d", image_root=tmp_path, teacher=Teacher("x"))
    found = verify(tmp_path / "d")
    assert f"image {train.image_id} is in test and train" in found
    assert f"image file {train.image_path} is in test and train" in found
    assert f"items {train.item_id} and {other.item_id} show the same file, in train and val" in found
    assert f"items {train.item_id} and {last} show nearly equal images, in train and test" in found
