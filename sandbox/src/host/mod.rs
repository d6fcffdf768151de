//! The node's kernel as pods and containers need it: cgroups, namespaces and
//! their pins, mounts, process identities. Each file does one thing, blocks (but
//! never for long), and knows neither records nor life cycles.
//!
//! Namespaces belong to threads, so whatever changes one runs on a fresh thread
//! that ends afterwards ([`on_fresh_thread`]).

pub mod apparmor;
pub mod boot;
pub mod cgroup;
pub mod files;
pub mod init;
pub mod mounts;
pub mod oci;
pub mod oom_score;
pub mod pins;
pub mod rootfs;
pub mod rootview;
mod seccomp_default;
pub mod selinux;
pub mod shm;
mod sys;
pub mod sysctl;
pub mod template;
pub mod userns;
pub mod volume;

use crate::error::{Error, Result};

/// Runs `work` on a thread that is used for nothing else before or after.
pub(crate) fn on_fresh_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("namespaces".to_owned())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, work)
            .map_err(|error| Error::node("start a thread for namespaces", error))?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Puts what was tried on what before a cause.
pub(crate) trait Context<T> {
    /// `what` is computed on failure only.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error::node(what(), error.into()))
    }
}
