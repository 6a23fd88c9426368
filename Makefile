# Everything runs in .venv, which the first command makes. Linux and macOS; Python 3.10 or newer.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# Threads that wait must not spin beside other work; see src/diffusers_ict/commands/__init__.py.
ifndef OMP_WAIT_POLICY
export GOMP_SPINCOUNT ?= 1000
endif

.PHONY: help demo sample web test torture test-slow test-all lint format docs site notebook dist clean compare bench

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps torch-fidelity
	@touch $@

demo: .venv/installed ## train on the digits of scikit-learn, sample, measure: two to six minutes, then see runs/digits
	rm -rf runs/digits
	$(BIN)/python examples/demo_digits.py --output_dir runs/digits

sample: .venv/installed ## draw from the committed model of avatars, seconds: see runs/samples.png
	$(BIN)/diffusers-ict sample model_cards/avatars --num_samples 100 --output runs/samples.png

runs/digits/model_index.json:
	$(MAKE) demo

web: .venv/installed runs/digits/model_index.json ## draw in the browser with the model of `make demo`: Ctrl-C ends it
	$(BIN)/diffusers-ict demo runs/digits --output_dir runs/web

test: .venv/installed ## run the test suite without what is marked slow: four to twelve minutes on two cores
	$(PYTEST) -m 'not slow'

test-slow: .venv/installed ## run what is marked slow: kills, several processes, whole programs
	$(PYTEST) -m slow

torture: .venv/installed ## kill, starve and mislead runs: an hour, a table of what survived
	FUZZ_EXAMPLES=500 $(BIN)/python -m pytest tests/test_fuzz.py
	$(BIN)/python benchmarks/torture.py --output benchmarks/results/torture

test-all: test test-slow ## run everything, as CI does

lint: .venv/installed ## check style, formatting, imports and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: .venv/docs ## build the documentation into site/; warnings are errors
	$(BIN)/mkdocs build --strict

site: .venv/docs ## the same, with the page on which the committed model of avatars draws
	LIVE_PAGE=model_cards/avatars $(BIN)/mkdocs build --strict

notebook: .venv/installed ## run examples/diffusers_ict.ipynb and keep its pictures: five minutes
	rm -rf runs/notebook && mkdir -p runs/notebook
	cd runs/notebook && PATH="$(CURDIR)/$(BIN):$$PATH" python ../../tests/notebook.py \
	  ../../examples/diffusers_ict.ipynb ../../examples/diffusers_ict.ipynb

dist: .venv/installed ## build the source distribution and the wheel into dist/, and check them
	rm -rf dist
	$(BIN)/python -m pip install --quiet --constraint constraints.txt build twine
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

format: .venv/installed ## mend what lint can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compare: .venv/installed ## CT, iCT and ACT side by side on the digits: half an hour
	$(BIN)/python benchmarks/compare.py --output benchmarks/results/digits --seconds 80 --jobs 2 -- \
	  --train_batch_size 16 --dropout 0 --learning_rate 5e-4 --ema_decays 0.999

bench: .venv/installed ## measure steps, samples, checkpoints and starts as ratios: see benchmarks/results/bench.md
	$(BIN)/python benchmarks/bench.py --output benchmarks/results/bench

clean: ## remove the environment, caches and runs
	rm -rf .venv runs build dist site .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
