#!/bin/bash
# Brings together what critest's images are made of, into the directory $1:
#
#   tools     our small programs, static (tools.c)
#   busybox   Debian's dynamically linked busybox; its package is unpacked, not installed,
#             because it excludes busybox-static, which the other tests run. The static one
#             does not do: its shell runs applets by itself, so that a masked /bin/ls
#             would not be noticed.
#   lib/      the shared libraries of that busybox, under their paths
set -euo pipefail

# It is meant where the caller stands.
out=$(realpath -m "${1:?usage: build.sh DIRECTORY}")
cd "$(dirname "$0")"
mkdir -p "$out"

fail() {
    echo "critest/images/build.sh: $*" >&2
    exit 1
}

# Into $unpacked; apt downloads into the working directory.
unpack_busybox() {
    apt-get -q -o APT::Sandbox::User=root download busybox && dpkg-deb -x busybox_*.deb "$unpacked"
}

if [ ! -x "$out/busybox" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    unpacked=$work/root
    (
        cd "$work"
        # Lists may be stale or not there at all.
        unpack_busybox || { rm -f busybox_*.deb && apt-get -q update && unpack_busybox; }
    ) || fail "apt cannot download the package busybox; check its sources, then run again"
    for file in bin usr/bin; do
        if [ -f "$unpacked/$file/busybox" ]; then
            install -m 755 "$unpacked/$file/busybox" "$out/busybox.new"
        fi
    done
    [ -e "$out/busybox.new" ] || fail "the package busybox holds no busybox"
    rm -rf "$out/lib"
    # Lines: "name => /path (address)" and "/path (address)"; the vDSO has no path.
    ldd "$out/busybox.new" | awk '{for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i}' |
        while read -r library; do
            install -D -m 755 "$library" "$out/lib$library"
        done
    [ -d "$out/lib" ] || fail "busybox of the package is linked statically: its shell would run applets by itself"
    mv "$out/busybox.new" "$out/busybox"
fi

cc -O2 -Wall -Wextra -Werror -static -s -o "$out/tools" tools.c
