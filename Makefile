# Everything happens in .venv. `make demo` and `make test` need Python >= 3.10 and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One worker for each core, but few: each holds torch and its models. Files stay whole, for what their tests share.
# Their own work is in one process, unless they ask for more: all cores are busy.
TESTS := OMP_NUM_THREADS=1 LOKY_MAX_CPU_COUNT=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 \
	--dist loadfile --no-loadscope-reorder
# Threads that wait without spinning: without this, a busy machine makes small models a hundred times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test check organism taught clean

demo: $(READY)
	$(BIN)/seamscope demo --out runs/demo

test: $(READY)
	$(TESTS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p seamscope.hooks -p seamscope.activations -p seamscope.probes -p seamscope.experiments
	$(TESTS)

organism: $(READY)
	$(BIN)/python -m seamscope.experiments.organism.train

$(READY): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'seamscope needs Python >= 3.10')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

taught: $(READY)
	$(BIN)/python -m seamscope.experiments.organism.train_taught

clean:
	rm -rf $(VENV) build dist *.egg-info
