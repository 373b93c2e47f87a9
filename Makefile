# On a fresh machine: `make demo` runs the main job end to end, `make test` passes the tests. Both set everything up.
SHELL := bash
PYTHON ?=
export PYTHON
PY := .venv/bin/python

.PHONY: help demo test lint unit integration e2e image bench scale drills gpu alerts-drill generated setup clean

help:  ## what there is to make
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## .venv from requirements.lock
	@ci/setup

demo: setup  ## real film → prepared data → training, killed once → S3 → verification → report
	@$(PY) ci/demo.py

test: setup  ## everything below, as CI runs it
	@ci/test

lint: setup  ## ruff, mypy strict, import layers, generated files
	@ci/lint

unit: setup  ## the quick tests
	@$(PY) -m pytest tests/unit

integration: setup  ## real S3 server, real processes, killed for real
	@$(PY) -m pytest tests/integration

e2e: setup  ## the demo in small, and a real Kubernetes cluster (root on Linux; builds it the first time)
	@ci/cluster build
	@$(PY) -m pytest tests/e2e

image: setup  ## the image, with Docker or, as root on Linux, with buildah (`ci/image --help` says more)
	@$(PY) ci/image build

bench: setup  ## giblet beside the bare tools, as ratios with their spread
	@$(PY) ci/bench.py

scale: setup  ## 1,024 ranks and 70 billion parameters, 128 workers, simulated: docs/scale.md (ARGS="--help")
	@PYTHONPATH=ci $(PY) -m scale $(ARGS)

drills: setup  ## breaks things for real on this machine and on a local cluster: a table of what was lost
	@$(PY) ci/drills/__main__.py --json out/drills.json --table out/drills.md

gpu: setup  ## the production model at full size on an 80 GB GPU
	@$(PY) ci/gpu.py

alerts-drill: setup  ## every alert made to fire by a real cause, with the rules' times shortened (15 minutes)
	@$(PY) -m tests.alertdrill

generated: setup  ## files generated from the schema
	@$(PY) ci/generated.py

clean:  ## remove what the demo and the tests made here
	rm -rf demo work out .pytest_cache .mypy_cache .ruff_cache .hypothesis
