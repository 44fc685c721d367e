# The developer's loop; CONTRIBUTING.md explains it. `make setup` once, then `make build`, `make test T=...`,
# `make cpp T=...`. One build folder holds the editable install and the C++ tests.
PYTHON ?= python3
VENV ?= .venv
BUILD ?= build/dev
# What to test: a path or any arguments of pytest for `test`; a folder of tests/cpp for `cpp` (pool: its root),
# and F, a filter of GoogleTest.
T ?=
F ?= *

# Absolute, because pip and cmake run from other folders.
bin := $(abspath $(VENV))/bin
export PATH := $(bin):$(PATH)

.PHONY: setup build test cpp asan tsan lint format bench docs clean
.DEFAULT_GOAL := build

setup:
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	pip install -q --disable-pip-version-check 'scikit-build-core>=0.11' 'cython>=3.1' 'numpy>=2.0' cmake ninja
	pip install -q --disable-pip-version-check --no-build-isolation \
	  -Cbuild-dir=$(BUILD) -Ccmake.define.SLABPOOL_BUILD_TESTS=ON -Ccmake.define.SLABPOOL_WERROR=ON -e '.[dev]'
	ln -sf $(BUILD)/compile_commands.json compile_commands.json

# Builds what changed and puts it where the editable install looks. A new Python file needs nothing; a new .pyx
# needs `make setup`, which tells the import hook of its module.
build:
	@test -e $(BUILD)/build.ninja || { echo "no build folder $(BUILD): run 'make setup'"; exit 1; }
	@cmake --build $(BUILD) --target slabpool_package
	@cmake --install $(BUILD) --prefix "$$($(bin)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')" \
	  >/dev/null

test: build
	python -m pytest -q $(T)

ifeq ($(T),)
cpp:
	cmake --build $(BUILD)
	ctest --test-dir $(BUILD) --output-on-failure --no-tests=error -j $$(nproc)
else
cpp:
	@cmake --build $(BUILD) --target $(T)_tests
	$(BUILD)/tests/cpp/$(T)_tests --gtest_brief=1 --gtest_filter='$(F)'
endif

# ThreadSanitizer needs a fixed layout of memory on some kernels.
asan tsan:
	cmake --preset $@
	cmake --build --preset $@
	setarch $$(uname -m) -R ctest --preset $@ -j $$(nproc)

lint:
	.ci/lint

format:
	ruff check --fix --exit-zero .
	ruff format .
	find csrc tests benchmarks cmake \( -name '*.hpp' -o -name '*.cpp' -o -name '*.h' -o -name '*.c' \) -print0 | \
	  xargs -0 clang-format -i

# Counts instructions of a release build, which the editable install is not.
bench:
	.ci/run budget

docs:
	python .ci/check_links.py

clean:
	rm -rf build compile_commands.json
