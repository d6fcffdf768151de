#!/bin/bash
# run.sh [job|apparmor|selinux]: boots a machine with systemd and cgroup v2 in QEMU, without hardware
# acceleration, and runs job.sh, or the script of the other name, in it with the binaries and
# the package of $CRIW_BUILD_DIR. Needs no network but for the Debian packages. Prints every
# check; the machine's console is kept beside the images.
set -euo pipefail

: "${CRIW_BUILD_DIR:?set it to the absolute path of build/}"
build=$CRIW_BUILD_DIR
here=$(cd "$(dirname "$0")" && pwd)
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
job=${1:-job}
vm=$build/vm
kind=
arguments=
if [ "$job" = selinux ]; then
    # Its own images: a policy and labels cost the others time.
    vm=$build/vm-selinux
    kind=selinux
    arguments="security=selinux selinux=1 enforcing=1 apparmor=0"
fi
# Seconds for the machine, from power-on to power-off.
LIMIT=${CRIW_VM_LIMIT:-540}

skip() {
    echo "test-vm: skipped: $*"
    if [ -n "${CRIW_SKIPS:-}" ]; then
        # The sum of `make test` moves one from the passed to the skipped for each line.
        echo "vm: $*" >>"$CRIW_SKIPS"
        echo "1 passed, 0 failed, 0 skipped"
    else
        echo "0 passed, 0 failed, 1 skipped"
    fi
    exit 0
}

[ "$(uname -m)" = x86_64 ] || skip "the machine is made for x86_64 only"
"$here/../scripts/deps.sh" vm || skip "QEMU or mmdebstrap is not here and cannot be installed"
"$here/rootfs.sh" "$vm" $kind || skip "no root file system could be made from Debian packages"

: >"$vm/$job.log"
: >"$vm/$job-console.log"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/payload"
install "$here/$job.sh" "$work/payload/job.sh"
install -t "$work/payload" "$here/node.sh" "$build"/criw_*.deb "$build"/tools/{crictl,push-image}
[ "$job" = job ] || install -t "$work/payload" "$build/tools/critest"
cp -r "$build/guests" "$work/payload/guests"
size=$(du -sm "$work/payload" | cut -f1)
mke2fs -q -F -t ext4 -O ^has_journal -d "$work/payload" "$work/payload.ext4" "$((size + size / 4 + 16))M" >/dev/null

# -snapshot: what the machine writes is gone with it.
status=0
timeout --kill-after=10 "$LIMIT" qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max -smp 2 -m 1536 \
    -snapshot -no-reboot -nodefaults -nographic -nic none \
    -kernel "$vm/vmlinuz" -initrd "$vm/initrd" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off systemd.show_status=no systemd.log_level=warning $arguments ${CRIW_VM_ARGS:-}" \
    -drive "file=$vm/rootfs.ext4,format=raw,if=virtio" -drive "file=$work/payload.ext4,format=raw,if=virtio" \
    -serial "file:$vm/$job-console.log" -serial "file:$vm/$job.log" </dev/null || status=$?

down=$(($(date +%s) - $(stat -c %Y "$vm/$job.log")))

tr -d '\r' <"$vm/$job.log" | grep -v '^sum ' || true
[ "$status" != 124 ] || echo "test-vm: the machine was not done after $LIMIT s"
# The job's last line. Without it something broke: say what the machine said.
if ! read -r _ passed failed < <(tail -n 1 "$vm/$job.log" | tr -d '\r' | grep '^sum [0-9]* [0-9]*$'); then
    echo "test-vm: no sum; the console ends with:"
    tail -n 40 "$vm/$job-console.log" | tr -d '\r'
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
# Debian gives processes 90 s to end; one that does not hear costs all of them.
if [ "$job" != job ]; then
    : # leaves no pod
elif [ "$down" -lt 45 ]; then
    passed=$((passed + 1))
    echo "test vm::goes_down_with_a_running_pod ... ok ($down s)"
else
    failed=$((failed + 1))
    printf 'test vm::goes_down_with_a_running_pod ... FAILED (%s s)\n' "$down"
    grep 'Waiting for process' "$vm/$job-console.log" || true
fi
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
