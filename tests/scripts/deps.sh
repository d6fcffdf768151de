#!/bin/bash
# Makes sure that everything `make build` and `make test` need is on this machine;
# `deps.sh cluster` besides what only `make cluster-test` needs; `deps.sh vm` makes sure
# only of what `make test-vm` needs to make and boot its machine.
#
# Nothing is touched when all is there. What is missing is installed by apt, after a
# simulation: an install that would remove a package is refused. No service is started,
# neither during the install nor at the next boot.
# The Rust and Go toolchains are expected to be there: distributions carry older ones
# than this project needs.
set -euo pipefail

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
for_what=${1:-}

POLICY=/usr/sbin/policy-rc.d
POLICY_MARK='# placed by criw make deps for the time of one install'

missing=() # what is not there, in words
packages=() # Debian packages that bring it

fail() {
    echo "make deps: $*" >&2
    exit 1
}

list() {
    local IFS=,
    local all="$*"
    echo "${all//,/, }"
}

have() { type -P "$1" >/dev/null; }

# need WHAT PACKAGE...: notes that WHAT is missing
need() {
    missing+=("$1")
    shift
    packages+=("$@")
}

need_command() { have "$1" || need "$1" "$2"; }

# first_file FILE...: true if one of the files exists (globs that match nothing stay words)
first_file() {
    local file
    for file in "$@"; do
        [ -e "$file" ] && return 0
    done
    return 1
}

has_cni_plugins() {
    local dir plugin dirs
    IFS=: read -ra dirs <<<"${CNI_PATH:-/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni}"
    for dir in "${dirs[@]}"; do
        for plugin in bridge host-local portmap loopback; do
            [ -x "$dir/$plugin" ] || continue 2
        done
        return 0
    done
    return 1
}

check_toolchains() {
    have cargo && have rustc ||
        fail "cargo and rustc are not on PATH; install Rust 1.95 or newer (rustup.rs), then run again"
    # The distribution's rustc, which we install for the toolbox, is not meant.
    local rust
    rust=$(rustc --version 2>/dev/null | sed 's/^rustc \([0-9]*\.[0-9]*\).*/\1/')
    [ "$(printf '%s\n' 1.95 "$rust" | sort -V | head -1)" = 1.95 ] ||
        fail "$(type -P rustc) is Rust ${rust:-of an unknown version}; install Rust 1.95 or newer (rustup.rs), put it first on PATH, then run again"
    have go ||
        fail "go is not on PATH; install Go 1.26.2 or newer (go.dev/dl), then run again"
}

check_programs() {
    # cargo links with cc; the static shim needs libc.a
    need_command cc gcc
    first_file /usr/lib/x86_64-linux-gnu/libc.a /usr/lib64/libc.a || need libc.a libc6-dev
    need_command make make
    need_command openssl openssl # certificates of tests
    # cargo and go download over https
    first_file /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem ||
        need "CA certificates" ca-certificates

    # what pods run on
    need_command runc runc
    has_cni_plugins || need "CNI plugins" containernetworking-plugins
    need_command nft nftables
    need_command iptables iptables # the CNI plugins' port mappings and masquerade
    need_command ip iproute2
    need_command nsenter util-linux
    need_command ipcmk util-linux # critest calls it

    # the Linux images of tests and demo are this one static binary
    need_command busybox busybox-static

    # where the tests pull from
    need_command docker-registry docker-registry

    # where the API server keeps what it knows
    [ "$for_what" != cluster ] || need_command etcd etcd-server

    # The toolbox is compiled by the distribution's own rustc, called by its path: only that one
    # comes with a standard library for WASI. 110 MB to download, 530 MB installed; no cargo, and the rustc on PATH
    # stays the one that it is (check_toolchains: a Rust of /usr/bin would be too old).
    [ -x "${CRIW_WASI_RUSTC:-/usr/bin/rustc}" ] || need "a rustc for WASI" rustc
    first_file /usr/lib/rustlib/wasm32-wasi/lib/libstd-*.rlib ${CRIW_WASI_RUSTC:+"$CRIW_WASI_RUSTC"} ||
        need "Rust's standard library for wasm32-wasi" libstd-rust-dev-wasm32

    # C guests, and the toolbox's linker
    need_command clang clang
    need_command wasm-ld lld
    first_file /usr/lib/wasm32-wasi/libc.a ||
        need "wasi-libc" wasi-libc
    first_file /usr/lib/llvm-*/lib/clang/*/lib/wasi/libclang_rt.builtins-wasm32.a \
        /usr/lib/clang/*/lib/wasi/libclang_rt.builtins-wasm32.a ||
        need "clang's runtime for wasm32" libclang-rt-VERSION-dev-wasm32
}

check_vm() {
    need_command qemu-system-x86_64 qemu-system-x86
    need_command mmdebstrap mmdebstrap
    need_command mke2fs e2fsprogs
    need_command busybox busybox-static
}

# The package of clang's wasm32 runtime carries clang's major version in its name.
name_clang_runtime() {
    [[ "${packages[*]}" == *VERSION* ]] || return 0
    local version i
    if have clang; then
        version=$(clang -dumpversion)
    else
        version=$(apt-cache policy clang | sed -n 's/^ *Candidate: \(.*:\)\?\([0-9]*\).*/\2/p')
    fi
    version=${version%%.*}
    [ -n "$version" ] || fail "apt knows no package clang; check its sources, run apt-get update, then run again"
    for i in "${!packages[@]}"; do
        packages[i]=${packages[i]/VERSION/$version}
    done
}

# Debian's maintainer scripts ask this program before they start a service; 101 is "no".
forbid_service_starts() {
    # One left by a run that was killed is ours to remove.
    if [ -e "$POLICY" ] && ! grep -qxF "$POLICY_MARK" "$POLICY"; then
        local answer=0
        "$POLICY" docker-registry start >/dev/null 2>&1 || answer=$?
        [ "$answer" = 101 ] ||
            fail "$POLICY exists and lets services start; install by hand with the line above"
        return
    fi
    trap 'rm -f "$POLICY"' EXIT
    printf '%s\n' '#!/bin/sh' "$POLICY_MARK" 'exit 101' >"$POLICY"
    chmod 755 "$POLICY"
}

install_packages() {
    echo "missing: $(list "${missing[@]}")"
    if [ "$(id -u)" = 0 ]; then
        # Lists may be stale or not there at all; without a network the old ones may still do.
        apt-get -q update || echo "make deps: apt-get update failed, trying with the lists that are there" >&2
    fi
    name_clang_runtime
    local line="apt-get install --no-install-recommends ${packages[*]}"
    echo "installing with: $line"
    [ "$(id -u)" = 0 ] || fail "not root; run the line above as root, then run again"

    local simulation removed
    simulation=$(apt-get -s install --no-install-recommends "${packages[@]}") ||
        fail "apt cannot install these packages: ${packages[*]}"
    removed=$(awk '$1 == "Remv" {print $2}' <<<"$simulation")
    [ -z "$removed" ] ||
        fail "refused: the install would remove $(list $removed); solve that by hand, then run again"

    local service new_services=()
    for service in docker-registry etcd; do
        have "$service" || new_services+=("$service")
    done
    forbid_service_starts
    # needrestart would restart services of its own accord
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -q -y --no-remove install --no-install-recommends "${packages[@]}" </dev/null
    # Their packages enable the services for the next boot. update-rc.d removes the links of
    # systemd too, and does so where systemd does not run.
    for service in "${new_services[@]}"; do
        if have "$service" && have update-rc.d; then
            update-rc.d "$service" disable
        fi
    done
}

# check: fills missing and packages anew
check() {
    missing=()
    packages=()
    if [ "$for_what" = vm ]; then check_vm; else check_programs; fi
}

[ "$for_what" = vm ] || check_toolchains
check
[ "${#missing[@]}" = 0 ] && exit 0

have apt-get ||
    fail "missing: $(list "${missing[@]}"); this machine has no apt, install them by hand"
# Two runs at once would both place and remove the policy; the second finds all done.
exec 9<"$0"
flock 9
check
[ "${#missing[@]}" = 0 ] && exit 0
install_packages
check
[ "${#missing[@]}" = 0 ] || fail "still missing after the install: $(list "${missing[@]}")"
