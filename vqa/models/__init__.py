"""Models: one file each, with a ``class Model(base.Model)``. Importing this package does not import torch."""

from pathlib import Path


def known_models() -> list[str]:
    """The kinds of model: the files of this folder that define one. They are read, not imported, which takes seconds."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if "\nclass Model(base.Model):" in file.read_text(encoding="utf-8"))
