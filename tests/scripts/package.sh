#!/bin/bash
# Tests the Debian package in $CRIW_BUILD_DIR: what it holds and says, and that its
# programs work where it puts them. Installs nothing.
# not -e: a failed check is counted; not pipefail: grep -q ends its pipe early
set -u

: "${CRIW_BUILD_DIR:?set it to the absolute path of build/}"
deb=$(ls "$CRIW_BUILD_DIR"/criw_*.deb) || exit 1
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
dpkg-deb -x "$deb" "$room" && dpkg-deb -e "$deb" "$room/DEBIAN" || exit 1
passed=0 failed=0

check() {
    local name=$1 out
    shift
    if out=$("$@" 2>&1); then
        passed=$((passed + 1))
        echo "test package::$name ... ok"
    else
        failed=$((failed + 1))
        printf 'test package::%s ... FAILED\n%s\n' "$name" "$out"
    fi
}

# mode, path: all files and nothing else
files_and_modes() {
    diff - <(cd "$room" && find . -path ./DEBIAN -prune -o -type f -printf '%m %p\n' | sort -k2) <<'END'
755 ./usr/bin/criw
644 ./usr/lib/systemd/system/criw.service
755 ./usr/libexec/criw/criw-compile
755 ./usr/libexec/criw/criw-init
755 ./usr/libexec/criw/criw-shim-runc
755 ./usr/libexec/criw/criw-shim-wasmtime
644 ./usr/libexec/criw/criw-toolbox.wasm
644 ./usr/share/doc/criw/config.toml
644 ./usr/share/doc/criw/copyright
644 ./usr/share/man/man8/criw.8.gz
END
}

owned_by_root() {
    ! dpkg-deb -c "$deb" | awk '{print $2}' | grep -v '^root/root$'
}

version_is_the_programs() {
    [ "criw $(dpkg-deb -f "$deb" Version)" = "$("$room/usr/bin/criw" --version)" ]
}

# glibc of this machine must satisfy what was computed from the programs' symbols
dependencies_hold_here() {
    local least
    least=$(dpkg-deb -f "$deb" Depends | sed -n 's/.*libc6 (>= \([0-9.]*\)).*/\1/p')
    [ -n "$least" ] && dpkg --compare-versions "$(dpkg-query -W -f '${Version}' libc6)" ge "$least"
}

# that it equals the defaults is the daemon's own test
example_configuration_is_read() {
    "$room/usr/bin/criw" check --config "$room/usr/share/doc/criw/config.toml" | grep -q '^[a-zA-Z]* *kernel'
}

programs_work_where_they_lie() {
    mkdir "$room/state"
    cat >"$room/config.toml" <<END
socket = "$room/state/criw.sock"
root = "$room/state/lib"
state = "$room/state/run"
libexec = "$room/usr/libexec/criw"
END
    local report
    report=$("$room/usr/bin/criw" check --config "$room/config.toml")
    grep -q "ok .*$room/usr/libexec/criw/criw-shim-wasmtime" <<<"$report" &&
        grep -q "ok .*$room/usr/libexec/criw/criw-compile" <<<"$report" || { echo "$report"; return 1; }
}

unit_is_valid() {
    sed "s|/usr/bin/criw|$room/usr/bin/criw|" "$room/usr/lib/systemd/system/criw.service" >"$room/criw.service"
    grep -q "^ExecStart=$room/usr/bin/criw serve$" "$room/criw.service" &&
        systemd-analyze verify --man=no "$room/criw.service"
}

manual_page_names_every_command() {
    local page word
    page=$(zcat "$room/usr/share/man/man8/criw.8.gz") || return 1
    for word in serve check 'config default' '\\-\\-config'; do
        grep -q -- "$word" <<<"$page" || { echo "no $word"; return 1; }
    done
}

scripts_are_shell() {
    local script
    for script in postinst prerm postrm; do
        [ -x "$room/DEBIAN/$script" ] && sh -n "$room/DEBIAN/$script" || return 1
    done
}

check files_and_modes files_and_modes
check owned_by_root owned_by_root
check version_is_the_programs version_is_the_programs
check dependencies_hold_here dependencies_hold_here
check example_configuration_is_read example_configuration_is_read
check programs_work_where_they_lie programs_work_where_they_lie
check manual_page_names_every_command manual_page_names_every_command
check scripts_are_shell scripts_are_shell
if command -v systemd-analyze >/dev/null; then
    check unit_is_valid unit_is_valid
else
    echo "package::unit_is_valid: no systemd-analyze on this machine" >>"${CRIW_SKIPS:-/dev/null}"
    passed=$((passed + 1))
fi
result=ok
[ "$failed" = 0 ] || result=FAILED
echo "test result: $result. $passed passed; $failed failed; 0 ignored; 0 measured; 0 filtered out"
[ "$failed" = 0 ]
