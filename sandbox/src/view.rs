//! What readers see: cheap copies out of memory, never behind a life-cycle call.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::container_state::ContainerState;
use crate::id::{ContainerId, SandboxId};
use crate::model::{ContainerSpec, PodSpec, Resources};

/// A pod at one moment.
#[derive(Debug, Clone)]
pub struct PodView {
    /// Its id.
    pub id: SandboxId,
    /// As asked.
    pub spec: Arc<PodSpec>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// READY or NOTREADY.
    pub ready: bool,
    /// Empty with the node's network, and when not ready.
    pub ips: Vec<IpAddr>,
    /// Path of the network namespace, for tools that enter it; `None` with the node's network.
    pub netns: Option<PathBuf>,
    /// Host pid of its own process, when it has one: the init of a shared PID namespace, or
    /// one for cAdvisor.
    pub pid: Option<i32>,
    /// Why a pod that is not ready is so, for `inspectp`.
    pub message: String,
}

/// A container at one moment.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub sandbox: SandboxId,
    /// As asked.
    pub spec: Arc<ContainerSpec>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Joined log path, when logging is on.
    pub log_path: Option<PathBuf>,
    /// Host pid of the main process while there is one.
    pub pid: Option<i32>,
    /// As of the last successful update.
    pub resources: Resources,
    /// Bundle directory (spec, sockets), for `inspect`.
    pub bundle: PathBuf,
}

/// News, in the order they happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A pod became READY.
    PodReady(SandboxId),
    /// A pod became NOTREADY.
    PodStopped(SandboxId),
    /// A pod is gone.
    PodRemoved(SandboxId),
    /// A container was created.
    Created(ContainerId),
    /// A container runs.
    Started(ContainerId),
    /// A container ended.
    Stopped(ContainerId),
    /// A container is gone.
    Removed(ContainerId),
}

/// Result of a synchronous exec.
#[derive(Debug, Clone, Default)]
pub struct ExecOutput {
    /// At most [`MAX_EXEC_OUTPUT`] bytes.
    pub stdout: Vec<u8>,
    /// At most [`MAX_EXEC_OUTPUT`] bytes.
    pub stderr: Vec<u8>,
    /// Exit code.
    pub code: i32,
}

/// Bytes kept of each stream of a synchronous exec; the rest is read and dropped,
/// because the client receives at most 16 MiB in one answer.
pub const MAX_EXEC_OUTPUT: usize = 7 * 1024 * 1024;
