# Every target sets up .venv first, if it is not there or older than what defines it.
PYTHON ?= python3
BIN := .venv/bin
# "dev" alone leaves the frameworks out; their tests are skipped then
EXTRAS ?= dev,frameworks
INSTALLED := .venv/installed-$(or $(DSD_BUILD),auto)-$(EXTRAS)
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')
# Threads that spin while they wait turn microseconds into milliseconds on a busy machine.
export OMP_WAIT_POLICY ?= passive

.PHONY: help train study test lint format bench micro gpu clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv .venv

# torch first, then the package without build isolation: an isolated build would fetch another torch.
$(INSTALLED): $(BIN)/python setup.py pyproject.toml constraints.txt $(SOURCES)
	$(BIN)/pip install --quiet --constraint constraints.txt torch "setuptools>=77" wheel
	rm -rf build dsd_kernels/_C.* dsd_kernels/_C_cuda.*
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[$(EXTRAS)]"
	rm -f .venv/installed-*
	touch $@

train: $(INSTALLED)  ## train a network dense, sparse, dense on real data; ARGS="--help" for the options
	$(BIN)/dsd-kernels train $(ARGS)

test: $(INSTALLED)  ## run all tests
	$(BIN)/python -m pytest $(ARGS)

study: $(INSTALLED)  ## compare methods with many seeds on one task; ARGS="--help" for the options
	$(BIN)/dsd-kernels study $(ARGS)

lint: $(INSTALLED)  ## check style, types and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(INSTALLED)  ## bring everything into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

bench: $(INSTALLED)  ## measure against the peers, on this machine; ARGS="--full" for all, "--help" for the options
	$(BIN)/python -m benchmarks $(ARGS)

micro: $(INSTALLED)  ## micro-benchmarks with pytest-benchmark, which also saves and compares them
	$(BIN)/python -m pytest benchmarks/micro --benchmark-enable --benchmark-only $(ARGS)

gpu:  ## on a CUDA machine, with its own python and torch: build, test and bench (not yet run on one)
	PYTHON=$(PYTHON) sh benchmarks/gpu.sh $(ARGS)

clean:  ## remove what the other targets made
	rm -rf .venv build *.egg-info dsd_kernels/_C.* dsd_kernels/_C_cuda.* runs
