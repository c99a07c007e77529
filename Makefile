# make quickstart | lint | test | test-all | mutants | fuzz | faults | soak | bench |
# bench-gpu | clean. Needs make and Python 3.11 or newer, which may be named:
# make PYTHON=/path/to/python3.11 quickstart
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-input

.PHONY: quickstart lint test test-all mutants fuzz faults soak bench bench-gpu clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/runtime.stamp
	@$(VENV)/bin/python -m dinov2_jax.main --config=configs/quickstart.py \
		--workdir=runs/quickstart

# Style and types, seconds.
lint: $(VENV)/test.stamp
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ty check

# At most fifteen minutes on two cores.
test: lint
	$(VENV)/bin/python -m pytest -q -n 2 --durations=15 -m "not slow"

# The slow tests too: before a release, and after a change of what they are about.
test-all: lint
	$(VENV)/bin/python -m pytest -q -n 2 --durations=15

# Planted faults, one at a time, each of which the tests must catch.
mutants: $(VENV)/test.stamp
	@$(VENV)/bin/python -m tests.mutants

# Ten thousand damaged image files: decoded or refused, in time and within memory.
fuzz: $(VENV)/test.stamp
	@$(VENV)/bin/python -m tests.data.fuzz_images

# Half an hour of kills, full disks and damaged files; the table goes to docs/faults.md.
faults: $(VENV)/test.stamp
	@$(VENV)/bin/python -m tests.faults.campaign --write

# Half an hour of training, to see whether anything grows; the table goes to docs/runs.md.
soak: $(VENV)/test.stamp
	@$(VENV)/bin/python -m tests.faults.soak --write

bench: $(VENV)/test.stamp
	@$(VENV)/bin/python -m benchmarks step attention prototypes input compile

# What one GPU can show in nine minutes, with the jax, flax and torch that are installed.
bench-gpu:
	@$(PYTHON) -m benchmarks attention prototypes step --minutes=9

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than the requirements that were installed.
$(VENV)/runtime.stamp: requirements.txt
	@test -n "$(PYTHON)" || { \
		echo "error: no Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; \
		exit 2; }
	@echo "installing requirements.txt into $(VENV), a minute or two"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements.txt
	@touch $@

# The TPU compiler goes beside the environment: every jax program would start it.
$(VENV)/test.stamp: requirements-test.txt requirements-aot.txt $(VENV)/runtime.stamp
	@echo "installing requirements-test.txt into $(VENV)"
	@$(PIP) -r requirements-test.txt
	@$(PIP) --no-deps --upgrade --target=$(VENV)/libtpu -r requirements-aot.txt
	@touch $@
