# make demo   sets up .venv, trains a few minutes on rendered scenes, evaluates, restores a real clip
# make test   the same set-up, then the tests
# make check  format, lint and types (no tests)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints/tested.txt

.PHONY: demo test check fast-test clean

# Two stamps: the demo needs neither TensorFlow nor the test tools.
$(VENV)/.core: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[dev]"
	touch $@

demo: $(VENV)/.core
	$(BIN)/python -m benchmarks.demo

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

fast-test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

clean:
	rm -rf $(VENV) demo_out
