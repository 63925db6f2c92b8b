# The verbs of this repository; CI calls the same ones. `make help` lists them.
# Needs python3 (>= 3.11) and git. Everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# A virtual environment that happens to be active is not ours to use.
unexport VIRTUAL_ENV
# Set in many container images. Then every command of every test would compile the whole SDK anew, which doubles its time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test prove lint format bench chaos clean

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/ready  ## render a project and talk to its agent in two processes (BACKEND=postgres|redis|supabase)
	@$(BIN)/python scripts/demo.py --backend $(or $(BACKEND),postgres)

test: lint  ## run all tests: the template, and every rendered project's own on a real server
	$(BIN)/python -m pytest -n 2 --maxschedchunk 1 --durations=12

prove: .venv/ready  ## run proof/ on one backend (BACKEND=postgres|redis|supabase, ENCRYPTION=true, WEB=true, NEWEST=true; ONLY=word for some files) or on your PROJECT=../my-agent
	@$(BIN)/python scripts/prove.py $(or $(BACKEND),postgres) $(if $(ONLY),--only $(ONLY)) $(if $(ENCRYPTION),--encryption) $(if $(WEB),--web) $(if $(NEWEST),--newest) $(if $(PROJECT),--project $(PROJECT))

lint: .venv/ready  ## check style and types of this repository
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready  ## format this repository
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/ready  ## compare speed with the SDK's sessions and the bare driver (some minutes; best on a quiet machine; BACKEND=… for one, ITEMS=… for a store of many)
	@$(BIN)/python scripts/bench.py $(BACKEND) $(if $(ITEMS),--items $(ITEMS))

chaos: .venv/ready  ## break real servers 200 times while sessions are written; nothing may be lost (2 minutes; BACKEND=… for one)
	@$(BIN)/python scripts/chaos.py $(BACKEND)

clean:  ## remove what the verbs made
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache

.venv/ready: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 …"; exit 1; }
	@$(PYTHON) -m venv --clear .venv || \
		{ echo "python3 cannot make virtual environments here. On Debian: apt-get install python3-venv"; exit 1; }
	@command -v uv > /dev/null || $(BIN)/pip install --quiet --disable-pip-version-check uv
	@uv pip install --quiet --python $(BIN)/python -r requirements-dev.txt
	@touch $@
