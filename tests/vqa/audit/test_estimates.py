"""Prediction-powered inference with the real stratified sampler covers the truth; a score against generated answers does not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from vqa.audit.estimates import Judged, kappa, prediction_powered, weighted_share
from vqa.audit.sampling import draw, stratum
from vqa.evaluation.statistics import interval, label_codes

TYPES = ("color", "material", "count", "shape", "object", "yes/no")
SHARES = np.array([0.3, 0.2, 0.15, 0.15, 0.1, 0.1])
KNOWN = np.array([0.7, 0.55, 0.35, 0.6, 0.75, 0.6])  # how often the model knows the answer, by type
WRONG = np.array([0.1, 0.25, 0.15, 0.1, 0.05, 0.2])  # how often the generated answer is wrong


@dataclass
class World:
    """Test questions of which everything is known."""

    clusters: np.ndarray
    strata: list[str]
    wrong: np.ndarray  # the generated answer is
    people: np.ndarray  # the model is right by the truth
    machine: np.ndarray  # the model is right by the generated answer


def world(rng: np.random.Generator, products: int) -> World:
    """Products of five questions. Some are harder than others; in three of five errors the model was taught the error."""
    clusters = np.repeat(np.arange(products), 5)
    n = len(clusters)
    kind = rng.choice(len(TYPES), n, p=SHARES)
    hard = rng.normal(0, 0.8, products)[clusters]

    def happens(share: np.ndarray, shift: np.ndarray) -> np.ndarray:
        return rng.random(n) < 1 / (1 + np.exp(-(np.log(share / (1 - share)) + shift)))

    wrong, knows = happens(WRONG[kind], hard), happens(KNOWN[kind], -hard)
    taught = rng.random(n) < 0.6
    contested = rng.random(n) < np.where(wrong, 0.8, 0.1)
    return World(
        clusters,
        [stratum(TYPES[k], "contested" if c else "agreed") for k, c in zip(kind, contested, strict=True)],
        wrong,
        np.where(wrong & taught, False, knows).astype(float),
        np.where(wrong, taught, knows).astype(float),
    )


def judged_sample(found: World, count: int, seed: int) -> Judged:
    sample = draw([(str(i), name) for i, name in enumerate(found.strata)], count, seed)
    every = label_codes([sample.stratum_of[str(i)] for i in range(len(found.strata))])
    return Judged(every, found.clusters, np.array([int(i) for i in sample.ids]))


def test_the_prediction_powered_interval_covers_where_a_plain_one_is_biased() -> None:
    rng = np.random.default_rng(7)
    large = world(rng, 80_000)
    truth, error = large.people.mean(), large.wrong.mean()
    assert large.machine.mean() - truth > 0.05  # a model that was taught the errors is flattered
    covers = dict.fromkeys(("powered", "plain", "unweighted", "error"), 0)
    widths: dict[str, list[float]] = {"powered": [], "people": []}
    repetitions = 300
    for seed in range(repetitions):
        found = world(rng, 300)
        judged = judged_sample(found, 200, seed)
        powered = prediction_powered(judged, found.machine, found.people[judged.sampled])
        people = weighted_share(judged, found.people[judged.sampled])
        intervals = {
            "powered": (powered, truth),
            "plain": (interval(found.machine, found.clusters, resamples=300), truth),
            "unweighted": (
                interval(found.people[judged.sampled], found.clusters[judged.sampled], resamples=300),
                truth,
            ),
            "error": (weighted_share(judged, found.wrong[judged.sampled].astype(float)), error),
        }
        for name, (one, value) in intervals.items():
            assert one.low is not None and one.high is not None
            covers[name] += one.low <= value <= one.high
        for name, one in (("powered", powered), ("people", people)):
            widths[name].append((one.high or 0) - (one.low or 0))
    share = {name: count / repetitions for name, count in covers.items()}
    assert 0.92 <= share["powered"] <= 0.98, share
    assert share["plain"] < 0.05 and share["unweighted"] < 0.85, share
    assert share["error"] >= 0.94, share
    assert np.mean(widths["powered"]) < 0.75 * np.mean(widths["people"])  # for the same work of people


def test_people_who_judge_everything_are_the_truth() -> None:
    found = world(np.random.default_rng(1), 60)
    everything = Judged(label_codes(found.strata), found.clusters, np.arange(len(found.strata)))
    assert prediction_powered(everything, found.machine, found.people).mean == pytest.approx(found.people.mean())
    assert weighted_share(everything, found.people).mean == pytest.approx(found.people.mean())


def test_no_error_found_is_not_no_error() -> None:
    judged = judged_sample(world(np.random.default_rng(2), 60), 40, 0)
    found = weighted_share(judged, np.zeros(40))
    assert found.mean == found.low == 0.0
    assert found.high is not None and 0.05 < found.high < 0.3


def test_a_stratum_with_one_judged_question_still_gives_an_interval() -> None:
    found = world(np.random.default_rng(3), 60)
    judged = judged_sample(found, 40, 0)
    few = Judged(judged.strata, judged.clusters, judged.sampled[:15])  # somebody stopped early
    powered = prediction_powered(few, found.machine, found.people[few.sampled])
    assert powered.low is not None and powered.high is not None and powered.low < powered.mean < powered.high
    assert few.pooled().weights().sum() == pytest.approx(len(found.strata))


def test_kappa_is_one_in_agreement_zero_by_chance_and_none_where_chance_explains_all() -> None:
    assert kappa(["right", "wrong", "right"], ["right", "wrong", "right"]) == pytest.approx(1.0)
    assert kappa(["a", "a", "b", "b"], ["a", "b", "a", "b"]) == pytest.approx(0.0)
    # Cohen's example in Fleiss, Levin, Paik 2003, table 18.1: 100 subjects, kappa 0.676.
    table = {("p", "p"): 75, ("p", "n"): 1, ("p", "o"): 4, ("n", "p"): 5, ("n", "n"): 4, ("n", "o"): 1, ("o", "o"): 10}
    pairs = [pair for pair, count in table.items() for _ in range(count)]
    assert kappa([a for a, _ in pairs], [b for _, b in pairs]) == pytest.approx(0.676, abs=0.001)
    assert kappa(["right"] * 3, ["right"] * 3) is None and kappa([], []) is None
