//! OCI runtime configs: what a Linux container is for runc, and what a Wasm
//! container is for its shim.
//!
//! Net, ipc and uts namespaces never appear: the shim is born in the pod's, and runc
//! inherits them from it. Only a user namespace, which runc has to enter first, is named
//! by a path: the shim mounts it in the bundle, where nobody else sees it.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec as OciSpec;
use serde_json::{Value, json};

use super::cgroup::{self, CGROUP2_MAGIC};
use super::{mounts, oom_score, seccomp_default};
use crate::error::{Error, Result};
use crate::model::{
    ContainerSpec, Device, DeviceNode, Edits, Hook, IdRange, Mount, PodSpec, Propagation,
    Resources, Seccomp, SelinuxLabels,
};

/// OCI version that these configs are written in.
const VERSION: &str = "1.1.0";

/// What a Linux container's config is made of.
pub struct LinuxInput<'a> {
    /// Its pod.
    pub pod: &'a PodSpec,
    /// It.
    pub container: &'a ContainerSpec,
    /// CRI mounts and the pod's files, parents first.
    pub mounts: &'a [Mount],
    /// Its bundle.
    pub bundle: &'a Path,
    /// Absolute below each hierarchy, or `slice:prefix:name` for a scope of systemd.
    pub cgroups_path: String,
    /// PID namespace.
    pub pid: PidNamespace,
    /// What the node's security module does to it.
    pub confinement: Confinement,
    /// The pod has its own /dev/shm, which the shim mounts at `<bundle>/mounts/<n>`.
    pub own_shm: bool,
}

/// AppArmor profile and SELinux labels, which the kernel has.
#[derive(Debug, Default)]
pub struct Confinement {
    /// Name of the AppArmor profile.
    pub apparmor: Option<String>,
    /// SELinux labels.
    pub selinux: Option<SelinuxLabels>,
}

/// Which PID namespace runc puts the container in.
pub enum PidNamespace {
    /// A new one.
    New,
    /// The node's.
    Host,
    /// That of a process.
    Path(PathBuf),
}

/// A mount of a Linux container that its shim attaches at `<bundle>/mounts/<n>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handed {
    /// The pod's /dev/shm.
    Shm,
    /// This one of [`LinuxInput::mounts`].
    Mount(usize),
}

/// Those mounts by their index in the config.
pub type HandedMounts = Vec<(u32, Handed)>;

/// Config for runc, and which of its mounts the shim attaches.
pub fn linux(input: &LinuxInput<'_>) -> Result<(OciSpec, HandedMounts)> {
    let container = input.container;
    let (mounts, handed) = linux_mounts(input)?;
    let (devices, rules) = devices(container, input.pod.user_namespace.is_some())?;
    let only_v2 = has_only_cgroup_v2();
    let mut resources = resources(&container.resources, only_v2);
    resources["devices"] = rules;
    let scope = input.cgroups_path.contains(':');
    if scope && !container.resources.unified.contains_key("pids.max") {
        // Else systemd sets the limit of its units, 15 % of all pids.
        resources["pids"] = json!({"limit": -1});
    }
    let mut namespaces = vec![json!({"type": "mount"})];
    match &input.pid {
        PidNamespace::New => namespaces.push(json!({"type": "pid"})),
        PidNamespace::Path(path) => namespaces.push(json!({"type": "pid", "path": path})),
        PidNamespace::Host => {}
    }
    if input.pod.user_namespace.is_some() {
        namespaces.push(json!({"type": "user", "path": input.bundle.join("userns")}));
    }
    // On cgroup v2 a container sees its own group as the root, as users expect there; on
    // v1 runc binds the right directories instead.
    if !container.privileged && only_v2 {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "resources": resources,
        "devices": devices,
        "cgroupsPath": input.cgroups_path,
        "maskedPaths": container.masked_paths,
        "readonlyPaths": container.readonly_paths,
    });
    if let Some(ids) = input.pod.user_namespace {
        let map = |range: IdRange| json!([{"containerID": 0, "hostID": range.host, "size": range.length}]);
        linux["uidMappings"] = map(ids.uids);
        linux["gidMappings"] = map(ids.gids);
    }
    if let Some(propagation) = root_propagation(input.mounts) {
        linux["rootfsPropagation"] = json!(propagation);
    }
    if let Some(profile) = seccomp(container)? {
        linux["seccomp"] = profile;
    }
    if let Some(labels) = &input.confinement.selinux {
        linux["mountLabel"] = json!(labels.files);
    }
    let mut process = process(container, &input.confinement);
    process["oomScoreAdj"] = json!(oom_score::allowed(container.resources.oom_score_adj)?);
    let mut spec = json!({
        "ociVersion": VERSION,
        "process": process,
        "root": {"path": "rootfs", "readonly": container.readonly_rootfs},
        "mounts": mounts,
        "linux": linux,
    });
    if !container.edits.hooks.is_empty() {
        spec["hooks"] = hooks(&container.edits);
    }
    Ok((parse(spec)?, handed))
}

fn hooks(edits: &Edits) -> Value {
    let hook = |hook: &Hook| {
        let mut value = json!({"path": hook.path, "args": hook.args, "env": hook.env});
        if let Some(timeout) = hook.timeout {
            value["timeout"] = json!(timeout);
        }
        value
    };
    let all = edits.hooks.iter();
    all.map(|(moment, hooks)| (moment.clone(), hooks.iter().map(hook).collect::<Value>()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn has_only_cgroup_v2() -> bool {
    rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|stat| stat.f_type == CGROUP2_MAGIC)
}

/// Config for a Wasm shim; `mounts[n]` arrives as `FdRole::Mount(n)`.
pub fn wasm(
    container: &ContainerSpec,
    mounts: &[Mount],
    confinement: &Confinement,
) -> Result<OciSpec> {
    let mounts: Vec<Value> = mounts
        .iter()
        .map(|mount| {
            json!({
                "destination": mount.container_path,
                "type": "bind",
                "source": mount.host_path,
                "options": [if mount.readonly { "ro" } else { "rw" }],
            })
        })
        .collect();
    parse(json!({
        "ociVersion": VERSION,
        "process": process(container, confinement),
        "root": {"path": "rootfs", "readonly": container.readonly_rootfs},
        "mounts": mounts,
        "linux": {
            "resources": resources(&container.resources, false),
            "maskedPaths": container.masked_paths,
            "readonlyPaths": container.readonly_paths,
        },
    }))
}

fn parse(spec: Value) -> Result<OciSpec> {
    serde_json::from_value(spec).map_err(|e| Error::node("build the OCI runtime config", e))
}

fn process(container: &ContainerSpec, confinement: &Confinement) -> Value {
    let process = &container.process;
    let mut value = json!({
        "terminal": container.tty,
        "user": {"uid": process.uid, "gid": process.gid, "additionalGids": process.groups},
        "args": process.args,
        "env": process.env,
        "cwd": process.cwd,
        "noNewPrivileges": process.no_new_privs,
        "capabilities": {
            "bounding": process.capabilities,
            "effective": process.capabilities,
            "permitted": process.capabilities,
            "inheritable": process.ambient,
            "ambient": process.ambient,
        },
    });
    if let Some(profile) = &confinement.apparmor {
        value["apparmorProfile"] = json!(profile);
    }
    if let Some(labels) = &confinement.selinux {
        value["selinuxLabel"] = json!(labels.process);
    }
    value
}

fn resources(limits: &Resources, only_v2: bool) -> Value {
    fn set(target: &mut Value, key: &str, value: i64) {
        if value != 0 {
            target[key] = json!(value);
        }
    }
    let mut cpu = json!({});
    let mut unified = limits.unified.clone();
    if only_v2 && limits.cpu_shares > 0 {
        // runc before 1.3.2 turns shares into another weight than all others on the node do.
        let weight = cgroup::cpu_weight(limits.cpu_shares).to_string();
        unified.entry("cpu.weight".to_owned()).or_insert(weight);
    } else {
        set(&mut cpu, "shares", limits.cpu_shares);
    }
    set(&mut cpu, "quota", limits.cpu_quota);
    set(&mut cpu, "period", limits.cpu_period);
    if !limits.cpuset_cpus.is_empty() {
        cpu["cpus"] = json!(limits.cpuset_cpus);
    }
    if !limits.cpuset_mems.is_empty() {
        cpu["mems"] = json!(limits.cpuset_mems);
    }
    let mut memory = json!({});
    set(&mut memory, "limit", limits.memory_limit);
    set(&mut memory, "swap", limits.memory_swap_limit);
    let hugepages: Vec<Value> = limits
        .hugepage_limits
        .iter()
        // The kubelet lists every size of the node, mostly with 0: nothing was asked for.
        .filter(|(_, limit)| *limit > 0)
        .map(|(size, limit)| json!({"pageSize": size, "limit": limit}))
        .collect();
    let mut value = json!({"cpu": cpu, "memory": memory, "hugepageLimits": hugepages});
    if !unified.is_empty() {
        value["unified"] = json!(unified);
    }
    value
}

/// The mounts every Linux container gets, unless the CRI mounts something at the same path.
fn default_mounts(input: &LinuxInput<'_>) -> Vec<Value> {
    let access = if input.container.privileged {
        "rw"
    } else {
        "ro"
    };
    let mut pts = vec![
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
    ];
    // The group "tty", unless the pod's user namespace is too small to have it.
    if input.pod.user_namespace.is_none_or(|ids| ids.gids.has(5)) {
        pts.push("gid=5");
    }
    vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc",
            "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": pts}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", access]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", access]}),
        // Own: a tmpfs that the containers of the pod share. The node's otherwise.
        json!({"destination": "/dev/shm", "type": "bind", "source": "/dev/shm",
            "options": ["rbind", "nosuid", "noexec", "nodev", "rw"]}),
    ]
}

fn linux_mounts(input: &LinuxInput<'_>) -> Result<(Vec<Value>, HandedMounts)> {
    let asked = |path: &str| {
        input
            .mounts
            .iter()
            .any(|m| m.container_path.trim_end_matches('/') == path)
    };
    let mut all: Vec<Value> = default_mounts(input)
        .into_iter()
        .filter(|mount| {
            let path = mount["destination"].as_str().unwrap_or_default();
            // Somebody who mounts his own /dev brings his own devices.
            let below_own_dev = path.starts_with("/dev/") && asked("/dev");
            !(asked(path) || below_own_dev)
        })
        .collect();
    let point = |n: usize| input.bundle.join("mounts").join(n.to_string());
    let mut handed = Vec::new();
    let defaults = all.len();
    if let Some(n) = all
        .iter()
        .position(|m| m["destination"] == "/dev/shm" && input.own_shm)
    {
        all[n]["source"] = json!(point(n));
        handed.push((n, Handed::Shm));
    }
    for (k, mount) in input.mounts.iter().enumerate() {
        let n = defaults + k;
        let source = if is_handed(mount) {
            handed.push((n, Handed::Mount(k)));
            point(n)
        } else {
            mounts::bind_source(mount)?
        };
        let mut value = bind(mount, &source);
        if let Some(Value::Array(options)) = value.get_mut("options") {
            let locked = match (&mount.image, input.pod.user_namespace) {
                (Some(_), _) => vec!["nosuid", "nodev"],
                (None, Some(_)) => locked_options(&mount.host_path),
                (None, None) => Vec::new(),
            };
            options.extend(locked.into_iter().map(Value::from));
        }
        all.push(value);
    }
    // After the volumes, whose numbers are those of the descriptors.
    all.extend(input.container.edits.mounts.iter().map(|mount| {
        json!({"destination": mount.container_path, "type": mount.kind,
            "source": mount.host_path, "options": mount.options})
    }));
    let numbered = handed.into_iter().map(|(n, what)| match u32::try_from(n) {
        Ok(n) => Ok((n, what)),
        Err(error) => Err(Error::node("count mounts", error)),
    });
    Ok((all, numbered.collect::<Result<_>>()?))
}

/// Whether the daemon makes a mount, because runc cannot: it knows no images, and many in
/// use (1.1) cannot show files under the ids of a user namespace.
fn is_handed(mount: &Mount) -> bool {
    mount.id_map.is_some() || mount.image.is_some()
}

/// In a user namespace nobody may take these away from a mount of the node, and a bind that
/// does not name them is refused (runc before 1.2 does not see to it).
fn locked_options(path: &Path) -> Vec<&'static str> {
    use rustix::fs::StatVfsMountFlags as Flags;
    let flags = rustix::fs::statvfs(path).map_or(Flags::empty(), |stat| stat.f_flag);
    [
        (Flags::NOSUID, "nosuid"),
        (Flags::NODEV, "nodev"),
        (Flags::NOEXEC, "noexec"),
    ]
    .into_iter()
    .filter_map(|(flag, option)| flags.contains(flag).then_some(option))
    .collect()
}

fn bind(mount: &Mount, source: &Path) -> Value {
    let propagation = match mount.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match (mount.readonly, mount.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    json!({
        "destination": mount.container_path,
        "type": "bind",
        "source": source,
        "options": ["rbind", propagation, access],
    })
}

/// A mount can only propagate when the container's own root lets it.
fn root_propagation(mounts: &[Mount]) -> Option<&'static str> {
    if mounts
        .iter()
        .any(|m| m.propagation == Propagation::Bidirectional)
    {
        Some("rshared")
    } else if mounts
        .iter()
        .any(|m| m.propagation == Propagation::HostToContainer)
    {
        Some("rslave")
    } else {
        None
    }
}

fn seccomp(container: &ContainerSpec) -> Result<Option<Value>> {
    if container.privileged {
        return Ok(None);
    }
    match &container.process.seccomp {
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => Ok(Some(seccomp_default::profile(
            &container.process.capabilities,
        ))),
        Seccomp::Localhost(path) => {
            let failed = || format!("read seccomp profile {}", path.display());
            let json = std::fs::read(path).map_err(|e| Error::node(failed(), e))?;
            serde_json::from_slice(&json)
                .map(Some)
                .map_err(|e| Error::node(failed(), e))
        }
    }
}

/// Device nodes and the cgroup's rules; runc adds the usual ones (null, zero, …) itself.
fn devices(container: &ContainerSpec, in_users: bool) -> Result<(Vec<Value>, Value)> {
    let edited = container.edits.nodes.iter().map(edited_node);
    if container.privileged {
        let mut nodes = Vec::new();
        collect_devices(Path::new("/dev"), Path::new("/dev"), &mut nodes);
        nodes.extend(edited);
        return Ok((nodes, json!([{"allow": true, "access": "rwm"}])));
    }
    let mut nodes = Vec::new();
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    for device in &container.devices {
        let found = device_nodes(device)?;
        for node in &found {
            // There runc cannot make nodes: it binds what the node has at the same path.
            if in_users && device.host_path != Path::new(&device.container_path) {
                return Err(Error::Invalid(format!(
                    "device {} as {}: in a pod with a user namespace (hostUsers: false) a device keeps the path that it has on the node",
                    device.host_path.display(),
                    device.container_path
                )));
            }
            rules.push(rule(node, &device.permissions));
        }
        nodes.extend(found);
    }
    for (node, edit) in edited.zip(&container.edits.nodes) {
        rules.push(rule(&node, &edit.permissions));
        nodes.push(node);
    }
    Ok((nodes, json!(rules)))
}

fn rule(node: &Value, access: &str) -> Value {
    json!({"allow": true, "type": node["type"], "major": node["major"],
        "minor": node["minor"], "access": access})
}

fn edited_node(edit: &DeviceNode) -> Value {
    let mut node =
        json!({"path": edit.path, "type": edit.kind, "major": edit.major, "minor": edit.minor});
    for (key, value) in [
        ("fileMode", edit.mode),
        ("uid", edit.uid),
        ("gid", edit.gid),
    ] {
        if let Some(value) = value {
            node[key] = json!(value);
        }
    }
    node
}

fn device_nodes(device: &Device) -> Result<Vec<Value>> {
    let failed = |e| Error::node(format!("find device {}", device.host_path.display()), e);
    let source = std::fs::canonicalize(&device.host_path).map_err(failed)?;
    let mut nodes = Vec::new();
    if source.is_dir() {
        collect_devices(&source, Path::new(&device.container_path), &mut nodes);
    } else {
        nodes.extend(node(&source, Path::new(&device.container_path)));
    }
    if nodes.is_empty() {
        return Err(Error::Invalid(format!(
            "device {} is neither a device nor a directory with devices",
            device.host_path.display()
        )));
    }
    Ok(nodes)
}

fn collect_devices(source: &Path, target: &Path, nodes: &mut Vec<Value>) {
    let Ok(entries) = std::fs::read_dir(source) else {
        return;
    };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        // These are file systems of their own in the container.
        let own = ["pts", "shm", "fd", "mqueue", ".lxc", ".udev"];
        if kind.is_dir() {
            if !own.iter().any(|o| name == *o) {
                collect_devices(&path, &target.join(&name), nodes);
            }
        } else if kind.is_char_device() || kind.is_block_device() {
            // runc makes the console itself.
            if name != "console" {
                nodes.extend(node(&path, &target.join(&name)));
            }
        }
    }
}

fn node(source: &Path, target: &Path) -> Option<Value> {
    let data = std::fs::symlink_metadata(source).ok()?;
    let kind = match data.file_type() {
        t if t.is_char_device() => "c",
        t if t.is_block_device() => "b",
        _ => return None,
    };
    let number = data.rdev();
    Some(json!({
        "path": target, "type": kind,
        "major": rustix::fs::major(number), "minor": rustix::fs::minor(number),
        "fileMode": data.mode() & 0o7777, "uid": data.uid(), "gid": data.gid(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{IdMap, Process};

    /// From the form that records have, which needs no field that does not matter here.
    fn container(change: Value) -> ContainerSpec {
        let mut spec = json!({
            "name": "c", "attempt": 0, "labels": {}, "annotations": {},
            "image": {"image": "", "user_specified": "", "annotations": {}, "image_ref": "", "image_id": ""},
            "log_path": null, "stdin": false, "stdin_once": false, "tty": false, "stop_signal": 15,
            "process": Process { args: vec!["/x".into()], cwd: "/".into(), ..Default::default() },
            "mounts": [], "devices": [], "resources": {}, "privileged": false, "readonly_rootfs": true,
            "masked_paths": ["/proc/kcore"], "readonly_paths": [], "pid": "container", "lowers": [],
            "engine": "runc",
        });
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn pod() -> PodSpec {
        serde_json::from_value(json!({
            "name": "p", "uid": "u", "namespace": "n", "attempt": 0, "hostname": "p",
            "log_directory": null, "dns": null, "ports": [], "labels": {}, "annotations": {},
            "handler": "", "cgroup_parent": null, "sysctls": {},
            "namespaces": {"network": "pod", "ipc": "pod", "pid": "container"},
            "privileged": true, "resources": null, "overhead": null,
        }))
        .unwrap()
    }

    fn built(container: &ContainerSpec, mounts: &[Mount]) -> (Value, HandedMounts) {
        built_in(&pod(), container, mounts)
    }

    fn built_in(
        pod: &PodSpec,
        container: &ContainerSpec,
        mounts: &[Mount],
    ) -> (Value, HandedMounts) {
        built_at(pod, container, mounts, "/parent/leaf")
    }

    fn built_at(
        pod: &PodSpec,
        container: &ContainerSpec,
        mounts: &[Mount],
        path: &str,
    ) -> (Value, HandedMounts) {
        let input = LinuxInput {
            pod,
            container,
            mounts,
            bundle: Path::new("/bundle"),
            cgroups_path: path.into(),
            pid: PidNamespace::New,
            confinement: confinement(),
            own_shm: true,
        };
        let (spec, handed) = linux(&input).unwrap();
        (serde_json::to_value(spec).unwrap(), handed)
    }

    fn confinement() -> Confinement {
        Confinement {
            apparmor: Some("profile".into()),
            selinux: Some(SelinuxLabels {
                process: "u:r:t:s0:c1,c2".into(),
                files: "u:r:f:s0:c1,c2".into(),
            }),
        }
    }

    fn at<'a>(spec: &'a Value, destination: &str) -> Vec<&'a Value> {
        let mounts = spec["mounts"].as_array().unwrap();
        let here = mounts.iter().filter(|m| m["destination"] == destination);
        here.collect()
    }

    #[test]
    fn the_pods_namespaces_are_inherited_and_shared_memory_is_handed_over() {
        let (spec, handed) = built(&container(json!({})), &[]);
        let namespaces = spec["linux"]["namespaces"].to_string();
        for kind in ["network", "ipc", "uts", "user"] {
            assert!(!namespaces.contains(kind), "{namespaces}");
        }
        assert_eq!(handed.len(), 1);
        assert_eq!(handed[0].1, Handed::Shm);
        let n = handed[0].0 as usize;
        assert_eq!(spec["mounts"][n]["destination"], "/dev/shm");
        assert_eq!(spec["mounts"][n]["source"], format!("/bundle/mounts/{n}"));
        assert_eq!(spec["linux"]["cgroupsPath"], "/parent/leaf");
        assert_eq!(spec["root"]["readonly"], true);
        assert_eq!(spec["process"]["apparmorProfile"], "profile");
        assert_eq!(spec["process"]["selinuxLabel"], "u:r:t:s0:c1,c2");
        assert_eq!(spec["linux"]["mountLabel"], "u:r:f:s0:c1,c2");
        assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], false);
    }

    #[test]
    fn a_scope_has_no_limit_of_processes_that_nobody_asked_for() {
        for (resources, path, expected) in [
            (json!({}), "/pods/a", json!(null)),
            (json!({}), "pods.slice:criw:a", json!(-1)),
            (
                json!({"unified": {"pids.max": "9"}}),
                "pods.slice:criw:a",
                json!(null),
            ),
        ] {
            let container = container(json!({"resources": resources}));
            let (spec, _) = built_at(&pod(), &container, &[], path);
            assert_eq!(spec["linux"]["resources"]["pids"]["limit"], expected);
        }
    }

    /// runc 1.1 made 20 of 512 shares in the same cgroup that a Wasm container has 59 in.
    #[test]
    fn on_cgroup_v2_the_weight_is_ours() {
        let limits: Resources = serde_json::from_value(json!({"cpu_shares": 512})).unwrap();
        assert_eq!(resources(&limits, false)["cpu"]["shares"], 512);
        assert!(resources(&limits, false)["unified"].is_null());
        let weighted = resources(&limits, true);
        assert!(weighted["cpu"]["shares"].is_null());
        assert_eq!(weighted["unified"], json!({"cpu.weight": "59"}));
        let named = Resources {
            unified: [("cpu.weight".to_owned(), "7".to_owned())].into(),
            ..limits
        };
        assert_eq!(resources(&named, true)["unified"]["cpu.weight"], "7");
    }

    #[test]
    fn mounts_of_the_pod_win_over_defaults() {
        let directory = tempfile::tempdir().unwrap();
        for (path, gone) in [
            ("/dev/shm", &["/dev/shm"][..]),
            ("/sys", &["/sys"]),
            ("/dev", &["/dev/pts", "/dev/mqueue", "/dev/shm"]),
        ] {
            let mount = Mount {
                container_path: path.into(),
                host_path: directory.path().into(),
                readonly: true,
                ..Default::default()
            };
            let (spec, handed) = built(&container(json!({})), &[mount]);
            assert_eq!(at(&spec, path).len(), 1, "{path}");
            assert_eq!(at(&spec, path)[0]["type"], "bind", "{path}");
            for gone in gone.iter().filter(|gone| **gone != path) {
                assert!(at(&spec, gone).is_empty(), "{path}: {gone}");
            }
            assert_eq!(handed.len() == 1, path == "/sys", "{path}");
        }
    }

    #[test]
    fn in_a_user_namespace_runc_gets_its_path_and_maps_and_lent_volumes() {
        let mut pod = pod();
        let range = |host, length| IdRange { host, length };
        let ids = IdMap {
            uids: range(100_000, 5),
            gids: range(200_000, 5),
        };
        pod.user_namespace = Some(ids);
        let mount = |path: &str, id_map| Mount {
            container_path: path.into(),
            host_path: "/tmp".into(),
            readonly: true,
            id_map,
            ..Default::default()
        };
        let mounts = [mount("/plain", None), mount("/lent", Some(ids))];
        let (spec, handed) = built_in(&pod, &container(json!({})), &mounts);
        let linux = &spec["linux"];
        let map = json!([{"containerID": 0, "hostID": 200_000, "size": 5}]);
        assert_eq!(linux["gidMappings"], map);
        assert_eq!(linux["uidMappings"][0]["hostID"], 100_000);
        let user = json!({"type": "user", "path": "/bundle/userns"});
        assert!(linux["namespaces"].as_array().unwrap().contains(&user));
        assert_eq!(at(&spec, "/plain")[0]["source"], "/tmp");
        let (n, what) = handed[1];
        assert_eq!(what, Handed::Mount(1));
        let lent = &spec["mounts"][n as usize];
        assert_eq!(lent["destination"], "/lent");
        assert_eq!(lent["source"], format!("/bundle/mounts/{n}"));
        // There is no group 5 in there.
        assert!(!at(&spec, "/dev/pts")[0].to_string().contains("gid=5"));
    }

    #[test]
    fn what_cdi_devices_bring_stands_in_the_config() {
        let edits = json!({
            "nodes": [{"path": "/dev/gpu0", "kind": "c", "major": 195, "minor": 0, "mode": 0o660,
                "uid": null, "gid": 44, "permissions": "rw"}],
            "mounts": [{"container_path": "/usr/lib/gpu.so", "host_path": "/opt/gpu.so",
                "kind": "bind", "options": ["ro", "bind"]}],
            "hooks": {"createContainer": [{"path": "/bin/true", "args": ["true"], "env": [], "timeout": 5}]},
        });
        let (spec, handed) = built(&container(json!({"edits": edits})), &[]);
        let node = json!({"path": "/dev/gpu0", "type": "c", "major": 195, "minor": 0, "fileMode": 0o660, "gid": 44});
        assert_eq!(spec["linux"]["devices"], json!([node]));
        let rule = &spec["linux"]["resources"]["devices"][1];
        assert_eq!(
            (&rule["major"], &rule["access"]),
            (&json!(195), &json!("rw"))
        );
        assert_eq!(
            at(&spec, "/usr/lib/gpu.so")[0]["options"],
            json!(["ro", "bind"])
        );
        assert_eq!(spec["hooks"]["createContainer"][0]["timeout"], 5);
        assert_eq!(handed.len(), 1);
    }

    #[test]
    fn privileged_means_everything() {
        let plain = json!({"process": Process {
            args: vec!["/x".into()], cwd: "/".into(), seccomp: Seccomp::RuntimeDefault, ..Default::default()
        }});
        assert!(built(&container(plain.clone()), &[]).0["linux"]["seccomp"].is_object());
        let mut privileged = plain;
        privileged["privileged"] = json!(true);
        let (spec, _) = built(&container(privileged), &[]);
        assert!(spec["linux"]["seccomp"].is_null());
        assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], true);
        assert!(!spec["linux"]["devices"].as_array().unwrap().is_empty());
        let options = at(&spec, "/sys")[0]["options"].to_string();
        assert!(options.contains("rw"), "{options}");
    }

    #[test]
    fn a_wasm_container_has_only_the_mounts_asked_for() {
        let mount = Mount {
            container_path: "/data".into(),
            host_path: "/tmp".into(),
            readonly: true,
            ..Default::default()
        };
        let spec = wasm(&container(json!({})), &[mount], &Confinement::default()).unwrap();
        let spec = serde_json::to_value(spec).unwrap();
        assert_eq!(spec["mounts"].as_array().unwrap().len(), 1);
        assert_eq!(spec["mounts"][0]["options"], json!(["ro"]));
        assert_eq!(spec["process"]["args"], json!(["/x"]));
        assert!(spec["process"]["apparmorProfile"].is_null());
        let confined = wasm(&container(json!({})), &[], &confinement()).unwrap();
        let confined = serde_json::to_value(confined).unwrap();
        assert_eq!(confined["process"]["apparmorProfile"], "profile");
        assert_eq!(confined["process"]["selinuxLabel"], "u:r:t:s0:c1,c2");
    }
}
