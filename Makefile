# Two commands set up everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
VERSIONS := -c constraints.txt
PACKAGES := modeling_xtrimogene tokenization inference training eval hub_cards recipes cli
MODULES  := tl families pipelines options atomic records released

.PHONY: help demo checkpoints test test-slow peer-tests test-lowest test-newest suite docs wheel clean

help:                      ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST)

# torch goes first: where an index offers a CPU build of the pinned version, pip takes it.
$(VENV)/.installed: pyproject.toml constraints.txt constraints-lowest.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(VERSIONS) torch
	$(BIN)/python -m pip install -q $(VERSIONS) -e '.[test]'
	mkdir -p $(VENV)/typed && ln -sfn $(CURDIR) $(VENV)/typed/xtrimogene  # mypy needs the package under its name
	touch $@

demo: $(VENV)/.installed   ## pre-train, fine-tune and report on real cells (no network, some minutes)
	$(BIN)/xtrimogene demo -o demo

checkpoints: $(VENV)/.installed   ## train the checkpoints that come with the package: make checkpoints DATA=FOLDER
	$(BIN)/python -m xtrimogene.recipes.checkpoints docs/checkpoints.yaml docs/embedding.yaml $(DATA) $(if $(ONLY),--only $(ONLY))

test: $(VENV)/.installed   ## lint, type check and test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV)/typed && ../bin/mypy --config-file $(CURDIR)/pyproject.toml $(PACKAGES:%=-p xtrimogene.%) $(MODULES:%=-m xtrimogene.%)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-slow: $(VENV)/.installed   ## the checks that take minutes
	$(BIN)/python -m pytest -m slow

# Half an hour; the source distribution of transformers, which carries them, comes from the package index.
peer-tests: $(VENV)/.installed   ## transformers' own tests on our models and tokenizers, PEFT, export, ONNX
	$(BIN)/python tests/peer/fetch.py .peer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(addprefix tests/peer/,models.py gene_names.py abilities.py)

test-lowest:     ## test with the lowest versions that pyproject.toml allows
	$(MAKE) suite VENV=.venv-lowest VERSIONS='-c constraints-lowest.txt'

# Each call upgrades what is there: what was newest last month is not.
test-newest:     ## test with the newest versions there are
	rm -f .venv-newest/.installed
	$(MAKE) suite VENV=.venv-newest VERSIONS='--upgrade --upgrade-strategy eager'

suite: $(VENV)/.installed
	$(BIN)/python -m pip list
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 1 -q --dist loadfile -m 'not slow'

# The tools of the site and of the wheel are installed beside those of the tests: some seconds.
$(VENV)/.published: $(VENV)/.installed
	$(BIN)/python -m pip install -q $(VERSIONS) -e '.[docs]' build
	touch $@

# Five minutes of one core; EXECUTE=no leaves the tutorials without what their code gives, and takes half a minute.
docs: $(VENV)/.published  ## build the site into site/: tutorials executed, links checked, no warnings (minutes)
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --strict

# What a user installs, away from the sources and from what developers have. The wheel is built from the sdist.
wheel: $(VENV)/.published  ## build sdist and wheel into dist/, install the wheel in an environment of its own, try it
	rm -rf dist && $(BIN)/python -m build -o dist . > /dev/null
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/python -m pip install -q $(VERSIONS) torch
	.venv-wheel/bin/python -m pip install -q $(VERSIONS) dist/*.whl
	.venv-wheel/bin/python -I tests/installed.py

clean:           ## remove the environments and what the demo wrote
	rm -rf $(VENV) .venv-lowest .venv-newest .venv-wheel .peer demo site dist
