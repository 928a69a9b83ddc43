"""What can be done with a saved adapter: try it in a fresh process, and merge it into its base."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson

from data_prep.outcomes import UserError
from data_prep.records import Example
from vqa.inference.samples import AnsweredSample, evaluate_on_samples
from vqa.models.base import Model, model_class, quiet_loading
from vqa.models.lora import load_adapter
from vqa.settings import EvaluateSettings, ModelSettings


def test_saved_model(
    model: ModelSettings, adapter: Path, examples: Sequence[Example], image_root: Path, *, may_be_silent: bool = False
) -> list[AnsweredSample]:
    """Load base and adapter in a new process, as a user would, and answer. Training ends with it.

    Args:
        model: the base.
        adapter: folder of the adapter.
        examples: questions to answer.
        image_root: folder of their images.
        may_be_silent: accept empty answers.

    Raises:
        UserError: it does not load or does not answer; with the last line of the other process's error. A wrong answer is none.
    """
    request = {
        "model": model.model_dump(mode="json"),
        "adapter": str(adapter.resolve()),
        "image_root": str(image_root.resolve()),
        "examples": [dataclasses.asdict(example) for example in examples],
    }
    done = subprocess.run(
        [sys.executable, "-m", "vqa.inference.saved_model"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env=_alone(),
    )
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"The adapter in {adapter} does not work: {words[0]}")
    # Libraries may print above the result.
    samples = [AnsweredSample(**row) for row in json.loads(done.stdout.splitlines()[-1])]
    silent = [] if may_be_silent else [sample.question for sample in samples if not sample.text.strip()]
    if silent:
        raise UserError(f"The adapter in {adapter} does not work: it gives no answer to {silent[0]!r}.")
    return samples


test_saved_model.__test__ = False  # type: ignore[attr-defined]  # the name is prescribed; pytest must not collect it


def _alone() -> dict[str, str]:
    """An environment in which a process finds this package and takes itself for the only one, on the CPU.

    The training still holds the GPU's memory, and its launcher's variables would make a library wait for other ranks.
    """
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launcher}
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def merge_adapter(model: ModelSettings, adapter: Path, out: Path) -> Path:
    """Write base and adapter as one model, in transformers' format.

    Raises:
        UserError: base or adapter are missing, or do not fit each other.
    """
    with quiet_loading():
        loaded = _load(model, adapter)
        loaded.net.merge_and_unload().save_pretrained(out)
        loaded.processor.save(out)
    return out


def _load(model: ModelSettings, adapter: Path) -> Model:
    kind = model_class(model.kind)
    return load_adapter(kind.load(model, kind.adapter_answers(adapter)), adapter)


def _main() -> None:
    request = json.load(sys.stdin)
    model = _load(ModelSettings.model_validate(request["model"]), Path(request["adapter"]))
    examples = [Example(**row) for row in request["examples"]]
    samples = evaluate_on_samples(model, examples, Path(request["image_root"]), EvaluateSettings())
    print(orjson.dumps(samples).decode())


if __name__ == "__main__":
    _main()
