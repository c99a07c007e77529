# make quickstart | evaluate-demo | docs | notebooks | lint | test | test-extra |
# test-all | mutants | fuzz | faults | soak | bench | bench-gpu | clean. Needs make and
# Python 3.11, 3.12 or 3.13, which may be named; another one than before makes the
# environment anew: make test PYTHON=/path/to/python3.13
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
# Of the Python that is named, else of the environment that is there, else of the one found.
PRINT_VERSION := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
VERSION := $(shell $(if $(filter file,$(origin PYTHON)),\
	$(VENV)/bin/python $(PRINT_VERSION) 2>/dev/null ||) \
	$(PYTHON) $(PRINT_VERSION) 2>/dev/null)
RUNTIME := $(VENV)/runtime-$(VERSION).stamp
TEST := $(VENV)/test-$(VERSION).stamp
EXTRA := $(VENV)/extra-$(VERSION).stamp
PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-input

.PHONY: quickstart evaluate-demo docs notebooks lint test test-extra test-all mutants \
	fuzz faults soak bench bench-gpu clean
.DELETE_ON_ERROR:

quickstart: $(RUNTIME)
	@$(VENV)/bin/dinov2-jax train --config=quickstart --workdir=runs/quickstart

# Evaluations on data that needs no download, with the quickstart's weights.
evaluate-demo: runs/quickstart/pca.png
	@rm -rf runs/evaluate-demo
	@$(VENV)/bin/python -m dinov2_jax.eval.demo --model=runs/quickstart \
		--out=runs/evaluate-demo

# Written at the end of a run.
runs/quickstart/pca.png: | $(RUNTIME)
	@$(MAKE) --no-print-directory quickstart

# Style and types, seconds.
lint: $(TEST)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ty check

# At most fifteen minutes on two cores.
test: lint
	$(VENV)/bin/python -m pytest -q -n 2 --dist=worksteal --durations=15 -m "not slow and not extra"

# The slow tests too: before a release, and after a change of what they are about.
test-all: lint test-extra
	$(VENV)/bin/python -m pytest -q -n 2 --dist=worksteal --durations=15 -m "not extra"

# Notebooks, demo, hub and trackers.
test-extra: $(EXTRA)
	$(VENV)/extra/bin/python -m pytest -q --durations=15 -m extra

# The documentation as a site, in build/site.
docs: $(EXTRA)
	NO_MKDOCS_2_WARNING=1 $(VENV)/extra/bin/python -m mkdocs build --strict \
		--site-dir build/site

# notebooks/NAME.ipynb of each notebooks/NAME.py, without outputs.
notebooks: $(EXTRA)
	$(VENV)/extra/bin/python -m jupytext --update --to ipynb notebooks/*.py

# Planted faults, one at a time, each of which the tests must catch.
mutants: $(TEST)
	@$(VENV)/bin/python -m tests.mutants

# Ten thousand damaged image files: decoded or refused, in time and within memory.
fuzz: $(TEST)
	@$(VENV)/bin/python -m tests.data.decode.fuzz_images

# Half an hour of kills, full disks and damaged files; the table goes to docs/faults.md.
faults: $(TEST)
	@$(VENV)/bin/python -m tests.faults.campaign --write

# Half an hour of training, to see whether anything grows; the table goes to docs/runs.md.
soak: $(TEST)
	@$(VENV)/bin/python -m tests.faults.soak --write

bench: $(TEST)
	@$(VENV)/bin/python -m benchmarks step attention input embed

# What one GPU can show in nine minutes, with the jax, flax, ml_collections and torch that
# are installed.
bench-gpu:
	@$(PYTHON) -m benchmarks attention step --minutes=9

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than the requirements that were installed.
$(RUNTIME): requirements.txt pyproject.toml
	@test -n "$(VERSION)" || { \
		echo "error: no Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; \
		exit 2; }
	@echo "installing requirements.txt into $(VENV), a minute or two"
	@test "$$($(VENV)/bin/python $(PRINT_VERSION) 2>/dev/null)" = $(VERSION) || { \
		rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# The TPU compiler goes beside the environment: every jax program would start it.
$(TEST): requirements-test.txt requirements-aot.txt $(RUNTIME)
	@echo "installing requirements-test.txt into $(VENV)"
	@$(PIP) -r requirements-test.txt
	@$(PIP) --no-deps --upgrade --target=$(VENV)/libtpu -r requirements-aot.txt
	@touch $@

# On top of the environment of the tests, whose Pillow is newer than Gradio allows.
$(EXTRA): requirements-extra.txt $(TEST)
	@echo "installing requirements-extra.txt into $(VENV)/extra"
	@rm -rf $(VENV)/extra
	@$(VENV)/bin/python -m venv $(VENV)/extra
	@$(VENV)/bin/python -c 'import sysconfig; \
		print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(VENV)/extra/bin/python -c \
		'import sysconfig; print(sysconfig.get_path("purelib"))')/tests.pth"
	@$(VENV)/extra/bin/python -m pip install -qq --disable-pip-version-check --no-input \
		-r requirements-extra.txt
	@touch $@
