# From a bare checkout: `make demo` shows the whole path on real data, `make test` runs every test.
# Each makes its own .venv and installs what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o=Dpkg::Use-Pty=0
CHROME_NAMES := chromium chromium-browser google-chrome google-chrome-stable

.PHONY: help size demo up install shell test tiny third-study research-test chaos soak mutations fuzz lint format bench pictures docs clean

help:
	@echo "make demo     fine-tune a small model on letters three ways and compare them under shift (3 minutes on 2 cores)"
	@echo "make up       start the service and the dashboard"
	@echo "make install  make .venv and install calift into it"
	@echo "make shell    open a shell that finds calift"
	@echo "make .env     passwords and a token of your own for docker compose"
	@echo "make test     run every test, the same way each time (8 minutes on 2 cores); what CI runs"
	@echo "make third-study    go on with the third study of a suite (STUDY_SUITE=letters, STUDY_OUT=FOLDER)"
	@echo "make tiny     draw the letters and pre-train calift-tiny anew (25 minutes of one core)"
	@echo "make research-test  run the tests of the studies in research/"
	@echo "make chaos    60 jobs under 120 faults on each kind of database, real processes (about 15 minutes)"
	@echo "make soak     the same with 1,000 jobs and 2,000 faults, for a night"
	@echo "make mutations break each protection on a copy of the code: the tests must notice"
	@echo "make fuzz     random search: 50,000 calls of every operation, 20,000 damaged files, every property; SEED=N repeats one"
	@echo "make lint     ruff, mypy, import contracts"
	@echo "make format   format the code"
	@echo "make bench    time a training step, the calibration measures, corruptions, evaluation, the API and threads"
	@echo "make pictures take the pictures of docs/img anew, from the runs of make demo"
	@echo "make docs     make the documents and the Python API a site, site/index.html"
	@echo "make size     lines of product, tests, benchmarks and studies, words of the documents, files over 500 lines"
	@echo "make clean    remove .venv and caches"

demo: .ports $(VENV)/.embedded
	@$(MAKE) --no-print-directory .chrome
	@$(BIN)/calift demo

up: .ports $(VENV)/.embedded
	@$(BIN)/calift up

install: $(VENV)/.embedded
	@echo "calift is $(BIN)/calift. In the shell that 'make shell' opens it is calift."

shell: $(VENV)/.embedded
	@. $(BIN)/activate && { "$${SHELL:-/bin/sh}" || true; }

# How many processes, which tests stay together in one, and their order is said in tests/conftest.py. Bytecode is kept
# whatever the environment says: hundreds of processes would compile the same files.
PYTEST_ARGS ?= -n logical $(if $(CI),--durations=20)
test: $(VENV)/.dev
	@$(MAKE) --no-print-directory .data .chrome
	@PYTHONDONTWRITEBYTECODE= PYTHONHASHSEED=0 $(BIN)/python -m pytest $(PYTEST_ARGS)

# The third study of one suite, from where it is: research/protocol.md. Hours of one core; its letters and weights lie in STUDY_OUT.
STUDY_OUT ?= results/third
STUDY_SUITE ?= letters
third-study: $(VENV)/.dev
	@for step in select gate confirm derive gather; do \
	  $(BIN)/python -m research.study $$step --out $(STUDY_OUT) --suite $(STUDY_SUITE) || exit 1; done
	@$(BIN)/python -m research.tables --suite $(STUDY_SUITE)

# Into TINY_OUT: the letters, and the weights of calift-tiny as they ship.
TINY_OUT ?= results/tiny
tiny: $(VENV)/.dev
	@$(BIN)/python research/make_typefaces.py --out $(TINY_OUT)/letters
	@CALIFT_TYPEFACES=$(TINY_OUT)/letters/study $(BIN)/python research/make_tiny.py --out $(TINY_OUT)

research-test: $(VENV)/.dev
	@$(BIN)/python -m pytest -q -n 0 research/tests

# CHAOS_ARGS: such as --database sqlite, --seed 7, --minutes 60, --out FOLDER.
CHAOS_ARGS ?=
chaos: $(VENV)/.dev
	@$(BIN)/python -m tests.chaos --jobs 60 --faults 120 $(CHAOS_ARGS)

soak: $(VENV)/.dev
	@$(BIN)/python -m tests.chaos --jobs 1000 --faults 2000 $(CHAOS_ARGS)

mutations: $(VENV)/.dev
	@$(BIN)/python -m tests.chaos.mutations

# make fuzz SEED=7 draws again what was drawn from 7; without it the seed is new, and printed.
SEED ?=
FUZZ_CASES ?= 50000
FUZZ_FILES ?= 20000
FUZZ_IMAGES ?= 2000
FUZZ_ARGS ?= --timeout 36000 --log-cli-level=INFO -m "fuzz or hypothesis or thorough"
fuzz: $(VENV)/.dev
	@seed=$(or $(SEED),$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')); echo "make fuzz SEED=$$seed"; \
	PYTHONHASHSEED=$$seed HYPOTHESIS_PROFILE=search CALIFT_FUZZ_SEED=$$seed CALIFT_FUZZ_CASES=$(FUZZ_CASES) \
	CALIFT_FUZZ_FILES=$(FUZZ_FILES) CALIFT_FUZZ_IMAGES=$(FUZZ_IMAGES) \
	$(BIN)/python -m pytest --hypothesis-seed=$$seed $(FUZZ_ARGS) || { echo "Again: make fuzz SEED=$$seed"; exit 1; }

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/corruptions.py
	$(BIN)/python benchmarks/evaluate.py
	$(BIN)/python benchmarks/api.py
	$(BIN)/python benchmarks/threads.py
	$(BIN)/python benchmarks/imagenet_size.py --images 100000
	$(BIN)/python benchmarks/gpu.py

pictures: $(VENV)/.dev
	@$(MAKE) --no-print-directory .chrome
	@$(BIN)/python docs/pictures.py

docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The site is site/index.html."

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache *.egg-info

# ------------------------------------------------------------------ what the targets above need

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "calift needs Python 3.11 or newer, $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { \
	  rm -rf $(VENV); \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    $(APT) update && $(APT) install -y python3-venv >/dev/null; fi; \
	  $(PYTHON) -m venv $(VENV) || { echo "Python cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }; }

# Before an installation that takes minutes. The bare Python will do.
.PHONY: .ports
.ports:
	@$(PYTHON) backend/stack/ports.py

# An extra is installed once, and again when pyproject.toml changes.
$(VENV)/.embedded $(VENV)/.dev $(VENV)/.docs: $(VENV)/.%: pyproject.toml | $(BIN)/python
	@echo "Installing calift[$*] into $(VENV); this takes some minutes the first time."
	@$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[$*]'
	@touch $@

# What docker compose reads. One that is there is left alone: databases keep their passwords.
define ENV_FILE
import re, secrets, sys
made = {"POSTGRES_PASSWORD": secrets.token_hex(24), "REDIS_PASSWORD": secrets.token_hex(24),
        "CALIFT_TOKEN": "admin." + secrets.token_hex(32)}
fill = lambda line: line[1] + "=" + made.pop(line[1], "")
sys.stdout.write(re.sub(r"(?m)^(\w+)=$$", fill, open(".env.example").read()))
made and sys.exit(".env.example must name " + ", ".join(made))
endef
export ENV_FILE
.env:
	@umask 077; $(PYTHON) -c "$$ENV_FILE" > .env.new && mv .env.new .env
	@echo "Made .env with passwords and a token; docker compose reads it."

# Fashion-MNIST: Debian's package where we may install it; torchvision downloads it elsewhere.
.PHONY: .data .chrome
.data:
	@if [ ! -d /usr/share/datasets/fashion-mnist ] && [ -z "$$CALIFT_FASHION_MNIST" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing Debian's dataset-fashion-mnist."; \
	    $(APT) update && $(APT) install -y dataset-fashion-mnist >/dev/null || true; \
	  else \
	    echo "Fashion-MNIST is not installed as a package (on Debian: apt-get install dataset-fashion-mnist); it will be downloaded."; \
	  fi; fi

# Chromium draws the report's SVG figures and is what the browser tests drive.
.chrome:
	@for name in $(CHROME_NAMES); do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing Debian's chromium."; \
	  $(APT) update && $(APT) install -y chromium >/dev/null || true; \
	else \
	  echo "No Chrome or Chromium is installed: there will be no SVG figures, and browser tests are skipped."; \
	fi

PRODUCT = calift calift_core backend worker frontend
lines = $$(git ls-files $(1) | grep -E '\.(py|js|css|html)$$' | xargs cat | wc -l)
size:
	@echo "product     $(call lines,$(PRODUCT)) lines"
	@echo "tests       $(call lines,tests) lines"
	@echo "benchmarks  $(call lines,benchmarks) lines"
	@echo "research    $(call lines,research) lines"
	@echo "documents   $$(cat README.md $$(git ls-files docs | grep '\.md$$') | wc -w) words"
	@echo "over 500    $$(git ls-files $(PRODUCT) | grep -E '\.(py|js)$$' | xargs wc -l | awk '$$1 > 500 && $$2 != "total"' | wc -l) files"
