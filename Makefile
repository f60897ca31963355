# Two commands set up everything on a fresh machine, as root: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help demo test test-long bench chaos protos clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

demo: ## a whole mesh on this machine, told and checked; then everything is removed (ARGS="--keep")
	@env=$$(packaging/dev/setup demo); eval "$$env"; meshagent demo $(ARGS)

test: ## every test (ARGS="-k capture"): static checks, unit tests and tests in network namespaces
	@env=$$(packaging/dev/setup test); eval "$$env"; tests/run $(ARGS)

test-long: ## minutes, not seconds: long durations, other kernels, cold builds; each part is told (ARGS="-k capture")
	@env=$$(packaging/dev/setup long); eval "$$env"; tests/run-long $(ARGS)

bench: ## what it costs: writes the table in docs/performance.md (ARGS="--quick" to see that it runs)
	@env=$$(packaging/dev/setup bench); eval "$$env"; python -m tests.bench $(ARGS)

chaos: ## every fault in a mesh of six hosts under load, and a table of what its users saw (ARGS="--seed 1 --rounds 2")
	@env=$$(packaging/dev/setup test); eval "$$env"; unshare --net python -m tests.chaos $(ARGS)

protos: ## generate meshagent/protocol/pb again from the .proto files
	@env=$$(packaging/dev/setup test); eval "$$env"; python packaging/dev/protos.py

clean: ## remove caches inside the clone
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
