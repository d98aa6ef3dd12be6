# make venv | test | demo | lint | corpus | corpus-large | wheel | sanitize | clean. Nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the machine has decides which torch is asked for; override with DEVICE=cpu or DEVICE=cuda.
DEVICE ?= $(shell if [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null 2>&1; \
	then echo cuda; else echo cpu; fi)
STAMP := $(VENV)/.installed-$(DEVICE)
SOURCES := setup.py pyproject.toml CMakeLists.txt requirements/$(DEVICE).txt \
	requirements/evaluation.txt \
	$(shell find csrc -type f)

.PHONY: venv test demo lint corpus corpus-large wheel sanitize clean

venv: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(STAMP): $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements/$(DEVICE).txt
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/evaluation.txt
	touch $@

# One process a core, as each test uses one thread; eight at most, for memory.
test: venv
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal --durations=10 tests

demo: venv
	$(BIN)/python -m audiogen_fast.demo --output demo_output

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Captioned sounds of Debian packages, to train and to judge with: docs/data.md.
CORPUS = $(BIN)/python -m audiogen_fast.training.corpus.build data/corpus \
	--packages-dir data/packages --download --others
corpus: venv
	$(CORPUS)

# The same, and more to train with.
corpus-large: venv
	$(CORPUS) --large

# The sdist, and the wheel made from it for this interpreter, with the lowest manylinux tag that its
# symbols allow: docs/wheels.md.
wheel: venv
	rm -rf build/wheel
	AUDIOGEN_FAST_NATIVE=require CMAKE_ARGS=-DAUDIOGEN_FAST_STATIC_CXX=ON \
		$(BIN)/python -m build --outdir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --strip \
		--wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist/

# The native module's tests with address and undefined behaviour sanitizers.
sanitize: venv
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DAUDIOGEN_FAST_SANITIZE=ON \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		-Dpybind11_DIR=$$($(BIN)/python -c "import pybind11; print(pybind11.get_cmake_dir())")
	$(BIN)/cmake --build build/sanitize
	AUDIOGEN_FAST_NATIVE_FILE=$$(ls $(CURDIR)/build/sanitize/_native*.so) \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
		$(BIN)/python -m pytest -q tests/test_native.py tests/ops/test_native_training.py \
		tests/generation/test_native_engine.py tests/checkpoints/test_packed.py

clean:
	rm -rf $(VENV) build dist demo_output *.egg-info audiogen_fast/_native*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
