#!/bin/bash
# Runs one named step, or sums up all steps of a run.
#
#   test.sh begin                         forget earlier steps
#   test.sh step NAME SECONDS COMMAND...  run COMMAND, at most SECONDS long
#   test.sh end                           print the sum; fails if a step or a test failed
#
# A failed step does not stop the run: `end` does. What is kept between the calls lies in
# $CRIW_BUILD_DIR/test: the steps' output, and the file named by CRIW_SKIPS, to which a
# test that cannot run on this machine appends one line "test-name: reason".
set -euo pipefail

: "${CRIW_BUILD_DIR:?set it to the absolute path of build/}"
KEPT="$CRIW_BUILD_DIR/test"
export CRIW_SKIPS="$KEPT/skips"

begin() {
    rm -rf "$KEPT"
    mkdir -p "$KEPT"
    : >"$CRIW_SKIPS"
    date +%s >"$KEPT/begin"
}

step() {
    local name=$1 limit=$2 start status=0
    shift 2
    start=$(date +%s%N)
    echo "=== $name"
    # timeout makes its own process group, so that a hung grandchild ends too; it runs
    # in the background because a trap waits for a foreground command. The output goes
    # through a file: whatever outlives the step cannot hold up a pipe.
    : >"$KEPT/$name.log"
    timeout --kill-after=30 "$limit" "$@" >"$KEPT/$name.log" 2>&1 &
    local running=$!
    trap 'kill -TERM "$running" 2>/dev/null; wait; exit 130' INT TERM
    tail --pid="$running" -s 0.1 -n +1 -f "$KEPT/$name.log" &
    local shown=$!
    wait "$running" || status=$?
    wait "$shown" || true
    trap - INT TERM
    local seconds
    seconds=$(awk -v start="$start" -v end="$(date +%s%N)" 'BEGIN {printf "%.1f", (end - start) / 1e9}')
    local result=ok
    case $status in
    0) ;;
    124) result="FAILED: not done after $limit s" ;;
    137) result="FAILED: killed, by its limit of $limit s or from outside" ;;
    *) result="FAILED: status $status" ;;
    esac
    printf '%s\t%s\t%s\n' "$name" "$seconds" "$result" >>"$KEPT/steps"
    echo "=== $name: $result, $seconds s"
}

# count LOG...: prints "passed failed ignored", summed over what cargo test,
# go test -v and criw-critest wrote there.
count() {
    cat "$@" | awk '
        # test result: ok. 3 passed; 0 failed; 0 ignored; ...
        /^test result: / {
            for (i = 2; i <= NF; i++) {
                if ($i == "passed;") passed += $(i - 1)
                if ($i == "failed;") failed += $(i - 1)
                if ($i == "ignored;") ignored += $(i - 1)
            }
        }
        # Go: subtests are indented, their parent stands for them
        /^--- PASS: / { passed++ }
        /^--- FAIL: / { failed++ }
        /^--- SKIP: / { ignored++ }
        /^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { passed += $1; failed += $3; ignored += $5 }
        END { print passed + 0, failed + 0, ignored + 0 }'
}

# reasons NAME: what the failed step NAME said of its failures, cut to what helps.
reasons() {
    echo "=== why $1 failed"
    grep -E -A 12 '^(failed: |error|FAIL |---- .* ----$|--- FAIL: |panicked at|not ok)|: FAILED|panicked at' "$KEPT/$1.log" |
        cut -c 1-600 | head -60 || true
    echo "--- its last lines"
    tail -n 15 "$KEPT/$1.log" | cut -c 1-600
}

end() {
    local name seconds result passed=0 failed=0 skipped=0 p f i told
    while IFS=$'\t' read -r name seconds result; do
        read -r p f i < <(count "$KEPT/$name.log")
        # A step that broke without a failed test (it did not build, it ran out of time) counts as one.
        [ "$result" = ok ] || [ "$f" -gt 0 ] || f=1
        passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + i))
        # Where only the end of a long output is kept, that is where to look for the reason.
        [ "$result" = ok ] || reasons "$name"
    done <"$KEPT/steps"
    # A test that skips itself has returned like one that passed.
    told=$(awk -F': ' 'NF {names[$1]} END {print length(names)}' "$CRIW_SKIPS")
    passed=$((passed - told)) skipped=$((skipped + told))

    echo "=== steps"
    awk -F'\t' '{printf "%8s s  %-14s %s\n", $2, $1, $3}' "$KEPT/steps"
    if [ -s "$CRIW_SKIPS" ]; then
        echo "=== skipped"
        sort -u "$CRIW_SKIPS" | sed 's/^/  /'
    fi
    echo "total time: $(($(date +%s) - $(<"$KEPT/begin"))) s"
    echo "$passed passed, $failed failed, $skipped skipped"
    # A run in which nothing passed has tested nothing.
    [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
}

case "${1:-}" in
begin | step | end) "$@" ;;
*)
    echo "usage: $0 begin | step NAME SECONDS COMMAND... | end" >&2
    exit 2
    ;;
esac
