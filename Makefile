# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
PROGRAMS := $(sort $(dir $(wildcard examples/*/train.py)))
BENCHMARKS := $(sort $(filter-out %/bench_headline.py,$(wildcard benchmarks/bench_*.py)))

.PHONY: demo test lint docs bench headline peers clean

# torch first and pinned: left to itself pip may take a CUDA build of several gigabytes
.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[plot,xarray]"
	touch $@

# what tests, benchmarks and the site need beside: gigabytes, which a demo does not
.venv/complete: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,bench,plot,xarray,docs]"
	touch $@

demo: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

test: .venv/complete lint
	$(BIN)/python -m pytest -n 2 tests

lint: .venv/complete
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@for folder in $(PROGRAMS); do echo "mypy $$folder"; MYPYPATH=$$folder $(BIN)/mypy $$folder || exit 1; done

docs: .venv/complete
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir site
	@echo "the site is in site/: open site/index.html, or with its search: $(BIN)/python -m http.server -d site"

bench: .venv/complete
	@for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# the guides' promises, measured: writes docs/headline.md; ten minutes on two quiet cores
headline: .venv/complete
	$(BIN)/python benchmarks/bench_headline.py

# parbake beside other libraries: makes its own environments in .bench-envs/ (8 GB), takes over an hour
peers: .venv/complete
	$(BIN)/python benchmarks/peers

clean:
	rm -rf .venv .bench-envs build site *.egg-info demo.zarr
