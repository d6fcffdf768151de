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
# On cgroup v1, which CRIW_VM_ARGS=systemd.unified_cgroup_hierarchy=0 makes of the machine, this
# hierarchy has every group; a short suite runs there.
if [ ! -e $root/cgroup.controllers ]; then root=$root/systemd; fi
legacy() { [ $root != /sys/fs/cgroup ]; }
dir=/root/node
mkdir -p "$dir"
passed=0 failed=0

# Who makes cgroups: systemd or cgroupfs. Set by the suite that runs.
driver=

# check NAME COMMAND...: one check, with the seconds it took.
check() {
    local name=${driver:+$driver::}$1 begin=$SECONDS out
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
    ! grep '^BAD' <<<"$report" | grep -v socket && grep -q 'cgroups *v[12]' <<<"$report" &&
        grep -q 'driver systemd' <<<"$report"
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
{"metadata": {"name": "$1", "namespace": "vm", "uid": "$1-$driver", "attempt": 0},
 "log_directory": "$dir/logs/$driver-$1", "linux": {"cgroup_parent": "$(parent_of "$1")"}}
END
}
# container NAME IMAGE MEMORY WORD...: the configuration of a container.
container() {
    local name=$1 image=$2 memory=$3
    shift 3
    local unified=', "unified": {"pids.max": "50"}'
    legacy && unified=
    cat >"$dir/$name.json" <<END
{"metadata": {"name": "$name"}, "image": {"image": "$registry/$image:1"}, "log_path": "$name.log",
 "command": $(jq -nc '$ARGS.positional' --args -- "$@"),
 "linux": {"resources": {"memory_limit_in_bytes": $memory, "memory_swap_limit_in_bytes": $memory,
   "cpu_quota": 50000, "cpu_period": 100000, "cpu_shares": 512$unified}}}
END
}
# What the kubelet makes, and calls it. In the name of a slice a dash is one level.
make_parent() {
    if [ "$driver" = systemd ]; then systemctl start "$(parent_of "$1")"; else mkdir -p "$(group_of "$1")"; fi
}
parent_of() {
    if [ "$driver" = systemd ]; then echo "kubepods-burstable-pod$1_$driver.slice"; else echo "/kubepods/burstable/pod$1-$driver"; fi
}
# group_of POD: the directory of its parent.
group_of() {
    if [ "$driver" = systemd ]; then
        echo "$root/kubepods.slice/kubepods-burstable.slice/$(parent_of "$1")"
    else
        echo "$root$(parent_of "$1")"
    fi
}
# leaf_of CONTAINER: its directory, as the driver names it.
leaf_of() {
    if [ "$driver" = systemd ]; then echo "$(group_of main)/criw-$1.scope"; else echo "$(group_of main)/$1"; fi
}

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
run_wasm() { container wasm wasm $MEMORY /idle.wasm && run wasm && until_true grep -q ready "$dir/logs/$driver-main/wasm.log"; }
run_linux() {
    # Bounded below by what runc needs for itself.
    container linux busybox $MEMORY sh -c 'trap "exit 7" TERM; echo ready; while :; do sleep 0.2; done'
    run linux && until_true grep -q ready "$dir/logs/$driver-main/linux.log"
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
# The kubelet follows what it is told.
kubelet_is_told() { crictl runtime-config | grep -i "cgroup.*driver.*$1" || { crictl runtime-config; return 1; }; }
refuses_a_parent_of_the_other_driver() {
    local out other
    if [ "$driver" = systemd ]; then other=/kubepods/podother; else other=kubepods-podother.slice; fi
    cat >"$dir/other-pod.json" <<END
{"metadata": {"name": "other", "namespace": "vm", "uid": "u", "attempt": 0}, "linux": {"cgroup_parent": "$other"}}
END
    out=$(crictl runp "$dir/other-pod.json" 2>&1) && return 1
    grep "cgroup.driver of this daemon is $driver" <<<"$out" || { echo "$out"; return 1; }
}
limits_outlast_a_reload_of_systemd() {
    systemctl daemon-reload || return
    local name leaf
    for name in wasm linux; do
        leaf=$(leaf_of "$(the $name)")
        file_says "$leaf/memory.max" $((300 << 20)) && file_says "$leaf/memory.swap.max" 0 &&
            file_says "$leaf/cpu.max" "20000 100000" && file_says "$leaf/cpu.weight" 59 &&
            file_says "$leaf/pids.max" 50 || return
    done
}
# What systemd was not told of is not limited by its defaults.
no_limits_of_systemd() {
    container free wasm 0 /idle.wasm
    jq 'del(.linux)' "$dir/free.json" >"$dir/free1.json" && mv "$dir/free1.json" "$dir/free.json"
    run free || return
    local leaf
    leaf=$(leaf_of "$(the free)")
    file_says "$leaf/memory.max" max && file_says "$leaf/pids.max" max && file_says "$leaf/cpu.max" "max 100000" &&
        systemctl daemon-reload && file_says "$leaf/pids.max" max && crictl rm -f "$(the free)"
}
# Neither a parent of its own nor the kubelet's.
pod_without_a_parent() {
    local pod process
    cat >"$dir/lone-pod.json" <<END
{"metadata": {"name": "lone", "namespace": "vm", "uid": "lone", "attempt": 0}}
END
    pod=$(crictl runp "$dir/lone-pod.json") || return
    container lone wasm $MEMORY /idle.wasm
    process=$(crictl create "$pod" "$dir/lone.json" "$dir/lone-pod.json") || return
    crictl start "$process" || return
    if [ "$driver" = systemd ]; then
        is "$(cat "/proc/$(pid "$process")/cgroup")" "0::/criw.slice/criw-$process.scope" || return
        file_says "$root/criw.slice/criw-compile.scope/memory.max" $((4 << 30)) || return
    else
        is "$(cat "/proc/$(pid "$process")/cgroup")" "0::/criw/$process" || return
    fi
    crictl rmp -f "$pod"
}
# The parts that a create has made so far are found by the record alone.
killed_while_it_creates() {
    local point
    for point in create/cgroup create/shim-created; do
        mkdir -p /run/systemd/system/criw.service.d
        printf '[Service]\nEnvironment=CRIW_FAULT=%s\n' "$point" >/run/systemd/system/criw.service.d/fault.conf
        systemctl daemon-reload && systemctl restart criw || return
        container doomed busybox $MEMORY sleep 1000
        crictl create "$(cat "$dir/main.id")" "$dir/doomed.json" "$dir/main-pod.json" && return 1
        rm -r /run/systemd/system/criw.service.d
        systemctl daemon-reload
        until_true answers || return
        systemctl restart criw && until_true only_known_leaves || { ls "$(group_of main)"; return 1; }
    done
}
# The scopes are those of running containers and the pod's init.
only_known_leaves() {
    [ -z "$(systemctl list-units --plain --no-legend --all 'criw-*.scope' |
        grep -v -F -e criw-compile -e "$(cat "$dir/main.id").init" -f <(crictl ps -q))" ]
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
    is "$(find "$(group_of main)" -mindepth 1 -type d)" "" || return
    is "$(systemctl list-units --plain --no-legend --all 'criw-*.scope' | grep -v criw-compile)" "" || return
    is "$(ip netns list)" "" || return
    is "$(pgrep -a 'criw-(shim|init)')" "" || return
    is "$(find /run/criw/containers /run/criw/pods -mindepth 1)" "" || return
    is "$(nsenter -t "$(daemon_pid)" -m grep -c overlay /proc/self/mountinfo)" 0
}
# /run/criw/… stays: it is of this boot.
stops() {
    systemctl stop criw && is "$(systemctl show -P Result criw)" success || return
    is "$(find "$root/criw" "$root/criw.slice" -maxdepth 0 2>/dev/null)" "" || return
    is "$(systemctl list-units --plain --no-legend --all 'criw*.slice' 'criw*.scope')" "" || return
    is "$(pgrep -a criw-hold)" ""
}
# It has an init, which whoever takes the machine down has to end; run.sh looks at the time.
pod_is_left_running() { systemctl start criw && run_pod && pgrep -x criw-init; }
nothing_was_logged_as_error() {
    # Pods named "other" are to be refused.
    is "$(journalctl -u criw --no-pager -o cat | grep -E ' (ERROR|WARN) ' | grep -v -e oom_score -e pod_name=other)" ""
}

# suite DRIVER: a pod's whole life with cgroups made by it.
suite() {
    driver=$1
    check the_kubelet_is_told kubelet_is_told "$driver"
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
    check limits_outlast_a_reload_of_systemd limits_outlast_a_reload_of_systemd
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
    check pod_without_a_parent pod_without_a_parent
    if [ "$driver" = cgroupfs ]; then
        check refuses_a_parent_of_the_other_driver refuses_a_parent_of_the_other_driver
    else
        check no_limits_of_systemd no_limits_of_systemd
        check killed_while_it_creates killed_while_it_creates
    fi
    check all_is_gone all_is_gone
    check stops stops
    driver=
}
# v1_says NAME MEMORY QUOTA: its limits in the hierarchies of cgroup v1, after a reload of systemd.
v1_says() {
    systemctl daemon-reload || return
    local leaf
    leaf=$(leaf_of "$(the "$1")")
    leaf=${leaf#"$root"}
    file_says "/sys/fs/cgroup/memory$leaf/memory.limit_in_bytes" "$2" &&
        file_says "/sys/fs/cgroup/cpu$leaf/cpu.cfs_quota_us" "$3" &&
        file_says "/sys/fs/cgroup/cpu$leaf/cpu.shares" 512 && grep -q . "/sys/fs/cgroup/freezer$leaf/cgroup.procs"
}
v1_update_is_kept() {
    crictl update --memory $((300 << 20)) --cpu-quota 20000 --cpu-period 100000 "$(the "$1")" &&
        v1_says "$1" $((300 << 20)) 20000
}
v1_all_is_gone() { all_is_gone && is "$(find /sys/fs/cgroup -path '*criw-*.scope' | grep -v criw-compile)" ""; }
suite_on_v1() {
    driver=systemd
    check run_pod run_pod
    check run_wasm run_wasm
    check run_linux run_linux
    check wasm_limits_are_in_the_kernel v1_says wasm $MEMORY 50000
    check linux_limits_are_in_the_kernel v1_says linux $MEMORY 50000
    check wasm_update_is_kept v1_update_is_kept wasm
    check linux_update_is_kept v1_update_is_kept linux
    check stats_are_counted stats_are_counted
    check wasm_out_of_memory wasm_out_of_memory
    check linux_out_of_memory linux_out_of_memory
    check linux_init_out_of_memory linux_init_out_of_memory
    check daemon_is_killed daemon_is_killed
    check exit_without_a_daemon exit_without_a_daemon
    check all_is_gone v1_all_is_gone
    check stops stops
    driver=
}
# use DRIVER: the daemon is told which one.
use() {
    printf '[cgroup]\ndriver = "%s"\n' "$1" >/etc/criw/config.d/cgroup.toml && systemctl start criw
}

check install_package install_package
check node_files node_files
check push_images push_images
check check_finds_nothing_bad check_finds_nothing_bad
check unit_starts unit_starts
check pull pull
if legacy; then
    suite_on_v1
    echo "sum $passed $failed"
    exit
fi
# By default: systemd is the init.
suite systemd
check use_cgroupfs use cgroupfs
suite cgroupfs
check use_systemd use systemd
driver=systemd check refuses_a_parent_of_the_other_driver refuses_a_parent_of_the_other_driver
check stops stops
driver=systemd check pod_is_left_running pod_is_left_running
check nothing_was_logged_as_error nothing_was_logged_as_error
echo "seconds since power-on: $(cut -d' ' -f1 /proc/uptime)"
echo "sum $passed $failed"
