# Every target does its own set-up: `make book` and `make test` work on a fresh clone with Python 3.11+ and make.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/installed
WORKERS ?= 2
REPORTS := _build/reports
NOTEBOOKS = $(wildcard notebooks/[0-9]*.ipynb)

# Batch runs and re-execution
CHAPTERS ?=
PRESET ?= quick
SEEDS ?=
JOBS ?= 2
ARGS ?=

# The book's operations are small: one thread each is faster, and chapters then run side by side.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# Of one run, and of no other: set by batches, and by hand for booktools.repairs.
unexport LEARNOPT_RUN_DIR LEARNOPT_TRAINED LEARNOPT_CONTENT

.DEFAULT_GOAL := help
.PHONY: help setup book html test notebooks smoke batch bench robustness times ledger browser clean

help: ## list the targets
	@echo "make TARGET; the first call installs everything into $(VENV) (PYTHON=... chooses the interpreter)"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install the library, the book's tools and the tests' tools

# The stamp is written last, so an interrupted set-up is taken up again, and is older than an edited pyproject.toml.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " \
	    + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 ...")'
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV); PyTorch makes it several GB"
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[book,test,batch]"
	@touch $@

book: $(STAMP) ## execute every chapter at its quick preset and render the site to _build/html
	$(PY) -m booktools.execution_cache
	rm -rf _build/html
	$(VENV)/bin/jupyter-book build . --all -W -n --keep-going
	@echo "open _build/html/index.html"

html: $(STAMP) ## render the site from the outputs stored in the notebooks, executing nothing
	rm -rf _build/html
	BOOK_EXECUTE=off $(VENV)/bin/jupyter-book build . --all -W -n --keep-going
	@echo "open _build/html/index.html"

test: $(STAMP) ## style, the chapters' form, the tests, and every cell of every notebook (nbval)
	$(PY) -m ruff check .
	$(PY) -m booktools.notebooks check
	$(PY) -m pytest $(NOTEBOOKS) tests --ignore tests/test_site.py -n $(WORKERS) \
	    --no-loadscope-reorder --nbval-lax --nbval-current-env --nbval-cell-timeout 300 \
	    -p booktools.share_executions -rs --junitxml=$(REPORTS)/test.xml

browser: $(STAMP) ## drive the built site in headless Chromium (installs Chromium where it can)
	CHROMIUM="$$(tests/install_browser.sh | tail -n 1)" && export CHROMIUM && \
	    REQUIRE_SITE=1 $(PY) -m pytest tests/test_site.py -n $(WORKERS) --dist loadgroup -rs \
	        --junitxml=$(REPORTS)/browser.xml

notebooks: $(STAMP) ## execute chapters at quick and store their outputs (CHAPTERS="01 03"; all by default)
	$(PY) -m booktools.notebooks run --store $(CHAPTERS)

smoke: $(STAMP) ## execute chapters at their smallest preset, storing nothing (CHAPTERS="01 03"; all by default)
	$(PY) -m booktools.notebooks run --preset smoke $(CHAPTERS)

batch: $(STAMP) ## run chapters over seeds: make batch CHAPTERS="03" PRESET=paper SEEDS="0 1 2"; all by default
	$(PY) -m booktools.batch --chapters "$(CHAPTERS)" --preset $(PRESET) $(if $(SEEDS),--seeds "$(SEEDS)") \
	    --jobs $(JOBS) $(if $(filter paper,$(PRESET)),--record) $(ARGS)

bench: ## time the library's hot paths against other libraries, in an environment of its own (.venv-bench)
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -e ".[bench]"
	.venv-bench/bin/python -m booktools.bench --write data/results/bench.json $(ARGS)

robustness: $(STAMP) ## kills, damaged files, full disks, at full count; write data/results/robustness.json
	$(PY) -m booktools.robustness --write data/results/robustness.json $(ARGS)
	$(PY) -m booktools.tested_page

times: $(STAMP) ## measure the processor time of chapters at smoke and quick; write data/results/times.json
	$(PY) -m booktools.times --write data/results/times.json $(ARGS) $(CHAPTERS)
	$(PY) -m booktools.tested_page

ledger: $(STAMP) ## decide every claim from the records; write book/replication.md and data/ledger.json
	$(PY) -m booktools.ledger

clean: ## remove what was built (_build, caches); .venv, downloads and records stay
	rm -rf _build .pytest_cache .ruff_cache
