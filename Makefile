# make demo | test | check | torture | docs | bench | race: each sets up what it needs; PIP_FLAGS passes through to pip.
PYTHON ?= python3
PIP_FLAGS ?=
DATA ?=
BIN := .venv/bin
RUN := runs/digits
# The pins hold for what builds the package, too.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check torture docs bench race clean

.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_FLAGS) --editable .
	touch $@

.venv/test: .venv/core
	$(BIN)/pip install --quiet $(PIP_FLAGS) --editable '.[test,dev]'
	touch $@

# Both name torchvision, which nothing here uses and which has no build for the CPU alone.
.venv/bench: .venv/bench
	$(BIN)/python benchmarks/training.py --out docs/speed/training
	$(BIN)/python benchmarks/sampling.py --out docs/speed/sampling
	$(BIN)/python benchmarks/startup.py --out docs/speed/startup
	$(BIN)/python benchmarks/scaling.py --out docs/speed/scaling

race: .venv/bench
	$(BIN)/python benchmarks/race.py $(if $(DATA),--data $(DATA)) --tune
	$(BIN)/python benchmarks/race.py $(if $(DATA),--data $(DATA))

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache
