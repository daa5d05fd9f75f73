# Everything a checkout needs; `make demo` and `make test` work on a fresh clone.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-generation test test-all test-lowest test-newest docs notebooks chaos load lint format clean

demo: .venv/installed
	$(BIN)/cee-gym train EarlyExit-ToyBERT-Clauses --agent reinforce --alpha 0.035 --total-timesteps 1000000 --observe hidden layer confidence margin agreement previous --rounds 1 --output runs/demo --resume
	$(BIN)/cee-gym evaluate runs/demo

demo-generation: .venv/installed
	$(BIN)/cee-gym train EarlyExit-TinyLLaMA-Stories --agent longstaff-schwartz --alpha 0.1 --observe hidden layer confidence margin --rounds 1 --backbone-phase.learning-rate 1e-3 --output runs/demo-generation --resume
	$(BIN)/cee-gym evaluate runs/demo-generation
	$(BIN)/cee-gym generate runs/demo-generation --prompt "Once upon a time" --max-new-tokens 120 --coloured

test: .venv/installed
	$(BIN)/python -m pytest -m "not slow" --doctest-modules cee_gym tests

test-all: .venv/installed
	$(BIN)/python -m pytest --doctest-modules cee_gym tests

# The lowest versions that setup.py allows, and the newest, each in an environment of its own.
test-lowest test-newest: test-%:
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --upgrade pip uv
	.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python --resolution $(RESOLUTION_$*) --editable ".[contrib,tune,serve,export,generation,report,dev]"
	.venv-$*/bin/python -m pytest -m "not slow" --ignore tests/test_documentation.py tests

RESOLUTION_lowest := lowest-direct
RESOLUTION_newest := highest

# Without a network; a warning or a dead link stops it.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

# Runs them, and keeps what they print and draw.
notebooks: .venv/installed
	$(BIN)/python notebooks/execute.py

# Kills commands at random moments: nothing may be lost. Takes long; KILLS, CRASHES and PAIRS say how much.
KILLS ?= 300
CRASHES ?= 200
PAIRS ?= 40
chaos: .venv/installed
	$(BIN)/python -m benchmarks.chaos --kills $(KILLS) --crashes $(CRASHES) --pairs $(PAIRS)

# The server under load while a worker is killed. Takes MINUTES and some more.
MINUTES ?= 10
load: .venv/installed
	$(BIN)/python -m benchmarks.server_load --minutes $(MINUTES) --clients 64 --workers 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy cee_gym

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[contrib,tune,serve,export,generation,report,docs,dev]"
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest build dist *.egg-info runs site
