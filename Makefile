# Every target works in a fresh clone and without activating anything.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BENCH  := .venv-bench
QUARTO ?= quarto

.PHONY: train test quick lab docs quarto bench clean

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

train: $(VENV)/.installed      ## train, evaluate and report on the bundled digits
	$(BIN)/imgcls-train --config digits

test: $(VENV)/.installed       ## everything that must hold before a change lands
	$(BIN)/python tests/check.py

quick: $(VENV)/.installed      ## two minutes of it: export, ruff, structure, the notebooks that changed
	$(BIN)/python tests/check.py quick

lab: $(VENV)/.installed        ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=nbs

docs: quarto $(VENV)/.installed        ## the documentation site, in _docs
	PATH="$(CURDIR)/$(BIN):$$(dirname "$$(command -v '$(QUARTO)')"):$$PATH" $(BIN)/nbdev-docs

quarto:                        ## is it there? nbdev would try to install it, as root
	@command -v '$(QUARTO)' >/dev/null || { echo "make docs needs Quarto, and there is no '$(QUARTO)' here: install \
	version 1.7.34 (quarto.org has packages for Linux, macOS and Windows). If it lies outside the PATH, say where: \
	make docs QUARTO=/opt/quarto/bin/quarto" >&2; exit 2; }

$(BENCH)/.installed: pyproject.toml
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]'
	touch $@

bench: $(BENCH)/.installed     ## run the measured comparisons again, one after another, beside other libraries
	PATH="$(CURDIR)/$(BENCH)/bin:$$PATH" $(BENCH)/bin/nbdev-test nbs/benchmarks --n-workers 1 --cell-timeout 1200 --save
	PATH="$(CURDIR)/$(BENCH)/bin:$$PATH" $(BENCH)/bin/nbdev-clean

clean:                         ## remove what a build left behind (never data or runs)
	rm -rf _proc _docs build *.egg-info .pytest_cache .ruff_cache
