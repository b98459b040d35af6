# Everything starts from a bare checkout: each target makes what it needs, and does nothing twice.
# PYTHON=... names one; otherwise the first of these that fits, those that the tests run with most often first. It is
# looked for when it is needed, once.
PYTHON ?= $(eval PYTHON := $(FIND_PYTHON))$(PYTHON)
FIND_PYTHON = $(shell for p in python3.11 python3.12 python3.13 python3.10 python3 python; do \
	$$p -c '$(FITS)' >/dev/null 2>&1 && echo $$p && break; done)
NO_PYTHON = error: no Python 3.10 to 3.13 with venv found: install one (Debian, Ubuntu: apt-get install python3-venv; \
	macOS: brew install python@3.12; all: https://www.python.org/downloads), or name it: make PYTHON=/path/to/python
FITS = import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
VENV ?= .venv
REQUIREMENTS ?= requirements.txt
TEST_REQUIREMENTS ?= $(REQUIREMENTS:.txt=-test.txt)
GPU_PYTHON ?= 3.12
WORKERS ?= 2
FAULTS ?= 150
SEED ?= 0
ZOO ?= ccd_r18-w32_fashion
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEST_READY := $(VENV)/.test-ready
DOCS_READY := $(VENV)/.docs-ready

.PHONY: help env env-test demo demo-trees zoo verify-zoo test test-long torture configs lint docs smoke smoke-openmmlab matrix bench bench-attention gpu-wheels clean

help:
	@echo 'make demo            train and test a CCD detector on digits (a quarter of an hour on 2 cores)'
	@echo 'make demo-trees      the same on tree crowns in aerial photographs (seven minutes more)'
	@echo 'make zoo             train the small networks of zoo/ again, and write their files and cards (an hour on one core)'
	@echo 'make verify-zoo      train them again, and compare the bits (ZOO=name: one of them)'
	@echo 'make test            fast and slow tests (five minutes on 2 cores)'
	@echo 'make test-long       those that take minutes: several processes, faults, whole trainings'
	@echo 'make torture         kill trainings and damage their checkpoints 150 times (FAULTS=n, SEED=n)'
	@echo 'make configs         write configs/ and its metafile.yml by the table in mmccd/cli/config_table.py'
	@echo 'make lint            style, format, common mistakes and types'
	@echo 'make docs            the documentation, into docs/_build/html'
	@echo 'make smoke           the shortest way through everything'
	@echo 'make smoke-openmmlab the same with the original OpenMMLab packages, in .venv-openmmlab'
	@echo 'make matrix          make smoke in each Python from 3.10 to 3.13, both stacks, oldest and newest PyTorch (an hour)'
	@echo 'make bench           time the operator and the backbones on this CPU (ten minutes on 2 cores)'
	@echo 'make bench-attention  train what benchmarks/attention/plan.yml declares, and report (many hours on 2 cores; resumes; CSV=rows)'
	@echo 'make gpu-wheels      what a GPU machine without internet lacks, for benchmarks/gpu/run.py (GPU_PYTHON=3.12)'
	@echo 'make env             the virtual environment $(VENV) alone: what runs (CPU=1: PyTorch without CUDA, a third)'
	@echo 'make env-test        the same with what tests and make lint need'
	@echo 'make clean           remove the environments, the demo data and what tests leave (not work_dirs)'

env: $(READY)

env-test: $(TEST_READY)

# CPU=1 takes PyTorch without CUDA, from PyTorch's own index. The other requirements then find torch installed.
# opencv-python wants libGL, which a bare machine lacks; the headless build is the same without windows.
$(READY): $(REQUIREMENTS) pyproject.toml
	@test -n '$(PYTHON)' || { echo '$(NO_PYTHON)' >&2; exit 1; }
	@$(PYTHON) -c '$(FITS)' || { echo 'error: $(PYTHON) is not Python 3.10 to 3.13 with venv and ensurepip' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
ifdef CPU
	$(BIN)/python -m pip install --disable-pip-version-check -q --index-url https://download.pytorch.org/whl/cpu \
		$$(grep -E '^torch(vision)?==' $(REQUIREMENTS))
endif
	$(BIN)/python -m pip install --disable-pip-version-check -q -r $(REQUIREMENTS)
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -e .
	@$(BIN)/python -c 'import cv2' 2>/dev/null || $(BIN)/python -m pip install --disable-pip-version-check -q \
		--force-reinstall --no-deps "opencv-python-headless==$$($(BIN)/python -c \
		'from importlib.metadata import version; print(version("opencv-python-headless"))')"
	$(BIN)/python -c 'import mmccd; print("mmccd", mmccd.__version__, "is ready in $(VENV)")'
	@touch $(READY)

$(TEST_READY): $(READY) $(TEST_REQUIREMENTS)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r $(TEST_REQUIREMENTS)
	@touch $(TEST_READY)

demo: env
	$(BIN)/python tools/demo/demo.py

demo-trees: env
	$(BIN)/python tools/demo/demo_trees.py

zoo verify-zoo: env
	$(BIN)/python tools/dataset_converters/make_fashion.py
	$(BIN)/python tools/model_converters/make_zoo.py $(if $(filter verify-zoo,$@),--verify $(ZOO))

# Two tests at a time, each on one thread.
test: env-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not long"

test-long: env-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m long

torture: env-test
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture/torture.py --faults $(FAULTS) --seed $(SEED)

configs: env
	$(BIN)/python -m mmccd.cli.config_table

lint: env-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# -E: with what is left of an earlier build, changed titles would stay in other pages.
docs: env $(DOCS_READY)
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs docs/_build/html
	@echo 'docs/_build/html/index.html'

$(DOCS_READY): $(READY) docs/requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -r docs/requirements.txt
	@touch $(DOCS_READY)

smoke: env-test
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m smoke

smoke-openmmlab:
	$(MAKE) smoke VENV=.venv-openmmlab REQUIREMENTS=requirements-openmmlab.txt

# One environment at a time, in .venv-matrix, removed after it: 6 GB each. MATRIX='3.10 newest' runs these rows alone.
matrix:
	$(PYTHON) tests/matrix/matrix.py $(MATRIX)

bench: env
	$(BIN)/python benchmarks/bench_op.py
	$(BIN)/python benchmarks/bench_op.py --allocator default --providers reference torch cpu
	$(BIN)/python benchmarks/bench_op.py --layout channels_last
	$(BIN)/python benchmarks/bench_backbone.py
	$(BIN)/python benchmarks/plot.py benchmarks/results/*.csv

# The data of the plan first; what is made stays.
bench-attention: env
	for data in fashion solar trees; do \
		test -d data/$$data || $(BIN)/python tools/dataset_converters/make_$$data.py || exit 1; done
	$(BIN)/python tools/analysis_tools/bench_attention.py run --jobs $(WORKERS) $(if $(CSV),--csv $(CSV))
	$(BIN)/python tools/analysis_tools/bench_attention.py report $(if $(CSV),--csv $(CSV))

# What a machine with PyTorch, Triton and numba lacks, in the versions of requirements.txt, for its Python. The first are
# pure Python, and some are published as source alone; the last two are compiled.
gpu-wheels: env
	rm -rf build/gpu-wheels
	$(BIN)/python -m pip wheel --disable-pip-version-check -q --no-deps -c requirements.txt -w build/gpu-wheels \
		addict imagecorruptions-imaug imaug importlib_metadata mat4py model-index modelindex onedl-mmcv \
		onedl-mmdetection onedl-mmengine onedl-mmpretrain ordered-set platformdirs termcolor terminaltables yapf
	$(BIN)/python -m pip download --disable-pip-version-check -q --no-deps -c requirements.txt -d build/gpu-wheels \
		--only-binary=:all: --python-version $(GPU_PYTHON) --implementation cp --platform manylinux_2_28_x86_64 \
		--platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		pycocotools shapely
	@test "$$(du -sm build/gpu-wheels | cut -f1)" -le 64 || { echo 'build/gpu-wheels is above 64 MiB'; exit 1; }
	@du -sh build/gpu-wheels

clean:
	rm -rf .venv .venv-openmmlab .venv-matrix data/digits data/digits.partial data/trees build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
