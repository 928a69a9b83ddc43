"""Any image-text-to-text network of transformers, with what the questions about an image share computed once.

A row of such a network is ``image, question, answer``: a causal decoder reads the image's tokens (the prefix) before it sees
a question, so their keys and values are the same for all questions about the image. The prefix is read once an image, its
key-value cache is repeated for the image's questions, and these are read with explicit positions, in training (the cache
carries gradients) as in answering. The network's own code makes the prefix's mask and positions, so that image tokens that
see each other, sliding windows and positions on several axes (M-RoPE) come out as the network has them.

Not every network allows it (in PaliGemma the image's tokens see the question; a recurrent layer may change its state in
place), so `probe` compares with one whole row a question, and the next lower level of sharing is taken until it agrees.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from data_prep.outcomes import UserError

Level = Literal["prefix", "vision", "none"]
LEVELS: tuple[Level, ...] = ("prefix", "vision", "none")
IGNORED = -100  # the label that torch's cross entropy skips
IMAGE = "image/"  # a batch's tensors of image 3 are image/3/NAME
Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Group:
    """Images whose tensors have the same shapes, stacked, so that no prefix is padded."""

    numbers: list[int]  # the images' rows in the batch
    inputs: dict[
        str, Tensor
    ]  # what the network's forward takes for the images alone: input_ids (n, P), pixels and so on


def image_groups(batch: Batch) -> list[Group]:
    """A batch's images by the shapes of their tensors, in order of their first appearance."""
    images: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in batch.items():
        if name.startswith(IMAGE):
            _, number, part = name.split("/")
            images[int(number)][part] = tensor
    alike: dict[Any, list[int]] = defaultdict(list)
    for image, parts in sorted(images.items()):
        alike[tuple((name, tuple(parts[name].shape)) for name in sorted(parts))].append(image)
    return [
        Group(numbers, {name: torch.cat([images[n][name] for n in numbers]) for name in images[numbers[0]]})
        for numbers in alike.values()
    ]


def select(value: Any, rows: Tensor, count: int) -> Any:
    """What a vision tower said of ``count`` images, for the images in ``rows``; layers of such lists are gone through."""
    if isinstance(value, Tensor):
        return value[rows] if len(value) == count else value
    if isinstance(value, (list, tuple)):
        if value and isinstance(value[0], (list, tuple)):
            return [select(part, rows, count) for part in value]
        return [value[row] for row in rows.tolist()] if len(value) == count else value
    return value


class SharedPrefix:
    """Mixed into a network of transformers: batches of images with their questions, besides what the network takes itself."""

    level: Level = "prefix"
    answer_type = 0  # the token type of an answer, for networks whose questions see what comes after them

    def forward(self, *arguments: Any, image_of_question: Tensor | None = None, **batch: Any) -> Any:
        """The loss, a mean over the tokens of all answers, and their logits (tokens, vocabulary), question by question.

        Without ``image_of_question`` this is the network's own forward.
        """
        if image_of_question is None:
            return super().forward(*arguments, **batch)  # type: ignore[misc]
        answers = batch["labels"] != IGNORED
        hit = answers[:, 1:]
        parts: dict[int, Tensor] = {}
        for group in image_groups(batch):
            rows, owner = owned(group, image_of_question)
            asked = (batch["labels"][rows] != IGNORED).long().argmax(1)
            logits, _ = self.read(
                group, self.encode_images(group), owner, batch["input_ids"][rows], batch["mask"][rows], asked
            )
            for place, row in enumerate(rows.tolist()):
                parts[row] = logits[place, :-1][hit[row]]
        chosen = torch.cat([parts[row] for row in range(len(answers))]).float()
        targets = batch["labels"][:, 1:][hit]
        return {"loss": functional.cross_entropy(chosen, targets), "logits": chosen}

    def encode_images(self, group: Group) -> Any:
        """What the vision tower and the projection say of a group's images, without gradients; None where it is not shared.

        ``pooler_output`` holds an image's features, (tokens, width), in the autocast dtype.
        """
        if self.level == "none":
            return None
        known = inspect.signature(self.get_image_features).parameters  # type: ignore[attr-defined]
        given = {name: tensor for name, tensor in group.inputs.items() if name in known}
        with torch.no_grad():
            return self.get_image_features(**given, return_dict=True)  # type: ignore[attr-defined]

    def read(
        self, group: Group, seen: Any, owner: Tensor, ids: Tensor, mask: Tensor, asked: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Logits (Q, L, vocabulary) of a group's questions, and what `step` needs to go on after them.

        Args:
            group: the images.
            seen: what `encode_images` said of them.
            owner: (Q,), the question's image as its place in the group.
            ids: (Q, L) what follows the prefix, padded on the right.
            mask: (Q, L), False at padding.
            asked: (Q,), how many of a row's tokens are the question's; all where it is None.
        """
        if self.level == "prefix":
            return self._after_prefix(self.read_prefix(group, seen), owner, ids, mask)
        return self._whole_rows(group, seen, owner, ids, mask, asked), None

    def _own(self, **inputs: Any) -> Any:
        return super().forward(**inputs)  # type: ignore[misc]

    def _images(self, group: Group, seen: Any, owner: Tensor | None = None) -> dict[str, Any]:
        """The forward's arguments for a group's images, or for a row per question."""
        count = len(group.numbers)
        inputs = {name: value for name, value in group.inputs.items() if name not in ("input_ids", "attention_mask")}
        if owner is not None:
            inputs = {
                name: torch.cat([value.chunk(count)[row] for row in owner.tolist()]) for name, value in inputs.items()
            }
        if seen is None:
            return inputs
        if owner is not None:
            seen = type(seen)(**{name: select(value, owner, count) for name, value in seen.items()})
        return {name: value for name, value in inputs.items() if "pixel" not in name} | {
            "mm_encoder_outputs": {"image": seen}
        }

    def read_prefix(self, group: Group, seen: Any) -> tuple[Any, Tensor | int, int]:
        """The images' key-value cache, the shift of the positions that follow (M-RoPE counts an image's differently), length."""
        ids = group.inputs["input_ids"]
        if hasattr(base := self.base_model, "rope_deltas"):  # type: ignore[attr-defined]
            base.rope_deltas = None
        out = self._own(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            use_cache=True,
            **self._images(group, seen),
            logits_to_keep=1,
        )
        shift = getattr(base, "rope_deltas", None)
        if shift is not None:
            base.rope_deltas = None
        return out.past_key_values, (0 if shift is None else shift.view(-1)), ids.shape[1]

    def _after_prefix(
        self, prefix: tuple[Any, Tensor | int, int], owner: Tensor, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Any]:
        cache, shift, length = prefix
        cache.batch_select_indices(owner)
        past = Past(cache, mask.new_ones(len(ids), length), shift[owner] if isinstance(shift, Tensor) else None)
        return self.step(past, ids, mask), past

    def step(self, past: Past, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (Q, L, vocabulary) of tokens after those in ``past``, which takes them in."""
        begun = past.mask.sum(1, keepdim=True)
        positions = begun + (mask.long().cumsum(1) - 1).clamp_min(0)
        if past.shift is not None:
            positions = (positions + past.shift[:, None]).expand(3, -1, -1)
        past.mask = torch.cat([past.mask, mask], 1)
        out = self._own(
            input_ids=ids,
            attention_mask=past.mask.long(),
            position_ids=positions,
            past_key_values=past.cache,
            use_cache=True,
        )
        logits: Tensor = out.logits
        return logits

    def _whole_rows(
        self, group: Group, seen: Any, owner: Tensor, ids: Tensor, mask: Tensor, asked: Tensor | None
    ) -> Tensor:
        """A row a question, with its own copy of the prefix; one at a time, so that none is padded."""
        answers = []
        for row, image in enumerate(owner.tolist()):
            length = int(mask[row].sum())
            one = self._images(group, seen, owner[row : row + 1])
            prefix = group.inputs["input_ids"][image : image + 1]
            whole = torch.cat([prefix, ids[row : row + 1, :length]], 1)
            for name in ("mm_token_type_ids", "token_type_ids"):
                if name in one:
                    one[name] = functional.pad(one[name], (0, length))
                    if asked is not None and name == "token_type_ids":
                        one[name][:, prefix.shape[1] + int(asked[row]) :] = self.answer_type
            if hasattr(base := self.base_model, "rope_deltas"):  # type: ignore[attr-defined]
                base.rope_deltas = None
            out = self._own(input_ids=whole, attention_mask=torch.ones_like(whole), **one, use_cache=False)
            answers.append(functional.pad(out.logits[0, prefix.shape[1] :], (0, 0, 0, ids.shape[1] - length)))
        return torch.stack(answers)


@dataclass(slots=True)
class Past:
    """What has been read: the cache, which of its places count, and the shift of positions."""

    cache: Any
    mask: Tensor  # (Q, places), bool
    shift: Tensor | None  # (Q,)


def owned(group: Group, image_of_question: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the questions about a group's images, and for each its image's place in the group."""
    numbers = torch.tensor(group.numbers, device=image_of_question.device)
    same = image_of_question[:, None] == numbers
    rows = same.any(1).nonzero()[:, 0]
    return rows, same[rows].long().argmax(1)


def probe(net: Any, batch: Batch, tolerance: float = 1e-5) -> tuple[Level, dict[str, float]]:
    """The most sharing that changes neither logits nor gradients; sets the network's level to it.

    Args:
        net: in eval mode and fp32.
        batch: of images with several questions of unequal length each, with answers.
        tolerance: largest difference, as a share of the largest logit or gradient.

    Raises:
        UserError: an answer's tokens see those that follow.

    Returns:
        The level, and by level that was tried the largest difference (infinite where the network raised an error).
    """
    found: dict[str, float] = {}
    net.level = "none"
    if not any(is_causal(net, batch, kind) for kind in (0, 1)):
        raise UserError(f"{type(net).__name__} lets an answer see itself: it cannot be trained as kind vlm.")
    expected = _measured(net, batch)
    for level in LEVELS[:-1]:
        net.level = level
        try:
            found[level] = max(_distance(a, b) for a, b in zip(_measured(net, batch), expected, strict=True))
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError):
            found[level] = float("inf")  # a network that cannot take it is one that does not share
        if found[level] <= tolerance:
            return level, found
    net.level = "none"
    return "none", found


@torch.no_grad()
def is_causal(net: Any, batch: Batch, answer_type: int) -> bool:
    """Whether no answer's token depends on a later one, with answers of a token type; else the loss would mean nothing."""
    net.answer_type = answer_type
    changed = dict(batch)
    last = batch["mask"].sum(1, keepdim=True) - 1  # the end token, which nothing is predicted from
    changed["input_ids"] = batch["input_ids"].scatter(1, last, batch["input_ids"][:, :1])
    return _distance(net(**changed)["logits"], net(**batch)["logits"]) < 1e-4


def _distance(value: Tensor, expected: Tensor) -> float:
    apart = float((value - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    return apart if apart == apart else float("inf")


def _measured(net: Any, batch: Batch) -> list[Tensor]:
    """The logits, and the gradient of the first layer of the decoder that has one: the farthest from the loss."""
    weight = next(
        p for name, p in net.get_decoder().named_parameters() if name.endswith("_proj.weight") or "qkv" in name
    )
    before = weight.requires_grad
    weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            out = net(**batch)
            (gradient,) = torch.autograd.grad(out["loss"], weight)
    finally:
        weight.requires_grad_(before)
    return [out["logits"].detach(), gradient, *_after_answers(net, batch)]


@torch.no_grad()
def _after_answers(net: Any, batch: Batch) -> list[Tensor]:
    """The logits of a token after each question's own: as in answering, where the questions are padded before it."""
    found = []
    for group in image_groups(batch):
        rows, owner = owned(group, batch["image_of_question"])
        ids, mask = batch["input_ids"][rows], batch["mask"][rows]
        seen, new = net.encode_images(group), ids[:, :1]
        _, past = net.read(group, seen, owner, ids, mask)
        if past is not None:
            found.append(net.step(past, new, torch.ones_like(new, dtype=torch.bool))[:, -1])
            continue
        whole, counted = appended(ids, mask, new)
        asked = (batch["labels"][rows] != IGNORED).long().argmax(1)
        logits, _ = net.read(group, seen, owner, whole, counted, asked)
        found.append(logits[torch.arange(len(ids), device=ids.device), mask.sum(1)])
    return found


def appended(ids: Tensor, mask: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
    """Questions (Q, L) padded on the right with (Q, A) more tokens right after their own, and the mask."""
    lengths = mask.sum(1)
    whole = torch.cat([ids, ids[:, :1].expand_as(said)], 1)  # any token but an image's may stand at padding
    places = lengths[:, None] + torch.arange(said.shape[1], device=ids.device)
    whole = whole.scatter(1, places, said)
    return whole, torch.arange(whole.shape[1], device=ids.device) < (lengths + said.shape[1])[:, None]
