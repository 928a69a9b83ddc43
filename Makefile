# Two commands for newcomers: `make demo` and `make test`. Both create .venv first if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST := build/lowest
# One path through everything: data, both Gemini clients and the Batch API, configuration and command line, the shard
# loop, every model, and a whole run with a tiny training, an evaluation and a report.
LOWEST_TESTS := tests/data_prep/abo tests/data_prep/images tests/data_prep/curate \
  tests/data_prep/generate/test_workers.py tests/data_prep/generate/test_batch_api.py \
  tests/jobs/test_config.py tests/jobs/test_cli.py tests/jobs/shards \
  tests/vqa/models/test_every_model.py tests/vqa/evaluation tests/vqa/report/test_report.py \
  tests/jobs/test_pipeline.py::test_one_command_leads_from_listings_to_a_report

.PHONY: install demo test test-slow test-lowest check audit format chaos mutants bench clean

install: $(STAMP)

# torch is installed first, so that no other package's requirement pulls in a different build of it.
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

# The core tests on the lowest versions that pyproject.toml allows, in an environment of their own.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -m 'not slow' -n 2 --dist loadgroup $(LOWEST_TESTS)

$(LOWEST)/.installed: pyproject.toml lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint lowest.txt torch
	$(LOWEST)/bin/python -m pip install --quiet --constraint lowest.txt --editable . \
	  pytest pytest-xdist pytest-timeout hypothesis
	touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pip check

# Known vulnerabilities in the installed packages, from an online database, and generator models that are about to be shut down
# or change their price. Both change by themselves, so this is not part of `check`.
audit: install
	$(BIN)/python -m data_prep.generate.models
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip_audit --skip-editable

# The pipeline under injected faults, compared with undisturbed runs. About an hour; see docs/reliability.md.
chaos: install
	$(BIN)/python -m tests.chaos --kills 200
	$(BIN)/python -m pytest tests/chaos -s
	$(BIN)/python -m tests.chaos.load

# Breaks the code in 400 places, one at a time, and lists where no test notices. About an hour on two cores.
mutants: install
	$(BIN)/python -m pip install --quiet cosmic-ray==8.7.0
	$(BIN)/python -m tests.mutation

# Speed ratios, both sides measured on this machine, written to build/benchmarks. About 35 minutes on two cores.
bench: install
	for name in ingest validation resume quota training_memory full_size_step answering training_step; do \
	  $(BIN)/python -m benchmarks.$$name --out build/benchmarks/$$name.json || exit 1; done

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build *.egg-info
