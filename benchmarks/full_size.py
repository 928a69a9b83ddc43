"""Full-size models with random weights, made locally, and data for them: for benchmarks of memory and speed without a download.

The sizes are those of Salesforce/blip-vqa-base and dandelin/vilt-b32-finetuned-vqa; the weights and the answers mean nothing.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessorPil,
)

from data_prep.files import write_json, write_jsonl
from data_prep.records import Example

QUESTION = "What is the main color of the product in this image?"  # 12 words and a mark, longer than most
ANSWER = "multicolored"
BERT_WORDS = 30_522


def make_full_size(kind: str, folder: Path) -> Path:
    """Write a full-size model of a kind: weights, configuration, tokenizer, image processor."""
    torch.manual_seed(0)
    words = [f"word{number}" for number in range(BERT_WORDS)]
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation]
    known += sorted({*QUESTION.lower().strip("?").split(), ANSWER})
    vocabulary = {word: number for number, word in enumerate([*known, *words][:BERT_WORDS])}
    folder.mkdir(parents=True, exist_ok=True)
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    if kind == "blip":
        text = {"num_attention_heads": 12, "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3}
        vision = {"image_size": 384, "initializer_range": 0.02}
        BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        BlipImageProcessorPil(size={"height": 384, "width": 384}).save_pretrained(folder)
    else:
        labels = {number: f"answer{number}" for number in range(3129)}
        config = ViltConfig(num_labels=len(labels), id2label=labels, label2id={v: k for k, v in labels.items()})
        ViltForQuestionAnswering(config).save_pretrained(folder)
        ViltImageProcessorPil(size={"shortest_edge": 384}, size_divisor=32).save_pretrained(folder)
    return folder


def make_data(folder: Path, image_count: int, questions: int) -> tuple[Path, Path, list[Example]]:
    """Curated splits (without validation) about grey images of ABO's usual size, and the folder of the images."""
    images, data = folder / "images", folder / "data"
    for part in (images, data):
        part.mkdir(parents=True)
    examples = []
    for number in range(image_count):
        Image.new("RGB", (256, 256), (number * 5 % 256,) * 3).save(images / f"{number}.png")
        for asked in range(questions):
            examples.append(
                Example(
                    id=f"{number}-{asked}",
                    item_id=f"I{number}",
                    image_id=f"P{number}",
                    image_path=f"{number}.png",
                    question=QUESTION,
                    answer=ANSWER,
                    category="easy",
                    question_type="color",
                    product_type="ANY",
                )
            )
    for name, rows in {"train": examples, "val": [], "test": []}.items():
        write_jsonl(data / f"{name}.jsonl", rows)
    write_json(data / "stats.json", {})
    return data, images, examples
