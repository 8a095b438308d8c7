# Set-up is a dependency of every target: python3 (3.11 or 3.12, with venv) and make are enough.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PARITY := .venv-parity
PARITY_STAMP := $(PARITY)/.installed
EXTRAS := .venv-extras

.PHONY: demo test test-ray test-slurm test-trackers test-site slurm test-slow faults parity wheel site results lessons gpu-check lint format lock clean

demo: $(STAMP)
	$(BIN)/isoflop run quickstart --workers 2
	$(BIN)/isoflop run context --lengths 1024 2048 4096 --quiet \
		--quantities train_step_seconds state_bytes
	$(BIN)/isoflop report quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# sixty kills of workers, parents and hosts in every phase of a grid, and what they lost: nothing
faults: $(STAMP)
	$(BIN)/python -m pytest -n 0 -s -m slow tests/test_faults.py

# on Ray, Slurm and the trackers themselves, each in an environment of its own
test-ray: $(EXTRAS)-ray/.installed
	$(EXTRAS)-ray/bin/python -m pytest -n 0 -m ray

test-slurm: $(EXTRAS)-slurm/.installed slurm
	SLURM_CONF=$$(.ci/slurm where) $(EXTRAS)-slurm/bin/python -m pytest -n 0 -m slurm; \
		code=$$?; .ci/slurm stop; exit $$code

test-trackers: $(EXTRAS)-tensorboard,wandb,mlflow,trackio/.installed
	"$(dir $<)bin/python" -m pytest -n 0 -m trackers

# the documents, the lessons and the docstrings as pages: build/site/index.html
site: $(EXTRAS)-site/.installed
	$(EXTRAS)-site/bin/sphinx-build -W --keep-going --quiet -c experiments/site . build/site

test-site: $(EXTRAS)-site/.installed
	$(EXTRAS)-site/bin/python -m pytest -n 0 -m site

# a Slurm of one node, this machine: needs root and Debian's packages
slurm:
	.ci/slurm start

$(EXTRAS)-%/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r requirements.lock -e '.[$*]'
	touch $@

# needs torch and transformers; where pip finds torch's CPU build, that is enough
parity: $(PARITY_STAMP)
	$(PARITY)/bin/python -m pytest -n 2 --dist loadfile -m parity

# built by pip and run where a user would: needs pip's index
wheel:
	PYTHON=$(PYTHON) .ci/wheel

# every committed figure and every table of the READMEs, from the committed records
RECORDS := experiments/results
results: $(STAMP)
	$(BIN)/python -m isoflop.experiments.cli.readme
	for name in quickstart power_law isoflop known_entropy compress context bench peers lr_transfer ladder recall data_quality specialise retrieve cascade distil tasks copying state_tracking mad context_training; do \
		$(BIN)/isoflop figures $$name --records $(RECORDS)/$$name.jsonl --out figures/out || exit 1; done
	for name in lr_transfer ladder; do \
		$(BIN)/isoflop figures $$name --records $(RECORDS)/$${name}_gpu.jsonl --out figures/out/gpu \
		|| exit 1; done
	for rule in muon depth zoo; do \
		$(BIN)/isoflop figures lr_transfer --records $(RECORDS)/lr_transfer_$$rule.jsonl \
		--out figures/out/$$rule || exit 1; done
	$(BIN)/isoflop figures specialise --records $(RECORDS)/specialise_book.jsonl --out figures/out/book
	$(BIN)/python -m isoflop.experiments.cli.readme

# every lesson executed, and rendered as a notebook and as HTML: needs pip's index
LESSONS := build/lessons
lessons: $(EXTRAS)-lessons/.installed
	mkdir -p $(LESSONS)
	set -e; for file in experiments/lessons/lesson*.py; do \
		echo "$$file"; begun=$$(date +%s); name=$(LESSONS)/$$(basename $$file .py); \
		$(EXTRAS)-lessons/bin/jupytext --quiet --to ipynb --output $$name.ipynb $$file; \
		$(EXTRAS)-lessons/bin/jupytext --quiet --execute --run-path "$(CURDIR)" $$name.ipynb; \
		$(EXTRAS)-lessons/bin/jupyter nbconvert --log-level WARN --to html $$name.ipynb; \
		echo "  $$(( $$(date +%s) - begun )) s"; done

# on a machine with an accelerator, whose JAX this environment must have (pip install '.[cuda]')
gpu-check: $(STAMP)
	$(BIN)/isoflop run gpu_check

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: .venv/bin/python
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev \
		--no-emit-index-url --custom-compile-command 'make lock' pyproject.toml -o requirements.lock

.venv: $(STAMP)

.venv/bin/python:
	$(PYTHON) -m venv .venv

$(STAMP): requirements.lock pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $(STAMP)

$(PARITY_STAMP): requirements.lock pyproject.toml tests/references.txt
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/pip install --quiet --disable-pip-version-check -r requirements.lock -e '.[parity]'
	$(PARITY)/bin/pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(PARITY)/references -r tests/references.txt
	touch $@

clean:
	rm -rf .venv $(PARITY) $(EXTRAS)-* build *.egg-info
