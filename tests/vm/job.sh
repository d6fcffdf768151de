#!/bin/bash
# Runs in the virtual machine, as root, under systemd: makes the machine a node with the
# package in this directory and checks what only such a node can show. Prints one line per
# check and last "sum PASSED FAILED".
. "$(dirname "$0")/node.sh"

check_finds_nothing_bad() {
    local report
    report=$(criw check)
    echo "$report"
    ! grep '^BAD' <<<"$report" | grep -v socket && grep -q 'cgroups *v[12]' <<<"$report" &&
        grep -q 'driver systemd' <<<"$report"
}

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
        grep -v -F -e criw-compile -e "$(sed "s/./&-/32" "$dir/main.id").init" -f <(crictl ps -q))" ]
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
