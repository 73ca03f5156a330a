# `make demo` and `make test` are the two commands of README.md. pip's own variables (PIP_INDEX_URL, PIP_FIND_LINKS, ...) are
# honoured because pip reads them itself. PYTHON chooses the interpreter when an environment is made, so a second Python needs
# an environment of another name: `make test PYTHON=python3.13 VENV_TEST=.venv-3.13`.
PYTHON ?= python3
VENV ?= .venv
VENV_TEST ?= .venv-test
WHEEL ?= build/wheel
RUNS ?= runs
PYTEST_ARGS ?=
PIP_ARGS ?= --quiet --disable-pip-version-check
CONTRIB := $(wildcard contrib/*/pyproject.toml)
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find core plugins -type f -not -path '*/_native/*' -not -name '*.pyc' 2>/dev/null)

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(VENV)/bin/tunesmith demo --folder $(RUNS)/demo

test: $(VENV_TEST)/.installed
	$(VENV_TEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS) tests
	set -e; for folder in $(dir $(CONTRIB)); do $(VENV_TEST)/bin/python -m pytest $(PYTEST_ARGS) -c pyproject.toml --rootdir . $$folder/tests; done

lint: $(VENV_TEST)/.installed
	$(VENV_TEST)/bin/ruff check .
	$(VENV_TEST)/bin/ruff format --check .
	$(VENV_TEST)/bin/mypy

# One wheel serves both environments and every Python: compiling the native libraries is most of an installation. pip keeps an
# installed tunesmith beside a wheel of the same version, so an older one has to go first.
# It is made beside its place, so that two makes at once do no harm.
$(WHEEL)/.built: $(SOURCES)
	set -e; new=$(WHEEL).$$$$; trap 'rm -rf "$$new"' EXIT; \
	$(PYTHON) -m venv $$new/venv; \
	$$new/venv/bin/python -m pip wheel $(PIP_ARGS) --no-deps --wheel-dir $$new/wheel .; \
	touch $$new/wheel/.built; rm -rf $(WHEEL); mv $$new/wheel $(WHEEL)

# torch first and by its exact version: where pip is pointed to a CPU build too (2.13.0+cpu), it takes that, while a looser
# request takes a newer CUDA build
$(VENV)/.installed: $(WHEEL)/.built
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_ARGS) $$(grep '^torch==' constraints.txt)
	$(VENV)/bin/python -m pip -qq uninstall --yes tunesmith
	$(VENV)/bin/python -m pip install $(PIP_ARGS) --constraint constraints.txt $(WHEEL)/*.whl
	touch $@

$(VENV_TEST)/.installed: $(WHEEL)/.built $(CONTRIB)
	$(PYTHON) -m venv $(VENV_TEST)
	$(VENV_TEST)/bin/python -m pip install $(PIP_ARGS) $$(grep '^torch==' constraints.txt)
	$(VENV_TEST)/bin/python -m pip -qq uninstall --yes tunesmith
	$(VENV_TEST)/bin/python -m pip install $(PIP_ARGS) --constraint constraints.txt "$$(echo $(WHEEL)/*.whl)[test]" $(addprefix ./,$(dir $(CONTRIB)))
	touch $@

clean:
	rm -rf $(VENV) $(VENV_TEST) $(WHEEL) build
