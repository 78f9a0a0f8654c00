# make demo         the whole method on text that every installation carries
# make test         the tests, with the parity tests against transformers
# make test-all     those that take minutes, and sweeps: after `make test`
# make test-jax     what measures accelerators and runs on GPUs, under newer JAX
# make lint         what CI says of the code's form; make format mends it
# make bench        the head against plain logits; others: see BUILD.md
# make docs         the documentation as a site, in site/
# make notebook     runs it and stores its outputs; TEACHER=folder or hub id
# make tpu-scoring  compiles scoring for TPUs; make tpu-training likewise
# make lock         resolves the lock files anew
# make clean        removes .venv, runs/ and what was built
#
# Everything is installed into .venv from the lock files; nothing else is used.
# After `. .venv/bin/activate`: miniplm --help.

BIN := .venv/bin
# What .venv was made of, once there is one.
PYTHON ?= $(shell command -v $(BIN)/python || command -v python3.11 \
  || echo python3)
# --no-deps: the lock is complete, and names tensorflow-cpu for tensorflow.
INSTALL := $(BIN)/uv pip install --python $(BIN)/python --no-deps --quiet \
  --compile-bytecode

.PHONY: help demo test test-all test-jax python312 lint format bench docs notebook tpu-scoring \
  tpu-training lock clean interpreter

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

demo: .venv/installed
	$(BIN)/python -m miniplm_jax.main --config=configs/demo.py

PYTEST = TPU_LIBRARY_PATH=$(LIBTPU) CUDA_COMPILER=$(CUDA) \
  $(BIN)/python -m pytest -n auto --maxprocesses 4 \
  --dist loadgroup --no-loadscope-reorder
test: .venv/installed-dev
	$(PYTEST) -m "not long"

# With all of XLA's optimizations, which the tests otherwise leave out.
test-all: .venv/installed-dev
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m "long or bits"

# jax 0.11 and 0.12 want Python 3.12. As on a CUDA image: no TensorFlow.
JAXES := 0.11.2 0.12.0.1
PYTHON312 ?= $(shell for p in python3.12 \
  $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.12*/bin/python3.12; do \
  $$p -c '' 2>/dev/null && echo $$p && break; done)
python312: # says where it is, if it is
	@[ "$(PYTHON312)" ] && echo "$(PYTHON312)"

EMPTY :=
BARE := .venv/bare/jax-$(subst $(EMPTY) ,-,$(JAXES))-installed
test-jax: $(BARE)
	for v in $(JAXES); do JAX_PLATFORMS=cpu PYTHONPATH=.:.venv/bare/jax-$$v \
	  .venv/bare/bin/python -m pytest tests/test_accelerator.py \
	  tests/test_gpu.py || exit 1; done

$(BARE): tests/bare-image.txt | .venv/installed-dev
	@[ "$(PYTHON312)" ] || { echo "error: no Python 3.12 here: make test-jax \
	PYTHON312=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON312) -m venv .venv/bare
	$(BIN)/uv pip install --quiet --python .venv/bare/bin/python --no-deps \
	  -r tests/bare-image.txt
	for v in $(JAXES); do $(BIN)/uv pip install --quiet --no-deps \
	  --python .venv/bare/bin/python --target .venv/bare/jax-$$v \
	  jax==$$v jaxlib==$$v || exit 1; done
	.venv/bare/bin/python -m pip install --quiet torch==2.13.0
	.venv/bare/bin/python -m pip uninstall --yes --quiet triton
	touch $@

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: .venv/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/installed
	$(BIN)/python -m benchmarks.head

# The variable leaves out a notice: Material for MkDocs is maintained until May
# 2027, and Zensical is to follow it.
docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

NOTEBOOK := notebooks/miniplm_tpu_demo.ipynb
notebook: .venv/installed-dev
	$(BIN)/python -m notebooks.execute --out=$(NOTEBOOK) \
	  $(if $(TEACHER),--set=TEACHER=$(TEACHER))

tpu-scoring: .venv/installed-dev
	TPU_LIBRARY_PATH=$(LIBTPU) $(BIN)/python -m benchmarks.tpu_scoring

tpu-training: .venv/installed-dev
	TPU_LIBRARY_PATH=$(LIBTPU) $(BIN)/python -m benchmarks.tpu_training

# Asked each time: tests of an older .venv would pass for those of PYTHON.
VERSION = -c 'import sys; print("%d.%d" % sys.version_info[:2])'
interpreter:
	@v=$$($(PYTHON) $(VERSION) 2>/dev/null) || { echo "error: $(PYTHON) does \
	not run (a shim of pyenv?): make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	case $$v in 3.11|3.12) ;; *) echo "error: Python $$v, $(PYTHON), use 3.11 \
	or 3.12: make PYTHON=python3.11" >&2; exit 1;; esac; \
	old=$$($(BIN)/python $(VERSION) 2>/dev/null) || old=$$v; \
	[ $$old = $$v ] || { echo "error: .venv is of Python $$old, $(PYTHON) is \
	$$v: make clean" >&2; exit 1; }

.venv/installed: requirements-lock.txt pyproject.toml | interpreter
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv==0.13.9
	$(INSTALL) -r requirements-lock.txt
	$(INSTALL) --editable .
	touch $@

# libtpu compiles for TPUs that are not here. It stands apart: JAX looks for
# TPUs in every process of an environment that has it. There is none for Macs.
LIBTPU := $(CURDIR)/.venv/libtpu/libtpu/libtpu.so
# The versions are those that jax[tpu] of the lock asks for.
LIBTPUS := "libtpu==0.0.42.1 ; python_full_version < '3.12'" \
  "libtpu==0.0.50.1 ; python_full_version >= '3.12'"
# XLA's compiler for NVIDIA GPUs with CUDA's assembler, apart for the same reason.
CUDA := $(CURDIR)/.venv/cuda
CUDAS := $(foreach p,pjrt plugin, \
  "jax-cuda13-$p==0.10.2 ; python_full_version < '3.12'" \
  "jax-cuda13-$p==0.12.0.1 ; python_full_version >= '3.12'") \
  "nvidia-cuda-nvcc==13.0.*" "nvidia-nvvm==13.0.*"
# torch by pip: its CPU wheel may lie where uv does not look. Another brings
# triton, whose LLVM and TensorFlow's crash in one process.
.venv/installed-dev: .venv/installed requirements-dev-lock.txt
	$(INSTALL) -r requirements-dev-lock.txt
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip uninstall --yes --quiet triton
	$(INSTALL) accelerate==1.15.0
	[ "$$(uname -sm)" != "Linux x86_64" ] || { $(BIN)/uv pip install --quiet \
	  --python $(BIN)/python --no-deps --target .venv/libtpu $(LIBTPUS) && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps \
	  --target $(CUDA) $(CUDAS); }
	touch $@

# Resolve anew; commit what changes. tensorflow-text asks for tensorflow, whose
# CPU wheel is half the size and the same code here.
X86 := platform_machine == "x86_64" and sys_platform == "linux"
NOT_X86 := platform_machine != "x86_64" or sys_platform != "linux"
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 \
  --no-annotate --no-header --quiet --upgrade
lock: .venv/installed
	echo 'tensorflow==2.21.*; $(NOT_X86)' > .venv/overrides.txt
	echo 'tensorflow-cpu==2.21.*; $(X86)' > .venv/cpu.in
	$(COMPILE) --override .venv/overrides.txt --extra gcs --extra seqio pyproject.toml \
	  .venv/cpu.in -o requirements-lock.txt
	$(COMPILE) --constraint requirements-lock.txt requirements-dev.in \
	  -o .venv/dev.txt
	grep -vxFf requirements-lock.txt .venv/dev.txt > requirements-dev-lock.txt

clean:
	rm -rf .venv runs build site *.egg-info .pytest_cache .ruff_cache
