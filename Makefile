# last-shards. `make help` lists the targets; each one sets up what it needs first.

PYTHON ?= python3
CONFIG ?= configs/demo.yaml
OUT    ?= out/$(basename $(notdir $(CONFIG)))
DATA   ?= data/synthetic
SHARDS ?= out/demo
RECIPE ?= configs/sft_demo.yaml
RUN    ?= runs/sft
SET    ?=

VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup data teachers verify inspect test test-slow lint bench clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "  CONFIG=$(CONFIG)  OUT=$(OUT)  DATA=$(DATA)  SET=\"key=value ...\""
	@echo "  SHARDS=$(SHARDS)  RECIPE=$(RECIPE)  RUN=$(RUN)"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY) ## make .venv with the pinned dependencies

data: $(READY) ## generate the synthetic NAVSIM-format dataset in DATA
	$(PY) -m jobs.data out=$(DATA) $(SET)

teachers: $(READY) ## run the teachers: logs in, committed shards in OUT (again = resume)
	$(PY) -m jobs.teachers $(CONFIG) out=$(OUT) $(SET)

verify: $(READY) ## re-read and check every byte of the dataset in OUT
	$(PY) -m jobs.verify out=$(OUT) $(SET)

inspect: $(READY) ## print what is in OUT and write a page of pictures
	$(PY) -m jobs.inspect out=$(OUT) $(SET)

sft: $(READY) ## train a student on the shards in SHARDS, stage 1 then stage 2, into RUN (again = resume)
	$(PY) -m jobs.sft $(RECIPE) data=$(SHARDS) out=$(RUN) $(SET)

experiments: $(READY) ## the controls of `make sft`, several seeds, as one table
	$(PY) -m jobs.experiments $(RECIPE) data=$(SHARDS) out=$(RUN)-experiments $(SET)

test: $(READY) ## run the test suite
	$(PY) -m pytest -q

test-slow: $(READY) ## run the tests that take minutes (full-size networks)
	$(PY) -m pytest -q -m slow

lint: $(READY) ## ruff and mypy --strict
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(READY) ## measure job, decode, writer and memory against their ceilings
	$(PY) -m benchmarks $(SET)

clean: ## remove caches (not .venv, data or out)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info build
	find . -name __pycache__ -not -path './$(VENV)/*' -exec rm -rf {} +
