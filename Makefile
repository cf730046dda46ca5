# make demo   trains a small model on the built-in data set, evaluates it, writes pictures
# make test   passes the tests, on all cores
# make fuzz   tries thousands of odd annotation files, images, checkpoints, config values and model
#             inputs, and kills training runs, in about 20 minutes
# All set everything up first: Python >= 3.11 and make are all they need. With a C++ compiler the
# compiled operators are built too.

PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
SOURCES := $(shell find projects/instancezoo/layers/csrc -type f)

.PHONY: setup demo test fuzz lint clean

setup: $(READY)

$(READY): $(wildcard requirements/*) setup.py pyproject.toml $(SOURCES)
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found: install one, or make PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q "pip>=24" "setuptools==80.10.2" wheel
	$(BIN)/python -m pip install -q --no-build-isolation -r requirements/lock.txt
	$(BIN)/python requirements/install_detectron2.py
	$(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $(READY)

demo: $(READY)
	$(BIN)/python train_net.py --config-file configs/mask_rcnn/mask_rcnn_tiny.yaml OUTPUT_DIR output/demo

# Neighbours stay in one process and share their fixtures; an idle process takes tests from the
# longest queue. Not in pyproject.toml: a single test by hand is quicker without other processes.
test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 16 --dist worksteal

fuzz: $(READY)
	FUZZ_CASES=3000 $(BIN)/python -m pytest -n auto --maxprocesses 16 tests/fuzz/test_json.py
	FUZZ_CASES=700 $(BIN)/python -m pytest -n auto --maxprocesses 16 tests/fuzz/test_fuzz_pictures.py
	FUZZ_CASES=1000 $(BIN)/python -m pytest -n auto --maxprocesses 16 tests/fuzz/test_checkpoints.py
	FUZZ_CASES=2000 $(BIN)/python -m pytest -n auto --maxprocesses 16 tests/fuzz/test_config_values.py
	FUZZ_CASES=400 $(BIN)/python -m pytest -n auto --maxprocesses 16 tests/fuzz/test_model_edges.py
	FUZZ_CASES=60 $(BIN)/python -m pytest -n auto --maxprocesses 3 tests/fuzz/test_kills.py

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy -p instancezoo

clean:
	rm -rf .venv build output projects/*.egg-info projects/instancezoo/_C*.so
