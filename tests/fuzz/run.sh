#!/bin/bash
# Builds the fuzz targets and runs each for a while, or one of them (a name as second argument).
#
#   run.sh SECONDS [TARGET] [LIBFUZZER-OPTION...]
#
# What cargo-fuzz does, without it and on the stable toolchain: coverage counters, but no
# sanitizer, because the files under test are safe Rust; what is looked for are panics, wrong
# results, hangs and memory. Inputs that reached something new are kept in build/fuzz/TARGET,
# those that broke something in build/fuzz/broken: the path is printed, and
# `run.sh 0 TARGET FILE` runs it again. `cargo fuzz run TARGET` in this directory works too.
set -euo pipefail

: "${CRIW_BUILD_DIR:?set it to the absolute path of build/}"
here=$(cd "$(dirname "$0")" && pwd)
seconds=${1:?usage: run.sh SECONDS [TARGET] [LIBFUZZER-OPTION...]}
only=${2:-}
shift $(($# < 2 ? $# : 2))
triple=x86_64-unknown-linux-gnu
target_dir=${CARGO_TARGET_DIR:-$here/../../target}/fuzz
kept=$CRIW_BUILD_DIR/fuzz

export CXX=${CXX:-clang++}
coverage=(-Cpasses=sancov-module)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    coverage+=("-Cllvm-args=-sanitizer-coverage-$option")
done
RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 ${coverage[*]}" cargo build --release ${LOCKED:-} \
    --manifest-path "$here/Cargo.toml" --target-dir "$target_dir" --target "$triple"

mkdir -p "$kept/broken"
passed=0 failed=()
for source in "$here"/fuzz_targets/*.rs; do
    target=$(basename "$source" .rs)
    target=${target//_/-}
    [ -z "$only" ] || [ "$only" = "$target" ] || continue
    mkdir -p "$kept/$target"
    # The time limit of an input is the targets' own.
    options=(-rss_limit_mb=512 "-artifact_prefix=$kept/broken/$target-" -print_final_stats=1 "$@")
    # Words that random bytes hardly ever hit.
    [ ! -f "$here/$target.dict" ] || options+=("-dict=$here/$target.dict")
    [ "$seconds" = 0 ] || options+=("-max_total_time=$seconds" -max_len=16384 -len_control=20 "$kept/$target")
    echo "--- $target"
    if "$target_dir/$triple/release/$target" "${options[@]}" >"$kept/$target.log" 2>&1; then
        passed=$((passed + 1))
        grep -E '^stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)|^Executed' "$kept/$target.log" || true
    else
        failed+=("$target")
        tail -40 "$kept/$target.log"
    fi
done
[ $((passed + ${#failed[@]})) -gt 0 ] || { echo "run.sh: there is no target $only" >&2; exit 2; }
echo "$passed passed, ${#failed[@]} failed, 0 skipped"
[ ${#failed[@]} = 0 ]
