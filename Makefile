# Every target may be the first one run. `make help` lists them.

VENV     ?= .venv
# The interpreter to build VENV with. Unset: the one it was built with, else the newest tested one here.
PYTHON   ?=
# Of pyproject.toml, comma-separated: `make setup EXTRAS=test,cuda13` on an NVIDIA machine.
EXTRAS   ?= test
VIDEO    ?= vxl2_jax/assets/demo.mp4
# Unset: three questions about the bundled clip.
QUESTION ?=
# Where `make ask` draws the frames, and the chunks that each question read.
PLOT     ?= build/answer.png
# More options of `vxl2 ask`, such as --json.
FLAGS    ?=
# Test processes, and more options of pytest.
WORKERS  ?= 2
TESTS    ?=
# Neighbouring tests stay in one process, as far as both are busy: they share programs, models and memories.
DIST      = --dist worksteal
# Which programs `make test-targets` compiles: "targets" are all of them.
TARGETS  ?= targets and not slow
# Of tests/environments.py: pinned floors newest colab lmms. Unset: all.
ENVIRONMENTS ?=

export VENV PYTHON EXTRAS VIDEO QUESTION PLOT
.DEFAULT_GOAL := help
.PHONY: help setup ask check test test-all test-environments test-kernels fuzz test-targets docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' Makefile

# Interpreters by preference; those that are not there, or do not run, are passed over.
CANDIDATES = python3.12 "$$(pyenv root 2>/dev/null)"/versions/3.12*/bin/python \
             python3.11 "$$(pyenv root 2>/dev/null)"/versions/3.11*/bin/python python3 python
# Prints version and path (of the real interpreter behind a shim or virtual environment), if it will do.
IDENTIFY   = import sys, venv, ensurepip; sys.version_info < (3, 11) and sys.exit(1); \
             print("%d.%d.%d" % sys.version_info[:3], sys._base_executable)

# The stamp says what VENV was built from, and is written last: an interrupted build is done again.
setup: ## create .venv with everything (quick when nothing has changed)
	@set -e; stamp="$$VENV/vxl2-stamp"; \
	rest="[$$EXTRAS] $(CURDIR) $$(cat requirements.txt pyproject.toml | cksum)"; \
	identify() { "$$1" -c '$(IDENTIFY)' 2>/dev/null; }; \
	built() { [ -n "$$found" ] && [ "$$(cat "$$stamp" 2>/dev/null)" = "$${found%% *} $$rest" ]; }; \
	current=$$(identify "$$VENV/bin/python") || current=; \
	found="$$current"; if [ -z "$$PYTHON" ] && built; then exit 0; fi; \
	if [ -n "$$PYTHON" ]; then \
	  found=$$(identify "$$PYTHON") || { echo "make: PYTHON=$$PYTHON does not run as Python 3.11 or newer with venv and ensurepip" >&2; exit 1; }; \
	  if [ -n "$$current" ] && built; then exit 0; fi; \
	elif [ -z "$$current" ]; then \
	  for candidate in $(CANDIDATES); do found=$$(identify "$$candidate") && break || found=; done; \
	  [ -n "$$found" ] || { echo "make: no Python 3.11 or newer (with venv and ensurepip) runs here; install 3.12, or name one: make setup PYTHON=…" >&2; exit 1; }; \
	fi; \
	if [ -d "$$VENV" ] && [ ! -f "$$VENV/pyvenv.cfg" ] && [ -n "$$(ls -A "$$VENV")" ]; then \
	  echo "make: $$VENV is there and is no virtual environment; name another: VENV=…" >&2; exit 1; \
	fi; \
	echo "building $$VENV with Python $${found%% *} (some minutes)" >&2; \
	rm -f "$$stamp"; "$${found#* }" -m venv --clear "$$VENV"; \
	"$$VENV/bin/python" -m pip install -qq --disable-pip-version-check -r requirements.txt -e ".[$$EXTRAS]" >&2; \
	echo "$${found%% *} $$rest" > "$$stamp"

ask: setup ## ask the bundled clip three questions (or VIDEO=, QUESTION=; PLOT=, FLAGS=)
	@mkdir -p "$$(dirname "$$PLOT")"; set -- "$$QUESTION"; \
	if [ -z "$$QUESTION" ]; then \
	  set -- "What appears at 40 seconds?" "When does the camera first appear?" \
	    "What appears between the camera and the basketball?"; \
	fi; \
	"$$VENV/bin/vxl2" ask "$$VIDEO" "$$@" --plot "$$PLOT" $(FLAGS)

check: setup ## lint, formatting and types (seconds)
	@"$$VENV/bin/ruff" check --quiet
	@"$$VENV/bin/ruff" format --check --quiet
	@"$$VENV/bin/pyrefly" check --python-interpreter-path "$$VENV/bin/python" --output-format min-text

test: setup ## run the tests (TESTS= for some of them, WORKERS= processes)
	@JAX_PLATFORMS="$${JAX_PLATFORMS:-cpu}" "$$VENV/bin/python" -m pytest -q -n $(WORKERS) $(DIST) $(TESTS)

test-all: setup ## all tests, for all targets (an hour)
	@JAX_PLATFORMS="$${JAX_PLATFORMS:-cpu}" "$$VENV/bin/python" -m pytest -q -n $(WORKERS) $(DIST) -m "not targets" $(TESTS)
	@$(MAKE) --no-print-directory test-targets TARGETS=targets

test-kernels: setup ## random problems for the interpreted kernels (minutes)
	@JAX_PLATFORMS=cpu "$$VENV/bin/python" -m pytest -q -n $(WORKERS) $(DIST) -m kernels tests/kernels

fuzz: setup ## random input for all readers, for SECONDS= (600)
	@JAX_PLATFORMS=cpu "$$VENV/bin/python" -m tests.fuzz.run --seconds $${SECONDS:-600} $(TESTS)

test-environments: setup ## build environments from nothing, and test the package in each (ENVIRONMENTS= for some)
	@"$$VENV/bin/python" tests/environments.py $(ENVIRONMENTS)

# An environment of its own: plug-ins for machines that are not here would trouble the usual one.
test-targets: ## compile for absent TPUs and GPUs (in .venv-targets; minutes; TARGETS=targets for all)
	@$(MAKE) --no-print-directory setup VENV="$$VENV-targets" EXTRAS=test,targets
	@rm -f build/targets.jsonl
	@JAX_PLATFORMS=cpu "$$VENV-targets/bin/python" -m pytest -q -n $(WORKERS) $(DIST) -m "$(TARGETS)" tests/targets

# An environment of its own, with the package: pages of the API and the command line are made from it.
docs: ## build the documentation into build/docs, failing on broken links (in .venv-docs)
	@$(MAKE) --no-print-directory setup VENV="$$VENV-docs" EXTRAS=docs
	@JAX_PLATFORMS=cpu NO_MKDOCS_2_WARNING=1 "$$VENV-docs/bin/python" -m mkdocs build --strict --quiet

clean: ## remove .venv, .venv-targets, .venv-docs and what builds and tests leave
	@for venv in "$$VENV" "$$VENV-targets" "$$VENV-docs"; do if [ -f "$$venv/pyvenv.cfg" ]; then rm -rf "$$venv"; fi; done
	@rm -rf build dist vxl2_jax.egg-info .pytest_cache .hypothesis .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
