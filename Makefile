# make demo   set up and classify the recordings in examples/
# make bench  measure speed beside msclap and LAION CLAP (minutes; leave the machine alone)
# make test   set up and run every test
# make docs   build the pages of docs/ as a site, in site/
# make web    build the page of web/ into build/web (needs npm); docs/web.md
# make fuzz   decode mutated sound files, FILES=10000 SEED=1; ffmpeg, sox, lame, flac, oggenc and opusenc add formats
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
# One torch thread a worker: more only fight over the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: setup setup-test demo web docs bench check format test test-fast test-slow test-lowest test-python test-wheel fuzz clean

setup: $(VENV)/.installed
setup-test: $(VENV)/.installed-test

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml requirements-parity.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[test]'
	$(BIN)/python -m pip install --no-deps -r requirements-parity.txt
	touch $@ $(VENV)/.installed

demo: setup
	$(BIN)/clap-hf classify examples

# The page without a server: the embedded checkpoint for browsers, then the bundle.
MODEL ?= embedded
web: setup
	$(BIN)/python -m pip install -e '.[onnx]'
	$(BIN)/clap-hf export $(MODEL) build/web-model --web
	cd web && npm ci --ignore-scripts
	node web/build.mjs build/web-model build/web

bench: setup-test
	$(BIN)/python benchmarks/speed.py

check: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every test; test-fast and test-slow are its two halves.
test: setup-test
	$(PYTEST) -m "slow or not slow"

test-fast: setup-test
	$(PYTEST)

test-slow: setup-test
	$(PYTEST) -m slow

# The fast tests beside the lowest versions that pyproject.toml allows, and the wheel outside of the repository. torchao,
# which is optional and is of the newest torch, goes: transformers imports it where it is, and fails beside torch 2.6.
# `make test-lowest PYTHON=python3.12`: another Python. `make test-python PYTHON=python3.13`: the newest versions there.
LOWEST ?= .venv-lowest
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m tools.lowest > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install -c $(LOWEST)/lowest.txt -e '.[test]'
	$(LOWEST)/bin/python -m pip install --no-deps -r requirements-parity.txt
	$(LOWEST)/bin/python -m pip uninstall -y torchao
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile

OTHER ?= .venv-other
test-python:
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install -e '.[test]'
	$(OTHER)/bin/python -m pip install --no-deps -r requirements-parity.txt
	OMP_NUM_THREADS=1 $(OTHER)/bin/python -m pytest -n $(WORKERS) --dist loadfile

WHEEL ?= .venv-wheel
test-wheel:
	rm -rf $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip wheel . --no-deps -w $(WHEEL)/dist
	$(WHEEL)/bin/python -m pip install $(WHEEL)/dist/*.whl
	cd $(WHEEL) && bin/clap-hf classify ../examples && bin/clap-hf --version

FILES ?= 10000
SEED ?= 1
fuzz: setup-test
	$(BIN)/python tools/fuzz_audio.py --files $(FILES) --seed $(SEED)

docs: setup-test
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(LOWEST) $(OTHER) $(WHEEL) web/node_modules .pytest_cache .ruff_cache .mypy_cache dist build site
