# make demo        sets up .venv, restores real clips with the weights of the package, and scores one of them
# make train-demo  the same set-up, trains a few minutes on rendered scenes, scores the result, restores a real clip
# make test        the same set-up and the test tools, then the tests
# make test-all    the same with whole grids and storms: every network exported, twenty kills, thousands of frames
# make check       format, lint and types
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/tested.txt
DEMO := demo_out

.PHONY: demo train-demo test test-all fast-test check clean

# Two stamps, since the demo needs neither TensorFlow nor the test tools.
.venv/core: pyproject.toml constraints/tested.txt
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/dev: .venv/core
	$(PIP) -e ".[dev]"
	touch $@

demo: .venv/core
	mkdir -p $(DEMO)
	$(BIN)/jaxdeblur deblur demo/box.mp4 $(DEMO)/box.mp4 --compare --overwrite
	rm -rf $(DEMO)/reds
	$(BIN)/jaxdeblur deblur demo/reds/blur $(DEMO)/reds
	$(BIN)/jaxdeblur score $(DEMO)/reds demo/reds/sharp --blurred=demo/reds/blur --out=$(DEMO)/scores --overwrite
	@echo
	@echo "restored video        $(DEMO)/box.mp4"
	@echo "side by side          $(DEMO)/box-compare.mp4"
	@echo "frames with truth     $(DEMO)/scores/best.png, median.png, worst.png (blurred, restored, sharp)"

train-demo: .venv/core
	$(BIN)/python train.py --config=configs/mtu.py:demo --workdir=$(DEMO)/run
	$(BIN)/python evaluate.py --config=configs/mtu.py:demo --workdir=$(DEMO)/run --out=$(DEMO)/run_scores \
		--config.data.crop_px=192 --config.evaluation.frames=8 --config.data.batch_size=4
	$(BIN)/jaxdeblur deblur demo/dog_forest.mp4 $(DEMO)/dog_forest.mp4 --checkpoint=$(DEMO)/run --compare --overwrite
	@echo
	@echo "restored video        $(DEMO)/dog_forest.mp4"
	@echo "side by side          $(DEMO)/dog_forest-compare.mp4"
	@echo "comparison pictures   $(DEMO)/run_scores/best.png, median.png, worst.png (blurred, restored, sharp)"
	@echo "tables                $(DEMO)/run_scores/scores.csv, scores.json"

test: .venv/dev
	$(BIN)/python -m pytest -n 2

test-all: .venv/dev
	$(BIN)/python -m pytest -n 2 --all

fast-test: .venv/dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv $(DEMO)
