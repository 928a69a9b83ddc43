"""A run's configuration: one YAML file, typed and validated when it is read.

::

    data: {root: $ABO_ROOT}
    prepare: {max_items: 5000}
    generate: {model: gemini-3.5-flash-lite, max_dollars: 20}
    models: {blip: {kind: blip, weights: Salesforce/blip-vqa-base}}

Unknown keys, wrong types and impossible values are errors that name the key, the value and what would be right.
``--set generate.max_dollars=5`` overrides a key. ``$NAME`` or ``${NAME:-default}`` in a string is replaced from the
environment. Secrets are never written here: a section names the environment variables that hold them.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep.files import yaml_file
from data_prep.generate.settings import GenerateSettings
from data_prep.outcomes import UserError, UserErrors, collected, unknown_name
from data_prep.settings import CurateSettings, DataSettings, PrepareSettings, ValidateSettings
from data_prep.verify.settings import VerifySettings, inherited
from vqa.report.settings import ReportSettings
from vqa.settings import AGREED, EvaluateSettings, FeatureSettings, ModelSettings, TrainSettings

CONFIGS = Path(__file__).parent / "configs"
DEFAULT_CONFIG = CONFIGS / "abo.yaml"


class Config(BaseModel):
    """Everything that decides what a run does. Each section is documented beside the code of its stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataSettings
    prepare: PrepareSettings = PrepareSettings()
    validate_: ValidateSettings = Field(default=ValidateSettings(), alias="validate")  # the name is pydantic's own
    generate: GenerateSettings = GenerateSettings()
    curate: CurateSettings = CurateSettings()
    verify: VerifySettings = VerifySettings()
    models: dict[str, ModelSettings]  # to train and compare, by the name that folders and tables use
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()
    features: FeatureSettings = FeatureSettings()

    def model_with_features(self, name: str, run: Path) -> ModelSettings:
        """A model's settings with the place of its stored features, in the folder of the run where no other is named."""
        model = self.models[name]
        chosen = model.features or self.features
        return model.model_copy(
            update={"features": chosen.model_copy(update={"folder": chosen.folder or str(run / "features")})}
        )

    @model_validator(mode="before")
    @classmethod
    def _verify_asks_as_generate_does(cls, tree: Any) -> Any:
        if isinstance(tree, dict):
            sections = tree.get("verify") or {}, tree.get("generate") or {}
            if all(isinstance(section, dict) for section in sections):
                tree = {**tree, "verify": inherited(*sections)}
        return tree

    @model_validator(mode="after")
    def _agreed_answers_are_known(self) -> Config:
        keeps = [f"models.{name}.keep" for name, model in self.models.items() if model.keep == AGREED]
        keeps += ["train.keep"] if self.train.keep == AGREED else []
        if keeps and not (self.verify.enabled and self.verify.split == "all"):
            raise ValueError(
                f"{keeps[0]}: to know which training answers are agreed, set verify.enabled: true and verify.split: all"
            )
        return self

    @model_validator(mode="after")
    def _model_names_are_folder_names(self) -> Config:
        if not self.models:
            raise ValueError("models: name at least one model, such as blip: {kind: blip, weights: ...}")
        for name in self.models:
            if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
                raise ValueError(f"models: {name!r} becomes a folder's name: use letters, digits, '_' and '.'")
        return self


class ConfigErrors(UserErrors):
    """Everything that is wrong with a configuration.

    Attributes:
        rest: what it says without the wrong keys, to look for further problems; None where that says nothing.
    """

    def __init__(self, findings: Sequence[str], rest: Config | None = None) -> None:
        super().__init__(findings)
        self.rest = rest


def load_config(path: str | Path, overrides: Sequence[str] = (), *, unread: Collection[str] = ()) -> Config:
    """Read, override, expand and validate a configuration.

    Args:
        path: the YAML file, or the name of one in jobs/configs.
        overrides: strings ``section.key=value``; the value is YAML.
        unread: sections that the caller does not look at: environment variables in them need not be set.

    Raises:
        UserError: names the file, the key, the value and what would be right.
        ConfigErrors: the same for each of several.
    """
    path = yaml_file(path, CONFIGS, "configuration")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the configuration {path}: {error}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold sections (data:, models:, ...), not {type(tree).__name__}.")
    findings: list[str] = []
    with collected(findings):
        change_keys(tree, overrides)
    data = tree.get("data")
    if isinstance(data, dict) and data.get("dataset_csv") and data.get("root") == "$ABO_ROOT":
        data["root"] = "."  # questions and images of one's own need no ABO
    for section, value in tree.items():
        unset: list[str] = []
        tree[section] = _expand(value, str(path), unset)
        findings += [] if section in unread else [one for one in unset if one not in findings]
    try:
        config = validate_config(tree, source=str(path))
    except ConfigErrors as errors:
        raise ConfigErrors(findings + errors.findings, errors.rest) from None
    if findings:
        raise ConfigErrors(findings, config)
    return config


def validate_config(tree: dict[str, Any], source: str) -> Config:
    """Build a configuration from parsed YAML.

    Raises:
        ConfigErrors: one finding a wrong key.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        problems = [f"Configuration {source}: {_explain(problem, tree)}" for problem in error.errors()]
        raise ConfigErrors(problems, _rest(tree, error)) from None


def _rest(tree: Mapping[str, Any], error: ValidationError) -> Config | None:
    """The configuration without its wrong keys."""
    left = copy.deepcopy(dict(tree))
    for problem in error.errors():
        node: Any = left
        for part in problem["loc"][:-1]:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and problem["loc"]:
            node.pop(problem["loc"][-1], None)
    try:
        return Config.model_validate(left)
    except ValidationError:
        return None


def dump_config(config: Config) -> dict[str, Any]:
    """The configuration as JSON values, with every default spelled out; `validate_config` reads it back."""
    return config.model_dump(mode="json", by_alias=True)


def change_keys(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set keys of parsed YAML in place.

    Raises:
        UserError: an override is not ``section.key=value``; all such are named.
    """
    problems: list[str] = []
    for override in overrides:
        with collected(problems):
            _override(tree, override)
    if problems:
        raise UserErrors(problems)


def _override(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: write section.key=value, such as --set prepare.max_items=100")
    node = tree
    for depth, key in enumerate(keys[:-1]):
        child = node.setdefault(key, {})
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {override}: {'.'.join(keys[: depth + 1])} is a value, not a section")
        node = child
    try:
        node[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not valid YAML") from error


def expand(value: Any, source: str) -> Any:
    """Replace ``$NAME``, ``${NAME}`` and ``${NAME:-default}`` in every string from the environment.

    Raises:
        UserErrors: some are not set.
    """
    unset: list[str] = []
    found = _expand(value, source, unset)
    if unset:
        raise UserErrors(unset)
    return found


def _expand(value: Any, source: str, unset: list[str]) -> Any:
    """As `expand`; notes what is not set, and leaves it as it is."""
    if isinstance(value, dict):
        return {key: _expand(child, source, unset) for key, child in value.items()}
    if isinstance(value, list):
        return [_expand(child, source, unset) for child in value]
    if not isinstance(value, str) or "$" not in value:
        return value

    def replace(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(3)
        if name not in os.environ and match.group(2) is not None:
            return match.group(2)
        if name not in os.environ:
            hint = MISSING_ABO if name == "ABO_ROOT" else f"Set it: export {name}=..."
            unset.append(f"{source} uses ${name}, which is not set in the environment. {hint}")
        return os.environ.get(name, match.group())

    return re.sub(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))", replace, value)


MISSING_ABO = (
    "It is the folder that holds the Amazon Berkeley Objects download (listings/ and images/).\n"
    "  To get ABO: the archives abo-listings.tar (83 MB) and abo-images-small.tar (3 GB) are linked from\n"
    "  https://amazon-berkeley-objects.s3.amazonaws.com/index.html; unpack both into one folder, then\n"
    "      export ABO_ROOT=/path/to/that/folder\n"
    "  To see the whole pipeline without ABO, without a key and without a GPU:  make demo"
)


def _explain(problem: Any, tree: dict[str, Any]) -> str:
    """One of pydantic's problems as a sentence that names the key, the value and what would be right."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "(top level)"
    if problem["type"] == "extra_forbidden":
        section = ".".join(location[:-1]) or "top level"
        return f"{section}: {unknown_name(location[-1], sorted(_keys_at(location[:-1])), 'key')}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not location:
        return message
    if "keys" in location:  # a secret may have been pasted there, so the value is not shown
        return f"{key}: {message[0].lower()}{message[1:]}"
    return f"{key} = {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _keys_at(location: list[str]) -> list[str]:
    """The keys that a section may have."""
    model: Any = Config
    for part in location:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if part in fields:
            candidates = [fields[part].annotation, *getattr(fields[part].annotation, "__args__", ())]
            nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
            if not nested:
                return []
            model = nested[0]
    return [field.alias or name for name, field in model.model_fields.items()]
