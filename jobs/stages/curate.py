"""Stage 4: parse, check, remove duplicates, split without leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from data_prep.curate import curate, from_csv
from data_prep.curate.dataset import CuratedDataset, verify, write_dataset
from data_prep.curate.stats import DatasetStats
from data_prep.files import AtomicFile, dumps, file_digest, read_json
from data_prep.generate import models
from data_prep.outcomes import UserError
from data_prep.records import ImageFacts, Product, Rejected, Teacher
from jobs.run.layout import Step
from jobs.shards.outdated import find_outdated
from jobs.stages.base import Outcome, SingleStage, outputs_digest, records_digest
from jobs.stages.generate import Generate
from jobs.stages.status import DONE, StepStatus
from jobs.stages.validate import images_digest, validated_images


class Curate(SingleStage):
    """Writes 4_curate: the splits, what was dropped and why, statistics, the dataset card."""

    name = "curate"

    def settings(self) -> Mapping[str, object]:
        return self.config.curate.model_dump(mode="json")

    def inputs(self) -> dict[str, str]:
        if self.config.data.dataset_csv:
            files = {file.name: file_digest(file) for file in self.config.data.csv_files()}
            return {**files, "images": from_csv.images_digest(self.config.data)}
        return {
            "prepare": outputs_digest(self.run_dir, Step("prepare")),
            "validate": images_digest(self.run_dir),
            "generate": records_digest(Generate(self.run_dir, self.config), ""),
        }

    def execute(self) -> Outcome:
        generate = self.config.generate
        teacher = Teacher(generate.model, bool(generate.stand_in), models.terms_lines(generate.model))
        folder = self.run_dir.dataset
        with AtomicFile(self.run_dir.rejected("curate")) as rejected:

            def reject(record: Rejected) -> None:
                rejected.write(dumps(record))

            if self.config.data.dataset_csv:
                teacher = Teacher(f"the authors of {self.config.data.dataset_csv.name}")
                dataset = self._from_csv(reject)
            else:
                dataset = self._from_stages(reject)
        splits, stats = dataset.splits, dataset.stats
        if not splits["train"] or not splits["test"]:
            dropped = _in_words(stats.pairs.dropped) or _in_words(stats.products.dropped) or "nothing was dropped"
            raise UserError(
                f"Curation left {len(splits['train'])} training and {len(splits['test'])} test questions, too few to go on "
                f"({dropped}). Each drop is in {self.run_dir.rejected('curate')}; {self._advice(stats)}."
            )
        if not splits["val"]:
            print(
                f"No product is in val, so training keeps its last adapter instead of its best: {self._empty_split()}.",
                flush=True,
            )
        write_dataset(
            dataset,
            folder,
            image_root=self.config.data.image_root,
            teacher=teacher,
        )
        if leaks := verify(folder):
            raise UserError(f"Internal error: splits overlap; please report. {'; '.join(leaks[:3])}")
        counts = {"questions": sum(map(len, splits.values())), **{name: len(rows) for name, rows in splits.items()}}
        reasons = Counter(stats.products.dropped) + Counter(stats.pairs.dropped)
        return Outcome(counts, dict(sorted(reasons.items())), [folder / f"{name}.jsonl" for name in splits])

    def _advice(self, stats: DatasetStats) -> str:
        """What to do where too little is left."""
        if "no_category" in stats.pairs.dropped:
            return "--set curate.missing_category=keep accepts pairs that are not marked easy, medium or hard"
        if stats.products.kept:
            return self._empty_split()
        if not self.config.data.dataset_csv:
            if found := find_outdated(Generate(self.run_dir, self.config)):
                return f"of the replies that are there, these do not count: {found.why}"
            return "ask about more products (prepare.max_items) or loosen the rules (curate.*)"
        if "image_file_missing" in stats.products.dropped:
            return (
                f"images were looked for in {self.config.data.image_root}, by image_id: set data.images to their folder"
            )
        return "add products to the CSV or loosen the rules (curate.*)"

    def _empty_split(self) -> str:
        return (
            "a hash of curate.seed and the image id decides the split of each product, so with few products a split may "
            f"be empty. Use more products, or another seed (--set curate.seed={self.config.curate.seed + 1})"
        )

    def _from_stages(self, reject: Callable[[Rejected], None]) -> CuratedDataset:
        facts: dict[str, ImageFacts] = {}
        failures: dict[str, str] = {}
        for key, found in validated_images(self.run_dir):
            if isinstance(found, str):
                failures[key] = found
            else:
                facts[key] = found
        products = self.read(self.run_dir.products, Product)
        generate = Generate(self.run_dir, self.config)
        return curate.curate(products, facts, failures, generate.replies(), self.config.curate, reject)

    def _from_csv(self, reject: Callable[[Rejected], None]) -> CuratedDataset:
        found = from_csv.read_csv(self.config.data, self.config.validate_, reject)
        good = f"{len(found.facts):,} of their {len(found.products):,} images can be used"
        print(f"{len(found.replies):,} products in {self.config.data.dataset_csv}; {good}", flush=True)
        if found.located:
            print(found.located, flush=True)
        dataset = curate.curate(
            found.products, found.facts, found.failures, found.replies, self.config.curate, reject, most_pairs=None
        )
        if lacking := dataset.stats.pairs.dropped.get("no_category"):
            print(f"{lacking:,} pairs have no category: --set curate.missing_category=keep accepts them", flush=True)
        return dataset

    def status(self) -> StepStatus:
        status = super().status()
        stats = read_json(self.run_dir.dataset / "stats.json") or {}
        answered = stats.get("model_versions", {})
        if status.state == DONE and len(answered) > 1:
            parts = ", ".join(f"{version} {part['questions']:,}" for version, part in answered.items())
            status.notes.append(
                f"The questions are by {len(answered)} model versions ({parts}). Each row names its own as model_version."
            )
        return status


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
