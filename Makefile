# Everything here works on a fresh machine with Python 3.11 to 3.13; set PYTHON to choose one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check format lock weights bench bench-pipeline bench-engine bench-read-ahead bench-host bench-gpu bench-approximate bench-exact bench-bf16 bench-half bench-passes bench-memory \
  bench-limits bench-scaling bench-precision bench-vocabulary bench-trust bench-promise bench-decoder bench-planning bench-incremental fuzz photos \
  chaos cluster-test soak ablations clean

demo: $(INSTALLED)  ## scenes -> labels -> figures -> one HTML page; ends with one line of JSON
	@$(BIN)/segmill demo --output demo

test: $(INSTALLED)  ## the whole test suite
	@$(BIN)/python -m pytest

check: $(INSTALLED)  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

weights: $(INSTALLED)  ## train the embedded tiny models again, from nothing
	$(BIN)/python -m jobs.train_embedded --seed 0 --output pipeline/embedded

bench-exact: $(INSTALLED)  ## the exact path against an eager loop, stage by stage (needs the sample data)
	@$(BIN)/python -m tests.bench.exact_path

bench-bf16: $(INSTALLED)  ## both networks in bf16 against fp32, end to end (needs the sample data)
	@$(BIN)/python -m tests.bench.bf16

bench: $(INSTALLED)  ## the set of benchmarks, under 40 minutes; ends with one line of JSON
	@$(BIN)/python -m tests.bench

bench-pipeline: $(INSTALLED)  ## a run against its bare stages and against a plain Ray Data script
	@$(BIN)/python -m tests.bench.pipeline

bench-engine: $(INSTALLED)  ## images a second of the engine, with stages that do nothing
	@$(BIN)/python -m tests.bench.engine

bench-read-ahead: $(INSTALLED)  ## photos from a store that answers late (needs the sample data)
	@$(BIN)/python -m tests.bench.read_ahead

bench-host: $(INSTALLED)  ## what an image costs beside the networks (needs the sample data)
	@$(BIN)/python -m tests.bench.host

bench-limits: $(INSTALLED)  ## what our own design takes of one process: tasks, units, merging
	@$(BIN)/python -m tests.bench.limits

bench-scaling: $(INSTALLED)  ## what `simulate` says of two to four simulated nodes against runs on them
	@$(BIN)/python -m tests.bench.scaling

bench-gpu: $(INSTALLED)  ## bare stages and whole runs on one GPU (needs the sample data)
	@$(BIN)/python -m tests.bench.gpu

bench-approximate: $(INSTALLED)  ## one-pass, pooling, pruning against the exact path: cost, labels
	@$(BIN)/python -m tests.bench.approximate

bench-vocabulary: $(INSTALLED)  ## cost of an image with 10 to 1,000 names (needs the sample data)
	@$(BIN)/python -m tests.bench.vocabulary

bench-half: $(INSTALLED)  ## label agreement of bf16 and fp16 CLIP with fp32
	@$(BIN)/python -m tests.bench.half_precision

bench-trust: $(INSTALLED)  ## cost of margin, disagreement and stability in the label stage
	@$(BIN)/python -m tests.bench.trust

bench-promise: $(INSTALLED)  ## how well they tell right from wrong segments, and whether promises are kept
	@$(BIN)/python -m tests.bench.promise

bench-passes: $(INSTALLED)  ## what a CPU saves with a few images at a time through its networks
	@$(BIN)/python -m tests.bench.passes

bench-memory: $(INSTALLED)  ## peak memory of 200 and of 2,000 images
	@$(BIN)/python -m tests.bench.memory

bench-precision: $(INSTALLED)  ## label agreement of the mask precisions between the pools
	@$(BIN)/python -m tests.bench.mask_precision

bench-decoder: $(INSTALLED)  ## cost of decoding in a process of its own, draft JPEGs (needs the sample data)
	@$(BIN)/python -m tests.bench.decoder

fuzz: $(INSTALLED)  ## damaged image files for MINUTES; ends with one line of JSON
	@$(BIN)/python -m tests.fuzz.decode --minutes $(or $(MINUTES),30) --seed $(or $(SEED),0)

bench-planning: $(INSTALLED)  ## seconds and memory of planning ten thousand to ten million images
	@$(BIN)/python -m tests.bench.planning

bench-incremental: $(INSTALLED)  ## ten thousand images, 5 % bad; again; and with 1 % more
	@$(BIN)/python -m tests.bench.incremental

SCHEDULES ?= 20
SEED ?= 0
chaos: $(INSTALLED)  ## kill runs and fail their store by seeded schedules; ends with one line of JSON
	@$(BIN)/python -m tests.chaos --schedules $(SCHEDULES) --seed $(SEED)

cluster-test: $(INSTALLED)  ## runs on simulated clusters of several nodes; ends with one line of JSON
	@$(BIN)/python -m tests.cluster

soak: $(INSTALLED)  ## an hour (MINUTES) of scheduled runs on a changing bucket, with kills; ends with JSON
	@$(BIN)/python -m tests.cluster.soak --minutes $(or $(MINUTES),60) --seed $(or $(SEED),0)

ablations: $(INSTALLED)  ## the paper's claims on synthetic scenes, three seeds; ends with one line of JSON
	@$(BIN)/python -m tests.bench.ablations

photos: $(INSTALLED)  ## real photos from and to a real S3 server (needs the sample data)
	@$(BIN)/python -m tests.bench.photos

lock: $(INSTALLED)  ## write the versions that are installed; torch itself pins its CUDA packages
	$(BIN)/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9_.-]+==' \
	  | grep -Ev '^(cuda-|nvidia-|triton)' > requirements.lock

$(INSTALLED): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev,cluster,readers]'
	@touch $@

clean:
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
