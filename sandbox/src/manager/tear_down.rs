//! Taking down what a container holds of the node. Idempotent and from any half-built
//! state: the failure path of create, the end of every exit, and the sweep at start
//! are all this one function.

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::{Container, Inner, blocking, chain};
use crate::container_state::ProcessIdentity;
use crate::error::{Error, Result};
use crate::fault;
use crate::host::boot;
use crate::host::cgroup::Leaf;
use crate::record::LeafName;

/// How long killed processes may take to be gone; a process in an uninterruptible
/// wait (a dead NFS server) is the one thing that takes longer.
pub(crate) const KILL_DEADLINE: Duration = Duration::from_secs(10);

impl Inner {
    /// Ends all processes of a container and removes its cgroups, its state in runc
    /// and its bundle. The record and the writable layer stay.
    pub(crate) async fn take_container_down(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<()> {
        let inner = self.clone();
        let container = container.clone();
        blocking(move || {
            let (leaf, shim_leaf) = {
                let record = container.record();
                (record.leaf.clone(), record.shim_leaf.clone())
            };
            // The container before its shim: a shim that sees its container end
            // cleans up better than we do for it.
            inner.end_leaf(&leaf)?;
            if let Some(shim_leaf) = &shim_leaf {
                inner.end_leaf(shim_leaf)?;
            }
            if !container.is_wasm() {
                inner.runc_delete(container.id.as_str())?;
                // runc may have been killed between making the cgroup and saying so.
                inner.end_leaf(&leaf)?;
            }
            let bundle = container.bundle(&inner.config.state);
            match std::fs::remove_dir_all(&bundle) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::node(
                    format!("remove bundle {}", bundle.display()),
                    e,
                )),
                _ => Ok(()),
            }
        })
        .await?;
        fault::point("remove/torn-down");
        Ok(())
    }

    pub(crate) fn leaf(&self, name: &LeafName) -> Result<Leaf> {
        self.host.cgroups.leaf(&name.parent, &name.name)
    }

    pub(crate) fn end_leaf(&self, name: &LeafName) -> Result<()> {
        let leaf = self.leaf(name)?;
        leaf.kill(KILL_DEADLINE)?;
        leaf.remove(KILL_DEADLINE)
    }

    /// Removes runc's own state of a container; success when there is none. The shim's
    /// own clean-up does it, which bounds its time itself.
    fn runc_delete(&self, id: &str) -> Result<()> {
        let root = self.runc_root();
        if !root.join(id).exists() {
            return Ok(());
        }
        let what = || format!("delete container {id} with {}", self.config.runc.display());
        let output = Command::new(self.config.libexec.join("criw-shim-runc"))
            .arg("delete")
            .arg("--root")
            .arg(&root)
            .arg("--binary")
            .arg(&self.config.runc)
            .arg(id)
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .map_err(|e| Error::node(what(), e))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::node(what(), said))
    }

    pub(crate) fn runc_root(&self) -> std::path::PathBuf {
        self.config.state.join("runc")
    }
}

/// Kills a process, waits for its end and reaps it if it is our child. A process
/// that is gone, or whose pid is somebody else's by now, is left alone.
pub(crate) fn end_process(identity: ProcessIdentity, limit: Duration) {
    let Ok(Some(pidfd)) = boot::open_if_same(identity) else {
        return;
    };
    let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
    wait_readable(&pidfd, limit);
    if let Err(error) = boot::exit_status(pidfd.as_fd()) {
        tracing::warn!(pid = identity.pid, error = %chain(&error), "reap a process");
    }
}

/// Waits until a pidfd says that its process ended; whether it does.
pub(crate) fn wait_readable(pidfd: &OwnedFd, limit: Duration) -> bool {
    let mut fds = [rustix::event::PollFd::new(
        pidfd,
        rustix::event::PollFlags::IN,
    )];
    let limit = rustix::event::Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    rustix::event::poll(&mut fds, Some(&limit)).is_ok_and(|ready| ready > 0)
}
