//! The public nouns: what is asked for, what is stored, what a container gets.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::store::Hold;

/// Where the service lives and what bounds it.
#[derive(Debug, Clone)]
pub struct Config {
    /// Lasting: blobs, layers, compiled code and the index lie below.
    pub root: PathBuf,
    /// Per boot scratch.
    pub state: PathBuf,
    /// Directory of `<host>/hosts.toml` files as containerd's certs.d;
    /// `None` takes `/etc/containerd/certs.d` if that is there.
    pub hosts_dir: Option<PathBuf>,
    /// The `criw-compile` binary; without it modules are stored but not compiled.
    pub compiler: Option<PathBuf>,
    /// How long one module may take to compile during a pull.
    pub compile_timeout: Duration,
    /// cgroup directories the compiler is put in (its pid goes to `<dir>/cgroup.procs`).
    pub compile_cgroup: Vec<PathBuf>,
    /// Bounds on what a registry may send.
    pub limits: Limits,
}

/// Bounds on what a registry may send and how slowly.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Unpacked bytes of one image's layers together.
    pub unpacked_bytes: u64,
    /// Files, directories and links of one image's layers together.
    pub entries: u64,
    /// Bytes of one blob as sent.
    pub blob_bytes: u64,
    /// Bytes of one manifest, index or image config.
    pub manifest_bytes: u64,
    /// Bytes of one Wasm module that is compiled.
    pub module_bytes: u64,
    /// Bytes of the compiled code of one module.
    pub code_bytes: u64,
    /// Time to reach a registry.
    pub connect_timeout: Duration,
    /// Longest silence of a registry within a request.
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            unpacked_bytes: 64 << 30,
            entries: 2_000_000,
            blob_bytes: 32 << 30,
            manifest_bytes: 4 << 20,
            module_bytes: 256 << 20,
            code_bytes: 2 << 30,
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// Which variant of an image is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// The host's platform.
    Host,
    /// A Wasm platform, or an image that holds a module.
    Wasm,
    /// Whatever is there; the host variant wins.
    Any,
}

/// One request to pull.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// As the user wrote it.
    pub reference: String,
    /// Credentials; `None` is anonymous.
    pub auth: Option<Auth>,
    /// Which variants to fetch.
    pub want: Want,
}

/// Credentials for one registry, in the forms a kubelet may send.
#[derive(Clone, Default)]
pub struct Auth {
    /// If set and its host is not the image's registry, nothing is sent.
    pub server_address: String,
    pub kind: AuthKind,
}

/// The secret itself.
#[derive(Clone, Default)]
pub enum AuthKind {
    #[default]
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    /// Base64 of `user:password`.
    Encoded(String),
    /// An OAuth2 refresh token.
    IdentityToken(String),
    /// A bearer token that is sent as it is.
    RegistryToken(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("server_address", &self.server_address)
            .field("kind", &self.kind)
            .finish()
    }
}

impl fmt::Debug for AuthKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AuthKind::Anonymous => "Anonymous",
            AuthKind::Basic { .. } => "Basic(redacted)",
            AuthKind::Encoded(_) => "Encoded(redacted)",
            AuthKind::IdentityToken(_) => "IdentityToken(redacted)",
            AuthKind::RegistryToken(_) => "RegistryToken(redacted)",
        })
    }
}

/// The digest of an image's config: the same content has the same id, whatever its name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageId(pub Digest);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One stored image with all its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub id: ImageId,
    /// Full names with tag, sorted.
    pub repo_tags: Vec<String>,
    /// Full names with digest, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes on disk: content, unpacked layers, compiled code. Never 0.
    pub size: u64,
    /// Who the image runs as, unless the pod says otherwise.
    pub user: Option<ImageUser>,
    /// The runtime itself needs it.
    pub pinned: bool,
    /// The variants that are here, host variant first: those of [`Image::scope`], or all.
    pub kinds: Vec<Kind>,
    /// The one of its names by which the image was asked for. Two names may share one
    /// image, and each stands for its own variants.
    pub scope: Option<String>,
    /// Labels and annotations of the first variant.
    pub labels: BTreeMap<String, String>,
}

/// The part before `:` of the config's `User`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    Uid(i64),
    Name(String),
}

/// What kind of container a variant is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    Linux,
    Wasm,
}

/// How the image wants its process to be started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `KEY=value`, in the image's order.
    pub env: Vec<String>,
    /// Empty means `/`.
    pub working_dir: String,
    /// `user[:group]` as written.
    pub user: String,
    /// Empty means SIGTERM.
    pub stop_signal: String,
    pub labels: BTreeMap<String, String>,
    pub volumes: Vec<String>,
    /// `port/protocol`.
    pub exposed: Vec<String>,
    /// Annotations of the manifest.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// A Wasm module or component of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WasmModule {
    /// Absolute path in the root file system; `None` for a layer of an artifact.
    pub path: Option<PathBuf>,
    pub digest: Digest,
    /// Bytes of the module.
    pub size: u64,
}

/// Everything a container needs of its image.
#[derive(Debug)]
pub struct Prepared {
    pub image: Image,
    /// Unpacked layer directories, bottom first; empty for an artifact.
    pub lowers: Vec<PathBuf>,
    pub config: ProcessConfig,
    pub kind: Kind,
    /// The modules that are visible in the root file system, or the artifact's.
    pub modules: Vec<WasmModule>,
    /// Keeps layers and modules on disk while it lives.
    pub hold: Hold,
}

/// Compiled code from the cache.
#[derive(Debug)]
pub struct Code {
    /// Read-only, positioned at the start, verified in this process.
    pub file: File,
    /// Bytes.
    pub size: u64,
    /// Imports of a component that the engine does not provide, which another component
    /// may: see [`crate::ImageService::link`].
    pub unmet: Vec<String>,
}

/// A component that may be linked with others.
#[derive(Debug)]
pub enum Main {
    /// A stored module.
    Stored(Digest),
    /// One that lies elsewhere, such as on a volume.
    File(File),
}

/// A stored module that another may be linked with; what is no component is passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// What it is called in error texts.
    pub name: String,
    pub digest: Digest,
}

impl From<&WasmModule> for Library {
    fn from(module: &WasmModule) -> Self {
        let name = match &module.path {
            Some(path) => path.display().to_string(),
            None => module.digest.to_string(),
        };
        Self {
            name,
            digest: module.digest.clone(),
        }
    }
}

/// What the store takes of its file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// An existing directory on that file system.
    pub mountpoint: PathBuf,
    pub used_bytes: u64,
    pub inodes_used: u64,
}
