"""Configuration: every mistake is one sentence that names the key, the value and what would be right."""

from pathlib import Path

import pytest
import yaml

from data_prep.outcomes import UserError
from jobs.config import CONFIGS, DEFAULT_CONFIG, dump_config, load_config, validate_config
from vqa.report.published import HYPERPARAMETERS, flatten

GOOD = {"data": {"root": "/data"}, "models": {"blip": {"kind": "blip"}}}


def write(tmp_path: Path, tree: object) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prepare": {"max_itms": 3}}, ["prepare: there is no key 'max_itms'", "Did you mean 'max_items'"]),
        ({"trian": {}}, ["top level: there is no key 'trian'", "Did you mean 'train'"]),
        ({"prepare": {"max_items": "many"}}, ["prepare.max_items = 'many'", "integer"]),
        ({"prepare": {"max_items": 0}}, ["prepare.max_items = 0", "greater than or equal to 1"]),
        ({"train": {"strategy": "zero9"}}, ["train.strategy = 'zero9'", "'zero2'"]),
        ({"models": {}}, ["name at least one model"]),
        ({"models": {"a/b": {"kind": "blip"}}}, ["'a/b'", "folder's name"]),
        ({"models": {"blip": {"lora": {"rank": 4}}}}, ["models.blip.lora: there is no key 'rank'", "Known"]),
        ({"curate": {"val_share": 0.6, "test_share": 0.6}}, ["curate", "nothing is left to train on"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_would_be_right(
    tmp_path: Path, change: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, {**GOOD, **change}))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["data: [", "- 1\n- 2\n", ""])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"c\.yaml"):
        load_config(write(tmp_path, text))


def test_a_key_that_was_pasted_into_the_file_is_not_repeated_on_the_terminal(tmp_path: Path) -> None:
    tree = {**GOOD, "generate": {"projects": [{"name": "p", "keys": ["AIzaSy-very-secret"]}]}}
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, tree))
    assert "secret" not in str(caught.value)
    assert "generate.projects" in str(caught.value)


def test_set_overrides_a_key_and_says_what_is_wrong_with_itself(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert load_config(path, ["prepare.max_items=7", "models.blip.lora.r=8"]).prepare.max_items == 7
    for override in ("prepare.max_items", "=3", "data.root.x=3", "prepare.max_items=["):
        with pytest.raises(UserError, match="--set"):
            load_config(path, [override])


def test_environment_variables_are_filled_in_and_a_missing_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, {**GOOD, "data": {"root": "${SOME_ROOT}/abo"}})
    monkeypatch.delenv("SOME_ROOT", raising=False)
    with pytest.raises(UserError, match="SOME_ROOT"):
        load_config(path)
    monkeypatch.setenv("SOME_ROOT", "/here")
    assert load_config(path).data.root == Path("/here/abo")
    fallback = write(tmp_path, {**GOOD, "data": {"root": "${NOT_SET_AT_ALL:-/there}"}})
    assert load_config(fallback).data.root == Path("/there")


def test_a_resolved_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD), ["generate.shards=3"])
    assert validate_config(dump_config(config), "again") == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_configuration_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ABO_ROOT", "DEMO_BASE", "DEMO_CATALOGUE"):
        monkeypatch.setenv(name, "/somewhere")
    load_config(path)


def test_the_defaults_are_the_hyper_parameters_of_the_published_report(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    blip, train = config.models["blip"], config.train
    assert (blip.lora.r, blip.lora.alpha, blip.lora.dropout) == (16, 32, 0.1)
    assert blip.batches == (16, 1)  # the report's 4 x 4, at once
    assert (train.learning_rate, train.weight_decay, train.epochs, train.eval_steps) == (5e-5, 0.01, 3, 500)


@pytest.mark.parametrize("kind", HYPERPARAMETERS)
def test_the_shipped_configuration_trains_as_the_published_report_did(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABO_ROOT", "/data")
    config = load_config(DEFAULT_CONFIG)
    model = config.models[kind]
    ours = dict(
        flatten(
            {
                "lora": model.lora.model_dump(),
                "training": config.train.model_dump(),
                "effective_batch": model.batches[0] * model.batches[1],
            }
        )
    )
    assert {name: float(ours[name]) for name in HYPERPARAMETERS[kind]} == HYPERPARAMETERS[kind]
