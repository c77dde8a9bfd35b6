# Commands for work on Kindling itself; the Makefile includes them.
#:  make faults                      every fault of docs/reliability.md, many times, and their table (an hour)
#:  make faults TESTS="--soak 120"   with two hours of random faults at the end
#:  make test-torch VERSION=2.10.0   the quick tests with that torch, in a .venv of its own (gigabytes)
#:  make bench                       what a step costs above the bare loop
#:  make docs                        the documentation as a site, in site/

.PHONY: faults test-torch bench docs
faults: $(VENV)/.installed-dev
	$(RUN) -m pytest -m fault --faults many -q $(value TESTS)

# torchvision says itself which torch it goes with. pip reads the constraint at both installations.
test-torch:
	@echo "$(VERSION)" | grep -Eq '^2\.[0-9]+\.[0-9]+$$' || \
		$(call fail,name a version of torch: make test-torch VERSION=2.10.0)
	@echo "torch==$(VERSION)" > .venv-torch-$(VERSION).txt
	PIP_CONSTRAINT=$(CURDIR)/.venv-torch-$(VERSION).txt \
		$(MAKE) VENV=.venv-torch-$(VERSION) .venv-torch-$(VERSION)/.installed-dev
	.venv-torch-$(VERSION)/bin/python -m pytest $(CORES) -m "not slow" $(value TESTS)

docs: $(VENV)/.installed-dev
	@$(RUN) docs/site/build.py

bench: $(VENV)/.installed
	$(RUN) benchmarks/overhead.py
