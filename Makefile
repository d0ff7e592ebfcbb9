# make demo: digits, from images to report. make test: all tests. ACCEL=cuda13 installs JAX for GPUs.
PYTHON ?= python3
ACCEL ?= cpu
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := $(if $(filter cpu,$(ACCEL)),requirements.txt,requirements-cuda.txt)
ifeq ($(filter cpu cuda13,$(ACCEL)),)
$(error ACCEL is "$(ACCEL)"; takes cpu or cuda13 (for CUDA 12, see requirements-cuda.txt))
endif
# One install a set of requirements: the stamp is newer than what it was made from.
STAMP := $(VENV)/.installed-$(ACCEL)
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: demo test lint clean

demo: $(STAMP)
	$(BIN)/python -m lt_jax.main --config=configs/digits.py --workdir=runs/demo

test: $(STAMP) $(DEV_STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart=0

lint: $(DEV_STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12) and "lt_jax needs Python 3.11 or 3.12: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(STAMP): requirements.txt $(REQUIREMENTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	touch $@

$(DEV_STAMP): requirements.txt requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) runs
