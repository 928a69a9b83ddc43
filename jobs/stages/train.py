"""Stage 5: LoRA on one model, from the curated splits."""

from __future__ import annotations

from typing import Any

from data_prep.records import UserError
from jobs.fingerprint import read_json
from jobs.rundir import Step
from jobs.stages.base import Outcome, SingleStage
from jobs.weights import make_tiny_base, model_settings
from vqa.settings import TINY

# Settings that decide how fast the adapter comes out, or how much is printed, but not which adapter.
SPEED_ONLY = {"workers", "logging_steps", "keep_checkpoints"}


class Train(SingleStage):
    """Writes 5_train/<model>/adapter; resumes from its own checkpoints."""

    name = "train"
    again = False

    def settings(self) -> dict[str, Any]:
        return {
            "model": self.config.models[self.target].model_dump(mode="json"),
            "train": self.config.train.model_dump(mode="json", exclude=SPEED_ONLY),
        }

    def inputs(self) -> dict[str, str]:
        curate = read_json(self.run_dir.done_file(Step("curate")))
        outputs = curate["outputs"] if curate else {}
        return {name: outputs.get(name, "") for name in ("train.jsonl", "val.jsonl")}

    def execute(self) -> Outcome:
        from vqa.training import train  # torch takes seconds to import; launch and status never need it

        folder = self.run_dir.step_folder(self.step)
        data = self.run_dir.dataset
        if self.config.models[self.target].weights == TINY:
            data = make_tiny_base(self.run_dir, self.config, self.target)
        train(
            self.target,
            model_settings(self.run_dir, self.config, self.target),
            self.config.train,
            data=data,
            image_root=self.config.data.image_root,
            out=folder,
            stop=self.stopping,
        )
        weights = self.run_dir.adapter(self.target) / "adapter_model.safetensors"
        if not weights.is_file():
            raise UserError(
                f"Training of {self.target} ended without an adapter in {weights.parent}: see the log above."
            )
        return Outcome({"adapters": 1}, outputs=[weights])
