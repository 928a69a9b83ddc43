"""A model's own processor without its video part, which needs torchvision, and with the PIL image processor.

The pixels then do not depend on whether torchvision is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

VIDEO = "video_processor"


def load_processor(weights: str, model_type: str) -> Any:
    """The processor of a folder or a hub name; it takes images and texts.

    Args:
        weights: hub name or folder.
        model_type: of the model's configuration.

    Raises:
        OSError, ValueError: something is missing.
        ImportError: it needs a library that is not installed.
    """
    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    kind = processor_class_from_name(name) if name else None
    if kind is None or VIDEO not in kind.get_attributes():
        return AutoProcessor.from_pretrained(weights, backend="pil")
    still = type(kind.__name__, (_Still, kind), {"__module__": kind.__module__})
    settings, _ = kind.get_processor_dict(weights)
    parts = {"image_processor": AutoImageProcessor.from_pretrained(weights, backend="pil")}
    parts["tokenizer"] = AutoTokenizer.from_pretrained(weights)
    for part in (*parts, VIDEO):
        settings.pop(part, None)
    return still.from_args_and_dict([parts.get(name) for name in kind.get_attributes()], settings)  # type: ignore[attr-defined]


class _Still:
    """Mixed into a processor's class: no video processor."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == VIDEO and argument is None:
            return None
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write what `load_processor` reads."""
        import json

        folder = Path(folder)
        for part in (self.tokenizer, self.image_processor):  # type: ignore[attr-defined]
            part.save_pretrained(folder)
        known = {name: value for name, value in vars(self).items() if isinstance(value, (int, str, float, bool))}
        named = {
            name: value
            for name, value in known.items()
            if name != "chat_template" and not name.endswith(("_id", "_token"))
        }
        text = json.dumps({**named, "processor_class": type(self).__name__}, indent=2)
        (folder / "processor_config.json").write_text(text, encoding="utf-8")
        if self.chat_template:  # type: ignore[attr-defined]
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")  # type: ignore[attr-defined]
