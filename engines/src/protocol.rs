//! What daemon and shim say to each other.
//!
//! One `SOCK_SEQPACKET` unix socket per shim. The daemon binds it and calls
//! `listen`; the shim inherits it as fd 3. Each message is one JSON object of at
//! most [`MAX_MESSAGE`] bytes; file descriptors ride along as `SCM_RIGHTS` in the
//! order of the message's `fds` list. The daemon connects, sends one request,
//! reads one reply and closes: a connection carries no state, so a new daemon
//! talks to an old shim exactly as the one that started it did.
//!
//! ```text
//!   daemon                                  shim (born in the pod's namespaces, in its cgroups)
//!     spawn  ------------------------------> waits for Create
//!     Create + fds -----------------------> builds root, locks up, maps code, links
//!                <------------------------- Created
//!     Start  ----------------------------->  "go"
//!                <------------------------- Started | StartFailed
//!     Signal / ReopenLog / Attach / Resize / State, any time, any daemon
//!                (exit) ------------------- exit record written, process ends
//! ```
//!
//! The exit itself is never a message: the daemon sees it on a pidfd and reads
//! the [`ExitRecord`] from the file whose fd it handed over at Create.
//!
//! Everything that a shim sends is hostile input to the daemon: bounded, parsed
//! strictly, and never trusted for an identity.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of messages, spec section and exit record. A shim refuses a request
/// of another major version with a sentence; the daemon keeps speaking every
/// version for which a shim may still run.
pub const VERSION: u32 = 1;

/// Requests that came later than version 1 and that a shim of it understands: told by
/// State, so that the daemon can say what an older shim lacks.
///
/// 1: `Attach`, `Resize`. 2: `Spawner`. 3: State tells [`WasmFacts`].
pub const REVISION: u32 = 3;

/// Bytes of one message; both sides refuse more.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// File descriptors in one message (the kernel's limit is 253).
pub const MAX_FDS: usize = 250;

/// The inherited listening socket.
pub const SOCKET_FD: i32 = 3;

/// What a file descriptor sent along is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FdRole {
    /// OCI runtime config with the `criw` section (see [`crate::spec`]), read to its end.
    Spec,
    /// CRI log file, opened `O_APPEND` by the daemon; absent when logging is off.
    Log,
    /// File that the exit record is written to, truncated and empty.
    ExitRecord,
    /// Detached mount that becomes the container's root.
    Rootfs,
    /// Detached mount for `mounts[n]` of the spec.
    Mount(u32),
    /// Compiled code, read-only.
    Code,
    /// Mount namespace that the shim starts its own from (small, see the daemon's template).
    MountTemplate,
    /// Mount namespace of a running container that an exec enters.
    ContainerMounts,
    /// User namespace of the pod, if it has one of its own. A Wasm shim enters it as its last
    /// step but one; runc gets it by the path `userns` in the bundle.
    UserNamespace,
    /// Standard streams of an exec; absent ones are `/dev/null`.
    Stdin,
    /// See [`FdRole::Stdin`].
    Stdout,
    /// See [`FdRole::Stdin`].
    Stderr,
    /// The shim's end of a [`crate::spawner`] socket.
    Spawner,
}

/// A request of the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// First request of a shim's life; build everything up to "go".
    Create {
        /// [`VERSION`] of the sender.
        version: u32,
        /// Roles of the descriptors of this message, in order.
        fds: Vec<FdRole>,
    },
    /// "go": run the guest.
    Start,
    /// Deliver a signal to the container's main process. With `stop` it is the
    /// stop signal of StopContainer, and a Wasm guest ends or drains by its stop mode.
    Signal {
        /// Linux signal number.
        signal: i32,
        /// Whether this is the stop signal.
        stop: bool,
        /// Time until SIGKILL follows, for guests that drain.
        grace_ms: u64,
    },
    /// Write the log to the descriptor sent along from now on; answered after the switch.
    ReopenLog {
        /// Always `[FdRole::Log]`.
        fds: Vec<FdRole>,
    },
    /// Copy output to one more client from now on, and read its input (since
    /// [`REVISION`] 1). The descriptors are pipes; a client leaves by closing them, and one
    /// that falls behind is left: the shim closes its ends.
    Attach {
        /// Some of `Stdin`, `Stdout`, `Stderr`.
        fds: Vec<FdRole>,
    },
    /// Tell the terminal its size in characters (since [`REVISION`] 1).
    Resize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Ask this daemon for further commands from now on (since [`REVISION`] 2): the one that
    /// was asked before is gone.
    Spawner {
        /// Always `[FdRole::Spawner]`.
        fds: Vec<FdRole>,
    },
    /// Where the shim stands.
    State,
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Create succeeded.
    Created {
        /// Host pid of the container's main process when that is not the shim itself (runc).
        pid: Option<i32>,
    },
    /// The guest runs (or its start section still computes after [`START_WAIT_MS`]).
    Started,
    /// The guest never ran; the shim exits with a [`ExitRecord`] that says the same.
    StartFailed {
        /// At most [`MAX_MESSAGE_TEXT`] bytes, meant for the user.
        message: String,
    },
    /// Signal, ReopenLog, Attach, Resize and Spawner.
    Done,
    /// Answer to State.
    State {
        /// Where it stands.
        phase: Phase,
        /// Host pid of the main process when that is not the shim itself.
        pid: Option<i32>,
        /// Log lines dropped because of write errors.
        dropped_log_lines: u64,
        /// [`REVISION`] of the shim; older ones do not tell.
        #[serde(default)]
        revision: u32,
        /// What a Wasm guest has done so far (since [`REVISION`] 3).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wasm: Option<WasmFacts>,
    },
    /// The request failed; the text says what was tried and why.
    Failed {
        /// At most [`MAX_MESSAGE_TEXT`] bytes.
        message: String,
    },
}

/// What a Wasm guest has done so far. Counters begin at 0 with the shim. The words are
/// strings, so that a daemon reads what a later shim counts besides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WasmFacts {
    /// Bytes of linear memory of all instances.
    pub memory_bytes: u64,
    /// Instances that live.
    pub instances: u64,
    /// Requests by [`crate::facts::RequestEnd`].
    pub requests: BTreeMap<String, u64>,
    /// Traps by kind that cost a request; one that ends the container is told by its exit.
    pub traps: BTreeMap<String, u64>,
}

/// Life of a shim as it tells itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Waits for Create.
    Empty,
    /// Waits for Start.
    Created,
    /// The guest runs.
    Running,
    /// The guest ended; the process follows.
    Exited,
}

/// How long Start waits for instantiation to finish or fail before it answers Started.
pub const START_WAIT_MS: u64 = 1000;

/// Bytes of a text meant for ContainerStatus.message.
pub const MAX_MESSAGE_TEXT: usize = 4096;

/// How a container ended, written once by its shim as its last act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Exit code as Kubernetes shows it (128+n for signals).
    pub code: i32,
    /// Why.
    pub reason: ExitReason,
    /// Text for ContainerStatus.message, at most [`MAX_MESSAGE_TEXT`] bytes.
    #[serde(default)]
    pub message: String,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// Log lines dropped because of write errors.
    #[serde(default)]
    pub dropped_log_lines: u64,
}

/// The reasons a shim can know. Their `Display` is ContainerStatus.reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Any other code of the guest, or a signal.
    Error,
    /// A Wasm trap (code 134).
    Trap,
    /// Invalid module, link or instantiation error (code 128).
    StartError,
    /// Memory limit of guest or cgroup (code 137).
    OOMKilled,
    /// Fuel or deadline used up (code 124).
    DeadlineExceeded,
}

impl ExitReason {
    /// The word in ContainerStatus.reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::Trap => "Trap",
            Self::StartError => "StartError",
            Self::OOMKilled => "OOMKilled",
            Self::DeadlineExceeded => "DeadlineExceeded",
        }
    }
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
