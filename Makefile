# `make quickstart` runs the product, `make test` proves it. Both set up .venv first, once.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL := models/smollm2-135m-instruct

# uv reads neither pip's find-links nor pip's certificate setting: hand them over where they are set. Without a place of
# its own to find torch in, uv takes torch's build for CPUs; the one on PyPI is for CUDA, and does not load without it.
UV := $(if $(PIP_FIND_LINKS),UV_FIND_LINKS=$(PIP_FIND_LINKS),UV_TORCH_BACKEND=cpu) $(if $(PIP_CERT),SSL_CERT_FILE=$(PIP_CERT)) $(BIN)/uv
LOCKED := requirements/cpu.txt requirements/dev.txt requirements/quickstart.txt

# A file's tests stay in one process, which shares what they make.
ON_TWO_CORES := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup quickstart fast test e2e test-ui chaos test-tasks test-trackers test-cluster test-compose lint format lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: $(LOCKED) pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==0.13.9
	@# --no-deps: the lists are complete, and a resolver would add what must stay out (requirements/overrides.txt).
	@# Compiled once here, or every stage process compiles vllm anew where PYTHONDONTWRITEBYTECODE is set.
	env -u PYTHONDONTWRITEBYTECODE $(UV) pip install --python $(BIN)/python --quiet --compile-bytecode --no-deps \
	    $(addprefix -r ,$(LOCKED))
	$(UV) pip install --python $(BIN)/python --quiet --no-deps --editable .
	touch $@

setup: $(VENV)/.installed ## make .venv and install the pinned dependencies

quickstart: setup ## two rounds on a real 135M model; prints the report's path
	$(BIN)/pco quickstart --model $(MODEL)

fast: setup ## the tests that start no process and load no model: under a minute
	OMP_NUM_THREADS=1 $(BIN)/pytest $(ON_TWO_CORES) -m "not process and not engine" --hypothesis-profile=fast

test: setup lint ## lint, types, import rules and the default tests, on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest $(ON_TWO_CORES)

e2e: setup ## the long end-to-end runs with the real engines; TESTS names some of them
	$(BIN)/pytest -m e2e --durations=25 $(TESTS)

test-ui: setup $(VENV)/ui ## the forms, Retry and a schedule in Prefect's UI; needs chromium
	PYTHONPATH=$(abspath $(VENV))/ui $(BIN)/pytest -m ui -rs

chaos: setup ## kill a run with SIGKILL at 50 and more moments; it must end as one left alone
	$(BIN)/pytest -m chaos -s

# Not in .venv: transformers imports scikit-learn wherever it finds it, and every stage process would start later.
$(VENV)/tasks $(VENV)/trackers $(VENV)/ui $(VENV)/ray: $(VENV)/%: requirements/%.txt | $(VENV)/.installed
	$(UV) pip install --python $(BIN)/python --quiet --no-deps --target $@ -r $<
	touch $@

test-tasks: setup $(VENV)/tasks ## tasks of lm-eval in an evaluation
	PYTHONPATH=$(abspath $(VENV))/tasks $(BIN)/pytest -m tasks

test-trackers: setup $(VENV)/trackers ## MLflow's server, TensorBoard, Weights & Biases offline, trackio
	PYTHONPATH=$(abspath $(VENV))/trackers $(BIN)/pytest -m trackers

test-cluster: setup $(VENV)/ray ## workers on a Ray cluster of one and two nodes
	PYTHONPATH=$(abspath $(VENV))/ray $(BIN)/pytest -m cluster

test-compose: setup ## docker compose on a real engine: a run that outlives kills and restarts
	$(BIN)/pytest -m compose -s -rs

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

COMPILE = pip compile pyproject.toml --python-version 3.11 --no-annotate --quiet --custom-compile-command "make lock"
CPU_COMPILE = $(UV) $(COMPILE) --override requirements/overrides.txt
lock: setup ## resolve the pinned lists anew, keeping what is pinned where possible
	$(CPU_COMPILE) --extra cpu --extra flow -o requirements/cpu.txt
	@# For GPUs neither the overrides nor a folder's CPU build of torch.
	$(filter-out UV_FIND_LINKS=%,$(UV)) $(COMPILE) --extra gpu --extra flow -o requirements/gpu.txt
	@# For an environment of flows alone, beside one of stages.
	$(CPU_COMPILE) --extra flow -c requirements/cpu.txt -o requirements/flow.txt
	$(CPU_COMPILE) --extra dev -c requirements/cpu.txt -o requirements/dev.txt
	for extra in ray tasks ui; do \
	    $(CPU_COMPILE) --extra $$extra -c requirements/cpu.txt -c requirements/dev.txt -o requirements/$$extra.txt || exit; done
	$(CPU_COMPILE) requirements/trackers.in --extra trackers --override requirements/overrides-trackers.txt \
	    -c requirements/cpu.txt -c requirements/dev.txt -o requirements/trackers.txt
	sed -i 's/+cpu$$//' requirements/{cpu,dev,ray,tasks,trackers,ui}.txt
	grep -vxFf <(grep -v '^#' requirements/cpu.txt) requirements/dev.txt > requirements/dev.tmp && mv requirements/dev.tmp requirements/dev.txt
	for extra in ray tasks trackers ui; do \
	    grep -vxFf <(cat requirements/cpu.txt requirements/dev.txt | grep -v '^#') requirements/$$extra.txt > requirements/$$extra.tmp \
	    && mv requirements/$$extra.tmp requirements/$$extra.txt || exit; done

clean: ## remove .venv, caches and the quickstart's model (runs stay)
	rm -rf $(VENV) models .mypy_cache .pytest_cache .ruff_cache *.egg-info
