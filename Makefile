# The README's commands. Each does its own set-up, in .venv of this checkout.
.PHONY: demo test chaos lint bench picture docs clean

PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
BIN := .venv/bin

demo: .venv/ready
	$(BIN)/atomizer-dask pi --tosses 1e9 --seed 7

test: .venv/ready
	$(BIN)/python -m pytest $(ARGS)

chaos: SEEDS ?= 50
chaos: .venv/ready
	ATOMIZER_CHAOS_SEEDS=0-$$(($(SEEDS) - 1)) $(BIN)/python -m pytest tests/test_chaos.py $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready
	$(BIN)/python -m pip install --quiet --requirement benchmarks/requirements.txt
	$(BIN)/python -m benchmarks $(ARGS)

picture: .venv/ready
	$(BIN)/python tests/support/picture.py

docs: .venv/ready
	$(BIN)/python tests/support/configuration_page.py

.venv/ready: pyproject.toml
	$(if $(PYTHON),,$(error Python 3.11 or newer is needed: install it, or name it with make PYTHON=...))
	@echo "Setting up .venv with $$($(PYTHON) --version), once ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--editable ".[amqp,dev,hpc,plot,test,xarray]"
	@touch $@

clean:
	rm -rf .venv
