"""Stage 2: decode every product's image completely, and hash what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from data_prep.images.validate import validate
from data_prep.outcomes import Todo
from data_prep.records import ImageFacts, Product
from jobs.run.layout import ShardStore, Step
from jobs.stages.base import ShardedStage, StageMarker


class Validate(ShardedStage[Product]):
    """Writes 2_validate: `ImageFacts` a product, or the reason why its image cannot be used."""

    name = "validate"
    value_type = ImageFacts

    def shards(self) -> int:
        return self.config.validate_.shards

    def expected_items(self) -> int | None:
        marker = StageMarker.read(self.run_dir, Step("prepare"))
        return marker.counts["products"] if marker else None

    def stores(self) -> Mapping[str, ShardStore]:
        return {"": self.run_dir.store("validate")}

    def settings(self, variant: str) -> Mapping[str, object]:
        return self.config.validate_.model_dump(mode="json", exclude={"shards"})

    def items(self) -> Iterator[Product]:
        return self.read(self.run_dir.products, Product)

    def key(self, item: Product) -> str:
        return item.item_id

    def process(self, todos: Iterator[Todo[Product]]) -> None:
        if found := validate(todos, image_root=self.config.data.image_root, settings=self.config.validate_):
            print(found, flush=True)
