#!/bin/bash
# A tour of CRI-W on one machine: a registry, a daemon, and the real crictl.
#
# Everything happens in a private directory and in private network, mount namespaces:
# nothing of the host changes, and what was made is taken away at the end, also after
# a failure. Root is needed for namespaces, cgroups and mounts.
set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
build=${CRIW_BUILD_DIR:-$repo/build}
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

[ "$(id -u)" = 0 ] || { echo "demo: run it as root (namespaces, cgroups, mounts)" >&2; exit 1; }
for program in "$build/bin/criw" "$build/tools/crictl" "$build/tools/push-image" "$build/guests/hello.wasm"; do
    [ -e "$program" ] || { echo "demo: $program is missing; run \`make build\`" >&2; exit 1; }
done

# Once more, inside namespaces of our own.
if [ "${CRIW_DEMO_INSIDE:-}" != yes ]; then
    CRIW_DEMO_INSIDE=yes exec unshare --net --mount --propagation private "$0" "$@"
fi
ip link set lo up

dir=$(mktemp -d /tmp/criw-demo.XXXXXX)
group=/criw-demo-$$
registry_address=127.0.0.1:5000
daemon= registry=

bold() { if [ -t 1 ]; then printf '\033[1m%s\033[0m\n' "$*"; else printf '%s\n' "$*"; fi; }
now() { date +%s%N; }

# step TEXT COMMAND...: says what is done, does it, says how long it took.
step() {
    local text=$1 begin end
    shift
    bold "# $text"
    printf '$'; printf ' %s' "${@//$dir/DIR}"; echo
    begin=$(now)
    "$@"
    end=$(now)
    printf '  (%d.%d ms)\n\n' $(((end - begin) / 1000000)) $(((end - begin) / 100000 % 10))
}

crictl() { "$build/tools/crictl" --config /dev/null -r "unix://$dir/s" -i "unix://$dir/s" --timeout 30s "$@"; }

# until DESCRIPTION COMMAND...: asks until it holds, for at most 20 s.
wait_for() {
    local what=$1 deadline=$((SECONDS + 20))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || { echo "demo: waited 20 s in vain for $what" >&2; return 1; }
        sleep 0.01
    done
}

cleanup() {
    local status=$?
    set +e
    bold "# clean up"
    if [ $status -ne 0 ] && [ -e "$dir/criw.log" ]; then
        echo "demo failed; the daemon's log ends with:" >&2
        tail -n 20 "$dir/criw.log" >&2
    fi
    if [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; then
        crictl rmp -f -a
        kill "$daemon"
        wait "$daemon"
    fi
    if [ -n "$registry" ]; then kill "$registry"; wait "$registry" 2>/dev/null; fi
    for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
        [ -d "$hierarchy$group" ] && find "$hierarchy$group" -depth -type d -exec rmdir {} \; 2>/dev/null
    done
    # Mounts end with the namespace; what is below a mount point must not be deleted through it.
    awk -v dir="$dir/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r umount -l
    rm -rf --one-file-system "$dir"
    [ $status -ne 0 ] || echo "nothing is left."
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

bold "CRI-W demo in $dir"
echo

# ---------------------------------------------------------------- daemon and registry
cat >"$dir/config.toml" <<TOML
socket = "$dir/s"
root = "$dir/root"
state = "$dir/run"
libexec = "$build/libexec/criw"

[net]
mode = "builtin"

[cgroup]
parent = "$group"
TOML
cat >"$dir/registry.yml" <<YAML
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: $registry_address}
YAML

start_daemon() {
    "$build/bin/criw" serve --config "$dir/config.toml" >>"$dir/criw.log" 2>&1 &
    daemon=$!
    wait_for "criw" crictl version
}
start_registry() {
    docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &
    registry=$!
    wait_for "the registry" bash -c ": </dev/tcp/${registry_address/:/\/}"
}
step "start the daemon, with the built-in network: no other configuration" start_daemon
step "start a registry on loopback" start_registry
crictl version
echo

# ---------------------------------------------------------------- images
push() { "$build/tools/push-image" "$registry_address" "$@"; }
step "push a Wasm command as wasi/wasm image" push hello:1 wasm wasi/wasm /hello.wasm "/hello.wasm=$build/guests/hello.wasm"
step "push a Wasm web server as an OCI artifact: the module and nothing else" push server:1 artifact "$build/guests/server.wasm"
step "push a Wasm image with two modules" push web:1 wasm wasi/wasm /server.wasm "/server.wasm=$build/guests/server.wasm" "/cat.wasm=$build/guests/cat.wasm"
step "push a Wasm component that opens connections" push connect:1 artifact "$repo/tests/guests/connect.wat"
step "push a Linux image" push busybox:1 busybox
for image in hello server web connect busybox; do
    step "pull it; Wasm is compiled now, once" crictl pull "$registry_address/$image:1"
done
crictl images
echo

# ---------------------------------------------------------------- files that crictl reads
pod() {
    cat >"$dir/$1-pod.json" <<JSON
{"metadata": {"name": "$1", "namespace": "demo", "uid": "uid-$1", "attempt": 0},
 "log_directory": "$dir/logs/$1", "linux": {"cgroup_parent": "$group"}}
JSON
}
pod command
pod server
pod mixed
# CRI's KeyValue.value is bytes since v1.36: base64 in JSON.
env_of() { printf '{"key": "%s", "value": "%s"}' "$1" "$(printf %s "$2" | base64 -w0)"; }
mkdir -p "$dir/volume"
echo "a line from a volume of the host" >"$dir/volume/in"
cat >"$dir/hello.json" <<JSON
{"metadata": {"name": "hello"}, "image": {"image": "$registry_address/hello:1"},
 "args": ["first argument", "second"],
 "envs": [$(env_of COLOUR blue), $(env_of READ /volume/in),
          $(env_of WRITE /volume/out), $(env_of EXIT_CODE 42)],
 "mounts": [{"host_path": "$dir/volume", "container_path": "/volume"}], "log_path": "hello.log"}
JSON
cat >"$dir/server.json" <<JSON
{"metadata": {"name": "server"}, "image": {"image": "$registry_address/server:1"},
 "annotations": {"criw.dev/listen": "0.0.0.0:8080"},
 "envs": [$(env_of GREETING /shared/greeting)],
 "mounts": [{"host_path": "$dir/volume", "container_path": "/shared"}], "log_path": "server.log"}
JSON
sed 's|/server:1|/web:1|' "$dir/server.json" >"$dir/web.json"
cat >"$dir/client.json" <<JSON
{"metadata": {"name": "client"}, "image": {"image": "$registry_address/busybox:1"},
 "command": ["sh", "-c", "wget -q -O - http://127.0.0.1:8080/"], "log_path": "client.log"}
JSON
cat >"$dir/connect.json" <<JSON
{"metadata": {"name": "connect"}, "image": {"image": "$registry_address/connect:1"}, "log_path": "connect.log"}
JSON
cat >"$dir/httpd.json" <<JSON
{"metadata": {"name": "httpd"}, "image": {"image": "$registry_address/busybox:1"},
 "command": ["sh", "-c", "mkdir /www; echo hello from a linux server > /www/index.html; exec httpd -f -p 9090 -h /www"],
 "log_path": "httpd.log"}
JSON

# keep NAME COMMAND...: the command's output into a variable, shown as well.
keep() {
    local -n into=$1
    shift
    into=$("$@")
    echo "$into"
}
exited() { [ "$(crictl inspect -o go-template --template '{{.status.state}}' "$1")" = CONTAINER_EXITED ]; }

# ---------------------------------------------------------------- 1: a command
bold "=== 1. a WASI preview 1 command: arguments, environment, a volume, an exit code"
step "run its pod (network and all)" keep pod_id crictl runp "$dir/command-pod.json"
step "create the container" keep id crictl create "$pod_id" "$dir/hello.json" "$dir/command-pod.json"
step "start it" crictl start "$id"
wait_for "hello to end" exited "$id"
step "what it said" crictl logs "$id"
step "how it ended" crictl inspect -o go-template --template 'exit code {{.status.exitCode}}, reason {{.status.reason}}
' "$id"
echo "and on the host: $(cat "$dir/volume/out")"
echo

# ---------------------------------------------------------------- 2: a server
bold "=== 2. a Wasm web server, reached on its pod's address"
echo "greetings from a file that the host can change" >"$dir/volume/greeting"
step "run its pod" keep pod_id crictl runp "$dir/server-pod.json"
step "create the container" keep id crictl create "$pod_id" "$dir/server.json" "$dir/server-pod.json"
step "start it" crictl start "$id"
address=$(crictl inspectp -o go-template --template '{{.status.network.ip}}' "$pod_id")
# ask ADDRESS PORT: one request, without needing curl.
ask() {
    exec 9<>"/dev/tcp/$1/$2"
    printf 'GET / HTTP/1.0\r\nhost: demo\r\n\r\n' >&9
    cat <&9
    exec 9>&-
}
wait_for "the server" ask "$address" 8080
step "ask it at its pod's address" ask "$address" 8080
step "its log" crictl logs "$id"

# ---------------------------------------------------------------- 3: both
bold "=== 3. one pod with a Wasm and a Linux container"
step "run the pod" keep pod_id crictl runp "$dir/mixed-pod.json"
step "create the Wasm server" keep wasm_id crictl create "$pod_id" "$dir/web.json" "$dir/mixed-pod.json"
step "start it" crictl start "$wasm_id"
step "create the Linux server" keep linux_id crictl create "$pod_id" "$dir/httpd.json" "$dir/mixed-pod.json"
step "start it" crictl start "$linux_id"
says() { crictl logs "$1" | grep -q "$2"; }
wait_for "the Wasm server" says "$wasm_id" listening
step "create a Linux client" keep client_id crictl create "$pod_id" "$dir/client.json" "$dir/mixed-pod.json"
step "start it" crictl start "$client_id"
wait_for "the client to end" exited "$client_id"
step "Linux asks Wasm on localhost" crictl logs "$client_id"
step "the Wasm server saw it" crictl logs "$wasm_id"
wait_for "the Linux server" crictl exec --sync "$linux_id" wget -q -O /dev/null http://127.0.0.1:9090/
step "create a Wasm client: a preview 2 component, which can open connections" keep connect_id crictl create "$pod_id" "$dir/connect.json" "$dir/mixed-pod.json"
step "start it" crictl start "$connect_id"
wait_for "the Wasm client to end" exited "$connect_id"
step "Wasm asks Linux on localhost" crictl logs "$connect_id"
step "exec in the Linux container" crictl exec --sync "$linux_id" wget -q -O - http://127.0.0.1:9090/
step "exec in the Wasm container runs another module of its image" crictl exec --sync "$wasm_id" /cat.wasm /shared/greeting

# ---------------------------------------------------------------- the whole table
bold "=== everything that runs"
crictl pods
crictl ps -a
# It would clear the screen.
crictl stats | sed 's/\x1b\[[0-9;]*[A-Za-z]//g'
echo

bold "=== the daemon is killed with -9 and comes back to the same pods"
kill_daemon() {
    kill -9 "$daemon"
    wait "$daemon" 2>/dev/null || true
}
step "kill -9" kill_daemon
step "the server answers all the same" ask "$address" 8080
step "start the daemon again" start_daemon
crictl ps
echo
bold "total: $SECONDS s"
