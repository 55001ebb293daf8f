PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-all test-gpu lint types bench docs clean

demo: $(VENV)/.installed
	$(BIN)/python -m scripts.demo demo

# as many tests side by side as there are cores; neighbours stay together, since they share what they set up
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not gpu and not network"

# one after the other: they share the GPU. cuBLAS reads the variable when it starts.
test-gpu: $(VENV)/.installed-dev
	CUBLAS_WORKSPACE_CONFIG=:4096:8 $(BIN)/python -m pytest -m gpu -n 0

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.votes
	$(BIN)/python -m benchmarks.updates
	$(BIN)/python -m benchmarks.envs

MODULES := certify certify.attacks certify.data certify.models certify.poisoning certify.training certify.ablation \
	certify.attacks.wasserstein certify.confidence certify.draws certify.evaluation certify.images certify.metrics \
	certify.patch certify.results certify.sequential certify.spec certify.testing certify.topk certify.topk_l2 \
	certify.transport certify.variable_lambda rl rl.evaluation rl.losses envs envs.multi_goal envs.parallel

docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	@mkdir -p build
	$(BIN)/python -m pdoc --docformat google --output-directory build/reference $(MODULES) 2> build/reference.log || \
		{ cat build/reference.log; exit 1; }
	@echo "wrote build/reference/index.html"

clean:
	rm -rf $(VENV) build *.egg-info demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and alone: it is by far the largest, and the pinned version keeps the resolver from looking further
$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[rl,commands]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@
