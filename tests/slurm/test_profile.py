"""Profiles mean what they say, and a mistake is reported with its key, its value and what is allowed."""

from pathlib import Path

import pytest

from data_prep.files import shipped_names
from slurm.profile import GATE, PROFILES, SlurmError, build_profile, load_profile, minutes
from slurm.submit import sbatch_parameters

STAGES = ("prepare", "validate", "generate", "curate", "verify", "train", "evaluate", "report")


@pytest.mark.parametrize("name", shipped_names(PROFILES))
def test_every_shipped_profile_is_valid_and_yields_sbatch_parameters(name: str) -> None:
    profile = load_profile(name, STAGES)
    for stage in (*STAGES, GATE):
        parameters = sbatch_parameters(profile, profile.resources(stage), distributed=stage == "train")
        assert parameters["time"] == profile.resources(stage).time


@pytest.mark.parametrize(
    ("written", "means"),
    [
        (90, 90),
        ("90", 90),
        ("4:00:00", 240),
        (4320, 4320),
        ("0:30", 1),
        ("90:30", 91),
        ("1-00:00:00", 1440),
        ("2-3", 3060),
    ],
)
def test_times_are_read_as_slurm_reads_them(written: object, means: int) -> None:
    assert minutes(written) == means


def test_times_in_a_file_need_no_quotation_marks(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(
        "defaults: {time: 4:00:00, cpus: 8}\nstages: {train: {time: 4320}, validate: {time: 4:00}}\n"
    )
    profile = load_profile(tmp_path / "site.yaml", STAGES)
    assert [profile.resources(stage).time for stage in ("evaluate", "train", "validate")] == [240, 4320, 4]
    assert profile.resources("evaluate").cpus == 8


def test_stages_inherit_the_defaults_and_the_gate_needs_little() -> None:
    tree = {"defaults": {"partition": "cpu", "memory": "4G"}, "stages": {"train": {"partition": "gpu", "gpus": 4}}}
    profile = build_profile(tree, STAGES, "x")
    assert (profile.resources("train").partition, profile.resources("train").memory) == ("gpu", "4G")
    assert profile.resources("curate").partition == "cpu"
    assert (profile.resources(GATE).partition, profile.resources(GATE).cpus, profile.resources(GATE).gpus) == (
        "cpu",
        1,
        0,
    )


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"defaults": {"memory": "lots"}}, ["defaults.memory = 'lots'", "such as 16G"]),
        ({"defaults": {"time": "soon"}}, ["defaults.time = 'soon'", "4:00:00"]),
        ({"defaults": {"cpus": 0}}, ["defaults.cpus = 0", "greater than or equal to 1"]),
        ({"stages": {"trian": {}}}, ["stages.trian: there is no stage", "Did you mean 'train'?"]),
        ({"stages": {"train": {"gpu": 1}}}, ["stages.train.gpu: there is no key", "Did you mean 'gpus'?"]),
        ({"stages": {"train": {"flags": {"array": "0-3"}}}}, ["stages.train.flags.array", "remove it"]),
        ({"defaults": {"flags": {"--exclude": "n1"}}}, ["defaults.flags.--exclude", "without dashes"]),
        ({"defaults": {"partition": "a b"}}, ["defaults.partition = 'a b'"]),
        ({"defaults": {"memory": "1G", "memory_per_cpu": "1G"}}, ["defaults", "memory or memory_per_cpu, not both"]),
        ({"stages": {"curate:blip:x": {}, "train:": {}}}, ["stages.train:: there is no stage"]),
        ({"max_queued": 2}, ["max_queued = 2", "greater than or equal to 3"]),
        ({"after": "yesterday"}, ["after", "yesterday"]),
        ({"retry": 3}, ["retry: there is no key", "Did you mean 'retries'?"]),
        ({"stages": {"train": 4}}, ["stages.train"]),
        ({"defaults": None, "stages": None, "setup": "module load x"}, ["setup = 'module load x'"]),
    ],
)
def test_a_mistake_is_reported_once_with_its_key_value_and_what_is_allowed(
    tree: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(SlurmError) as error:
        build_profile(tree, STAGES, "site.yaml")
    assert "site.yaml" in str(error.value)
    assert len(str(error.value).splitlines()) == 1, "reported more than once"
    for word in words:
        assert word in str(error.value)


def test_an_unknown_profile_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SlurmError, match="Did you mean 'generic'"):
        load_profile("genric", STAGES)
    broken = tmp_path / "site.yaml"
    broken.write_text("defaults: {cpus: ")
    with pytest.raises(SlurmError, match=r"site\.yaml"):
        load_profile(broken, STAGES)
    broken.write_text("- a list")
    with pytest.raises(SlurmError, match="must have sections"):
        load_profile(broken, STAGES)


def test_gpu_type_and_gpu_count_become_one_option() -> None:
    tree = {"stages": {"train": {"gpus": 4, "gpu_type": "a100", "nodes": 2, "flags": {"exclusive": True}}}}
    profile = build_profile(tree, STAGES, "x")
    parameters = sbatch_parameters(profile, profile.resources("train"), distributed=True)
    assert parameters["additional_parameters"]["gpus-per-node"] == "a100:4"
    assert parameters["additional_parameters"]["exclusive"] is True
    assert (parameters["nodes"], parameters["ntasks_per_node"]) == (2, 4)
    alone = sbatch_parameters(profile, profile.resources("train"), distributed=False)
    assert (alone["nodes"], alone["ntasks_per_node"]) == (1, 1)


def test_memory_is_asked_for_in_one_way_or_not_at_all() -> None:
    def asked(defaults: dict[str, object], stage: dict[str, object], name: str = "train") -> tuple[object, object]:
        profile = build_profile({"defaults": defaults, "stages": {"train": stage}}, STAGES, "x")
        parameters = sbatch_parameters(profile, profile.resources(name), distributed=False)
        return parameters["mem"], parameters["mem_per_cpu"]

    assert asked({}, {}) == ("8G", None)
    assert asked({"memory": "none"}, {}) == asked({"memory": None}, {}) == (None, None)
    assert asked({"memory": None}, {}, GATE) == (None, None)
    assert asked({"memory_per_cpu": "2G"}, {}) == asked({"memory": "9G"}, {"memory_per_cpu": "2G"}) == (None, "2G")
    assert asked({"memory_per_cpu": "2G"}, {}, GATE) == (None, "2G")
    assert asked({"memory_per_cpu": "2G"}, {"memory": "9G"}) == ("9G", None)
    assert asked({}, {}, GATE) == ("2G", None)


def test_one_models_training_can_have_resources_of_its_own() -> None:
    tree = {
        "defaults": {"cpus": 2},
        "stages": {"train": {"gpus": 1, "cpus": 4}, "train:vilt": {"gpus": 2, "wckey": "vqa", "gpu_option": "gres"}},
    }
    profile = build_profile(tree, STAGES, "x")
    assert profile.resources("train:blip") == profile.resources("train")
    own = profile.resources("train:vilt")
    assert (own.gpus, own.cpus) == (2, 4)
    parameters = sbatch_parameters(profile, own, distributed=True)
    assert parameters["additional_parameters"]["gres"] == "gpu:2" and parameters["wckey"] == "vqa"
    assert "gpus-per-node" not in parameters["additional_parameters"]
    assert sbatch_parameters(profile, profile.resources("train"), distributed=False)["wckey"] is None
    several = build_profile({"stages": {"train": {"tasks_per_node": 3, "gpus": 1}}}, STAGES, "x")
    assert sbatch_parameters(several, several.resources("train"), distributed=True)["ntasks_per_node"] == 3
