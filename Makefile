PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

# Waiting OpenMP threads that spin make a shared machine several times slower.
export OMP_WAIT_POLICY        ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false
export MPLBACKEND             ?= Agg

.PHONY: demo test stress gpu install lint docs clean

demo: $(STAMP)
	$(PY) -m budgetlab demo

test: $(STAMP)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest -n 2

stress: $(STAMP)
	HF_HUB_OFFLINE=1 $(PY) -m pytest -m stress -s

# Into any environment that has torch for the GPU: nothing is installed.
gpu:
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py --out results/gpu

install: $(STAMP)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

docs: $(STAMP)
	$(PY) -m sphinx -q -W --keep-going -b html docs build/docs

# Everything goes through the constraints file: one known build of torch, no surprise gigabytes.
$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .ruff_cache .pytest_cache .hypothesis
