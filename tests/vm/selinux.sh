#!/bin/bash
# As job.sh, for what only a node with SELinux can show: the labels of pods, containers and
# their files, what they deny, and the specs of critest. The machine enforces. A check of a
# denial does the same thing while it does not, where it has to work: else something else
# may have denied it.
. "$(dirname "$0")/node.sh"

ENFORCE=/sys/fs/selinux/enforce
MINE=s0:c4,c5 OTHER=s0:c8,c9

# What the kernel says of a process or a file.
label() { tr -d '\0\n' <"/proc/$1/attr/current"; }
label_of() { label "$(pid "$(the "$1")")"; }
label_in() { crictl exec --sync "$(the "$1")" cat /proc/self/attr/current | tr -d '\0\n'; }
file_label() { stat -c %C "$1"; }
level_of() { cut -d: -f4- <<<"$1"; }
like() { [[ $1 =~ ^$2$ ]] || { echo "expected something like: $2"; echo "got: $1"; return 1; }; }
permissive() {
    local status
    echo 0 >$ENFORCE
    "$@"
    status=$?
    echo 1 >$ENFORCE
    return $status
}

asked() { jq -nc --arg level "$1" --arg type "${2:-container_t}" '{selinux_options: {user: "system_u", role: "system_r", type: $type, level: $level}}'; }
CONTAINER='system_u:system_r:container_t:s0:c[0-9]+,c[0-9]+'

# ---------------------------------------------------------------- the node
enforces() { is "$(cat $ENFORCE)" 1; }
package_has_labels() {
    is "$(file_label /usr/bin/criw)" system_u:object_r:container_engine_exec_t:s0 &&
        is "$(file_label /usr/libexec/criw/criw-init)" system_u:object_r:container_engine_exec_t:s0 &&
        is "$(file_label /usr/libexec/criw/criw-toolbox.wasm)" system_u:object_r:bin_t:s0
}
daemon_has_its_domain() { is "$(label "$(daemon_pid)")" system_u:system_r:container_engine_t:s0; }
check_tells() { criw check | grep -E '^ok +selinux +on'; }
info_tells() { crictl info -o json | jq -e '.security.selinux.enabled' || { crictl info; return 1; }; }
push_writer() {
    push-image "$registry" writer:1 wasm wasi/wasm /idle.wasm \
        "/idle.wasm=$here/guests/idle.wasm" "/hello.wasm=$here/guests/hello.wasm" && crictl pull "$registry/writer:1"
}
# Volumes: one of each label that matters here.
volumes() {
    mkdir -p /srv/{node,mine,other,asked} && touch /srv/asked/file &&
        chcon -t container_file_t -l $MINE /srv/mine && chcon -t container_file_t -l $OTHER /srv/other
}
# mounted NAME DIRECTORY [JSON]: its configuration with a directory of the node at /data.
mounted() {
    jq --arg from "$2" --argjson more "${3:-{\}}" '.mounts = [{container_path: "/data", host_path: $from} + $more]' \
        "$dir/$1.json" >"$dir/$1.tmp" && mv "$dir/$1.tmp" "$dir/$1.json"
}
container_with_volume() {
    container "$1" busybox $MEMORY sh -c 'trap "exit 7" TERM; echo ready; while :; do sleep 0.2; done'
    secured "$1" "$(asked $MINE)" && mounted "$1" "$2" "${3:-}" && run "$1"
}
write() { crictl exec --sync "$(the "$1")" touch /data/x; }
denied() { ! "$@" >"$dir/output" 2>&1 && grep 'Permission denied' "$dir/output" || { cat "$dir/output"; return 1; }; }

# ---------------------------------------------------------------- labels
pod_is_labelled() {
    run_linux && like "$(label_of linux)" "$CONTAINER" && is "$(label_in linux)" "$(label_of linux)"
}
pod_shares_its_label() {
    container second busybox $MEMORY sleep 1000
    run second && is "$(label_of second)" "$(label_of linux)" &&
        is "$(label "$(pgrep -fx criw-init)")" "$(label_of linux)"
}
pods_differ() {
    local id made
    pod next && id=$(crictl runp "$dir/next-pod.json") && container next busybox $MEMORY sleep 1000 &&
        made=$(crictl create "$id" "$dir/next.json" "$dir/next-pod.json") && crictl start "$made" || return
    like "$(label "$(pid "$made")")" "$CONTAINER" || return
    [ "$(label "$(pid "$made")")" != "$(label_of linux)" ] || { echo "both have $(label_of linux)"; return 1; }
    crictl rmp -f "$id"
}
# The pod's label is in its record: a container that comes later has it too, and its log and
# commands go on.
a_restart_changes_nothing() {
    systemctl restart criw && until_true answers && container later wasm $MEMORY /idle.wasm && run later || return
    is "$(label_of later)" "$(label_of linux)" &&
        until_true grep -q ready "$dir/logs/$driver-main/later.log" &&
        crictl exec --sync "$(the later)" ls / | grep -q idle.wasm && crictl rm -f "$(the later)"
}
# With labels everything of a container's own has to work as without.
own_things_work() {
    crictl exec --sync "$(the linux)" sh -ec 'touch /foo /dev/shm/x /etc/hosts; cat /etc/hosts /etc/hostname /etc/resolv.conf
        echo x >/dev/null; ls /dev /dev/pts; cat /proc/1/mountinfo; mkdir /own' >/dev/null
}
# Its root, /dev, /dev/pts and /dev/shm; runc labels a message queue in another way.
mounts_have_the_label() {
    local level
    level=$(level_of "$(label_of linux)")
    is "$(grep -c "context=\"system_u:object_r:container_file_t:$level\"" "/proc/$(pid "$(the linux)")/mountinfo")" 4 ||
        { cat "/proc/$(pid "$(the linux)")/mountinfo"; return 1; }
}
asked_label_is_had() {
    container_with_volume mine /srv/mine && is "$(label_of mine)" "system_u:system_r:container_t:$MINE" &&
        is "$(label_in mine)" "$(label_of mine)"
}
level_alone_is_enough() {
    container level busybox $MEMORY sleep 1000
    secured level "{\"selinux_options\": {\"level\": \"$MINE\"}}" && run level &&
        is "$(label_of level)" "system_u:system_r:container_t:$MINE" && crictl rm -f "$(the level)"
}
unknown_type_is_refused() { refused "$(asked $MINE no_such_t)" 'no_such_t.*policy'; }
bad_level_is_refused() { refused "$(asked s0,c4,c5)" 'is no SELinux level'; }
wasm_is_labelled() { run_wasm && is "$(label_of wasm)" "$(label_of linux)"; }
wasm_works() {
    grep -q ready "$dir/logs/$driver-main/wasm.log" && crictl exec --sync "$(the wasm)" ls / | grep -q idle.wasm &&
        crictl stop -t 30 "$(the wasm)" && is "$(how "$(the wasm)")" "143 Error"
}
privileged_is_spc() {
    local id made
    jq '.metadata.name = "privileged" | .metadata.uid = "privileged" | .linux.security_context.privileged = true' \
        "$dir/main-pod.json" >"$dir/privileged-pod.json"
    id=$(crictl runp "$dir/privileged-pod.json") || return
    container privileged busybox $MEMORY sleep 1000
    secured privileged '{"privileged": true}'
    made=$(crictl create "$id" "$dir/privileged.json" "$dir/privileged-pod.json") && crictl start "$made" || return
    is "$(label "$(pid "$made")")" system_u:system_r:spc_t:s0 && crictl rmp -f "$id"
}

# ---------------------------------------------------------------- denials
own_volume_is_written() { write mine; }
node_is_denied() {
    container_with_volume node /srv/node && denied write node && permissive write node
}
other_pod_is_denied() {
    container_with_volume other /srv/other && denied write other && permissive write other
}
relabelled_is_written() {
    container_with_volume asked /srv/asked '{"selinux_relabel": true}' && write asked &&
        is "$(file_label /srv/asked/file)" "system_u:object_r:container_file_t:$MINE"
}
# Without the label it works, or something else denies it.
wasm_is_denied() {
    configured() { mounted "$1" /srv/other; }
    wasm_writes "not 0" && grep 'Permission denied' "$dir/output" && permissive wasm_writes 0
}
wasm_writes() { ends writer "$(asked $MINE)" "$1" sh -c 'touch /data/x && echo done'; }
stop_signal_arrives() { crictl stop -t 30 "$(the linux)" && is "$(how "$(the linux)")" "7 Error"; }

all_is_gone() {
    crictl rmp -fa || return
    is "$(pgrep -a 'criw-(shim|init)')" "" && is "$(find /run/criw/containers /run/criw/pods -mindepth 1)" ""
}
# The daemon's domain is not confined, and what it starts is denied what the checks want denied.
daemon_was_denied_nothing() {
    is "$(dmesg | grep 'avc: ' | grep 'scontext=[^ ]*:container_engine_t' | sed 's/.*avc: //' | sort -u)" ""
}
nothing_was_logged_as_error() {
    is "$(journalctl -u criw --no-pager -o cat | grep -E ' (ERROR|WARN) ' |
        grep -v -e oom_score -e 'no SELinux level' -e no_such_t)" ""
}

sysctl -q kernel.printk_ratelimit=0
check node_enforces enforces
check install_package install_package
check package_has_labels package_has_labels
check node_files node_files
check push_images push_images
check check_tells check_tells
check unit_starts unit_starts
check daemon_has_its_domain daemon_has_its_domain
check info_tells info_tells
check pull pull
check push_writer push_writer
check volumes volumes
driver=systemd
check run_pod run_pod
check pod_is_labelled pod_is_labelled
check pod_shares_its_label pod_shares_its_label
check pods_differ pods_differ
check a_restart_changes_nothing a_restart_changes_nothing
check own_things_work own_things_work
check mounts_have_the_label mounts_have_the_label
check asked_label_is_had asked_label_is_had
check level_alone_is_enough level_alone_is_enough
check unknown_type_is_refused unknown_type_is_refused
check bad_level_is_refused bad_level_is_refused
check own_volume_is_written own_volume_is_written
check node_is_denied node_is_denied
check other_pod_is_denied other_pod_is_denied
check relabelled_is_written relabelled_is_written
check wasm_is_labelled wasm_is_labelled
check wasm_works wasm_works
check wasm_is_denied wasm_is_denied
check privileged_is_spc privileged_is_spc
check stop_signal_arrives stop_signal_arrives
driver=
critest SELinux
check critest_ran_seventeen critest_ran 17
check all_is_gone all_is_gone
check daemon_was_denied_nothing daemon_was_denied_nothing
check nothing_was_logged_as_error nothing_was_logged_as_error
# What the kernel denied tells why.
[ $failed = 0 ] || dmesg | grep 'avc: ' | sed 's/.*avc: //' | sort | uniq -c | sort -rn | head -n 40
echo "seconds since power-on: $(cut -d' ' -f1 /proc/uptime)"
echo "sum $passed $failed"
