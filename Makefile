# make demo | test | test-all | test-app | explore | check | torture | torture-page | pages | docs | figures | bench |
# gpu-check | race | speedrun: each sets up what it needs; PIP_FLAGS passes through to pip.
PYTHON ?= python3
PIP_FLAGS ?=
DATA ?=
BIN := .venv/bin
RUN := runs/digits
# The pins hold for what builds the package, too.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-rest test-all test-app explore check torture torture-page pages docs figures bench gpu-check race speedrun clean

.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_FLAGS) --editable .
	touch $@

.venv/test: .venv/core
	$(BIN)/pip install --quiet $(PIP_FLAGS) --editable '.[test,dev]'
	touch $@

.venv/browser: .venv/test
	$(BIN)/pip install --quiet $(PIP_FLAGS) --editable '.[browser]'
	command -v chromium >/dev/null || apt-get install --yes --quiet chromium || (apt-get update && apt-get install --yes --quiet chromium)
	touch $@

.venv/docs: .venv/core
	$(BIN)/pip install --quiet $(PIP_FLAGS) --editable '.[docs]'
	touch $@

# Both name torchvision, which nothing here uses and which has no build for the CPU alone.
.venv/bench: .venv/core
	$(BIN)/pip install --quiet $(PIP_FLAGS) --editable '.[bench]'
	$(BIN)/pip install --quiet $(PIP_FLAGS) --no-deps denoising-diffusion-pytorch smalldiffusion
	touch $@

demo: .venv/core
	@if [ -e $(RUN)/checkpoints ]; then $(BIN)/unfog train --resume $(RUN); else $(BIN)/unfog train digits --out $(RUN); fi
	@$(BIN)/unfog sample $(RUN) -n 100
	@$(BIN)/unfog film $(RUN) -n 10
	@$(BIN)/unfog evaluate $(RUN) -n 1000

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal
COVER ?=

# All but what is marked as slow: some minutes on two cores.
test: .venv/test
	$(PYTEST) tests -m 'not slow' $(COVER)

# What `make test` leaves out; three at a time, since some of it waits.
test-rest: .venv/test
	$(PYTEST) -n 3 -m slow

# `make test` alone must cover nine lines of ten: it is what people run.
test-all:
	rm -rf build/covered
	$(MAKE) test COVER='-p tests.covering'
	$(BIN)/python -m slipcover --merge build/covered/*.json --out build/covered.json --skip-covered --fail-under 90
	$(MAKE) test-rest

# The property tests with examples that nobody tried before; a failure prints how to see it again.
ROUNDS ?= 1
explore: .venv/test
	for round in $$(seq $(ROUNDS)); do $(PYTEST) -m hypothesis --hypothesis-profile=explore || exit 1; done

# Writes a picture of each tab, at two widths, into build/screenshots.
test-app: .venv/browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/app/test_browser.py

check: .venv/test
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy
	rm -rf build && $(BIN)/python -m build --quiet --wheel --outdir build
	$(BIN)/pip install --quiet --no-deps --target build/wheel build/*.whl
	test -f build/wheel/unfog/py.typed
	cd build && PYTHONPATH=wheel ../$(BIN)/python -c "import unfog, sys; sys.exit('build/wheel' not in unfog.__file__)"

torture: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture --kills 200
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture_files --count 2000
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture_together --count 1000

torture-page: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture_page --count 2000

# The pages in build/docs, strictly.
pages: .venv/docs
	$(BIN)/zensical build --clean --strict

# The pages, and their snippets, links and tables.
docs: pages .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet -n auto tests/test_docs.py

# From the runs digits, mnist, fashion, shapes and emoji in RUNS, those that are there; digits must be.
RUNS ?= runs
figures: .venv/browser
	$(BIN)/python benchmarks/figures.py --runs $(RUNS)
	if [ -e $(RUNS)/mnist ] && [ -e $(RUNS)/shapes ]; then \
		$(BIN)/python benchmarks/guidance.py $(RUNS)/mnist $(RUNS)/shapes --out docs/images/guidance.png; \
		$(BIN)/python benchmarks/shapes.py $(RUNS)/shapes --out docs/images/shapes.png; fi
	PLAYGROUND_RUN=$(abspath $(RUNS))/digits $(BIN)/python -m pytest tests/app/test_browser.py
	mkdir -p docs/images/app && cp build/screenshots/*.png docs/images/app

bench: .venv/bench
	$(BIN)/python benchmarks/training.py --out docs/speed/training
	$(BIN)/python benchmarks/sampling.py --out docs/speed/sampling
	$(BIN)/python benchmarks/startup.py --out docs/speed/startup
	$(BIN)/python benchmarks/scaling.py --out docs/speed/scaling
	$(BIN)/python benchmarks/paper.py --out docs/speed/paper

# For whoever has a card: below eight minutes; a second call does what the first one did not finish. `make .venv/bench`
# before adds the comparison with diffusers.
gpu-check: .venv/core
	$(BIN)/python benchmarks/gpu_check.py $(if $(DATA),--data $(DATA))

race: .venv/bench
	$(BIN)/python benchmarks/race.py $(if $(DATA),--data $(DATA)) --tune
	$(BIN)/python benchmarks/race.py $(if $(DATA),--data $(DATA))

# CIFAR-10 by the rules of docs/speedrun.md: two hours, and a quarter of an hour to measure and to show it.
speedrun: .venv/core
	$(BIN)/unfog train cifar10 $(if $(DATA),--data $(DATA)) --out runs/speedrun
	$(BIN)/unfog evaluate runs/speedrun -n 5000 --guidance 1 2 --judge thorough
	$(BIN)/unfog film runs/speedrun -n 10
	$(BIN)/unfog report runs/speedrun

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache
