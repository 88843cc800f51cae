# Two commands do all set-up on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv
export UV_PYTHON_DOWNLOADS = never
export UV_SYSTEM_CERTS = true
export LITELLM_LOCAL_MODEL_COST_MAP = True
ARGS ?=

.PHONY: run demo test check lint types imports
.PHONY: test-vllm docs lock audit clean
.PHONY: bench-deciding bench-fleet bench-guarantee
.PHONY: bench-gateway
.PHONY: bench-routing
.PHONY: bench-attribution

run: $(VENV)/run.done  ## serve on http://127.0.0.1:4000
	$(PY) -m proxy serve $(ARGS)

demo: $(VENV)/run.done  ## simulated engines with sample traffic
	$(PY) -m proxy demo $(ARGS)

test: $(VENV)/dev.done check  ## everything: lint, types, import contracts, tests
	$(PY) -m tests.prepare
	$(PY) -m tests $(ARGS)

check: lint types imports

lint: $(VENV)/dev.done
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/dev.done
	$(PY) -m mypy

imports: $(VENV)/dev.done
	$(VENV)/bin/lint-imports

test-vllm: $(VENV)/dev.done  ## against vLLM itself, on the CPU
	$(PY) -m tests.prepare --vllm
	$(PY) -m pytest -m vllm tests/test_vllm.py $(ARGS)

bench-guarantee: $(VENV)/dev.done  ## whether promised average quality is kept, on recorded outcomes
	$(PY) -m benchmarks.guarantee $(ARGS)

bench-deciding: $(VENV)/dev.done  ## CPU time of one decision among twenty candidates
	$(PY) -m benchmarks.deciding $(ARGS)

bench-fleet: $(VENV)/dev.done  ## fleet energy by routing rule, on simulated engines
	$(PY) -m benchmarks.fleet $(ARGS)

.PHONY: bench-replay
bench-replay: $(VENV)/dev.done  ## time of replaying a month of a million requests
	$(PY) -m benchmarks.replay $(ARGS)

bench-gateway: $(VENV)/dev.done  ## what a request costs, beside other gateways
	$(PY) -m benchmarks.gateway $(ARGS)

docs: $(VENV)/dev.done  ## write the pages that are generated
	$(PY) -m proxy.settings_page > docs/settings.md
	$(PY) -m proxy.openapi > docs/openapi.json

audit: $(VENV)/bin/uv  ## known vulnerabilities of what is pinned; asks a service on the network
	$(UV) tool run pip-audit --strict --require-hashes --disable-pip -r requirements.lock
	$(UV) tool run pip-audit --strict --require-hashes --disable-pip -r requirements-dev.lock

lock:  ## pin what the project depends on, with hashes and without hosts
	$(UV) pip compile pyproject.toml --no-header --no-annotate --generate-hashes -q -o requirements.lock
	$(UV) pip compile pyproject.toml --group dev --no-header --no-annotate --generate-hashes -q -o requirements-dev.lock

$(VENV)/bin/uv:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 14) else "Joulegate needs Python 3.11 to 3.13; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12 run")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv

# The development environment holds everything that running needs, so that
# `make run` after `make test` does not take it apart again.
$(VENV)/run.done: requirements.lock | $(VENV)/bin/uv
	test -f $(VENV)/dev.done || $(UV) pip install --quiet --require-hashes -r requirements.lock
	$(UV) pip install --quiet --no-deps -e .
	touch $@

$(VENV)/dev.done: requirements-dev.lock | $(VENV)/bin/uv
	$(UV) pip install --quiet --require-hashes -r requirements-dev.lock
	$(UV) pip install --quiet --no-deps -e .
	touch $@ $(VENV)/run.done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

bench-attribution: $(VENV)/dev.done  ## attributed against true energy, on the simulated engine
	$(PY) -m benchmarks.attribution $(ARGS)
	$(PY) -m benchmarks.attribution --taught $(ARGS)

# Where published measurements lie; nothing of the product needs them.
DATA ?= ../shared/data
.PHONY: fit-energy-prior
fit-energy-prior: $(VENV)/dev.done  ## fit estimators/energy_prior.json again (minutes)
	$(PY) -m benchmarks.fit_energy_prior $(DATA) --out estimators/energy_prior.json

.PHONY: fit-rice
fit-rice: $(VENV)/dev.done  ## fit estimators/rice.json again
	$(PY) -m benchmarks.fit_rice $(DATA) --out estimators/rice.json

bench-routing: $(VENV)/dev.done  ## quality and length prediction against the controls
	$(PY) -m benchmarks.routing $(ARGS)

.PHONY: bench-estimators
bench-estimators: $(VENV)/dev.done  ## held-out errors, feedback, speed, published against predicted
	$(PY) -m benchmarks.estimators $(DATA) $(ARGS)
