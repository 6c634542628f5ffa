# The two commands of a newcomer: `make demo` and `make test`. The rest is CMake's (see CMakePresets.json).
.PHONY: all build debug asan tsan demo test test-vm bench bench-vm kernel vm-test vm-demo clean

all: build

build:
	@tools/setup build
	@cmake --preset release >/dev/null && cmake --build --preset release

debug asan tsan:
	@tools/setup build
	@cmake --preset $@ >/dev/null && cmake --build --preset $@

demo:
	@tools/setup build demo
	@cmake --preset release >/dev/null && cmake --build --preset release --target mprox
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

# The kernel with the system call: KERNEL=6.12 (or 6.1), ARCH=x86_64 (or arm64), DEBUG=1 with KASAN and lockdep.
kernel_options = $(or $(KERNEL),6.12) $(if $(ARCH),--arch $(ARCH)) $(if $(DEBUG),--debug)

kernel:
	@tools/setup kernel $(if $(filter arm64,$(ARCH)),arm64)
	@kernel/vm/build $(kernel_options)

vm-test: build
	@tools/setup build test vm kernel $(if $(filter arm64,$(ARCH)),arm64)
	@$(if $(filter arm64,$(ARCH)),cmake --preset arm64 >/dev/null && cmake --build --preset arm64)
	@kernel/vm/test $(kernel_options) $(TESTS)

# What the kernel's handshake costs beside a program's own: measured under QEMU, a table as `make bench` prints.
bench-vm:
	@tools/setup build bench vm kernel
	@cmake --preset release >/dev/null && cmake --build --preset release --target mprox mprox_kernel bench_load
	@kernel/vm/bench $(or $(KERNEL),6.12)

# A transcript: build, load the module, make a descriptor, read the log, unload.
vm-demo: build
	@tools/setup build vm kernel
	@kernel/vm/demo $(or $(KERNEL),6.12)

clean:
	@rm -rf build
