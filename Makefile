# The commands of this project. Each makes .venv and installs what it needs first; a second call
# sets nothing up again, until requirements*.txt change or .venv is gone.
#:  make train                       train config/digits.yaml
#:  make train ARGS="-c config/x.yaml --set trainer.epochs=3"
#:  make train NPROC=2               in two processes: on two GPUs, or on the CPU where there is none
#:  make test                        formatting, lint, types and the quick tests: what CI runs
#:  make test TESTS="-k resume"      those tests alone
#:  make test TESTS="-n 0"           in one process, as a debugger wants it
#:  make test-all                    the slow tests too
#:  make check                       formatting, lint and types, without the tests
#:  make format                      format the code and fix what ruff can fix
#:  make doctor                      is this machine fit to train: versions, room, resume
#:  make clean                       remove caches; never touches saved/ or .venv
#:  make train PYTHON=python3.12     where .venv is not made yet: with this Python
PYTHON ?= python3
VENV ?= .venv
ARGS ?= -c config/digits.yaml
NPROC ?=
TESTS ?=
RUN = $(VENV)/bin/python
# One process a core and one more; the tests of a file stay together, since they share what they have prepared.
CORES = -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help train test test-all check format doctor clean
help:
	@sed -n 's/^#:  //p' $(MAKEFILE_LIST)

train: $(VENV)/.installed
	@$(RUN) train.py $(value ARGS)$(if $(NPROC), -d auto:$(NPROC))

test: check
	$(RUN) -m pytest $(CORES) -m "not slow" $(value TESTS)

test-all: check
	$(RUN) -m pytest $(CORES) $(value TESTS)

check: $(VENV)/.installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: $(VENV)/.installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

doctor: $(VENV)/.installed
	@$(RUN) -m base.doctor

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . \( -path ./saved -o -path ./$(VENV) -o -path ./.git \) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Setting up. The stamps are written last, so that an interrupted installation is done again. A .venv
# whose Python no longer runs (moved, upgraded away) is made again. Always the pip of .venv: the system's
# own pip refuses to install on Debian and Ubuntu.
$(shell $(RUN) -c "" 2>/dev/null || rm -f $(VENV)/.installed* $(VENV)/bin/pip)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/pip
	$(RUN) -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(RUN) -m pip install --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@touch $@

# Debian's python3 comes without venv (its ensurepip is missing); python3.12 wants python3.12-venv.
VENV_PACKAGE = $(if $(filter python3.%,$(notdir $(PYTHON))),$(notdir $(PYTHON)),python3)-venv
fail = { echo "make: $1" >&2; exit 1; }

$(VENV)/bin/pip:
	@command -v $(PYTHON) >/dev/null || \
		$(call fail,$(PYTHON) was not found. Name a Python of 3.10 or newer: make PYTHON=python3.12)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		$(call fail,Python 3.10 or newer is needed; $(PYTHON) is $$($(PYTHON) -V). Name another: make PYTHON=python3.12)
	@$(PYTHON) -c 'import venv; from ensurepip import version' 2>/dev/null || \
		$(call fail,$(PYTHON) has no venv. Install it (sudo apt install $(VENV_PACKAGE)) and call make again)
	@$(RUN) -m ensurepip --default-pip >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ rm -rf $(VENV); exit 1; }

# What only Kindling itself has; absent in a project made from it.
-include engine.mk
