# Everything runs from here. `make` alone lists the targets.
#
# On a machine with nothing but Python >= 3.10, a C++ compiler and make, the first target makes an environment in .venv.
# To use an environment of your own as it is (its torch, nothing installed):   make test VENV= PYTHON=/path/to/python
# Another torch:                                                               make test TORCH='torch==2.11.*'

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# More words for pip (another index), and for the script or pytest behind a target: make test ARGS='-k strides'
PIP_ARGS ?=
ARGS ?=

# The tools and their versions have one home, the extras of pyproject.toml.
extra = $(shell sed -n 's/^$(1) = \[\(.*\)\].*/\1/p' pyproject.toml | tr -d ,)
PACKAGES := "setuptools>=77" wheel $(call extra,test) $(call extra,lint)

RUN := $(if $(strip $(VENV)),$(VENV)/bin/python,$(PYTHON))
CLANG_FORMAT := $(if $(strip $(VENV)),$(VENV)/bin/)clang-format
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

# Tools of one target only.
also = $(if $(strip $(VENV)),$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) $(call extra,$(1)))

# After `> build/log 2>&1`: of a failed build show the errors, as the whole is hundreds of lines.
LOGGED = || { grep -A 5 -E 'error:|^gelu_ext:' build/log || cat build/log; echo 'make: the build failed; all of its output is in build/log'; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help environment install build demo test sweep models lint format bench experiments accuracy fit-check numerics \
        cross-compile emulate emulate-suite cuda-compile budgets cuda-link gpu wheel matrix clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# What was installed is remembered in the environment, so that a second call does nothing, and another TORCH something.
environment:
ifneq ($(strip $(VENV)),)
	@printf '%s\n' '$(TORCH) $(PACKAGES)' | cmp -s - $(VENV)/.installed || $(MAKE) --no-print-directory install
endif

install:
	@command -v $(PYTHON) > /dev/null || { echo "make: there is no $(PYTHON): install Python 3.10 or newer, or name one in PYTHON."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: $(PYTHON) does not run or is older than 3.10: name another in PYTHON."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || { echo "make: $(PYTHON) cannot make virtual environments (Debian, Ubuntu: apt install python3-venv), or use your own environment: VENV= PYTHON=/path/to/python"; exit 1; }
	@set -- $${CXX:-c++}; command -v $$1 > /dev/null || { echo "make: there is no C++ compiler (Debian, Ubuntu: apt install g++), or name one in CXX."; exit 1; }
	@test -x $(VENV)/bin/python || { echo "making an environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing $(TORCH) and the tools"
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) '$(TORCH)' $(PACKAGES)
	@printf '%s\n' '$(TORCH) $(PACKAGES)' > $(VENV)/.installed

build: environment  ## compile the extension in place (again only what changed)
	@mkdir -p build
	@$(RUN) setup.py -q build_ext --inplace > build/log 2>&1 $(LOGGED)
	@grep '^gelu_ext:' build/log

demo: build  ## show it at work: train a small model with and without it
	@$(RUN) bench/demo.py $(ARGS)

test: build  ## the test suite
	@$(RUN) -m pytest $(ARGS)

# torchvision has no build for a CPU torch; timm imports it, and the tests give it the operators it misses.
models: environment  ## install the libraries that the tests of patch() and of export use (they skip without)
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) $(if $(strip $(VENV)),'$(TORCH)') $(call extra,models)
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps timm torchvision

sweep: build  ## every float32 between 2^-6 and 16, every activation, every instruction set of this processor
	@$(RUN) -m pytest -m sweep $(ARGS)

bench: build  ## time it against eager and compiled torch on this machine
	@$(RUN) bench/bench.py $(ARGS)

experiments: build  ## activations, gates and regularisers at small scale, five seeds each (ten minutes)
	@$(call also,experiments)
	@$(RUN) bench/activations.py $(ARGS)

accuracy: build  ## error of every activation and dtype against float64
	@$(call also,accuracy)
	@$(RUN) bench/accuracy.py $(ARGS)

fit-check: environment  ## the polynomials in csrc are what the fit gives
	@$(RUN) csrc/fit/fit.py --check $(ARGS)

numerics: environment  ## the mathematics alone, exhaustively: every instruction set and a model of the device's arithmetic
	@$(RUN) tests/native/run_accuracy.py $(ARGS)

cross-compile: environment  ## the CPU kernels for aarch64 and by clang, whichever compiler is installed
	@$(RUN) tests/native/cross_compile.py $(ARGS)

emulate: environment  ## run the CUDA kernels on the CPU, under sanitizers (no GPU, no CUDA toolkit)
	@$(RUN) tests/cuda/run_emulated.py $(ARGS)

emulate-suite: environment  ## the tests of the package on the CUDA kernels, run on the CPU (no GPU, no CUDA toolkit)
	@$(RUN) tests/cuda/emulated_suite.py $(ARGS)

cuda-compile: environment  ## compile the CUDA kernels for every architecture (CUDA toolkit, no GPU)
	@$(RUN) tests/cuda/compile.py $(ARGS)

budgets: environment  ## count the instructions of the CUDA kernels (CUDA toolkit, no GPU)
	@$(call also,budgets)
	@$(RUN) tests/cuda/budgets.py $(ARGS)

cuda-link: environment  ## build, link and import the extension with CUDA (CUDA toolkit; no GPU, any torch)
	@mkdir -p build
	@GELU_EXT_CUDA=link TORCH_CUDA_ARCH_LIST='$(or $(TORCH_CUDA_ARCH_LIST),9.0+PTX)' $(RUN) setup.py -q build \
	  --build-base build/cuda --build-lib build/cuda/lib > build/log 2>&1 $(LOGGED)
	@$(RUN) -c 'import sys; sys.path[0] = "build/cuda/lib"; import gelu_ext; print(gelu_ext.build_info()); \
	  sys.exit(not gelu_ext._native.with_cuda)'

gpu:  ## everything that needs a GPU, with PYTHON's own environment (its torch, nothing installed)
	@$(PYTHON) bench/gpu.py $(ARGS)

CPP_FILES = find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh'

lint: environment  ## formatting and errors that can be seen without running
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy --strict tests/typing/user.py
	@$(CPP_FILES) | xargs $(CLANG_FORMAT) --dry-run -Werror

format: environment  ## format all sources
	@$(RUN) -m ruff check --fix --quiet . ; $(RUN) -m ruff format .
	@$(CPP_FILES) | xargs $(CLANG_FORMAT) -i

wheel: environment  ## a wheel and a source distribution in dist/
	@rm -rf build/lib.*  # setuptools would pack what an older state of the sources left there
	@$(RUN) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@$(RUN) setup.py -q sdist
	@ls -l dist

matrix:  ## install it in every way, in clean environments, for every Python and torch that are to be had
	@TORCH='$(TORCH)' $(PYTHON) tests/matrix.py $(ARGS)

clean:  ## remove what was built (not the environment)
	@rm -rf build dist *.egg-info gelu_ext/_C*.so .pytest_cache .ruff_cache
	@find . -name __pycache__ -not -path './$(or $(strip $(VENV)),.venv)/*' -prune -exec rm -rf {} +
