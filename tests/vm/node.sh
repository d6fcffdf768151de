# Sourced by the scripts that run in the virtual machine: what makes the machine a node with the
# package in this directory, and what starts and looks at pods there.
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
exited() { [ "$(state "$1")" = CONTAINER_EXITED ]; }
how() { crictl inspect -o go-template --template '{{.status.exitCode}} {{.status.reason}}' "$1"; }
answers() { crictl version >/dev/null 2>&1; }

# ---------------------------------------------------------------- what is denied
# secured NAME JSON: its configuration with this security context.
secured() {
    jq --argjson context "$2" '.linux.security_context = $context' "$dir/$1.json" >"$dir/$1.tmp" &&
        mv "$dir/$1.tmp" "$dir/$1.json"
}

number=0
# What else `ends` changes in a container's configuration, by its name.
configured() { :; }
# ends IMAGE CONTEXT EXPECTED WORD...: runs a command to its end. EXPECTED is its exit code, or "not 0".
ends() {
    local image=$1 context=$2 expected=$3 name code
    shift 3
    number=$((number + 1))
    name=c$BASHPID-$number
    container "$name" "$image" $MEMORY "$@"
    secured "$name" "$context" && configured "$name" && run "$name" && until_true exited "$(the "$name")" || return
    code=$(crictl inspect -o go-template --template '{{.status.exitCode}}' "$(the "$name")")
    crictl logs "$(the "$name")" >"$dir/output" 2>&1
    crictl rm "$(the "$name")" >/dev/null || return
    if [ "$expected" = "not 0" ]; then [ "$code" != 0 ]; else [ "$code" = "$expected" ]; fi ||
        { echo "under $context: $* ended with $code, expected: $expected"; cat "$dir/output"; return 1; }
}
# refused CONTEXT PATTERN [IMAGE]: CreateContainer says so.
refused() {
    local out
    container refused "${3:-busybox}" $MEMORY sleep 1000
    secured refused "$1"
    out=$(crictl create "$(cat "$dir/main.id")" "$dir/refused.json" "$dir/main-pod.json" 2>&1) &&
        { crictl rm -f "$out"; echo "it was created"; return 1; }
    grep -q -e "$2" <<<"$out" || { echo "expected: $2"; echo "got: $out"; return 1; }
}

# ---------------------------------------------------------------- critest
# critest FOCUS: its specs of this name, each with its outcome as a check of its own.
critest() {
    jq -n --arg image "$registry/busybox:1" '{defaultTestContainerImage: $image}' >"$dir/images.yaml"
    "$here/critest" -config /dev/null -test.timeout=0 -ginkgo.no-color -ginkgo.focus="$1" \
        -runtime-endpoint unix:///run/criw/criw.sock -image-endpoint unix:///run/criw/criw.sock \
        -test-images-file "$dir/images.yaml" -ginkgo.timeout=300s -ginkgo.json-report "$dir/report.json" \
        >"$dir/critest.log" 2>&1
    local outcome name
    while IFS=$'\t' read -r outcome name; do
        check "critest: $name" is "$outcome" passed
    done < <(jq -r --arg focus "$1" '.[].SpecReports[]
        | select(.LeafNodeType == "It" and (.ContainerHierarchyTexts // [] | any(contains($focus))))
        | [.State, (.ContainerHierarchyTexts[1:] + [.LeafNodeText] | join(" "))] | @tsv' "$dir/report.json")
}
critest_ran() {
    is "$(jq '[.[].SpecReports[] | select(.LeafNodeType == "It" and .State == "passed")] | length' "$dir/report.json")" "$1" ||
        { tail -n 60 "$dir/critest.log"; return 1; }
}
