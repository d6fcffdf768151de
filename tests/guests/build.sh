#!/bin/sh
# Builds the C guests: build.sh OUT_DIR [COMPONENTIZE]. Needs clang, lld, wasi-libc and the
# wasm32 builtins of clang's runtime (Debian: libclang-rt-14-dev-wasm32).
# A guest is built again only when its source, or what they share, is newer.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUT_DIR [COMPONENTIZE]}
componentize=${2:-}
mkdir -p "$out"
for source in "$here"/*.c; do
    wasm=$out/$(basename "$source" .c).wasm
    if [ -f "$wasm" ] && [ "$wasm" -nt "$source" ] && [ "$wasm" -nt "$0" ] &&
        [ "$wasm" -nt "$here/listener.h" ]; then
        continue
    fi
    # One carries DWARF. The path of this machine is nobody's business.
    case $wasm in
        */trap.wasm) debug="-g -ffile-prefix-map=$here=guests -fdebug-compilation-dir=." ;;
        *) debug= ;;
    esac
    # Renamed into place: a test that runs meanwhile never reads half a module.
    ${WASI_CC:-clang} --target=wasm32-wasi --sysroot=/usr -O2 $debug -Wall -Wextra -Werror \
        -o "$wasm.new" "$source"
    mv "$wasm.new" "$wasm"
done

# Components: core modules without a C library, wrapped by our tool.
[ -n "$componentize" ] || exit 0
for source in "$here"/components/*.c; do
    name=$(basename "$source" .c)
    wasm=$out/$name.component.wasm
    if [ -f "$wasm" ] && [ "$wasm" -nt "$source" ] && [ "$wasm" -nt "$here/components/wasi.h" ] &&
        [ "$wasm" -nt "$here/components/services.h" ] && [ "$wasm" -nt "$here/components/files.h" ] && [ "$wasm" -nt "$here/components/wasi3.h" ] && [ "$wasm" -nt "$here/components/guests.wit" ] && [ "$wasm" -nt "$0" ]; then
        continue
    fi
    case $name in
        files | net | httpd | services) world=command ;;
        greeter | words | tone) world=$name ;;
        async) world=async-command ;;
        service | jobs) world=$name ;;
        *) world=proxy ;;
    esac
    ${WASI_CC:-clang} --target=wasm32-wasi --sysroot=/usr -nostdlib -O2 -Wall -Wextra -Werror \
        -Wno-unused-function -Wl,--no-entry -Wl,--strip-debug -o "$wasm.core" "$source"
    "$componentize" "$here/components/guests.wit" "$world" "$wasm.core" "$wasm.new"
    rm "$wasm.core"
    mv "$wasm.new" "$wasm"
done
