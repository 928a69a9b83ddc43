"""Looking after a saved adapter: does it load in a fresh process and answer, and what is it merged into its base."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.outcomes import UserError
from data_prep.records import Example
from vqa.models.base import model_class
from vqa.models.lora import load_adapter
from vqa.settings import EvaluateSettings, ModelSettings
from vqa.training.callbacks import evaluate_on_samples

__all__ = ["evaluate_on_samples", "merge_adapter", "test_saved_model"]


def test_saved_model(
    model: ModelSettings, adapter: Path, examples: Sequence[Example], image_root: Path
) -> list[dict[str, object]]:
    """Load base and adapter in a process of their own, as a user would, and answer.

    Returns:
        A row an example, as `evaluate_on_samples` makes them.

    Raises:
        UserError: it does not load or does not answer; with the other process's words.
    """
    request = {
        "model": model.model_dump(mode="json"),
        "adapter": str(adapter.resolve()),
        "image_root": str(image_root.resolve()),
        "examples": [{name: getattr(e, name) for name in Example.__slots__} for e in examples],
    }
    done = subprocess.run(
        [sys.executable, "-m", "vqa.inference.saved_model"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parent.parent.parent,
    )
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"The adapter in {adapter} does not work: {words[0]}")
    rows: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return rows


test_saved_model.__test__ = False  # type: ignore[attr-defined]  # its name is given; it is no test of ours


def merge_adapter(model: ModelSettings, adapter: Path, out: Path) -> Path:
    """Write the base with the adapter folded into its weights, as one folder in transformers' format.

    Raises:
        UserError: base or adapter are missing, or do not fit.
    """
    kind = model_class(model.kind)
    loaded = load_adapter(kind.load(model, kind.adapter_answers(adapter)), adapter)
    loaded.net.merge_and_unload().save_pretrained(out)
    loaded.processor.save(out)
    return out


def _main() -> None:
    request = json.load(sys.stdin)
    settings = ModelSettings.model_validate(request["model"])
    adapter = Path(request["adapter"])
    kind = model_class(settings.kind)
    model = load_adapter(kind.load(settings, kind.adapter_answers(adapter)), adapter)
    examples = [Example(**row) for row in request["examples"]]
    rows = evaluate_on_samples(model, examples, Path(request["image_root"]), EvaluateSettings())
    print(json.dumps(rows))


if __name__ == "__main__":
    _main()
