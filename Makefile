# The commands of this project. Each makes .venv and installs what it needs first; a second call
# sets nothing up again, until requirements*.txt change or .venv is gone.
#:  make train                       train config/digits.yaml
#:  make train ARGS="-c config/x.yaml --set trainer.epochs=3"
#:  make test                        formatting, lint, types and the quick tests: what CI runs
#:  make test TESTS="-k resume"      those tests alone
#:  make test-all                    the slow tests too
#:  make faults                      every fault of docs/reliability.md, many times, and their table (an hour)
#:  make faults TESTS="--soak 120"   with two hours of random faults at the end
#:  make test-torch VERSION=2.10.0   the quick tests with that torch, in a .venv of its own (gigabytes)
#:  make check                       formatting, lint and types, without the tests
#:  make format                      format the code and mend what ruff can mend
#:  make doctor                      is this machine fit to train: versions, room, resume
#:  make bench                       what a step costs above the bare loop
#:  make clean                       remove caches; never touches saved/ or .venv
#:  make train PYTHON=python3.12     where .venv is not made yet: with this Python
PYTHON ?= python3
VENV ?= .venv
ARGS ?= -c config/digits.yaml
TESTS ?=
RUN = $(VENV)/bin/python

.PHONY: help train test test-all faults test-torch check format doctor bench clean
help:
	@sed -n 's/^#:  //p' Makefile

train: $(VENV)/.installed
	@$(RUN) train.py $(value ARGS)

test: check
	$(RUN) -m pytest -m "not slow" $(value TESTS)

test-all: check
	$(RUN) -m pytest $(value TESTS)

faults: $(VENV)/.installed-dev
	$(RUN) -m pytest -m fault --faults many -q $(value TESTS)

# torchvision says itself which torch it goes with. pip reads the constraint at both installations.
test-torch:
	@echo "$(VERSION)" | grep -Eq '^2\.[0-9]+\.[0-9]+$$' || \
		$(call fail,name a version of torch: make test-torch VERSION=2.10.0)
	@echo "torch==$(VERSION)" > .venv-torch-$(VERSION).txt
	PIP_CONSTRAINT=$(CURDIR)/.venv-torch-$(VERSION).txt \
		$(MAKE) VENV=.venv-torch-$(VERSION) .venv-torch-$(VERSION)/.installed-dev
	.venv-torch-$(VERSION)/bin/python -m pytest -m "not slow" $(value TESTS)

check: $(VENV)/.installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: $(VENV)/.installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

doctor: $(VENV)/.installed
	@$(RUN) -m base.doctor

bench: $(VENV)/.installed
	$(RUN) benchmarks/overhead.py

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . \( -path ./saved -o -path ./$(VENV) -o -path ./.git \) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Setting up. The stamps are written last, so that an interrupted installation is done again. A .venv
# whose Python no longer runs (moved, upgraded away) is made anew. Always the pip of .venv: the system's
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
