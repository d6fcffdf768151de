#!/bin/bash
# As job.sh, for what only a node with AppArmor can show: the default profile and its denials,
# profiles of the node, and the specs of critest. A check of a denial does the same thing
# without the profile, where it has to work: else something else may have denied it.
. "$(dirname "$0")/node.sh"

profiles=/sys/kernel/security/apparmor/profiles
TOUCH='touch /tmp/x && echo done'

loaded() { grep -q "^$1 (" $profiles; }
# What the kernel says of a process.
label() { cat "/proc/$1/attr/current"; }
label_of() { label "$(pid "$(the "$1")")"; }

localhost() { echo "{\"apparmor\": {\"profile_type\": 2, \"localhost_ref\": \"localhost/$1\"}}"; }
UNCONFINED='{"apparmor": {"profile_type": 1}}'
RUNTIME_DEFAULT='{"apparmor": {"profile_type": 0}}'

# ---------------------------------------------------------------- the node
# sudo, by which critest loads its profiles, complains of a machine without a name.
name_of_the_machine() { echo "127.0.1.1 $(hostname)" >>/etc/hosts; }
load_test_profiles() {
    apparmor_parser --replace --skip-cache <<'END_OF_PROFILES'
profile criw-test-deny flags=(attach_disconnected,mediate_deleted) {
  file, network, capability, signal, ptrace,
  deny /tmp/** w,
  deny /data/** w,
}
profile criw-test-allow flags=(attach_disconnected,mediate_deleted) {
  file, network, capability, signal, ptrace,
}
profile criw-test-mute flags=(attach_disconnected,mediate_deleted) {
  file, capability, signal, ptrace,
  deny network,
}
END_OF_PROFILES
    loaded criw-test-deny && loaded criw-test-allow && loaded criw-test-mute
}
node_has_apparmor() { is "$(head -c1 /sys/module/apparmor/parameters/enabled)" Y && test -r $profiles; }
check_tells() { criw check | grep -E '^ok +apparmor +on'; }
info_tells() {
    crictl info -o json | jq -e '.security.apparmor == {"enabled": true, "defaultProfile": "criw-default"}' ||
        { crictl info; return 1; }
}
push_writer() {
    push-image "$registry" writer:1 wasm wasi/wasm /idle.wasm \
        "/idle.wasm=$here/guests/idle.wasm" "/tmp/keep=$here/node.sh" "/hello.wasm=$here/guests/hello.wasm" &&
        crictl pull "$registry/writer:1"
}

# ---------------------------------------------------------------- the default profile
comes_with_the_first_container() {
    ! loaded criw-default || return
    run_linux && loaded criw-default && is "$(label_of linux)" "criw-default (enforce)"
}
exec_is_confined() {
    is "$(crictl exec --sync "$(the linux)" busybox cat /proc/self/attr/current)" "criw-default (enforce)"
}
wasm_is_confined() { run_wasm && is "$(label_of wasm)" "criw-default (enforce)"; }
wasm_exec_works() { crictl exec --sync "$(the wasm)" ls / | grep -q idle.wasm; }
is_seen() {
    crictl inspect "$(the linux)" | jq -e '.info.runtimeSpec.process.apparmorProfile == "criw-default"'
}
stop_signal_arrives() {
    crictl stop -t 30 "$(the linux)" && is "$(how "$(the linux)")" "7 Error" &&
        crictl stop -t 30 "$(the wasm)" && is "$(how "$(the wasm)")" "143 Error"
}
kill_arrives() {
    container stubborn busybox $MEMORY sh -c 'trap "" TERM; echo ready; while :; do sleep 0.2; done'
    run stubborn && until_true grep -q ready "$dir/logs/$driver-main/stubborn.log" || return
    crictl stop -t 1 "$(the stubborn)" && is "$(how "$(the stubborn)")" "137 Error" && run_wasm || return
    kill -9 "$(pid "$(the wasm)")" && until_true exited "$(the wasm)" && is "$(how "$(the wasm)")" "137 Error"
}
rm_all() { crictl rm -fa; }

# What the default refuses. The second writes what is there already, the third prints a list.
FORBIDDEN='try() { "$@" && echo "$1: done" || echo "$1: refused"; }
mounts() { mount -t tmpfs none /data; }
switch() { read -r v </proc/sys/kernel/core_pattern && echo "$v" >/proc/sys/kernel/core_pattern; }
sysrq() { echo h >/proc/sysrq-trigger; }
try mounts; try switch; try sysrq'
# What it must not refuse: switches of the namespaces of the pod, its processes, its files.
OWN='echo 65 >/proc/sys/net/ipv4/ip_default_ttl && echo 4000 >/proc/sys/kernel/shmmni &&
    echo 4096 >/proc/sys/kernel/msgmni && echo 128 >/proc/sys/fs/mqueue/queues_max &&
    echo 100 >/proc/self/oom_score_adj && touch /tmp/x && ln /tmp/x /tmp/y && rm /tmp/x'
sys_admin() { jq -c '. + {"capabilities": {"add_capabilities": ["SYS_ADMIN", "SYS_RESOURCE"]}}' <<<"$1"; }
three() { is "$(grep -c ": $1\$" "$dir/output")" 3 || { cat "$dir/output"; return 1; }; }
default_denies() {
    ends busybox "$(sys_admin "$RUNTIME_DEFAULT")" 0 sh -c "$FORBIDDEN" && three refused &&
        ends busybox "$(sys_admin "$UNCONFINED")" 0 sh -c "$FORBIDDEN" && three done
}
default_allows() { ends busybox "$(sys_admin '{}')" 0 sh -c "$OWN"; }

# ---------------------------------------------------------------- profiles of the node
linux_is_denied() {
    ends busybox "$(localhost criw-test-deny)" "not 0" sh -c "$TOUCH" && grep 'Permission denied' "$dir/output" &&
        ends busybox "$(localhost criw-test-allow)" 0 sh -c "$TOUCH" && ends busybox '{}' 0 sh -c "$TOUCH"
}
wasm_is_denied() {
    ends writer "$(localhost criw-test-deny)" "not 0" sh -c "$TOUCH" && grep 'Permission denied' "$dir/output" &&
        ends writer "$(localhost criw-test-allow)" 0 sh -c "$TOUCH" && ends writer '{}' 0 sh -c "$TOUCH"
}
old_field_is_heard() {
    ends busybox '{"apparmor_profile": "localhost/criw-test-deny"}' "not 0" sh -c "$TOUCH" &&
        ends busybox '{"apparmor_profile": "unconfined"}' 0 grep unconfined /proc/self/attr/current &&
        ends busybox '{"apparmor_profile": "runtime/default"}' 0 grep criw-default /proc/self/attr/current
}
unloaded_is_refused() {
    refused "$(localhost no-such-profile)" '"no-such-profile.*is not loaded on this node; load it with apparmor_parser' &&
        refused "$(localhost no-such-profile)" 'is not loaded on this node' wasm
}
wasm_without_a_socket_is_refused() { refused "$(localhost criw-test-mute)" 'add the rule.*network unix,' wasm; }
privileged_is_unconfined() {
    local pod made
    jq '.metadata.name = "privileged" | .metadata.uid = "privileged" | .linux.security_context.privileged = true' \
        "$dir/main-pod.json" >"$dir/privileged-pod.json"
    pod=$(crictl runp "$dir/privileged-pod.json") || return
    container privileged busybox $MEMORY sleep 1000
    secured privileged "$(localhost criw-test-deny | jq -c '. + {"privileged": true}')"
    made=$(crictl create "$pod" "$dir/privileged.json" "$dir/privileged-pod.json") && crictl start "$made" || return
    is "$(label "$(pid "$made")")" unconfined && crictl rmp -f "$pod"
}

# ---------------------------------------------------------------- without the parser
# Many nodes have a kernel with AppArmor and no tools for it.
without_the_parser() {
    local parser status
    parser=$(type -P apparmor_parser)
    printf 'profile criw-default {}\n' | apparmor_parser --remove && ! loaded criw-default || return
    mv "$parser" "$parser.away"
    who_asks_is_refused && who_does_not_runs
    status=$?
    mv "$parser.away" "$parser"
    [ $status = 0 ] && run_linux && is "$(label_of linux)" "criw-default (enforce)"
}
who_asks_is_refused() { refused "$RUNTIME_DEFAULT" 'install it (on Debian and Ubuntu the package apparmor)'; }
who_does_not_runs() {
    container plain busybox $MEMORY sleep 1000
    run plain && is "$(label_of plain)" unconfined && crictl rm -f "$(the plain)" || return
    is "$(journalctl -u criw --no-pager -o cat | grep -c 'run without a profile')" 1
    criw check | grep -E '^warning +apparmor'
}

all_is_gone() {
    crictl rmp -fa || return
    is "$(pgrep -a 'criw-(shim|init)')" "" && is "$(find /run/criw/containers /run/criw/pods -mindepth 1)" "" &&
        is "$(systemctl list-units --plain --no-legend --all 'criw-*.scope' | grep -v criw-compile)" ""
}
nothing_was_logged_as_error() {
    is "$(journalctl -u criw --no-pager -o cat | grep -E ' (ERROR|WARN) ' |
        grep -v -e oom_score -e 'run without a profile' -e 'is not loaded' -e 'network unix' -e 'package apparmor')" ""
}

check install_package install_package
check node_files node_files
check push_images push_images
check node_has_apparmor node_has_apparmor
check check_tells check_tells
check unit_starts unit_starts
check pull pull
check push_writer push_writer
check info_tells info_tells
check name_of_the_machine name_of_the_machine
check load_test_profiles load_test_profiles
driver=systemd
check run_pod run_pod
check default_comes_with_the_first_container comes_with_the_first_container
check exec_is_confined exec_is_confined
check wasm_is_confined wasm_is_confined
check wasm_exec_works wasm_exec_works
check profile_is_seen is_seen
check stop_signal_arrives stop_signal_arrives
check rm_all rm_all
check kill_arrives kill_arrives
check default_denies default_denies
check default_allows default_allows
check linux_is_denied linux_is_denied
check wasm_is_denied wasm_is_denied
check old_field_is_heard old_field_is_heard
check unloaded_is_refused unloaded_is_refused
check wasm_without_a_socket_is_refused wasm_without_a_socket_is_refused
check privileged_is_unconfined privileged_is_unconfined
check rm_all rm_all
check without_the_parser without_the_parser
driver=
critest AppArmor
check critest_ran_nine critest_ran 9
check all_is_gone all_is_gone
check nothing_was_logged_as_error nothing_was_logged_as_error
echo "seconds since power-on: $(cut -d' ' -f1 /proc/uptime)"
echo "sum $passed $failed"
