#!/bin/bash
# Runs in the virtual machine, as root, under systemd: makes the machine a node with the
# package in this directory and checks what only such a node can show. Prints one line per
# check and last "sum PASSED FAILED".
# Not -e: a failed check is counted. What a check prints is shown when it fails.
set -u

here=$(cd "$(dirname "$0")" && pwd)
PATH=$here:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root
registry=127.0.0.1:5000
root=/sys/fs/cgroup
dir=/root/node
mkdir -p "$dir"
passed=0 failed=0

# check NAME COMMAND...: one check, with the seconds it took.
check() {
    local name=$1 begin=$SECONDS out
    shift
    if out=$("$@" 2>&1); then
        passed=$((passed + 1))
        echo "test vm::$name ... ok ($((SECONDS - begin)) s)"
    else
        failed=$((failed + 1))
        printf 'test vm::%s ... FAILED (%s s)\n%s\n' "$name" "$((SECONDS - begin))" "$out"
    fi
}

# until_true COMMAND...: asks until it holds. An emulated CPU is up to 40 times slower.
until_true() {
    local end=$((SECONDS + 60))
    until "$@"; do
        [ $SECONDS -lt $end ] || { echo "waited 60 s in vain for: $*"; return 1; }
        sleep 0.1
    done
}

is() { [ "$1" = "$2" ] || { echo "expected: $2"; echo "got: $1"; return 1; }; }
file_says() { is "$(cat "$1")" "$2" || { echo "in $1"; return 1; }; }
crictl() {
    "$here/crictl" --config /dev/null -r unix:///run/criw/criw.sock -i unix:///run/criw/criw.sock --timeout 60s "$@"
}
daemon_pid() { systemctl show -P MainPID criw; }

# ---------------------------------------------------------------- the node
install_package() {
    dpkg -i "$here"/criw_*.deb || return
    is "$(systemctl is-enabled criw)" disabled && is "$(systemctl is-active criw)" inactive
}

# What a node has before its runtime: a network for pods.
node_files() {
    mkdir -p /etc/cni/net.d
    cat >/etc/cni/net.d/10-pods.conflist <<'END'
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {
    "type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}]]}}]}
END
    cat >"$dir/registry.yml" <<END
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: $registry}
END
    systemd-run --quiet --unit=test-registry docker-registry serve "$dir/registry.yml"
}
registry_answers() { (: <"/dev/tcp/${registry/:/\/}") 2>/dev/null; }
push_images() {
    until_true registry_answers || return
    push-image "$registry" busybox:1 busybox || return
    push-image "$registry" wasm:1 wasm wasi/wasm /idle.wasm \
        "/idle.wasm=$here/guests/idle.wasm" "/hog.wasm=$here/guests/hog.wasm" "/hello.wasm=$here/guests/hello.wasm"
}

check_finds_nothing_bad() {
    local report
    report=$(criw check)
    echo "$report"
    ! grep '^BAD' <<<"$report" | grep -v socket && grep -q 'cgroups *v2' <<<"$report"
}

# The unit is Type=notify: `start` returns when the daemon said that it is ready.
unit_starts() {
    systemctl enable --now criw || { journalctl -u criw --no-pager | tail -3; return 1; }
    is "$(systemctl is-active criw)" active &&
        is "$(systemctl show -P WatchdogUSec criw)" 1min &&
        is "$(systemctl show -P Delegate criw)" yes &&
        is "$(systemctl show -P StatusText criw | wc -l)" 1
}

pull() { crictl pull "$registry/busybox:1" && crictl pull "$registry/wasm:1"; }

# ---------------------------------------------------------------- pods
# pod NAME: the configuration of a pod. The kubelet makes the cgroup of a pod before it asks for one.
pod() {
    make_parent "$1"
    cat >"$dir/$1-pod.json" <<END
{"metadata": {"name": "$1", "namespace": "vm", "uid": "uid-$1", "attempt": 0},
 "log_directory": "$dir/logs/$1", "linux": {"cgroup_parent": "$(parent_of "$1")"}}
END
}
# container NAME IMAGE MEMORY WORD...: the configuration of a container.
container() {
    local name=$1 image=$2 memory=$3
    shift 3
    cat >"$dir/$name.json" <<END
{"metadata": {"name": "$name"}, "image": {"image": "$registry/$image:1"}, "log_path": "$name.log",
 "command": $(jq -nc '$ARGS.positional' --args -- "$@"),
 "linux": {"resources": {"memory_limit_in_bytes": $memory, "memory_swap_limit_in_bytes": $memory,
   "cpu_quota": 50000, "cpu_period": 100000, "cpu_shares": 512, "unified": {"pids.max": "50"}}}}
END
}
make_parent() { mkdir -p "$root$(parent_of "$1")"; }
parent_of() { echo "/kubepods/burstable/pod-$1"; }
# leaf_of CONTAINER: its directory, as the driver names it.
leaf_of() { echo "$root$(parent_of main)/$1"; }

MEMORY=$((256 << 20))

run_pod() {
    pod main
    crictl runp "$dir/main-pod.json" >"$dir/main.id" || { journalctl -u criw --no-pager | tail -3; return 1; }
}
# run NAME: creates and starts a container, its id into $dir/NAME.id
run() {
    local made
    made=$(crictl create "$(cat "$dir/main.id")" "$dir/$1.json" "$dir/main-pod.json") &&
        echo "$made" >"$dir/$1.id" && crictl start "$made" && return
    journalctl -u criw --no-pager | tail -3
    return 1
}
run_wasm() { container wasm wasm $MEMORY /idle.wasm && run wasm && until_true grep -q ready "$dir/logs/main/wasm.log"; }
run_linux() {
    # Bounded below by what runc needs for itself.
    container linux busybox $MEMORY sh -c 'trap "exit 7" TERM; echo ready; while :; do sleep 0.2; done'
    run linux && until_true grep -q ready "$dir/logs/main/linux.log"
}
the() { cat "$dir/$1.id"; }
state() { crictl inspect -o go-template --template '{{.status.state}}' "$1"; }
pid() { crictl inspect -o go-template --template '{{.info.pid}}' "$1"; }

limits_are_in_the_kernel() {
    local leaf
    leaf=$(leaf_of "$(the "$1")")
    file_says "$leaf/memory.max" $MEMORY && file_says "$leaf/memory.swap.max" 0 &&
        file_says "$leaf/cpu.max" "50000 100000" && file_says "$leaf/cpu.weight" 59 &&
        file_says "$leaf/pids.max" 50 && grep -q . "$leaf/cgroup.procs" ||
        { ls -d "$leaf"; return 1; }
}
process_is_there() {
    local leaf
    leaf=$(leaf_of "$(the "$1")")
    is "$(cat "/proc/$(pid "$(the "$1")")/cgroup")" "0::${leaf#"$root"}"
}
unit_holds_the_daemon_only() {
    is "$(cat "$root/system.slice/criw.service/cgroup.procs")" "$(daemon_pid)"
}
update_changes_the_limit() {
    crictl update --memory $((300 << 20)) --cpu-quota 20000 --cpu-period 100000 "$(the "$1")" || return
    local leaf
    leaf=$(leaf_of "$(the "$1")")
    file_says "$leaf/memory.max" $((300 << 20)) && file_says "$leaf/cpu.max" "20000 100000"
}
stats_are_counted() {
    crictl stats -o json >"$dir/stats.json"
    local name
    for name in wasm linux; do
        jq -e --arg id "$(the $name)" '.stats[] | select(.attributes.id == $id)
            | (.cpu.usageCoreNanoSeconds.value | tonumber) > 0 and (.memory.workingSetBytes.value | tonumber) > 100000
              and (.memory.availableBytes.value | tonumber) > 0' "$dir/stats.json" ||
            { cat "$dir/stats.json"; return 1; }
    done
}
pod_stats_are_counted() {
    crictl statsp -o json >"$dir/statsp.json"
    jq -e '.stats[0].linux | (.cpu.usageCoreNanoSeconds.value | tonumber) > 0
        and (.memory.workingSetBytes.value | tonumber) > 100000 and (.process.processCount.value | tonumber) >= 2' \
        "$dir/statsp.json" || { cat "$dir/statsp.json"; return 1; }
}
exec_joins_the_cgroup() {
    # The container sees its own cgroup as the root.
    is "$(crictl exec --sync "$(the linux)" busybox cat /proc/self/cgroup)" "0::/"
}
exited() { [ "$(state "$1")" = CONTAINER_EXITED ]; }
how() { crictl inspect -o go-template --template '{{.status.exitCode}} {{.status.reason}}' "$1"; }
out_of_memory() {
    run "$1" || return
    until_true exited "$(the "$1")" && is "$(how "$(the "$1")")" "137 OOMKilled" ||
        { crictl logs "$(the "$1")"; return 1; }
}
wasm_out_of_memory() { container wasmhog wasm $((64 << 20)) /hog.wasm 1000 && out_of_memory wasmhog; }
linux_out_of_memory() {
    container linuxhog busybox $((64 << 20)) sh -c 'busybox tail /dev/zero; echo "tail ended: $?"; kill -9 $$'
    out_of_memory linuxhog
}
# One process eats, and is the container.
linux_init_out_of_memory() { container linuxhog1 busybox $((64 << 20)) busybox tail /dev/zero && out_of_memory linuxhog1; }

# ---------------------------------------------------------------- the daemon goes and comes
pids() { pid "$(the wasm)" && pid "$(the linux)"; }
answers() { crictl version >/dev/null 2>&1; }
daemon_restarts() {
    local before after old
    before=$(pids) old=$(daemon_pid)
    systemctl restart criw || return
    [ "$(daemon_pid)" != "$old" ] || { echo "the same daemon"; return 1; }
    after=$(pids)
    is "$after" "$before" && is "$(state "$(the wasm)") $(state "$(the linux)")" "CONTAINER_RUNNING CONTAINER_RUNNING"
}
daemon_is_killed() {
    local before old
    before=$(pids) old=$(daemon_pid)
    systemctl kill -s KILL criw || return
    # Whole units are killed by a manager that does not know KillMode=process.
    new_daemon() { [ "$(daemon_pid)" != "$old" ] && answers; }
    until_true new_daemon && is "$(pids)" "$before" && is "$(systemctl show -P NRestarts criw)" 1
}
# While nobody watches: what the shim noted is what is told.
exit_without_a_daemon() {
    local process
    process=$(pid "$(the linux)")
    [ "$process" -gt 1 ] || return
    systemctl stop criw || return
    kill -TERM "$process"
    until_true test ! -e "/proc/$process"
    systemctl start criw || return
    is "$(how "$(the linux)")" "7 Error"
}
unit_of_a_dead_daemon_is_clean() { is "$(systemctl --failed --no-legend --plain | grep -v test-registry)" ""; }

# ---------------------------------------------------------------- the end
all_is_gone() {
    crictl rmp -fa || return
    is "$(find "$root$(parent_of main)" -mindepth 1 -type d)" "" || return
    is "$(ip netns list)" "" || return
    is "$(pgrep -a 'criw-(shim|init)')" "" || return
    is "$(find /run/criw/containers /run/criw/pods -mindepth 1)" "" || return
    is "$(nsenter -t "$(daemon_pid)" -m grep -c overlay /proc/self/mountinfo)" 0
}
# /run/criw/… stays: it is of this boot.
stops() { systemctl stop criw && is "$(systemctl show -P Result criw)" success; }
# It has an init, which whoever takes the machine down has to end; run.sh looks at the time.
pod_is_left_running() { systemctl start criw && run_pod && pgrep -x criw-init; }
nothing_was_logged_as_error() {
    is "$(journalctl -u criw --no-pager -o cat | grep -E ' (ERROR|WARN) ' | grep -v 'oom_score')" ""
}

check install_package install_package
check node_files node_files
check push_images push_images
check check_finds_nothing_bad check_finds_nothing_bad
check unit_starts unit_starts
check pull pull
check run_pod run_pod
check run_wasm run_wasm
check run_linux run_linux
check wasm_limits_are_in_the_kernel limits_are_in_the_kernel wasm
check linux_limits_are_in_the_kernel limits_are_in_the_kernel linux
check wasm_process_is_there process_is_there wasm
check linux_process_is_there process_is_there linux
check unit_holds_the_daemon_only unit_holds_the_daemon_only
check wasm_update_changes_the_limit update_changes_the_limit wasm
check linux_update_changes_the_limit update_changes_the_limit linux
check stats_are_counted stats_are_counted
check pod_stats_are_counted pod_stats_are_counted
check exec_joins_the_cgroup exec_joins_the_cgroup
check wasm_out_of_memory wasm_out_of_memory
check linux_out_of_memory linux_out_of_memory
check linux_init_out_of_memory linux_init_out_of_memory
check daemon_restarts daemon_restarts
check daemon_is_killed daemon_is_killed
check exit_without_a_daemon exit_without_a_daemon
check unit_of_a_dead_daemon_is_clean unit_of_a_dead_daemon_is_clean
check all_is_gone all_is_gone
check stops stops
check pod_is_left_running pod_is_left_running
check nothing_was_logged_as_error nothing_was_logged_as_error
echo "seconds since power-on: $(cut -d' ' -f1 /proc/uptime)"
echo "sum $passed $failed"
