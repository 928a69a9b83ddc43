"""Models small enough to be trained in a minute on a CPU: for the demo, for tests, for a first run on one's own data.

They are real models of their kind in transformers' own format (weights, configuration, tokenizer, image processor in one
folder); only the sizes are small and the tokenizer is made on the spot from the words that it has to know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from data_prep.records import Example
from vqa.models.base import model_class
from vqa.settings import ModelSettings

IMAGE_SIZE = 64
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_tiny_model(kind: str, folder: Path, texts: Iterable[str], *, seed: int = 0) -> Path:
    """Write an untrained tiny model of a kind into a folder.

    Args:
        kind: blip or vilt.
        folder: made if it is not there.
        texts: questions and answers whose words the tokenizer is to know.
        seed: of the random weights.
    """
    torch.manual_seed(seed)
    return {"blip": _blip, "vilt": _vilt}[kind](folder, _words(texts))


def _words(texts: Iterable[str]) -> list[str]:
    words = {word for text in texts for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower())}
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"  # unknown words are spelt out
    return [*SPECIAL, *letters, *(f"##{c}" for c in letters), *sorted(words - set(letters))]


def _tokenizer(folder: Path, vocabulary: Sequence[str]) -> None:
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)}).save_pretrained(folder)


def _blip(folder: Path, vocabulary: Sequence[str]) -> Path:
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessorPil

    _tokenizer(folder, vocabulary)
    size, layers, heads = 96, 2, 4
    dec = len(vocabulary)  # [DEC] and [ENC] are ids of the model alone, as in the real one
    text = {
        "vocab_size": dec + 2,
        "hidden_size": size,
        "encoder_hidden_size": size,
        "intermediate_size": 2 * size,
        "projection_dim": size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 64,
        "bos_token_id": dec,
        "pad_token_id": 0,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    vision = {
        "hidden_size": size,
        "intermediate_size": 2 * size,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "image_size": IMAGE_SIZE,
        "patch_size": 16,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,  # the default of 1e-10 is for loading weights, not for training from nothing
    }
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=size, image_text_hidden_size=size)
    BlipForQuestionAnswering(config).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder)
    return folder


def _vilt(folder: Path, vocabulary: Sequence[str]) -> Path:
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessorPil

    _tokenizer(folder, vocabulary)
    labels = ["yes", "no"]
    config = ViltConfig(
        vocab_size=len(vocabulary),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=64,
        image_size=IMAGE_SIZE,
        patch_size=16,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    net = ViltForQuestionAnswering(config)
    torch.nn.init.trunc_normal_(net.vilt.embeddings.position_embeddings, std=0.02)  # zeros tell no place from another
    net.save_pretrained(folder)
    ViltImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, size_divisor=16).save_pretrained(folder)
    return folder


def pretrain(
    folder: Path,
    kind: str,
    examples: Sequence[Example],
    image_root: Path,
    *,
    epochs: int,
    learning_rate: float = 1e-3,
    batch_size: int = 20,
    seed: int = 0,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> None:
    """Train all weights of the model in a folder on some examples, in place, so that "base" means something.

    Args:
        folder: what `make_tiny_model` wrote.
        kind: of the model.
        examples: questions with their answers.
        image_root: where their images are.
        epochs: passes over the examples.
        learning_rate: the highest; it rises for a tenth of the steps and falls to zero (one-cycle, Smith 2018).
        batch_size: questions a step.
        seed: of the order.
        progress: called with step, steps and loss.
    """
    from torch.utils.data import DataLoader

    from vqa.dataset import ImageOrder, VQADataset

    model = model_class(kind).load(ModelSettings(kind=kind, weights=str(folder)), [e.answer for e in examples])
    data = VQADataset(examples, image_root)
    order = ImageOrder(data.examples, seed)
    loader = DataLoader(data, batch_size, sampler=order, collate_fn=data.collator(model.processor, cache=True))
    steps = epochs * len(loader)
    optimizer = torch.optim.AdamW(model.net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    model.net.train()
    step = 0
    for epoch in range(epochs):
        order.set_epoch(epoch)
        for batch in loader:
            loss = model.net(**batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            progress(step, steps, float(loss.detach()))
    model.net.eval()
    model.net.save_pretrained(folder)
