# `make demo` and `make test` are all a newcomer needs: Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export PIP_NO_PYTHON_VERSION_WARNING = 1
# A file of tests stays in one process: its fixtures are what takes long.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile

.PHONY: demo test quick lint docs demo-data results clean

# The CPU runtime alone: no torch.
demo: $(VENV)-demo/ready
	$(VENV)-demo/bin/tadiff-rt demo -o demo --overwrite

$(VENV)-demo/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-demo
	$(VENV)-demo/bin/python -m pip install --quiet --disable-pip-version-check '.[cpu]'
	touch $@

# torch is pinned because newer releases fetch gigabytes of CUDA libraries that nobody needs here.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[dev]'
	touch $@

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest $(PARALLEL)

# What a developer runs between edits.
quick: $(VENV)/ready
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

# The pages of docs/ as a site in site/, which loads nothing from elsewhere.
docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Everything that is shipped with the demo, from nothing: about 90 minutes on two cores.
demo-data: $(VENV)/ready
	bash benchmarks/make_demo_data.sh

# The table of docs/results.md, from the bundled model.
results: $(VENV)/ready
	bash benchmarks/make_results.sh

clean:
	rm -rf $(VENV) $(VENV)-demo build dist demo site *.egg-info
