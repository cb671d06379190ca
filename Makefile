# make demo   build, start a server, compress a real cache, show what happened
# make test   build and run every test
# make help   the rest
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
JOBS ?= $(shell nproc)
# The libraries without gRPC: the distribution's gRPC is not instrumented, what it synchronises is
# invisible.
TSAN_TARGETS := tests_unit_kernels tests_unit_server_memory tests_unit_server_engine tests_parity
LINT ?= on
FUZZ_SECONDS ?= 20

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: deps
deps: ## install the Debian packages that are missing
	@deploy/install-packages.sh

build/%/build.ninja: CMakeLists.txt CMakePresets.json
	@cmake --preset $* -DKVERN_LINT=$(if $(filter cpu,$*),$(LINT),OFF) >build-$*.log 2>&1 || { cat build-$*.log; rm -f build-$*.log; exit 1; }
	@rm -f build-$*.log

.PHONY: build
build: deps ## build the product: build/cpu/kvernd and build/cpu/kvern
	@$(MAKE) --no-print-directory build/cpu/build.ninja
	@cmake --build --preset cpu -j $(JOBS)

.PHONY: demo
demo: deps ## a real server compresses a real cache
	@$(MAKE) --no-print-directory build/cpu/build.ninja
	@cmake --build --preset cpu -j $(JOBS) --target kvernd kvern
	@deploy/demo.sh build/cpu

.PHONY: test
test: build ## every test: sanitizers, fuzz targets, then the product's own
	@$(MAKE) --no-print-directory build/asan/build.ninja build/tsan/build.ninja
	@cmake --build --preset asan -j $(JOBS)
	@cmake --build --preset tsan -j $(JOBS) --target $(TSAN_TARGETS)
	@FUZZ_SECONDS=$(FUZZ_SECONDS) ctest --preset asan -j $(JOBS) -E '^lint'
	@ctest --preset tsan -j $(JOBS) -R '^tests/(unit/kernels|unit/server/(memory|engine)|parity)/'
	@ctest --preset cpu -j $(JOBS)

.PHONY: check
check: build ## the product's tests alone, without sanitizers and fuzzing
	@ctest --preset cpu -j $(JOBS)

.PHONY: python-test
python-test: deps ## the Python client with protobuf 4, 6 and 7, and with torch
	@$(MAKE) --no-print-directory build/cpu/build.ninja
	@cmake --build --preset cpu -j $(JOBS) --target kvernd kvern
	@client/python/tests/run.sh build/cpu/kvernd build/cpu/kvern build/cpu/python check protobuf4 protobuf7

.PHONY: engine-test
engine-test: deps ## Python beside real engines and a real model: transformers, kvpress, llama.cpp (2 GB of venvs, 15 minutes)
	@$(MAKE) --no-print-directory build/cpu/build.ninja
	@cmake --build --preset cpu -j $(JOBS) --target kvernd kvern
	@client/python/tests/llamacpp/run.sh build/cpu/kvernd build/cpu/kvern build/cpu/python
	@client/python/tests/with_transformers/run.sh build/cpu/kvernd build/cpu/kvern build/cpu/python

.PHONY: eval
eval: deps ## quality on text: MODEL=DIR TEXTS='A B' (EVAL='--smoke' for a random model in seconds); PYTHON has client/python[eval]
	@$(MAKE) --no-print-directory build/cpu/build.ninja
	@cmake --build --preset cpu -j $(JOBS) --target kvernd
	@$(or $(PYTHON),python3) -m kvern.program eval --kvernd build/cpu/kvernd --out build/cpu/quality \
	  $(if $(MODEL),--model $(MODEL) --text $(TEXTS)) $(EVAL)

.PHONY: bench
bench: deps ## measure ops and calls; JSON in build/cpu/bench.json, plot in docs/figures (BENCH='op/encode' for some, no plot)
	@$(MAKE) --no-print-directory build/cpu/build.ninja
	@cmake --build --preset cpu -j $(JOBS) --target kvern_bench
	@build/cpu/kvern_bench --benchmark_filter='$(or $(BENCH),.)' --benchmark_out=build/cpu/bench.json --benchmark_out_format=json >/dev/null
	@tests/bench/report.py build/cpu/bench.json $(if $(BENCH),,--plot docs/figures/bench.svg)

.PHONY: peers
peers: deps ## measure ops beside other tools; JSON in build/peers (PEERS=--quick for less)
	@$(MAKE) --no-print-directory build/cpu/build.ninja
	@cmake --build --preset cpu -j $(JOBS) --target kvern_rounds
	@tests/bench/peers/run.sh build/cpu $(PEERS)

.PHONY: gpu-check
gpu-check: deps ## on a machine with a GPU: parity, goldens, compute-sanitizer, measured times beside estimates
	@$(MAKE) --no-print-directory build/cuda/build.ninja
	@cmake --build --preset cuda -j $(JOBS) --target kvernd kvern tests_parity tests_golden gpu_bench
	@deploy/gpu_check.sh build/cuda

.PHONY: fuzz
fuzz: build ## fuzz every target for SECONDS each (default 600) and add what was found to the ledger
	@$(MAKE) --no-print-directory build/asan/build.ninja
	@cmake --build --preset asan -j $(JOBS)
	@tests/fuzz/ledger.sh build/asan $(or $(SECONDS_EACH),600)

.PHONY: lint
lint: deps ## layers, protos and formatting
	@tests/lint/layers.py
	@tests/lint/proto.sh
	@tests/lint/format.sh

.PHONY: format
format: ## apply .clang-format
	@git ls-files '*.h' '*.cc' | xargs clang-format-14 -i

.PHONY: clean
clean: ## remove build folders
	@rm -rf build
