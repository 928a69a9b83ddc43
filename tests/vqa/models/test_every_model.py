"""What holds for every kind of model; a new file in vqa/models is tested by being there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

import vqa
from data_prep.outcomes import UserError
from tests.vqa.rounding import PROBABILITY
from tests.vqa.tiny_models import ANSWERS, QUESTIONS, make_model, noise_images
from vqa.inference.answerer import Answerer
from vqa.models import known_models
from vqa.models.base import Answer, Batch, Model, image_count, model_class
from vqa.models.lora import apply_lora_to_model, load_adapter, parameter_table
from vqa.settings import EvaluateSettings, LoraSettings, ModelSettings

SETTINGS = EvaluateSettings(max_new_tokens=4)
FLAT = [answer for group in ANSWERS for answer in group]
EVERY = pytest.mark.parametrize("kind", known_models())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def works_here(kind: str) -> bool:
    return Version(transformers.__version__) >= Version(model_class(kind).oldest_transformers)


@pytest.fixture(autouse=True)
def works_with_this_transformers(request: pytest.FixtureRequest) -> None:
    kind = getattr(request.node, "callspec", None) and request.node.callspec.params.get("kind")
    if kind in known_models() and not works_here(kind):
        pytest.skip(f"{kind} needs transformers {model_class(kind).oldest_transformers}")


def loaded(kind: str, folder: Path) -> Model:
    return make_model(kind, folder / kind, FLAT)


def answered(which: Answerer, count: int = len(QUESTIONS)) -> dict[str, list[Answer]]:
    """All variants' answers to the questions about the first images."""
    return which.answer_batch(which.model.processor.collate(noise_images()[:count], QUESTIONS[:count]))


@EVERY
def test_a_halved_batch_answers_as_the_whole_one(kind: str, folder: Path) -> None:
    model = loaded(kind, folder)
    whole = model.processor.collate(noise_images(), QUESTIONS)
    assert whole["image_of_question"].tolist() == [0, 0, 1, 2, 2, 2, 3]

    def confidences(batch: Batch) -> list[float]:
        return [a.confidence for a in model.answer(batch, model.encode(batch), SETTINGS, adapted=True)]

    with torch.no_grad():
        parts = model.halve(whole)
        assert [image_count(part) for part in parts] == [2, 2]
        assert [c for part in parts for c in confidences(part)] == pytest.approx(confidences(whole), rel=PROBABILITY)


@EVERY
def test_only_adapters_and_what_is_saved_with_them_are_trained(kind: str, folder: Path) -> None:
    model = apply_lora_to_model(loaded(kind, folder), LoraSettings(r=2, dropout=0.0))
    model.net.train()
    out = model.net(**model.processor.collate(noise_images(), QUESTIONS, ANSWERS))
    assert out["loss"].ndim == 0 and out["loss"].dtype == torch.float32
    out["loss"].backward()
    trained = [name for name, parameter in model.net.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or any(f".{m}." in name for m in model.modules_to_save) for name in trained)
    assert all(p.grad is not None for p in model.net.parameters() if p.requires_grad), "everything trained has a part"
    assert 0 < parameter_table(model).lora <= parameter_table(model).trainable


@EVERY
def test_an_adapter_comes_back_and_the_base_answers_as_if_there_were_none(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    model = apply_lora_to_model(loaded(kind, folder), LoraSettings(r=4, dropout=0.0))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.net.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    model.net.eval().save_pretrained(tmp_path / "adapter")
    model.save_extra(tmp_path / "adapter")
    batch = model.processor.collate(noise_images(), QUESTIONS)
    with torch.no_grad():
        expected = model.answer(batch, model.encode(batch), SETTINGS, adapted=True)
    settings = ModelSettings(kind=kind, weights=str(folder / kind))
    both = Answerer(settings, {"base": None, "lora": tmp_path / "adapter"}, SETTINGS, tmp_path)
    answers = answered(both)
    alone = answered(Answerer(settings, {"base": None}, SETTINGS, tmp_path))
    assert [a.text for a in answers["lora"]] == [a.text for a in expected]
    assert [a.text for a in answers["base"]] == [a.text for a in alone["base"]]
    assert [a.confidence for a in answers["base"]] == pytest.approx(
        [a.confidence for a in alone["base"]], rel=PROBABILITY
    )
    assert [a.text for a in answers["base"]] != [a.text for a in answers["lora"]]
    assert all(0 <= answer.confidence <= 1 for said in answers.values() for answer in said)


@EVERY
def test_an_answer_does_not_depend_on_its_batch(kind: str, folder: Path) -> None:
    model = loaded(kind, folder)

    def confidences(shown: list[int]) -> list[float]:
        images = noise_images()
        batch = model.processor.collate([images[n] for n in shown], [QUESTIONS[n] for n in shown])
        with torch.no_grad():
            return [a.confidence for a in model.answer(batch, model.encode(batch), SETTINGS, adapted=True)]

    together = confidences([0, 1, 2, 3])
    alone = [chance for number in range(4) for chance in confidences([number])]
    assert together == pytest.approx(alone, rel=PROBABILITY)


@EVERY
def test_ranking_chooses_among_the_candidates(kind: str, folder: Path) -> None:
    model = loaded(kind, folder)
    model.set_candidates(["red", "round"])
    batch = model.processor.collate(noise_images(), QUESTIONS)
    with torch.no_grad():
        said = model.answer(batch, model.encode(batch), EvaluateSettings(decoding="ranking"), adapted=True)
    assert len(said) == len(FLAT) and {answer.text for answer in said} <= {"red", "round"}


@EVERY
def test_an_adapter_of_another_kind_is_refused_by_every_other_kind(kind: str, folder: Path, tmp_path: Path) -> None:
    apply_lora_to_model(loaded(kind, folder), LoraSettings(r=2)).net.save_pretrained(tmp_path)
    for other in filter(works_here, set(known_models()) - {kind}):
        with pytest.raises(UserError, match=f"this {other} model"):
            load_adapter(loaded(other, folder), tmp_path)


@EVERY
def test_the_class_has_what_the_contract_asks_for(kind: str) -> None:
    made = model_class(kind)
    assert made.kind == kind and made.lora_targets
    assert {"total", "trainable", "difference"} <= made.published.keys()


@EVERY
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_gives_the_same_answers_to_batches_of_all_sizes(kind: str, folder: Path, tmp_path: Path) -> None:
    model = apply_lora_to_model(loaded(kind, folder), LoraSettings(r=2))
    model.net.save_pretrained(tmp_path)
    model.save_extra(tmp_path)
    settings = ModelSettings(kind=kind, weights=str(folder / kind))
    adapters = {"base": None, "lora": tmp_path}
    plain = Answerer(settings, adapters, SETTINGS, tmp_path)
    fast = Answerer(settings, adapters, SETTINGS.model_copy(update={"compile": True}), tmp_path)
    for count in (1, 2, 4):
        expected, said = (answered(each, count) for each in (plain, fast))
        for variant in adapters:
            assert [a.text for a in said[variant]] == [a.text for a in expected[variant]]
            assert [a.confidence for a in said[variant]] == pytest.approx(
                [a.confidence for a in expected[variant]], rel=PROBABILITY
            )


@EVERY
def test_without_a_compiler_the_advice_is_to_leave_compiling_off(kind: str, folder: Path, tmp_path: Path) -> None:
    loaded(kind, folder)
    program = (
        "import sys; from pathlib import Path; from vqa.inference.answerer import Answerer; from vqa.settings import *\n"
        "from tests.vqa.tiny_models import QUESTIONS, noise_images\n"
        "from data_prep.outcomes import UserError\n"
        "which = Answerer(ModelSettings(kind=sys.argv[1], weights=sys.argv[2]), {'base': None},\n"
        "                 EvaluateSettings(compile=True), Path())\n"
        "try: which.answer_batch(which.model.processor.collate(noise_images(), QUESTIONS))\n"
        "except UserError as error: print(error)"
    )
    # No compiler, and nothing that was compiled before.
    environment = os.environ | {"CXX": "/none", "CC": "/none", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program, kind, str(folder / kind)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "evaluate.compile" in done.stdout and "leave it off" in done.stdout


@EVERY
def test_a_copy_of_a_models_file_is_a_new_kind(kind: str, tmp_path: Path) -> None:
    """In a copy of the package, where nothing but the file is added."""
    root = Path(vqa.__file__).parents[1]
    for package in ("vqa", "data_prep"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (tmp_path / "vqa" / "models" / f"{kind}.py").read_text()
    (tmp_path / "vqa" / "models" / "novel.py").write_text(text.replace(f'kind = "{kind}"', 'kind = "novel"'))
    program = (
        "from pathlib import Path; from PIL import Image; from vqa.models import known_models\n"
        "from vqa.models.base import model_class; from vqa.models.tiny import make_tiny_model\n"
        "from vqa.settings import ModelSettings; import torch\n"
        "assert 'novel' in known_models()\n"
        "made = make_tiny_model('novel', Path('made'), ['what color is it', 'red'])\n"
        "model = model_class('novel').load(ModelSettings(kind='novel', weights=str(made)), ['red'])\n"
        "batch = model.processor.collate([Image.new('RGB', (64, 64))], [['what color is it']], [['red']])\n"
        "print(model.kind, float(model.net(**batch)['loss']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("novel "), done.stdout
