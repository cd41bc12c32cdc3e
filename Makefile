# last-shards. `make help` lists the targets; each one sets up what it needs first.

PYTHON ?= python3
CONFIG ?= configs/demo.yaml
OUT    ?= out/$(basename $(notdir $(CONFIG)))
DATA   ?= data/synthetic
POLICY ?= runs/sft/stage_2.pt
UNITS  ?= out/questions/evaluation.jsonl
SET    ?=

VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
WORLD  := out/world

.DEFAULT_GOAL := help
.PHONY: help setup data plan teachers probe verify inspect signal pretrain sft experiments grpo evaluate ask fidelity test test-slow test-machines test-trainers lint docs bench bench-gpu chaos clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo
	@echo "  All from data to fidelity, bench, bench-gpu and chaos take SET=\"key=value ...\"; some have words of their own:"
	@echo "    CONFIG  plan, teachers, probe: $(CONFIG); sft, experiments: configs/sft_demo.yaml; grpo: configs/grpo_demo.yaml"
	@echo "    OUT     plan, teachers, probe, verify, inspect, signal, fidelity: $(OUT); sft, experiments, grpo: runs/NAME; evaluate: runs/evaluation; ask: runs/asked"
	@echo "    DATA    data: $(DATA); sft, experiments, grpo, evaluate, ask: $(WORLD)"
	@echo "    POLICY  grpo, evaluate, ask: $(POLICY); UNITS  ask: $(UNITS)"
	@echo "  plan, teachers and probe read the logs that CONFIG names: SET=\"source.root=DIR\" names others."
	@echo "  What a job's keys are: $(PY) -m jobs.NAME --help"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY) ## make .venv with the pinned dependencies

data: $(READY) ## generate the synthetic NAVSIM-format dataset in DATA
	$(PY) -m jobs.data "out=$(DATA)" $(SET)

plan: $(READY) ## what `make teachers` would find, write and take, and what forbids it; nothing is made
	$(PY) -m jobs.plan "$(CONFIG)" "out=$(OUT)" $(SET)

teachers: $(READY) ## run the teachers: logs in, committed shards in OUT (again = resume)
	$(PY) -m jobs.teachers "$(CONFIG)" "out=$(OUT)" $(SET)

probe: $(READY) ## find, on this device, the batch size of each teacher whose config says batch_size: auto
	$(PY) -m jobs.probe "$(CONFIG)" "out=$(OUT)" $(SET)

verify: $(READY) ## re-read and check every byte of the dataset in OUT
	$(PY) -m jobs.verify "out=$(OUT)" $(SET)

inspect: $(READY) ## print what is in OUT and write a page of pictures
	$(PY) -m jobs.inspect "out=$(OUT)" $(SET)

signal: $(READY) ## probe the columns of OUT: do they know more of a scene than ego status does?
	$(PY) -m jobs.signal "data=$(OUT)" $(SET)

pretrain: OUT = runs/pretrain
pretrain: $(READY) ## train the small networks that ship with the project, into OUT; what they know of other drives
	$(PY) -m jobs.pretrain "out=$(OUT)" $(SET)

# the trainer's targets learn from DATA; the world that they take by default is made when it is not there
sft experiments: CONFIG = configs/sft_demo.yaml
grpo: CONFIG = configs/grpo_demo.yaml
sft experiments grpo evaluate ask: DATA = $(WORLD)
sft: OUT = runs/sft
experiments: OUT = runs/experiments
grpo: OUT = runs/grpo
evaluate: OUT = runs/evaluation
ask: OUT = runs/asked
made = @test -e "$(DATA)/index.parquet" || test "$(DATA)" != $(WORLD) || $(PY) -m jobs.teachers configs/world.yaml "out=$(WORLD)"

sft: $(READY) ## train a student on the shards in DATA, stage 1 then stage 2, into OUT (again = resume)
	$(made)
	$(PY) -m jobs.sft "$(CONFIG)" "data=$(DATA)" "out=$(OUT)" $(SET)

experiments: $(READY) ## the controls of `make sft`, several seeds, as one table
	$(made)
	$(PY) -m jobs.experiments "$(CONFIG)" "data=$(DATA)" "out=$(OUT)" $(SET)

grpo: $(READY) ## refine POLICY by NAVSIM's score, into OUT (again = resume)
	$(made)
	$(PY) -m jobs.grpo "$(CONFIG)" "policy=$(POLICY)" "data=$(DATA)" "out=$(OUT)" $(SET)

evaluate: $(READY) ## score POLICY beside baselines on held-out logs; tables and a page of the worst scenes in OUT
	$(made)
	$(PY) -m jobs.evaluate "policy=$(POLICY)" "data=$(DATA)" "out=$(OUT)" $(SET)

ask: $(READY) ## ask POLICY the questions in UNITS under both masks, without latents, without pictures; tables and a page in OUT
	$(made)
	$(PY) -m jobs.reason "policy=$(POLICY)" "units=$(UNITS)" "data=$(DATA)" "out=$(OUT)" $(SET)

fidelity: $(READY) ## what each way to store the targets of OUT costs and loses
	$(PY) -m jobs.fidelity "data=$(OUT)" $(SET)

# two processes, whole files each; one thread each, so that they do not wait for each other's
test: $(READY) ## run the test suite
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY) ## run the tests that take minutes (full-size networks)
	$(PY) -m pytest -q -m slow

# Kernels are chosen by the processor, by shapes and by the number of threads. So what holds floats to a value, or to each
# other, is run with the kernels of other processors too (MKL heeds its variable on an Intel only).
numbers := OMP_WAIT_POLICY=passive $(PY) -m pytest -q tests/scoring tests/teachers tests/trainer tests/navsim_agent tests/benchmarks
plain   := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
avx2    := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
test-machines: $(READY) ## run the tests of numbers with the kernels of three kinds of processor, each with one and two threads
	OMP_NUM_THREADS=1 $(plain) $(numbers)
	OMP_NUM_THREADS=2 $(plain) $(numbers)
	OMP_NUM_THREADS=1 $(avx2) $(numbers)
	OMP_NUM_THREADS=2 $(avx2) $(numbers)
	OMP_NUM_THREADS=1 $(numbers)
	OMP_NUM_THREADS=2 $(numbers)

test-trainers: $(READY) ## run the pages' blocks with the real ms-swift, TRL, LLaMA-Factory, verl, Lightning (venvs in .venv-trainers)
	$(PY) -m pytest -q -s -m trainers tests/trainers

lint: $(READY) ## ruff and mypy --strict
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(READY) ## build the site of the pages into out/site; a dead link ends it
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

bench: $(READY) ## measure job, writer, memory, reading, scoring, parity, scale, start against their ceilings
	$(PY) -m benchmarks $(SET)

bench-gpu: $(READY) ## a GPU's first ten minutes: parity, gpu tests, FLOP/s, hours for navtrain (SET="device=cpu": the script alone)
	$(PY) -m benchmarks.gpu $(SET)

chaos: $(READY) ## kill, freeze, starve and corrupt real runs, and report what was lost (CHAOS=50: longer)
	$(PY) -m tests.chaos $(SET)

clean: ## remove caches (not .venv, data, out or runs)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info build
	find . -name __pycache__ -not -path './$(VENV)/*' -exec rm -rf {} +
