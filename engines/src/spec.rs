//! What a container is, as told to its shim: an OCI runtime config (the file that
//! runc reads, and that CDI and NRI edit) with one more top-level key, `criw`.

use std::path::PathBuf;

use oci_spec::runtime::Spec as OciSpec;
use serde::{Deserialize, Serialize};

/// Bytes of a spec file; a CRI request is at most 16 MiB.
pub const MAX_SPEC: usize = 32 * 1024 * 1024;

/// The `criw` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// [`crate::protocol::VERSION`].
    pub version: u32,
    /// Container id (64 hex digits).
    pub container: String,
    /// Pod sandbox id (64 hex digits).
    pub sandbox: String,
    /// Container or exec.
    pub role: Role,
    /// A container's input: kept open for clients that attach; without, it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<StdinMode>,
    /// What the engine needs besides.
    pub engine: EngineSection,
}

/// Why this shim exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It is the container: it builds the root from `FdRole::Rootfs` and `FdRole::Mount`s.
    Container,
    /// It runs one more process in a running container: it enters `FdRole::ContainerMounts`.
    Exec,
}

/// How long a container's input stays open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StdinMode {
    /// As long as the container.
    Open,
    /// Until the first attached client leaves (`stdin_once`).
    Once,
}

/// Facts for one kind of engine.
#[allow(
    clippy::large_enum_variant,
    reason = "a spec has one, and is read once"
)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineSection {
    /// Any Wasm engine.
    Wasm(WasmSection),
    /// The runc binary.
    Runc(RuncSection),
}

/// Facts for a Wasm engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WasmSection {
    /// Entry function of a core module when it is not `_start` (`path#export`).
    pub export: Option<String>,
    /// TCP addresses that are bound in the pod and handed to the guest as
    /// preopened listening sockets from descriptor 3 on, before the preopened
    /// directory (`criw.dev/listen`, as other runtimes' `--tcplisten`).
    pub listen: Vec<String>,
    /// Bytes of linear memory; growth past it ends the guest as OOMKilled.
    pub memory_limit: Option<u64>,
    /// `criw.dev/memory-grow: fail`: growth past the limit returns -1 to the guest instead.
    pub memory_grow_fails: bool,
    /// What the stop signal does.
    pub stop: StopMode,
    /// Bounds of a component that serves HTTP. Left out when empty, so that an older
    /// shim understands the rest.
    #[serde(skip_serializing_if = "HttpSection::is_empty")]
    pub http: HttpSection,
    /// Places of what components may import beside WASI. Left out when empty, so that an
    /// older shim understands the rest.
    #[serde(skip_serializing_if = "ServicesSection::is_empty")]
    pub services: ServicesSection,
    /// The program may ask the daemon for further commands (see [`crate::spawner`]): it is
    /// the toolbox. Left out when false, for older shims.
    #[serde(skip_serializing_if = "is_false")]
    pub spawner: bool,
    /// Writing to a pipe that nobody reads ends the guest with 141, as SIGPIPE does:
    /// commands of a pipeline. Left out when false, for older shims.
    #[serde(skip_serializing_if = "is_false")]
    pub broken_pipe_ends: bool,
    /// Set when there is no code to run (the compiler refused the module): told at Start.
    pub start_error: Option<String>,
    /// Milliseconds from "go" after which the container ends as DeadlineExceeded
    /// (`criw.dev/deadline`). Left out when there is none, for older shims.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Units of fuel that the program, or each request, may use up (`criw.dev/fuel`). Its
    /// code is then the metered variant. Left out when there is none, for older shims.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference to what it may leave out"
)]
fn is_false(value: &bool) -> bool {
    !value
}

/// Bounds of a component that serves HTTP (`criw.dev/http-*`); `None` is the engine's
/// own bound.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSection {
    /// Milliseconds that a request may stand still: until its response begins, then
    /// between any two pieces of its bodies.
    pub request_timeout_ms: Option<u64>,
    /// Connections at the same time.
    pub max_connections: Option<u32>,
    /// Requests inside the guest at the same time.
    pub max_requests: Option<u32>,
    /// Bytes of one request's body.
    pub max_body: Option<u64>,
    /// CPUs of the container's limit, rounded up.
    pub cpus: Option<u32>,
    /// Milliseconds that a request may take as a whole, from the moment it is inside the
    /// guest. Left out when there is none, for older shims; so are those below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_deadline_ms: Option<u64>,
    /// Requests that an instance serves, one after the other; 1 without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reuse: Option<u32>,
    /// Serve HTTPS with these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
}

/// A certificate for HTTPS, as files in PEM in the container's root (`criw.dev/http-tls`).
/// They are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate, and those between it and a root, in that order.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl HttpSection {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Places of what components may import beside WASI: absolute paths in the container's root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServicesSection {
    /// Directories whose files are values of `wasi:config`, the first found wins
    /// (`criw.dev/config-dir`); empty is the engine's own default.
    pub config_dirs: Vec<String>,
    /// Directory of the buckets of `wasi:keyvalue` (`criw.dev/keyvalue-dir`); without, they
    /// are in memory.
    pub keyvalue_dir: Option<String>,
    /// Directory of `wasi:blobstore` (`criw.dev/blobstore-dir`); without, there is none.
    pub blobstore_dir: Option<String>,
}

impl ServicesSection {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What the stop signal of a Wasm container does (`criw.dev/stop-mode`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopMode {
    /// What fits the guest: guests with listeners drain, all others end at once.
    #[default]
    Auto,
    /// End at once with 128+n.
    Now,
    /// Close listeners, wait for the guest within the grace.
    Drain,
    /// Ignore the signal, wait for the guest within the grace.
    Grace,
}

/// Facts for the runc engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuncSection {
    /// The runc binary (or crun, youki).
    pub binary: PathBuf,
    /// Its `--root`.
    pub root: PathBuf,
    /// Bundle directory; holds `config.json` (this very spec). In a mount namespace of its
    /// own the shim mounts `FdRole::Rootfs` at `rootfs` and each `FdRole::Mount(n)` at
    /// `mounts/n`, which is what `mounts[n].source` of the spec names in that case, and
    /// `FdRole::UserNamespace` at `userns`.
    pub bundle: PathBuf,
    /// Pass `--systemd-cgroup`.
    pub systemd_cgroup: bool,
}

/// A whole spec.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The OCI part.
    pub oci: OciSpec,
    /// Our part.
    pub criw: Section,
}

/// Why a spec could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Longer than [`MAX_SPEC`].
    #[error("spec of {0} bytes is over the limit of {MAX_SPEC}")]
    TooLarge(usize),
    /// Not JSON, or not of the form.
    #[error("parse spec")]
    Parse(#[source] serde_json::Error),
    /// Written by another version.
    #[error(
        "spec has version {found}, this binary speaks {}",
        crate::protocol::VERSION
    )]
    Version {
        /// What it says.
        found: u32,
    },
}

impl Spec {
    /// Parses both parts; unknown OCI keys are ignored, unknown `criw` keys refused.
    pub fn parse(json: &[u8]) -> Result<Self, SpecError> {
        #[derive(Deserialize)]
        struct Ours {
            criw: Section,
        }
        if json.len() > MAX_SPEC {
            return Err(SpecError::TooLarge(json.len()));
        }
        // Two passes cost less than serde's `flatten`, which buffers the whole tree.
        let criw = serde_json::from_slice::<Ours>(json)
            .map_err(SpecError::Parse)?
            .criw;
        if criw.version != crate::protocol::VERSION {
            return Err(SpecError::Version {
                found: criw.version,
            });
        }
        let oci = serde_json::from_slice(json).map_err(SpecError::Parse)?;
        Ok(Self { oci, criw })
    }

    /// The file's bytes.
    pub fn to_json(&self) -> Result<Vec<u8>, SpecError> {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            oci: &'a OciSpec,
            criw: &'a Section,
        }
        let json = serde_json::to_vec(&Whole {
            oci: &self.oci,
            criw: &self.criw,
        })
        .map_err(SpecError::Parse)?;
        if json.len() > MAX_SPEC {
            return Err(SpecError::TooLarge(json.len()));
        }
        Ok(json)
    }
}
