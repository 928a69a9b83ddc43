#!/usr/bin/env python
"""The command line: ``python launch.py --cluster local`` runs the pipeline, ``python launch.py --help`` says the rest."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
