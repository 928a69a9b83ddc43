#!/usr/bin/env python
"""The command line: ``python launch.py --cluster local`` runs the pipeline, ``python launch.py --help`` says the rest."""

import sys

try:
    from jobs.cli import main
except ModuleNotFoundError as error:
    sys.exit(
        f"error: {sys.executable} has no {error.name}. Run: make install   and then: .venv/bin/python launch.py ..."
    )

if __name__ == "__main__":
    sys.exit(main())
