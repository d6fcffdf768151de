#!/bin/sh
# build.sh OUTPUT: compiles the toolbox to WASI preview 1 with Debian's rustc, which brings
# a standard library for wasm32-wasi (packages rustc and libstd-rust-dev-wasm32). It is
# called by its path: the rustc on PATH is the one that builds everything else.
# The same source makes the same bytes, wherever it lies.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
output=${1:?usage: build.sh OUTPUT}
rustc=${CRIW_WASI_RUSTC:-/usr/bin/rustc}
linker=$(command -v wasm-ld || ls /usr/bin/wasm-ld-* 2>/dev/null | tail -1)
[ -n "$linker" ] || { echo "build.sh: no wasm-ld, run make deps" >&2; exit 1; }
[ -x "$rustc" ] || { echo "build.sh: no $rustc, run make deps" >&2; exit 1; }
if [ -f "$output" ] && [ -z "$(find "$here/src" "$here/build.sh" -newer "$output" -type f | head -1)" ]; then
    exit 0
fi
mkdir -p "$(dirname "$output")"
# Renamed into place: nobody reads half a module.
"$rustc" --edition 2021 --crate-name criw_toolbox --crate-type bin \
    --target wasm32-wasi -C linker="$linker" -C opt-level=s -C lto=fat -C codegen-units=1 \
    -C panic=abort -C strip=symbols -C metadata=criw-toolbox \
    -C link-arg=-zstack-size=1048576 -D warnings \
    --remap-path-prefix "$here=toolbox" -o "$output.new" "$here/src/main.rs"
mv "$output.new" "$output"
