"""Figures that others published, to stand beside this run's. Each is on its own private data: none is comparable.

Only what was published is here; a cell that is not is shown as "not published here".
"""

from __future__ import annotations

REPORT = "the student report that this project starts from, on its own private split"
PREDICTIONS = "published with 10,000 predictions a model on ABO questions, on its own private split (strict comparison)"

EXACT_MATCH: tuple[
    tuple[str, str, str, str | None, str], ...
] = (  # kind, variant, exact match, substring match, source
    ("blip", "base", "0.31", None, REPORT),
    ("blip", "lora", "0.70", None, REPORT),
    ("blip", "base", "0.3610", "0.3787", PREDICTIONS),
    ("blip", "lora", "0.6928", "0.7065", PREDICTIONS),
    ("vilt", "base", "0.2487", "0.2551", PREDICTIONS),
    ("vilt", "lora", "0.2809", "0.2848", PREDICTIONS),
)

KINDS = {"blip": "BLIP", "vilt": "ViLT"}

HYPERPARAMETERS = {
    "LoRA rank r": "16",
    "LoRA alpha": "32",
    "LoRA dropout": "0.1",
    "learning rate": "5e-5",
    "weight decay": "0.01",
    "epochs": "3",
    "batch size × accumulation": "4 × 4 and 8 × 2",
}

PARAMETERS: dict[str, dict[str, str | None]] = {
    "blip": {
        "total": "385 M",
        "trainable": "1.2 M",
        "note": "1.2 M is the count of r = 8; r = 16 on query and value is 2.36 M",
    },
    "vilt": {"total": "198 M", "trainable": None, "note": "ViLT-B/32 for VQA has 117.6 M parameters when counted"},
}
