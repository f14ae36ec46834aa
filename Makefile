# PYTHON makes the environment, VENV is where it lies, ARGS goes to the command behind a target, STEPS picks steps of `make test`
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
PIP = $(PY) -m pip install -qq --disable-pip-version-check
META = settings.ini setup.py pyproject.toml

ifneq ($(wildcard ../shared/data),)
BALMIX_DATA ?= $(CURDIR)/../shared/data
export BALMIX_DATA
endif

.PHONY: help demo test docs shots bench export readme clean

help:
	@echo "make demo    install into $(VENV) and run balmix-demo (options: ARGS='--epochs 3')"
	@echo "make test    every check, pytest last (some only: STEPS='style tests')"
	@echo "make bench   benchmarks (options: ARGS='-k sampler')"
	@echo "make docs    build the site into _docs/"
	@echo "make shots   open every page of the site in Chromium: checks, and pictures of it into _shots/"
	@echo "make export  notebooks to modules, and clean the notebooks"
	@echo "make readme  README.md from nbs/index.ipynb"
	@echo "make clean   remove what builds and runs leave behind (not $(VENV))"

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,11))' || \
	    { echo "make needs Python 3.11 or newer, $(PYTHON) is `$(PYTHON) --version 2>&1`; try: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(META) | $(PY)
	@echo "Installing the package into $(VENV) (a first time fetches several GB)"
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(META) | $(PY)
	@echo "Installing the package and its dev extra into $(VENV) (a first time fetches several GB)"
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	$(VENV)/bin/balmix-demo $(ARGS)

test: $(VENV)/.installed-dev
	@$(PY) .ci/check.py $(STEPS)

bench: $(VENV)/.installed-dev
	MPLBACKEND=Agg $(PY) -m pytest tests/bench --benchmark-enable --benchmark-only --benchmark-columns=min,median,stddev,rounds $(ARGS)

docs: $(VENV)/.installed-dev
	@$(PY) .ci/docs.py $(ARGS)

shots: docs
	SHOTS=$(CURDIR)/_shots $(PY) -m pytest -q -n auto -p no:cacheprovider -c /dev/null --rootdir . .ci/test_site.py $(ARGS)

export: $(VENV)/.installed-dev
	$(VENV)/bin/nbdev-export
	$(VENV)/bin/nbdev-clean

readme: $(VENV)/.installed-dev
	@$(PY) .ci/readme.py

clean:
	rm -rf _proc _docs _shots build dist *.egg-info .pytest_cache .hypothesis .benchmarks balmix_demo models nbs/models
	find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
