# `make` lists the targets. uv makes the environment by itself.
.DEFAULT_GOAL := help
.PHONY: help check lint types contracts test torture audit bench bench-quick bench-recipe

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

check: lint types contracts  ## what must pass before every commit: lint, types, import contracts, fast tests
	uv run pytest -q -m "not slow"

lint:  ## style and format
	uv run ruff check .
	uv run ruff format --check .

types:  ## types
	uv run basedpyright

contracts:  ## who may import whom
	uv run lint-imports

test:  ## every test
	uv run pytest

torture:  ## 100 kills of the pipeline at random moments, 100 disks that run full anywhere; an hour
	CIFARFLOW_KILLS=100 CIFARFLOW_KILLS_SEED=$$(date +%s) uv run pytest -n0 -s tests/pipeline/test_kills.py
	CIFARFLOW_DISKS=20 CIFARFLOW_KILLS_SEED=$$(date +%s) uv run pytest -n0 -q tests/pipeline/test_pipeline.py -k "every_stage or full"

audit:  ## known advisories of every package, from the public database OSV; the one left out: docs/reliability.md
	uv audit --ignore-until-fixed GHSA-w8v5-vhqr-4h9v --ignore-until-fixed PYSEC-2026-2447

bench:  ## every benchmark, about half an hour on 2 cores; writes docs/benchmarks.md
	uv run python -m benchmarks

bench-quick:  ## those of speed and memory with few rounds, under 5 minutes on 2 cores; writes docs/benchmarks.md and says so
	uv run python -m benchmarks --quick

bench-recipe:  ## seconds of the default recipe over those of the public 94 % record, steps alternating
	uv run python -m benchmarks.recipe_time
