# Needs Python 3.11 or newer (with venv) and make; everything else goes into .venv.
# pip's own settings are honoured: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf …
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DATA   := data/scenes
RUN    := runs/scenes_smoke

.DEFAULT_GOAL := help
.PHONY: help pretrain test test-slow test-upstream quality style docs dist bench clean

help:
	@echo "make pretrain    train a small network on procedural scenes: data, run, weights, report"
	@echo "make test        the default test suite, offline"
	@echo "make test-slow   the tests marked slow"
	@echo "make test-upstream   transformers' own common tests on our classes; fetches them first"
	@echo "make quality     linter, formatter (check only), type checker"
	@echo "make style       let the formatter and the linter repair what they can"
	@echo "make docs        the pages as a site, into build/site; a broken link fails it"
	@echo "make dist        sdist and wheel, into dist/, checked as an index would"
	@echo "make bench       the benchmarks of benchmarks/"

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -V >/dev/null 2>&1 || { echo "$(PYTHON) is not there or does not run"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1 | cut -d' ' -f2); Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

pretrain: $(READY)
	$(BIN)/python -m dataset_scripts.prepare scenes --output $(DATA)
	$(BIN)/accelerate launch --config_file training/launchers/single.yaml training/pretrain.py --data $(DATA) --output_dir $(RUN)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Their files know markers, warnings and skips that are none of ours.
test-upstream: $(READY)
	$(BIN)/python -m tests.upstream.fetch
	DECODEPOS_UPSTREAM=1 $(BIN)/python -m pytest -n 2 -q -o addopts= -W default tests/upstream

quality: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: export DECODEPOS_REPOSITORY ?= $(if $(GITHUB_REPOSITORY),$(GITHUB_SERVER_URL)/$(GITHUB_REPOSITORY))
docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m docs.assemble
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[release]'
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

bench: $(READY)
	$(BIN)/python -m benchmarks.roi_align
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.views
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.csv
	$(BIN)/python -m benchmarks.known_cases
	$(BIN)/python -m benchmarks.diagnose
	$(BIN)/python -m benchmarks.object_knn

clean:
	rm -rf $(VENV) $(DATA) $(RUN) build dist
