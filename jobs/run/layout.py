"""The one owner of every file name of a run.

::

    runs/demo/
      run.json                    configuration as resolved, and one entry a launch: commit, versions, command
      1_prepare/                  products.jsonl, rejected.jsonl, done.json
      2_validate/                 settings/<fingerprint>.json, shards.json, shards/00007/{records.<attempt>.<fingerprint>.jsonl,
                                  images.jsonl, done.json}
      3_generate/                 the same, with dataset_7.csv instead of images.jsonl
      4_curate/                   {train,val,test}.jsonl, rejected.jsonl, stats.json, README.md, done.json
      5_verify/{seen,blind}/      as 2_validate: second opinions, where verify.enabled asks for them
      6_train/<model>/            checkpoint-*/, adapter/, log.jsonl, done.json
      7_evaluate/<model>-<base|lora>/   as 2_validate; predictions.csv; <model>-control-<swap|grey>/ too; <model>-collapse.json
      8_report/                   index.html, report.json, thumbnails.json, done.json
      ledger/                     what was paid, batches handed in, and what tasks used: kept when a stage's folder is deleted
      audit/                      <sample>.html to judge, <sample>.json what was drawn, people.json what people said
      logs/<stage>/               one file per task and attempt
      contents.json               digests of the models' weights, see jobs.run.contents
      claims/                     one folder a command that wrote here, see jobs.run.claim
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.outcomes import UserError

STAGES = ("prepare", "validate", "generate", "curate", "verify", "train", "evaluate", "report")
BASE = "base"
LORA = "lora"
VARIANTS = (BASE, LORA)
SWAP = "swap"  # the fine-tuned model's answers about another product's image, and about a gray one
GREY = "grey"
CONTROLS = (SWAP, GREY)


@dataclass(frozen=True, slots=True)
class Step:
    """One stage, and for training and evaluation the model that it is about: what is submitted and waited for."""

    stage: str
    target: str = ""

    def __str__(self) -> str:
        return f"{self.stage}:{self.target}" if self.target else self.stage

    @classmethod
    def parse(cls, text: str) -> Step:
        """The step of a string such as ``validate`` or ``train:blip``."""
        stage, _, target = text.partition(":")
        return cls(stage, target)


@dataclass(frozen=True, slots=True)
class ShardStore:
    """A folder of sharded records: ``2_validate`` or ``7_evaluate/blip-lora``."""

    folder: Path

    def settings(self, fingerprint: str) -> Path:
        """Settings that records were made under, by their fingerprint."""
        return self.folder / "settings" / f"{fingerprint}.json"

    @property
    def shards_file(self) -> Path:
        """How many shards there are, and were before."""
        return self.folder / "shards.json"

    def shard(self, index: int) -> Path:
        """The folder of one shard."""
        return self.folder / "shards" / f"{index:05d}"

    def done(self, index: int) -> Path:
        """The marker that is written last."""
        return self.shard(index) / "done.json"

    def images(self, index: int) -> Path:
        """Validate: the outcome that counts for each product of a shard."""
        return self.shard(index) / "images.jsonl"

    def dataset_csv(self, index: int) -> Path:
        """Generate: the questions of a shard, for people."""
        return self.shard(index) / f"dataset_{index}.csv"


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run's folder, on a file system that all of its nodes see."""

    path: Path

    @property
    def run_file(self) -> Path:
        """Configuration, launches, versions."""
        return self.path / "run.json"

    @property
    def contents(self) -> Path:
        """Digests of what lies outside of the run, so that they are not computed at every look."""
        return self.path / "contents.json"

    @property
    def claims(self) -> Path:
        """One folder a command that wrote into this run; the last one says whether one does now."""
        return self.path / "claims"

    @property
    def slurm(self) -> Path:
        """The chain's files, once the run was submitted to SLURM."""
        return self.path / "slurm"

    def stage_folder(self, stage: str) -> Path:
        """``4_curate`` for curate."""
        return self.path / f"{STAGES.index(stage) + 1}_{stage}"

    def step_folder(self, step: Step) -> Path:
        """``6_train/blip`` for train:blip."""
        return self.stage_folder(step.stage) / step.target if step.target else self.stage_folder(step.stage)

    def done_file(self, step: Step) -> Path:
        """The marker of a stage that is one job."""
        return self.step_folder(step) / "done.json"

    @property
    def products(self) -> Path:
        """One line a product worth asking about."""
        return self.stage_folder("prepare") / "products.jsonl"

    def rejected(self, stage: str) -> Path:
        """Everything that a stage dropped, with the reason."""
        return self.stage_folder(stage) / "rejected.jsonl"

    def store(self, stage: str) -> ShardStore:
        """The records of validate or generate."""
        return ShardStore(self.stage_folder(stage))

    def predictions(self, model: str, variant: str) -> ShardStore:
        """The answers of one model, with or without its adapter."""
        return ShardStore(self.stage_folder("evaluate") / f"{model}-{variant}")

    def control(self, model: str, name: str) -> ShardStore:
        """The answers of a fine-tuned model about wrong images."""
        return self.predictions(model, f"control-{name}")

    def collapse(self, model: str) -> Path:
        """Whether a fine-tuned model's answers have collapsed, once all are there."""
        return self.stage_folder("evaluate") / f"{model}-collapse.json"

    def predictions_table(self, model: str, variant: str) -> Path:
        """The same answers as one table for people, once all are there."""
        return self.predictions(model, variant).folder / "predictions.csv"

    @property
    def probe(self) -> Path:
        """What the products of ``plan --probe`` took."""
        return self.stage_folder("generate") / "probe.json"

    @property
    def ledger(self) -> Path:
        """What was paid for, and what generate learned from the first replies."""
        return self.path / "ledger"

    @property
    def batches(self) -> Path:
        """What the generate tasks handed in to the Batch API, and what came back."""
        return self.ledger / "batches"

    def attempts(self, step: Step) -> Path:
        """What each attempt of a step's tasks used, a file each."""
        return self.ledger / "tasks" / str(step).replace(":", "-")

    def slurm_account(self, step: Step) -> Path:
        """What a step's jobs were given and used, as SLURM says."""
        return self.ledger / "slurm" / f"{str(step).replace(':', '-')}.json"

    @property
    def verify_batches(self) -> Path:
        """The same of the verify tasks, whose requests are about the same products."""
        return self.ledger / "verify-batches"

    @property
    def stand_in_quota(self) -> Path:
        """The quota of a stand-in, which no other run asks."""
        return self.ledger / "quota"

    @property
    def asked_twice(self) -> ShardStore:
        """Second replies about a sample of products."""
        return ShardStore(self.stage_folder("generate") / "asked_twice")

    @property
    def self_consistency(self) -> Path:
        """How often they say the same as the first replies."""
        return self.stage_folder("generate") / "self_consistency.json"

    @property
    def dataset(self) -> Path:
        """The curated splits."""
        return self.stage_folder("curate")

    def split(self, name: str) -> Path:
        """train, val or test."""
        return self.dataset / f"{name}.jsonl"

    def opinions(self, kind: str) -> ShardStore:
        """Second opinions: ``seen`` with the image, ``blind`` without it."""
        return ShardStore(self.stage_folder("verify") / kind)

    def adapter(self, model: str) -> Path:
        """The trained adapter in peft's format."""
        return self.stage_folder("train") / model / "adapter"

    @property
    def report(self) -> Path:
        """The folder of the page to look at."""
        return self.stage_folder("report")

    @property
    def thumbnails(self) -> Path:
        """The images of the page by their paths, for a report that is written when the images are gone."""
        return self.report / "thumbnails.json"

    @property
    def audit(self) -> Path:
        """What people are asked about a sample of test questions, and what they said."""
        return self.path / "audit"

    def audit_page(self, sample: str) -> Path:
        """The page of one sample, by its digest."""
        return self.audit / f"{sample}.html"

    def audit_sample(self, sample: str) -> Path:
        """Which questions were drawn for it, and of which."""
        return self.audit / f"{sample}.json"

    @property
    def people(self) -> Path:
        """The verdicts that were read last."""
        return self.audit / "people.json"

    def logs(self, step: Step) -> Path:
        """What the tasks of a step printed, one file per task and attempt."""
        return self.path / "logs" / str(step).replace(":", "-")

    def refuse_foreign_folder(self) -> None:
        """Check that the folder is this project's to write into.

        Raises:
            UserError: it holds files, and is no run directory.
        """
        if self.run_file.exists() or not self.path.is_dir():
            return
        # Hidden files may be what a kill left of the first write.
        if any(not path.name.startswith(".") and path != self.claims for path in self.path.iterdir()):
            raise UserError(
                f"{self.path} holds files but no run.json, so it is not a run directory. Name a new folder."
            )

    def require(self) -> RunDir:
        """This run, if it is one.

        Raises:
            UserError: the folder is no run directory.
        """
        if not self.run_file.is_file():
            raise UserError(
                f"{self.path} is not a run directory: it has no run.json. Name the folder that was given as --run-dir."
            )
        return self
