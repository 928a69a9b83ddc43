"""BERTScore with a model and layer of one's choice, without what breaks it.

``bert-score`` crashes on an empty string with recent transformers; an empty answer scores 0 here and never reaches it.
Pairs are scored once each, which for one-word answers is a third of the work or less.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

if TYPE_CHECKING:
    from vqa.evaluation.metrics import MetricSettings, Pair


class BertScoreUnavailable(Exception):
    """The model cannot be had; the message is the reason that the report prints."""


def resolve(model: str) -> str:
    """The hub name or folder of a setting; ``package:NAME`` is the folder ``model`` of an installed package."""
    if not model.startswith("package:"):
        return model
    name = model.removeprefix("package:")
    spec = importlib.util.find_spec(name)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise BertScoreUnavailable(f"the Python package {name}, which carries the weights, is not installed")
    return str(folder)


def bert_scores(pairs: Sequence[Pair], settings: MetricSettings) -> tuple[np.ndarray, dict[str, Any]]:
    """F1 of each (truth, answer), unscored pairs 0, and what was used.

    Source: Zhang, Kishore, Wu, Weinberger, Artzi, "BERTScore: Evaluating Text Generation with BERT", ICLR 2020. Rescaled
    with the package's English baseline where it has one for this model and layer.

    Raises:
        BertScoreUnavailable: no weights (not downloaded and no network), or the package is missing.
    """
    assert settings.bertscore_model is not None
    scores = np.zeros(len(pairs), dtype=np.float64)
    wanted = [i for i, (truth, answer) in enumerate(pairs) if truth.strip() and answer.strip()]
    scorer, used = _scorer(settings)
    if wanted:
        truths, answers = ([pairs[i][side] for i in wanted] for side in (0, 1))
        _, _, f1 = scorer.score(answers, truths, batch_size=settings.bertscore_batch)
        scores[wanted] = np.nan_to_num(f1.double().numpy())
    return scores, used


def _scorer(settings: MetricSettings) -> tuple[Any, dict[str, Any]]:
    found = _load(settings.bertscore_model or "", settings.bertscore_layer)
    if isinstance(found, BertScoreUnavailable):
        raise found
    return found


@cache
def _load(model: str, layer: int | None) -> tuple[Any, dict[str, Any]] | BertScoreUnavailable:
    """The scorer, or why there is none: asked once a process, since each of several models and variants needs it."""
    try:
        return _build(model, layer)
    except BertScoreUnavailable as error:
        return error


def _require_reachable(name: str) -> None:
    # The hub's client repeats a failed look-up for a minute; a machine without a network is told at once.
    if Path(name).is_dir():
        return
    if Path(name).is_absolute():
        raise BertScoreUnavailable(f"there is no folder {name}")
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


def _build(model: str, layer: int | None) -> tuple[Any, dict[str, Any]]:
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
        # The package keeps a baseline per hub name; a folder of one's own has none.
        baseline = Path(bert_score.__file__).parent / "rescale_baseline" / "en" / f"{name}.tsv"
        rescaled = not Path(name).is_absolute() and baseline.is_file()
        with quiet_loading():
            scorer = bert_score.BERTScorer(model_type=name, num_layers=layer, lang="en", rescale_with_baseline=rescaled)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BertScoreUnavailable(f"the weights of {model} could not be loaded: {reason}") from error
    return scorer, {"model": model, "layer": layer, "rescaled": rescaled}
