"""What is to answer, as people name it: a run's folder, an adapter's folder, a model's folder or its name on the hub.

::

    find_model("runs/abo")                           # the adapter of the run's only model
    find_model("runs/abo/6_train/blip/adapter")      # kind and base are known from the adapter
    find_model("Salesforce/blip-vqa-base")           # no adapter

Everything is looked up before torch is imported: a wrong name is an error at once, not a minute of questions to the hub.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.files import read_json
from data_prep.outcomes import unknown_name
from vqa.errors import ModelError
from vqa.models import known_models
from vqa.settings import ModelSettings, is_hub_name

PUBLISHED_WEIGHTS = {"blip": "Salesforce/blip-vqa-base", "vilt": "dandelin/vilt-b32-finetuned-vqa"}
ADAPTER_CONFIG = "adapter_config.json"  # peft's name


@dataclass(frozen=True, slots=True)
class Source:
    """A model that can be loaded."""

    model: ModelSettings
    adapter: Path | None  # None: the base alone


def find_model(
    source: str | Path | None = None, *, model: str | None = None, weights: str | Path | None = None
) -> Source:
    """What to load.

    Args:
        source: a run, an adapter, or weights; None: weights alone.
        model: which one of a run with several; or the kind, where neither adapter nor weights say it (default: blip).
        weights: hub name or folder of the base, instead of the adapter's own.

    Raises:
        ModelError: it is not there, it is several, or it is of another kind.
    """
    folder = None if source is None else Path(source)
    if folder is None or not folder.exists():
        if folder is not None and (weights is not None or not is_hub_name(str(source))):
            raise ModelError(f"There is no {folder}. Name a run's folder, or the folder of an adapter or a model.")
        base = str(source or weights or "")
        return Source(_settings(base, model), None)
    if (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG).is_file():
        if weights is not None:
            raise ModelError(f"{folder} holds a whole model, not an adapter: leave out the other weights.")
        return Source(_settings(str(folder), model), None)
    adapter = _adapter_in(folder, model)
    return Source(_settings(str(weights or base_of(adapter) or ""), _kind_of(adapter, model)), adapter)


def find_adapter(source: Path, *, model: str | None = None, weights: str | Path | None = None) -> Source:
    """As `find_model`, for what must be an adapter or have one.

    Raises:
        ModelError: there is none.
    """
    if not source.is_dir():
        raise ModelError(
            f"There is no folder {source}. Name the folder of a run, or of an adapter that training wrote."
        )
    found = find_model(source, model=model, weights=weights)
    if found.adapter is None:
        raise ModelError(f"{source} holds a whole model, not an adapter (no {ADAPTER_CONFIG}).")
    return found


def _settings(weights: str, kind: str | None) -> ModelSettings:
    kinds = known_models()
    if kind is not None and kind not in kinds:
        raise ModelError(unknown_name(kind, kinds, "kind of model"))
    published = {name: one for one, name in PUBLISHED_WEIGHTS.items()}
    told = (read_json(Path(weights) / "config.json") or {}).get("model_type")
    kind = kind or published.get(weights) or (told if told in kinds else None) or "blip"
    return ModelSettings(kind=kind, weights=weights or PUBLISHED_WEIGHTS[kind])


def _adapter_in(folder: Path, model: str | None) -> Path:
    """The adapter's folder: the folder itself, the one that a training wrote into it, or that of a run."""
    for place in (folder, folder / "adapter"):
        if (place / ADAPTER_CONFIG).is_file():
            return place
    # A run has a folder a trained model; `jobs.run.layout` says how it is named.
    found = {file.parts[-3]: file.parent for file in sorted(folder.glob(f"*_train/*/adapter/{ADAPTER_CONFIG}"))}
    if not found:
        words = "has no trained adapter yet" if (folder / "run.json").is_file() else "holds no adapter"
        raise ModelError(
            f"{folder} {words} (no {ADAPTER_CONFIG}). Name the folder of a run that was trained, or of an adapter."
        )
    if model is not None and model not in found:
        raise ModelError(f"{folder}: {unknown_name(model, list(found), 'trained model')}")
    if model is None and len(found) > 1:
        raise ModelError(
            f"{folder} has the trained models {', '.join(found)}: name one with --model (in Python: model=)."
        )
    return found[model or next(iter(found))]


def _kind_of(adapter: Path, model: str | None) -> str | None:
    """The kind of an adapter's base, which peft notes by its module: ``transformers.models.vilt.modeling_vilt``."""
    mapping = (read_json(adapter / ADAPTER_CONFIG) or {}).get("auto_mapping") or {}
    parts = str(mapping.get("parent_library") or "").split(".")
    kind = next((one for one in known_models() if one in parts), None)
    named = model if model in known_models() else None  # of a run's model it may be any name
    if kind and named and kind != named:
        raise ModelError(f"The adapter in {adapter} belongs to a {kind} model, not to {named}.")
    return kind or named


def base_of(adapter: Path) -> str | None:
    """The base that an adapter's configuration names, or None. A path that begins with a dot starts at the adapter's folder.

    Raises:
        ModelError: it names a folder that is not there.
    """
    base = str((read_json(adapter / ADAPTER_CONFIG) or {}).get("base_model_name_or_path") or "")
    if not base or is_hub_name(base):
        return base or None
    folder = (adapter / base).resolve()  # an absolute path stays as it is
    if not folder.is_dir():
        raise ModelError(
            f"The adapter in {adapter} belongs to a base in {folder}, which is not there. Name its folder, or its name on the "
            f"hub, with --weights (in Python: weights=)."
        )
    return str(folder)
