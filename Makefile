# Two commands for a newcomer: `make demo` and `make test`. Both make .venv first, if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-slow check audit format chaos bench clean

install: $(STAMP)

# torch goes first, so that no other package's range pulls in another build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make install PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python launch.py demo

test: install
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadgroup

test-slow: install
	$(BIN)/python -m pytest -m slow

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pip check

# Known vulnerabilities of what is installed; asks a database on the internet, so it is no part of the checks above.
audit: install
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip_audit --skip-editable

# The pipeline under faults, compared with undisturbed runs; about an hour. See docs/reliability.md.
chaos: install
	$(BIN)/python -m tests.chaos --kills 200
	$(BIN)/python -m pytest tests/chaos -s
	$(BIN)/python -m tests.chaos.load

# Ratios measured side by side on this machine, into build/benchmarks; about 35 minutes on two cores.
bench: install
	for name in ingest validation resume quota training_memory full_size_step answering training_step; do \
	  $(BIN)/python -m benchmarks.$$name --out build/benchmarks/$$name.json || exit 1; done

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build *.egg-info
