"""BERTScore with a model and layer of one's choice, without the package's crashes.

``bert-score`` crashes on an empty string with recent transformers. Here an empty answer scores 0 and never reaches it.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

_BATCH = 256  # pairs per forward pass


class BertScoreUnavailable(Exception):
    """BERTScore cannot be computed. The message is the reason that the report prints."""


@dataclass(frozen=True, slots=True)
class BertSettings:
    """Which BERT compares the words."""

    model: str  # hub name or folder; ``package:NAME`` for the folder ``model`` in an installed Python package
    layer: int | None = None  # whose vectors are compared; None: the one that bert-score recommends, or the last


@dataclass(frozen=True, slots=True)
class BertUsed:
    """What a BERTScore was computed with: scores of different models or layers are not comparable."""

    model: str
    layer: int
    rescaled: bool  # with the package's English baseline, so that unrelated words score about 0


def resolve(model: str) -> str:
    """The hub name or folder that a setting means; see `BertSettings`."""
    if not model.startswith("package:"):
        return model
    name = model.removeprefix("package:")
    spec = importlib.util.find_spec(name)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise BertScoreUnavailable(f"the Python package {name}, which contains the weights, is not installed")
    return str(folder)


def bert_scores(pairs: Sequence[tuple[str, str]], settings: BertSettings) -> tuple[np.ndarray, BertUsed]:
    """F1 of each (truth, answer), 0 where one of them is empty; and what was used.

    Source: Zhang, Kishore, Wu, Weinberger, Artzi, "BERTScore: Evaluating Text Generation with BERT", ICLR 2020. Rescaled
    with the package's English baseline where it has one for this model and layer.

    Raises:
        BertScoreUnavailable: no weights (not downloaded and no network), or the package is missing.
    """
    scores = np.zeros(len(pairs), dtype=np.float64)
    scored = [i for i, (truth, answer) in enumerate(pairs) if truth.strip() and answer.strip()]
    found = _load(settings.model, settings.layer)
    if isinstance(found, BertScoreUnavailable):
        raise found
    scorer, used = found
    if scored:
        truths, answers = ([pairs[i][side] for i in scored] for side in (0, 1))
        _, _, f1 = scorer.score(answers, truths, batch_size=_BATCH)
        scores[scored] = np.nan_to_num(f1.double().numpy())
    return scores, used


@cache
def _load(model: str, layer: int | None) -> tuple[Any, BertUsed] | BertScoreUnavailable:
    """The scorer, or why there is none. Cached, since every model and variant of a report asks for it."""
    try:
        return _build(model, layer)
    except BertScoreUnavailable as error:
        return error


def _require_reachable(name: str) -> None:
    # Without a network the hub's client retries a failed lookup for a minute; this fails at once.
    if Path(name).is_dir():
        return
    if Path(name).is_absolute():
        raise BertScoreUnavailable(f"the folder {name} does not exist")
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    host = urlsplit(constants.ENDPOINT).hostname or ""
    proxied = any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if constants.HF_HUB_OFFLINE:
        raise BertScoreUnavailable(f"the weights of {name} are not on this machine, and HF_HUB_OFFLINE is set")
    try:
        if not proxied:
            socket.getaddrinfo(host, 443)
    except OSError:
        raise BertScoreUnavailable(
            f"the weights of {name} are not on this machine, and {host} cannot be reached"
        ) from None


def _build(model: str, layer: int | None) -> tuple[Any, BertUsed]:
    name = resolve(model)
    try:
        import bert_score
        from bert_score.utils import model2layers
        from transformers import AutoConfig

        from vqa.models.base import quiet_loading
    except ImportError as error:
        raise BertScoreUnavailable(f"{error.name} is not installed") from error
    layer = layer or model2layers.get(name)
    _require_reachable(name)
    try:
        if layer is None:
            layer = AutoConfig.from_pretrained(name).num_hidden_layers
        # The package stores baselines by hub name, so a local folder has none.
        baseline = Path(bert_score.__file__).parent / "rescale_baseline" / "en" / f"{name}.tsv"
        rescaled = not Path(name).is_absolute() and baseline.is_file()
        with quiet_loading():
            scorer = bert_score.BERTScorer(model_type=name, num_layers=layer, lang="en", rescale_with_baseline=rescaled)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BertScoreUnavailable(f"the weights of {model} could not be loaded: {reason}") from error
    return scorer, BertUsed(model, layer, rescaled)
