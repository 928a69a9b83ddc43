"""Stage 2: decode every product's image completely, and fingerprint it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from data_prep.images import validate
from data_prep.outcomes import Emit
from data_prep.records import Product
from jobs.shards.loop import Previous, Work
from jobs.stages.base import ShardedStage


class Validate(ShardedStage):
    """Writes 2_validate: `ImageFacts` a product, or the reason why its image cannot be used."""

    name = "validate"

    def shards(self) -> int:
        return self.config.validate_.shards

    def work(self) -> Work[Product]:
        settings = self.config.validate_

        def process(
            items: Iterator[Product],
            emits: Mapping[str, Emit],
            wanted: Callable[[str, str], bool],
            previous: Previous,
        ) -> None:
            validate.validate(items, emits["validate"], image_root=self.config.data.image_root, settings=settings)

        return Work(
            stores={"validate": self.run_dir.store("validate")},
            settings={"validate": settings.model_dump(mode="json", exclude={"shards"})},
            items=partial(self.read, self.run_dir.products, Product),
            key=lambda product: product.item_id,
            process=process,
        )
