# Everything is built into build/, from three target directories, because cargo unites
# the features and flags of what one call builds:
#   target/           daemon, tests, runc's shim
#   target/static     programs that enter a pod: static, without a compiler, panic=abort
#   target/compiler   criw-compile, the only program with Cranelift in it
# The toolbox is no cargo build: Debian's rustc makes it, see engines/toolbox/build.sh.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# cargo and go use all cores themselves
.NOTPARALLEL:

PREFIX ?= /usr/local
DESTDIR ?=
# CI sets --locked: a lock file that does not fit is an error there
LOCKED ?=

BUILD := $(CURDIR)/build
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
BIN := $(BUILD)/bin
LIBEXEC := $(BUILD)/libexec/criw
TOOLS := $(BUILD)/tools
GUESTS := $(BUILD)/guests

# What tests, demo and bench run is what was built here.
export CRIW_BUILD_DIR := $(BUILD)
export CARGO_TARGET_DIR := $(TARGET)

TRIPLE := x86_64-unknown-linux-gnu
# Not position-independent: else each process writes 430 kB of addresses at its start, pages that all
# containers of the node share otherwise (docs/architecture.md).
STATIC_FLAGS := -C target-feature=+crt-static -C relocation-model=static -C panic=abort
STATIC := $(TARGET)/static
COMPILER := $(TARGET)/compiler
# sums up the steps of a test run
STEP := tests/scripts/test.sh

CRI_TOOLS := 1.36.0
KUBERNETES := 1.36.2
CARGO_DENY := 0.20.2

# -C: a binary that did not change keeps its time stamp
PUT := install -C -D -m 755

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

.PHONY: deps
deps: ## install what building and testing need (apt; nothing is removed, no service started)
	@tests/scripts/deps.sh

.PHONY: build
build: daemon shims guests crictl ## everything into build/

.PHONY: daemon
daemon: ## criw, runc's shim and the test tools
	cargo build --release $(LOCKED)
	$(PUT) $(TARGET)/release/criw $(BIN)/criw
	$(PUT) $(TARGET)/release/criw-shim-runc $(LIBEXEC)/criw-shim-runc
	$(PUT) $(TARGET)/release/criw-bench $(BIN)/criw-bench
	$(PUT) $(TARGET)/release/criw-critest $(TOOLS)/criw-critest
	$(PUT) $(TARGET)/release/push-image $(TOOLS)/push-image
	$(PUT) $(TARGET)/release/componentize $(TOOLS)/componentize

.PHONY: shims
shims: static compiler toolbox ## the Wasmtime shim, its compiler, the pod init, the toolbox

# --target keeps the flags away from build scripts and procedural macros.
# Link-time optimisation is for memory: a static program relocates itself, and each shim has
# its own copy of the pages that this writes: 484 kB of them, 864 without (measured).
.PHONY: static
static: export CARGO_PROFILE_RELEASE_LTO := fat
static: export CARGO_PROFILE_RELEASE_CODEGEN_UNITS := 1
static:
	RUSTFLAGS="$(STATIC_FLAGS)" cargo build --release $(LOCKED) --target-dir $(STATIC) --target $(TRIPLE) \
		-p criw-shim-wasmtime --bin criw-shim-wasmtime
	RUSTFLAGS="$(STATIC_FLAGS)" cargo build --release $(LOCKED) --target-dir $(STATIC) --target $(TRIPLE) \
		-p criw-init --bin criw-init
	$(PUT) $(STATIC)/$(TRIPLE)/release/criw-shim-wasmtime $(LIBEXEC)/criw-shim-wasmtime
	$(PUT) $(STATIC)/$(TRIPLE)/release/criw-init $(LIBEXEC)/criw-init

.PHONY: compiler
compiler:
	cargo build --release $(LOCKED) --target-dir $(COMPILER) \
		-p criw-shim-wasmtime --bin criw-compile --features compiler
	$(PUT) $(COMPILER)/release/criw-compile $(LIBEXEC)/criw-compile

.PHONY: toolbox
toolbox: ## the shell and tools for Wasm containers without, a WASI module
	engines/toolbox/build.sh $(LIBEXEC)/criw-toolbox.wasm

.PHONY: guests
guests: daemon ## the C guests of the tests and the demo
	tests/guests/build.sh $(GUESTS) $(TOOLS)/componentize

.PHONY: crictl
crictl: ## crictl of the pinned cri-tools
	cd critest && CGO_ENABLED=0 go build -buildvcs=false -trimpath -o $(TOOLS)/crictl \
		-ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$(CRI_TOOLS)" \
		sigs.k8s.io/cri-tools/cmd/crictl

.PHONY: critest-bin
critest-bin: daemon ## critest of the pinned cri-tools, and the parts of its images
	critest/images/build.sh $(BUILD)/critest/images
	CRI_TOOLS=$(CRI_TOOLS) critest/build.sh $(TOOLS)/criw-critest $(BUILD)/critest $(TOOLS)/critest

# A module of its own: in one with crictl and critest, either would be built with the
# other's versions of what they share.
VERSION_PACKAGES := k8s.io/component-base/version k8s.io/client-go/pkg/version
# -o with a directory: programs by their own names
KUBERNETES_BUILD = cd critest/kubernetes && CGO_ENABLED=0 go build -buildvcs=false -trimpath -o $(TOOLS)/ \
	-ldflags "-s -w $(foreach package,$(VERSION_PACKAGES),-X $(package).gitVersion=v$(KUBERNETES))"
.PHONY: kubelet
kubelet: ## the kubelet of the pinned Kubernetes
	mkdir -p $(TOOLS)
	$(KUBERNETES_BUILD) k8s.io/kubernetes/cmd/kubelet

.PHONY: control-plane
control-plane: ## API server, controller manager, scheduler, kube-proxy and kubectl of the pinned Kubernetes
	mkdir -p $(TOOLS)
	$(KUBERNETES_BUILD) $(addprefix k8s.io/kubernetes/cmd/,\
		kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl)

KUBELET_TEST := cargo test --release $(LOCKED) -p criw-tests --test kubelet
.PHONY: kubelet-test
kubelet-test: daemon shims guests kubelet ## a real kubelet drives criw: pods, probes, volumes, restarts
	$(KUBELET_TEST)

# Not part of `make test`: it needs etcd and minutes more of building.
.PHONY: cluster-deps
cluster-deps:
	@tests/scripts/deps.sh cluster

.PHONY: cluster-test
cluster-test: cluster-deps daemon shims guests kubelet control-plane ## a whole control plane drives criw: workloads, Services, kubectl
	cargo test --release $(LOCKED) -p criw-tests --test cluster

.PHONY: test-vm
test-vm: deb guests crictl ## a node with systemd and cgroup v2, in QEMU: the package, limits, restarts
	tests/vm/run.sh

# Not part of `make test`: it takes as long again.
.PHONY: test-vm-apparmor
test-vm-apparmor: deb guests crictl critest-bin ## AppArmor on such a node: profiles, denials, critest's nine specs
	CRIW_VM_LIMIT=$${CRIW_VM_LIMIT:-700} tests/vm/run.sh apparmor

# Nor is this: it makes a root file system of its own, with a policy.
.PHONY: test-vm-selinux
test-vm-selinux: deb guests crictl critest-bin ## SELinux, enforcing, on such a node: labels, denials, critest's seventeen specs
	CRIW_VM_LIMIT=$${CRIW_VM_LIMIT:-900} tests/vm/run.sh selinux

# Runs the specs with images of Wasm.
CRITEST_WASM := --handler wasm --images wasm

# Limits are in seconds and generous: they end a hang, they do not measure.
.PHONY: test
test: ## build all, run every test, print the sum
	@$(STEP) begin
	@$(STEP) step deps 900 tests/scripts/deps.sh
	@$(STEP) step daemon 1800 $(MAKE) --no-print-directory daemon
	@$(STEP) step static 1800 $(MAKE) --no-print-directory static
	@$(STEP) step compiler 1800 $(MAKE) --no-print-directory compiler
	@$(STEP) step toolbox 900 $(MAKE) --no-print-directory toolbox
	@$(STEP) step guests 300 $(MAKE) --no-print-directory guests
	@$(STEP) step crictl 900 $(MAKE) --no-print-directory crictl
	@$(STEP) step kubelet 900 $(MAKE) --no-print-directory kubelet
	@$(STEP) step cargo-test 2400 cargo test --release $(LOCKED) --no-fail-fast
	@$(STEP) step init-test 900 cargo test --release $(LOCKED) --no-fail-fast -p criw-init
	@$(STEP) step wasmtime-test 1800 cargo test --release $(LOCKED) --no-fail-fast \
		--target-dir $(COMPILER) -p criw-shim-wasmtime --features compiler
	@$(STEP) step fuzz 480 tests/fuzz/run.sh 20
	@$(STEP) step kubelet-test 600 $(KUBELET_TEST)
	@$(STEP) step deb 600 $(MAKE) --no-print-directory deb
	@$(STEP) step package-test 120 tests/scripts/package.sh
	@$(STEP) step vm 780 tests/vm/run.sh
	@$(STEP) step go-test 900 go test -C critest -count=1 -v ./descriptor
	@$(STEP) step critest-bin 900 $(MAKE) --no-print-directory critest-bin
	@$(STEP) step critest 420 $(TOOLS)/criw-critest
	@$(STEP) step critest-wasm 300 $(TOOLS)/criw-critest $(CRITEST_WASM)
	@$(STEP) step websockets 120 $(TOOLS)/criw-critest --websocket --focus Streaming
	@$(STEP) end

FUZZ_SECONDS ?= 300
.PHONY: fuzz
fuzz: deps ## the streaming decoders on made-up bytes, FUZZ_SECONDS=300 for each target (ARGS="TARGET" for one)
	tests/fuzz/run.sh $(FUZZ_SECONDS) $(ARGS)

.PHONY: lint
lint: deps deny ## rustfmt, clippy, gofmt, go vet, cargo deny
	cargo fmt --all --check
	cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
	cargo clippy --release $(LOCKED) --all-targets -- -D warnings
	cargo clippy --release $(LOCKED) -p criw-init -- -D warnings
	cargo clippy --release $(LOCKED) -p criw-tests --test kubelet --test cluster -- -D warnings
	cargo clippy --release $(LOCKED) --target-dir $(COMPILER) -p criw-shim-wasmtime --features compiler \
		--all-targets -- -D warnings
	unformatted=$$(gofmt -l critest); [ -z "$$unformatted" ] || { echo "gofmt these: $$unformatted" >&2; exit 1; }
	go vet -C critest ./...

.PHONY: deny
deny: $(if $(shell type -P cargo-deny),,$(TOOLS)/bin/cargo-deny) ## licenses, banned crates and sources of all dependencies
	PATH="$(TOOLS)/bin:$$PATH" cargo deny --locked check bans licenses sources

# Unoptimised: it runs for seconds, and optimising it takes minutes.
$(TOOLS)/bin/cargo-deny:
	CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		CARGO_PROFILE_RELEASE_DEBUG=false \
		cargo install cargo-deny --version $(CARGO_DENY) --locked --root $(TOOLS) --target-dir $(TARGET)/tools

.PHONY: demo
demo: deps build ## a tour: Wasm and Linux containers in pods, by crictl
	tests/demo.sh

.PHONY: critest
critest: deps build critest-bin ## the conformance suite of cri-tools, compared with critest/expected
	$(TOOLS)/criw-critest

.PHONY: critest-wasm
critest-wasm: deps build critest-bin ## the same on Wasm containers, compared with critest/expected/wasm
	$(TOOLS)/criw-critest $(CRITEST_WASM)

.PHONY: bench
bench: deps build ## figures of the main steps, p50 and p99
	cargo run --release $(LOCKED) -p criw-tests --bin criw-bench

.PHONY: bench-http
bench-http: deps build ## a component that serves HTTP beside a native server (ARGS="--wasmtime PROGRAM" for a third)
	cargo run --release $(LOCKED) -p criw-tests --bin criw-bench-http -- $(ARGS)

.PHONY: bench-kubelet
bench-kubelet: deps build kubelet ## a kubelet's pods, created to Ready (ARGS="--containerd DIRECTORY" for a peer beside)
	cargo run --release $(LOCKED) -p criw-tests --bin criw-bench-kubelet -- $(ARGS)

.PHONY: bench-streams
bench-streams: deps build ## exec and port-forward: rates, CPU time, latency (ARGS="--containerd DIRECTORY" for a peer beside)
	cargo run --release $(LOCKED) -p criw-tests --bin criw-bench-streams -- $(ARGS)

# The daemon looks for its shims in /usr/libexec/criw; with another PREFIX it has to be told.
.PHONY: install
install: daemon shims ## into $(DESTDIR)$(PREFIX), with a systemd unit and an example configuration
	install -D -m 755 $(BIN)/criw $(DESTDIR)$(PREFIX)/bin/criw
	for program in criw-shim-wasmtime criw-shim-runc criw-compile criw-init; do \
		install -D -m 755 $(LIBEXEC)/$$program $(DESTDIR)$(PREFIX)/libexec/criw/$$program; \
	done
	install -D -m 644 $(LIBEXEC)/criw-toolbox.wasm $(DESTDIR)$(PREFIX)/libexec/criw/criw-toolbox.wasm
	install -D -m 644 systemd/config.toml $(DESTDIR)$(PREFIX)/share/doc/criw/config.toml
	install -d $(DESTDIR)$(PREFIX)/share/man/man8
	gzip -9nc systemd/criw.8 >$(DESTDIR)$(PREFIX)/share/man/man8/criw.8.gz
	install -D -m 644 systemd/criw.service $(DESTDIR)$(PREFIX)/lib/systemd/system/criw.service
	sed -i 's|/usr/bin/criw|$(PREFIX)/bin/criw|' $(DESTDIR)$(PREFIX)/lib/systemd/system/criw.service
	if [ "$(PREFIX)" != /usr ]; then \
		install -d $(DESTDIR)/etc/criw/config.d; \
		echo 'libexec = "$(PREFIX)/libexec/criw"' >$(DESTDIR)/etc/criw/config.d/00-prefix.toml; \
	fi

.PHONY: deb
deb: daemon shims ## a Debian package in build/
	rm -rf $(BUILD)/deb $(BUILD)/criw_*.deb
	$(MAKE) --no-print-directory install PREFIX=/usr DESTDIR=$(BUILD)/deb
	systemd/deb/build.sh $(BUILD)/deb $(BUILD)

.PHONY: clean
clean: ## remove build/ and the target directories
	rm -rf $(BUILD) $(TARGET)
