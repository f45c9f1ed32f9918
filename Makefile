# One folder, .venv, holds everything that is installed; `make clean` takes it away again.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint docs audit install clean

# The main job: SmolLM2-135M pruned to 80 % of its decoder's parameters, measured, reported and exported.
run: install
	$(BIN)/secateur run --model smollm2-135m --budget parameters=0.8

test: install
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs/ and the reference of the public API, as HTML in build/docs.
docs: install
	$(BIN)/python docs/render.py build/docs

# Known faults in our own code and in what is installed; the second asks PyPI's database of advisories.
audit: install
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[audit]'
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive space evaluator predictor search
	$(BIN)/pip-audit --skip-editable

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[accuracy,distributed,docs,filters,hub,llamacpp,notebooks,postgres,service,test]'
	touch $@

clean:
	rm -rf .venv
