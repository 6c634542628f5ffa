# The two commands of a newcomer: `make demo` and `make test`. The rest is CMake's (see CMakePresets.json).
.PHONY: all build debug asan tsan demo test test-vm bench clean

all: build

build:
	@tools/setup build
	@cmake --preset release >/dev/null && cmake --build --preset release

debug asan tsan:
	@tools/setup build
	@cmake --preset $@ >/dev/null && cmake --build --preset $@

demo: build
	@tools/setup demo
	@tools/demo

test: build
	@tools/setup build test
	@tests/run $(TESTS)

test-vm: build
	@tools/setup build test vm
	@tests/vm/run $(KERNEL)

bench: build
	@tools/setup build bench
	@bench/run

clean:
	@rm -rf build
