//! What can go wrong, sorted by what the caller does next.

use std::path::{Path, PathBuf};

/// Why pods cannot be attached right now; becomes the `NetworkReady` condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotReady {
    /// One CamelCase word for the condition's `reason`.
    pub reason: &'static str,
    /// What was looked for, where, and what to do.
    pub message: String,
}

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No usable network yet; the same call may succeed later.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// The pod asks for something that no retry makes valid.
    #[error("pod network request refused: {0}")]
    InvalidPod(String),
    /// Another pod holds the host port.
    #[error(
        "host port {host_port}/{protocol} is already used by another pod; choose another hostPort or remove that pod"
    )]
    HostPortTaken {
        host_port: u16,
        protocol: &'static str,
    },
    /// Every address of the subnet is leased.
    #[error(
        "no free address in {subnet}: {leased} leases in {dir}; remove pods or configure a larger subnet"
    )]
    AddressesExhausted {
        subnet: String,
        leased: usize,
        dir: PathBuf,
    },
    /// The record was written by a newer or different program; keep it and do not guess.
    #[error("attachment record has version {found}, this program reads up to {known}")]
    UnknownRecord { found: u32, known: u32 },
    /// A CNI plugin could not be run or reported an error.
    #[error(transparent)]
    Plugin(#[from] Box<PluginError>),
    /// ADD failed, and so did taking down what it had built: detach must be repeated.
    #[error("{attach}; undoing it failed as well: {undo}")]
    Undo {
        attach: Box<NetError>,
        undo: Box<NetError>,
    },
    /// The kernel or a file refused.
    #[error("{action}")]
    Io {
        action: String,
        #[source]
        source: std::io::Error,
    },
    /// A tool of the host (nft) failed.
    #[error("{tool} failed while trying to {action}: {output}")]
    Tool {
        tool: &'static str,
        action: String,
        output: String,
    },
}

/// One plugin invocation that failed, with all that an operator needs to repeat it.
#[derive(Debug, thiserror::Error)]
#[error("cni plugin {plugin:?} of {} failed on {verb}: {what}", conflist.display())]
pub struct PluginError {
    pub plugin: String,
    pub conflist: PathBuf,
    pub verb: &'static str,
    pub what: PluginFailure,
}

#[derive(Debug, thiserror::Error)]
pub enum PluginFailure {
    #[error("no such binary in {}; install it or set [cni] bin_dirs", join(dirs))]
    Missing { dirs: Vec<PathBuf> },
    #[error("cannot run {}: {error}", path.display())]
    Spawn {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error(
        "it was still running after {seconds} s and was killed{}",
        said(stderr)
    )]
    TimedOut { seconds: u64, stderr: String },
    /// The plugin's own error object (CNI specification, section 5).
    #[error("{msg} (code {code}){}{}", extra(details), said(stderr))]
    Reported {
        code: u64,
        msg: String,
        details: String,
        stderr: String,
    },
    #[error(
        "it ended with {status} and no cni error on its output{}",
        said(stderr)
    )]
    Died { status: String, stderr: String },
    #[error("its output is not a cni result: {reason}{}", said(stderr))]
    BadOutput { reason: String, stderr: String },
}

impl NetError {
    pub(crate) fn io(action: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io {
            action: action.into(),
            source,
        }
    }

    pub(crate) fn path(verb: &str, path: &Path, source: std::io::Error) -> Self {
        Self::io(format!("{verb} {}", path.display()), source)
    }
}

fn join(dirs: &[PathBuf]) -> String {
    dirs.iter()
        .map(|d| d.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn extra(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}

fn said(stderr: &str) -> String {
    let stderr = stderr.trim();
    if stderr.is_empty() {
        String::new()
    } else {
        format!("; it printed: {stderr}")
    }
}
