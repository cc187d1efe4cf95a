# make run    everything, once, on embedded data: train, export, optimize, verify, package, serve
# make test   lint, types, tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Without a GPU this release is the one that is tested; with one, any that the range admits.
TORCH := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo torch==2.13.0)

.PHONY: run test clean

run: $(VENV)/run.installed
	$(BIN)/fucina run mlp lenet5
	$(BIN)/fucina serve mlp lenet5 --check --no-access-log --port 0 --grpc-port 0

# Full data sets are tested where they lie: in FUCINA_DATA, or beside this folder.
test: $(VENV)/test.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	FUCINA_DATA="$${FUCINA_DATA-$(wildcard ../shared/data)}" OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

clean:
	rm -rf $(VENV) runs build *.egg-info

$(VENV)/run.installed: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV); the first time takes a few minutes"
	$(if $(TORCH),$(PIP) $(TORCH))
	$(PIP) --editable '.[all]'
	touch $@

$(VENV)/test.installed: $(VENV)/run.installed
	$(PIP) --editable '.[dev]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fucina: $(PYTHON) is older than 3.11; use make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
