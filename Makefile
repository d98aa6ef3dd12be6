# make venv | test | demo | lint | wheel | clean. Nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the machine has decides which torch is asked for; override with DEVICE=cpu or DEVICE=cuda.
DEVICE ?= $(shell if [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null 2>&1; \
	then echo cuda; else echo cpu; fi)
STAMP := $(VENV)/.installed-$(DEVICE)
SOURCES := setup.py pyproject.toml CMakeLists.txt requirements/$(DEVICE).txt \
	$(shell find csrc -type f)

.PHONY: venv test demo lint wheel clean

venv: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(STAMP): $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements/$(DEVICE).txt
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

test: venv
	$(BIN)/python -m pytest --durations=10 tests

demo: venv
	$(BIN)/python -m audiogen_fast.demo --output demo_output

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

wheel: venv
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist demo_output *.egg-info audiogen_fast/_native*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
