//! What a caller asks for: plain data of our own, free of CRI types, written into
//! the records as it is. Whoever builds these values has already resolved them:
//! users are numbers, argv is final, images are lists of layer directories.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::ContainerId;

/// Labels and annotations, byte-exact over daemon restarts.
pub type Map = BTreeMap<String, String>;

/// A pod sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodSpec {
    /// metadata.name
    pub name: String,
    /// metadata.uid
    pub uid: String,
    /// metadata.namespace
    pub namespace: String,
    /// metadata.attempt
    pub attempt: u32,
    /// Empty only with the node's network.
    pub hostname: String,
    /// Parent of the containers' log paths; `None` = logging off.
    pub log_directory: Option<PathBuf>,
    /// `None`: copy the host's resolv.conf.
    pub dns: Option<Dns>,
    /// Every declared port; those with `host_port` 0 need nothing.
    pub ports: Vec<PortMapping>,
    /// Echoed unchanged.
    pub labels: Map,
    /// Echoed unchanged.
    pub annotations: Map,
    /// Runtime handler as requested ("" included).
    pub handler: String,
    /// Parent of the containers' cgroup leaves as the kubelet names it; `None` = our own.
    pub cgroup_parent: Option<String>,
    /// Keys with dots.
    pub sysctls: Map,
    /// Which namespaces the pod has of its own.
    pub namespaces: NamespaceModes,
    /// Its own user namespace; `None` is the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<IdMap>,
    /// Containers may be privileged.
    pub privileged: bool,
    /// SELinux label that it asks for; containers have it unless they ask for another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<SelinuxOptions>,
    /// Informational sum, echoed.
    pub resources: Option<Resources>,
    /// Informational, echoed.
    pub overhead: Option<Resources>,
}

/// DNS settings for resolv.conf, in the order search, nameserver, options.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// nameserver lines
    pub servers: Vec<String>,
    /// search line
    pub searches: Vec<String>,
    /// options line
    pub options: Vec<String>,
}

/// A port that the pod declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// tcp, udp or sctp
    pub protocol: String,
    /// In the pod.
    pub container_port: u16,
    /// On the node, 0 = none.
    pub host_port: u16,
    /// Node address, "" = all.
    pub host_ip: String,
}

/// Namespace modes of a pod or container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceModes {
    /// Network.
    pub network: Scope,
    /// System V IPC and /dev/shm.
    pub ipc: Scope,
    /// Process ids.
    pub pid: PidMode,
}

/// Whom the ids of a user namespace stand for on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// User ids.
    pub uids: IdRange,
    /// Group ids.
    pub gids: IdRange,
}

/// The ids from 0 on, `length` of them: id n stands for `host + n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The node's id that 0 stands for.
    pub host: u32,
    /// How many, at least 1. `host + length` is an id too.
    pub length: u32,
}

/// Own by the pod, or the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The pod's own.
    Pod,
    /// The node's.
    Node,
}

/// Whose process ids a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PidMode {
    /// Its own (kubelet's default).
    Container,
    /// All of the pod's (shareProcessNamespace; needs an init).
    Pod,
    /// The node's.
    Node,
    /// Those of another container of the pod (ephemeral debug containers).
    Target(ContainerId),
}

/// A container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// metadata.name
    pub name: String,
    /// metadata.attempt
    pub attempt: u32,
    /// Echoed unchanged.
    pub labels: Map,
    /// Echoed unchanged.
    pub annotations: Map,
    /// Names of its image.
    pub image: ImageNames,
    /// Relative to the pod's log directory; `None` = logging off.
    pub log_path: Option<PathBuf>,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin after the first attached client.
    pub stdin_once: bool,
    /// Terminal.
    pub tty: bool,
    /// Linux number of the effective stop signal.
    pub stop_signal: i32,
    /// The first process.
    pub process: Process,
    /// CRI mounts exactly as asked, in the order asked.
    pub mounts: Vec<Mount>,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// What CDI devices bring.
    #[serde(default, skip_serializing_if = "Edits::is_empty")]
    pub edits: Edits,
    /// Limits.
    pub resources: Resources,
    /// All capabilities, all devices, nothing masked.
    pub privileged: bool,
    /// readOnlyRootFilesystem
    pub readonly_rootfs: bool,
    /// Paths hidden from the container.
    pub masked_paths: Vec<String>,
    /// Paths read-only in the container.
    pub readonly_paths: Vec<String>,
    /// Process id namespace.
    pub pid: PidMode,
    /// Layer directories of the image, lowest first; empty for an artifact.
    pub lowers: Vec<PathBuf>,
    /// Which engine runs it and what that needs.
    pub engine: EngineSpec,
}

/// How the image of a container is named in status answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageNames {
    /// ImageSpec.image for status: a tag if the image has one.
    pub image: String,
    /// ImageSpec.user_specified_image.
    pub user_specified: String,
    /// ImageSpec.annotations
    pub annotations: Map,
    /// Repo digest if any, else the id.
    pub image_ref: String,
    /// Equals Image.id.
    pub image_id: String,
}

/// The first process of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// argv, never empty.
    pub args: Vec<String>,
    /// `KEY=value`, later ones won already.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplemental groups, the primary included where status shows it.
    pub groups: Vec<u32>,
    /// `CAP_…` names of bounding, effective and permitted sets.
    pub capabilities: Vec<String>,
    /// Ambient and inheritable sets.
    pub ambient: Vec<String>,
    /// no_new_privs
    pub no_new_privs: bool,
    /// Seccomp of a Linux container.
    pub seccomp: Seccomp,
    /// AppArmor. The name is not that of records of older daemons, which held a string
    /// here that only CreateContainer needed.
    #[serde(default, rename = "apparmor_profile")]
    pub apparmor: AppArmor,
    /// SELinux label that is asked for. The name is not that of records of older daemons,
    /// which held a string here that only CreateContainer needed.
    #[serde(
        default,
        rename = "selinux_options",
        skip_serializing_if = "Option::is_none"
    )]
    pub selinux: Option<SelinuxOptions>,
}

/// An SELinux label that is asked for; "" leaves a part to the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxOptions {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Level: `s0:c1,c2`.
    pub level: String,
}

/// The SELinux labels of a pod or container, which the node's policy knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxLabels {
    /// Of its processes.
    pub process: String,
    /// Of its files.
    pub files: String,
}

/// AppArmor profile of a container, Linux or Wasm.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppArmor {
    /// None.
    #[default]
    Unconfined,
    /// The pod says nothing: the daemon's default profile, where the node can load it.
    Unsaid,
    /// The daemon's default profile, unless the node has no AppArmor at all.
    RuntimeDefault,
    /// A profile that somebody has loaded on the node, by name.
    Localhost(String),
}

/// Seccomp profile of a Linux container. Wasm shims have their own, always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seccomp {
    /// No filter.
    #[default]
    Unconfined,
    /// The daemon's default profile.
    RuntimeDefault,
    /// A profile file on the node.
    Localhost(PathBuf),
}

/// One CRI mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where the container sees it.
    pub container_path: String,
    /// What of the host; created as a directory when missing. Empty for an image.
    pub host_path: PathBuf,
    /// The files of an image instead, always read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageVolume>,
    /// Read-only.
    pub readonly: bool,
    /// Read-only with everything below; needs `readonly` and private propagation.
    pub recursive_read_only: bool,
    /// Propagation.
    pub propagation: Propagation,
    /// Ask for SELinux relabelling.
    pub selinux_relabel: bool,
    /// Ids of its files: what the node has as n, the container sees as n. `None`: the
    /// container sees files of ids that its user namespace lacks as nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_map: Option<IdMap>,
}

/// An image as a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// ImageSpec.image as asked.
    pub image: String,
    /// ImageSpec.user_specified_image as asked.
    pub user_specified: String,
    /// What of it, "" is all.
    pub sub_path: String,
    /// Layer directories, lowest first; none for an artifact.
    pub lowers: Vec<PathBuf>,
    /// Files of an artifact: the name that the container sees, and where the file is.
    pub files: Vec<(String, PathBuf)>,
}

/// Mount propagation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Propagation {
    /// rprivate
    #[default]
    Private,
    /// rslave
    HostToContainer,
    /// rshared
    Bidirectional,
}

/// One device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path in the container.
    pub container_path: String,
    /// Path on the host; a device, a symlink to one, or a directory of them.
    pub host_path: PathBuf,
    /// Of "rwm".
    pub permissions: String,
}

/// What CDI devices bring besides environment and groups, which stand in the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Edits {
    /// Device nodes.
    pub nodes: Vec<DeviceNode>,
    /// Mounts of the host's files, as runc's config has them.
    pub mounts: Vec<EditMount>,
    /// By the name of the moment at which runc runs them.
    pub hooks: BTreeMap<String, Vec<Hook>>,
}

impl Edits {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A device node that is made in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: String,
    /// `b`, `c`, `u` or `p`.
    pub kind: String,
    /// Its number; 0 of a pipe.
    pub major: i64,
    /// Its number; 0 of a pipe.
    pub minor: i64,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Of "rwm", for the device cgroup.
    pub permissions: String,
}

/// A mount that is no volume of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EditMount {
    /// Where the container sees it.
    pub container_path: String,
    /// What of the host, or what its type takes.
    pub host_path: String,
    /// File system, or `bind`.
    pub kind: String,
    /// Mount options.
    pub options: Vec<String>,
}

impl EditMount {
    /// Whether it shows what the host has, and not a file system of its own.
    pub fn is_bind(&self) -> bool {
        self.kind == "bind" || self.kind == "none"
    }
}

/// A program of the host that runc runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute path.
    pub path: String,
    /// Its arguments, the first is its name.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<i64>,
}

/// Resource limits; `None`, 0 or "" = unset (kubelet sends zeros).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// microseconds
    pub cpu_period: i64,
    /// microseconds per period, -1 = unlimited
    pub cpu_quota: i64,
    /// relative weight, at least 2
    pub cpu_shares: i64,
    /// bytes
    pub memory_limit: i64,
    /// memory + swap, bytes
    pub memory_swap_limit: i64,
    /// -1000..=1000
    pub oom_score_adj: i64,
    /// list format
    pub cpuset_cpus: String,
    /// list format
    pub cpuset_mems: String,
    /// page size ("2MB") and limit in bytes
    pub hugepage_limits: Vec<(String, u64)>,
    /// cgroup v2 files
    pub unified: Map,
}

/// Which engine runs a container.
#[allow(
    clippy::large_enum_variant,
    reason = "a container has one, and it is shared by reference"
)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineSpec {
    /// A Wasm engine by name (`wasmtime`, …): the shim `criw-shim-<name>`.
    Wasm {
        /// Engine name.
        engine: String,
        /// Facts for it.
        section: criw_engines::spec::WasmSection,
    },
    /// The runc binary.
    Runc,
}

impl EngineSpec {
    /// What people call it: `wasmtime`, …, `runc`.
    pub fn name(&self) -> &str {
        match self {
            Self::Wasm { engine, .. } => engine,
            Self::Runc => "runc",
        }
    }
}
