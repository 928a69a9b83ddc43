"""Stage 2: decode every product's image completely, and hash what it shows.

What counts of a shard's records is in ``images.jsonl``, which later stages read: they do not look at the images' state again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import orjson

from data_prep.files import write_jsonl
from data_prep.images.locate import ImageLocator
from data_prep.images.validate import image_state, image_states, validate
from data_prep.outcomes import Failed, Ok, Todo
from data_prep.records import ImageFacts, Product, from_dict
from jobs.run.layout import RunDir, ShardStore, Step
from jobs.shards.digest import digest, text_digest
from jobs.shards.marker import Finished, ShardMarker
from jobs.shards.progress import settled_outcomes
from jobs.shards.store import frozen_shards
from jobs.stages.base import ShardedStage, outputs_digest


class Validate(ShardedStage[Product]):
    """Writes 2_validate: `ImageFacts` a product, or the reason why its image cannot be used."""

    name = "validate"
    value_type = ImageFacts
    looks_at_files = True
    other_content = "images changed since they were looked at"

    def shards(self) -> int:
        return self.config.validate_.shards

    def input_is_there(self) -> bool:
        return self.run_dir.done_file(Step("prepare")).is_file() and self.run_dir.products.is_file()

    def stores(self) -> Mapping[str, ShardStore]:
        return {"": self.run_dir.store("validate")}

    def settings(self, variant: str) -> Mapping[str, object]:
        return self.config.validate_.model_dump(mode="json", exclude={"shards"})

    def items(self) -> Iterator[Product]:
        return self.read(self.run_dir.products, Product)

    def input_digest(self) -> str:
        return outputs_digest(self.run_dir, Step("prepare"))

    def key(self, item: Product) -> str:
        return item.item_id

    @cached_property
    def _images(self) -> ImageLocator:
        return ImageLocator(self.config.data.image_root)

    def made_from(self, item: Product) -> str:
        return _made_from(item, image_state(item, self._images))

    def identified(self, items: Iterable[Product]) -> Iterator[tuple[Product, str]]:
        return ((item, _made_from(item, state)) for item, state in image_states(items, self._images))

    def process(self, todos: Iterator[Todo[Product]]) -> None:
        if found := validate(todos, image_root=self.config.data.image_root, settings=self.config.validate_):
            print(found, flush=True)

    def finish(self, shard: int, made: Mapping[str, str]) -> Finished:
        """Write the shard's images.jsonl."""
        outcomes = settled_outcomes(self, "", made, shard)
        rows = (_row(key, outcomes[key]) for key in sorted(outcomes))
        path = self.run_dir.store("validate").images(shard)
        write_jsonl(path, rows)
        return Finished(outputs=[path])


def _made_from(product: Product, state: str) -> str:
    return text_digest(product.image_id, product.image_path, state)


def _row(key: str, outcome: Ok | Failed) -> Mapping[str, object]:
    fields = {"reason": outcome.reason} if isinstance(outcome, Failed) else dataclasses.asdict(outcome.value)
    return {"item_id": key, **fields}


def validated_images(run: RunDir) -> Iterator[tuple[str, ImageFacts | str]]:
    """Each product that was validated, with the facts about its image or the reason why it cannot be used."""
    store = run.store("validate")
    known = frozen_shards(store)
    for shard in range(known.shards if known else 0):
        if (path := store.images(shard)).is_file():
            with path.open("rb") as lines:
                for fields in map(orjson.loads, lines):
                    yield fields["item_id"], fields["reason"] if "reason" in fields else from_dict(ImageFacts, fields)


def images_digest(run: RunDir) -> str:
    """One digest of what validation found, for the stages that read it. Looking at an image again does not change it."""
    store = run.store("validate")
    known = frozen_shards(store)
    markers = [ShardMarker.read(store, shard) for shard in range(known.shards if known else 0)]
    return digest([marker.outputs if marker else {} for marker in markers])
