# The whole vocabulary. `make demo` and `make test` set up what they need; the first time takes minutes of downloads.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SETUP := $(VENV)/.nbtune-setup
STATIC := nbtune/widgets/static/plotly.mjs.gz
JS := $(shell find js -path js/node_modules -prune -o -type f \( -name '*.js' -o -name '*.mjs' -o -name '*.css' -o -name 'package*.json' \) -print 2>/dev/null)
PYTEST := $(PY) -m pytest
# With ARGS a part is asked for, and one of the two runs may have none of it.
NONE_IS_FINE = $(if $(ARGS),|| [ $$? -eq 5 ])

.PHONY: help setup demo demo-real test test-all mutants fuzz test-js lint format bench docs pictures site notebooks browser clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(SETUP) $(STATIC)  ## .venv with nbtune in it (editable) and what its developers need

$(SETUP): pyproject.toml .ci/setup.py
	$(PYTHON) .ci/setup.py
	@touch $@

$(STATIC): $(JS) | $(SETUP)
	$(PY) js/hatch_build.py
	@touch $@

demo: setup  ## fine-tune the embedded model in a notebook, and show what came of it (3 minutes)
	$(PY) example_notebooks/run_demo.py

demo-real: setup  ## the same with SmolLM2-135M: from the Hub, or from the folder that MODEL names
	$(PY) example_notebooks/run_demo.py $(or $(MODEL),HuggingFaceTB/SmolLM2-135M-Instruct) --steps 30

test: setup browser  ## what every change must pass, at most 10 minutes on 2 cores
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not gpu and not browser" $(ARGS) $(NONE_IS_FINE)
	$(PYTEST) -n 2 --dist loadfile -m "browser and not slow" $(ARGS) $(NONE_IS_FINE)

test-all: setup browser test-js  ## everything but what needs a GPU, also what takes hours
	$(PYTEST) -m "not gpu" $(ARGS)

mutants: setup  ## plants a hundred bugs one at a time: which of them does `make test` see? (an hour on 2 cores)
	$(PY) -m tests.mutants.run $(ARGS)

test-js: setup
	cd js && npm test

lint: setup  ## ruff, its format, and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup  ## lets ruff mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

fuzz: setup  ## half an hour of nonsense: specs, rows, folders of models and runs (ARGS='--seconds 60 --only specs')
	$(PY) -m tests.fuzz $(ARGS)

bench: setup  ## import times and the figures in docs/ that this machine can measure
	$(PY) tests/bench.py

docs: setup  ## docs/reference, the tables of docs/methods, the picture in docs/explanation/house.md and nbtune/__init__.pyi, made from the code
	$(PY) -m nbtune.spec.reference docs/reference/spec.md
	$(PY) -m nbtune.notebook.reference > docs/reference/magics.md
	$(PY) -m nbtune.cli.reference > docs/reference/cli.md
	$(PY) -m tests.support.house
	$(PY) -m tests.support.method_pages
	$(PY) -m tests.support.stub

pictures: setup browser  ## docs/pictures anew, from real panels: those of README.md, and the page of the 8B run
	$(PY) -m tests.tools.readme_panels docs/pictures

site: setup  ## build/site: the documentation as pages, every link tried
	$(PY) -c 'import zensical' 2>/dev/null || $(PY) -m pip install --quiet zensical
	$(PY) docs/build_site.py

notebooks: setup  ## executes every notebook in example_notebooks/ and keeps its outputs (ARGS=--check: only compares)
	$(PY) example_notebooks/run_all.py $(ARGS)

browser:
	@$(PYTHON) .ci/setup.py browser

clean:  ## what was built, but not runs
	rm -rf $(VENV) js/node_modules nbtune/widgets/static dist build .ruff_cache .mypy_cache .pytest_cache
