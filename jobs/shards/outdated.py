"""Items that have records which do not count any more: how many, why, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.shards.digest import differences, known_settings
from jobs.shards.journal import ReadReport, journal_files
from jobs.shards.progress import ShardSource, Superseded, load_progress, made_of
from jobs.shards.store import shard_folders


@dataclass(frozen=True, slots=True)
class Outdated:
    """Items that are not settled, though they have records: those were made from other content or under other settings."""

    items: int
    why: str  # "40 images that changed since they were looked at"; several reasons joined by "and"
    paid: int = 0  # items that were paid for
    dollars: float = 0.0  # that their records cost


def outdated(source: ShardSource[Any], variant: str, found: Mapping[str, Superseded]) -> Outdated | None:
    """What `Progress.outdated` found in one or several shards of a store, in words; None where that is nothing."""
    if not found:
        return None
    content = sum(known.content for known in found.values())
    parts = [f"{content:,} {source.other_content}"] if content else []
    if other := len(found) - content:
        parts.append(
            f"{other:,} items were made under other settings{_changes(source, variant, found_settings(found.values()))}"
        )
    paid = [known for known in found.values() if known.paid]
    return Outdated(len(found), " and ".join(parts), len(paid), sum(known.dollars for known in paid))


def find_outdated(source: ShardSource[Any]) -> Outdated | None:
    """`outdated` of a whole stage; of several variants the one with most items."""
    stores = source.stores()
    if not any(journal_files(folder) for store in stores.values() for folder in shard_folders(store)):
        return None
    made = made_of(source)
    parts = [
        outdated(source, variant, load_progress(source, variant, made, ReadReport()).outdated()) for variant in stores
    ]
    return max((part for part in parts if part), key=lambda part: part.items, default=None)


def found_settings(superseded: Iterable[Superseded]) -> set[str]:
    """The fingerprints of the other settings."""
    return {known.settings for known in superseded if known.settings and not known.content}


def _changes(source: ShardSource[Any], variant: str, fingerprints: set[str]) -> str:
    """How the settings of records differ from the present ones, in parentheses; "" where that is not known."""
    store, now = source.stores()[variant], source.settings(variant)
    known = [settings for name in sorted(fingerprints) if (settings := known_settings(store, name)) is not None]
    changes = list(dict.fromkeys(line for settings in known for line in differences(settings, now)))
    return f" ({'; '.join(changes)})" if changes else ""
