# make demo: from nothing to a trained adapter and its report. make test: lint, types, tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL_DIR ?= runs/mini
STAMP := $(VENV)/.installed
RUN := --gin_file=experiments/mini.gin --gin.MODEL_DIR="'$(MODEL_DIR)'"
SAMPLE := slm_jax/assets/mini/sample.jsonl

.PHONY: setup demo test lint golden study clean

setup: $(STAMP)

$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[mini]"
	touch $@

# The tests' extra holds torch: the independent reference that parity tests compare with.
# xpk is there for its parser, in a folder of its own: it pins other versions than ours of packages that both need.
$(VENV)/.installed-test: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[mini,test]"
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/xpk "xpk==$$(sed -n 's/^xpk==//p' constraints.txt)"
	touch $@

demo: $(STAMP)
	$(BIN)/slm_jax train $(RUN)
	$(BIN)/slm_jax infer --model_dir=$(MODEL_DIR) --requests=$(SAMPLE) --output=$(MODEL_DIR)/answers.jsonl
	cat $(MODEL_DIR)/answers.jsonl
	$(BIN)/slm_jax eval $(RUN) --answers=$(MODEL_DIR)/answers.jsonl

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Files in the order of tests/conftest.py: pytest-xdist's own begins with those of the most tests, not the longest.
test: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

golden: $(STAMP)
	$(BIN)/python benchmarks/golden.py --model_dir $(MODEL_DIR)

study: $(STAMP)
	$(BIN)/python -m benchmarks.study

clean:
	rm -rf $(VENV) build *.egg-info
