# SPDX-License-Identifier: GPL-2.0-only
#
# presnap: see README.md; `make help` lists what can be made. The work is done by scripts/.

.DEFAULT_GOAL := help
.PHONY: help sysroot kdir module clippy-module userspace clippy-userspace fmt check-fmt test test-debug unit-test fuzz vm-test kill-test test-deep demo bench clean distclean-cache
MAKEFLAGS += --no-builtin-rules

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  KDIR=DIR            a kernel build directory with Rust metadata, for module"
	@echo "  PRESNAP_CACHE=DIR   where the big things lie (~/.cache/presnap)"
	@echo "  PRESNAP_MIRROR=URL  the Debian mirror to use"

sysroot: ## the Debian root with toolchain, kernel, QEMU and the guest's programs
	@scripts/sysroot

kdir: ## the kernel build directory with Rust metadata
	@scripts/kdir

module: ## the kernel module: build/module/dm-presnap.ko [KDIR=...]
	@scripts/module $(KDIR)

clippy-module: ## lint the kernel module
	@scripts/module --clippy $(KDIR)

userspace: ## the presnap command and its companions
	@scripts/userspace build

clippy-userspace: ## lint the userspace workspace
	@scripts/userspace clippy

fmt: ## format all Rust files
	@scripts/fmt

check-fmt: ## fail if a Rust file is not formatted
	@scripts/fmt --check

unit-test: ## the tests that need no kernel
	@scripts/userspace test

fuzz: ## fuzzing, with what was found before [MINUTES=10] [TARGET=...]
	@scripts/fuzz $(or $(MINUTES),10) $(TARGET)

vm-test: module userspace ## the scenarios in the VM [SCENARIOS="name ..."]
	@qemu-test/run $(SCENARIOS)

kill-test: module userspace ## QEMU killed while presnap writes, and started again [KILLS=2]
	@qemu-test/killed $(KILLS)

test: ## everything: format, lints, unit tests, module, VM scenarios
	@scripts/test

test-deep: ## what takes hours: a million crash points, every point of a log, 100 kills, long fuzzing [DEEP_PARTS=...]
	@scripts/test-deep

test-debug: ## the scenarios on a kernel with KASAN, lockdep and fault injection [SCENARIOS="name ..."]
	@scripts/test-debug $(SCENARIOS)

demo: module userspace ## the main job in a VM: PostgreSQL on presnap, snapshots, a replica
	@scripts/demo

bench: module userspace ## the benchmarks, in virtual time
	@scripts/bench

clean: ## remove build/
	rm -rf build

distclean-cache: ## remove the cache too: sysroot, kernel directory, images
	@scripts/distclean-cache
