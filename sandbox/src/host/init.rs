//! Starts `criw-init`, pid 1 of a pod whose containers share one PID namespace.
//! It ends by SIGKILL only, and everything in the namespace with it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use super::{Context, boot, on_fresh_thread, sys, template};
use crate::container_state::ProcessIdentity;
use crate::error::{Error, Result};

/// A running init. It is a child of this process: [`boot::exit_status`] reaps it.
#[derive(Debug)]
pub struct Init {
    /// What records keep.
    pub identity: ProcessIdentity,
    /// Readable when it ended.
    pub pidfd: OwnedFd,
}

impl Init {
    /// The PID namespace, for shims to join.
    pub fn namespace(&self) -> Result<OwnedFd> {
        pid_namespace(self.identity.pid)
    }
}

/// The PID namespace of an init that was found again by [`boot::open_if_same`].
pub fn pid_namespace(pid: i32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/pid");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).context(|| format!("open {path}"))
}

/// Starts `program` (static: the mount namespace of `template` has no library) in
/// these cgroup directories. It sees no file of the host, because containers of
/// the pod might reach its root through procfs.
pub fn start(program: &Path, template: BorrowedFd<'_>, cgroup_dirs: &[PathBuf]) -> Result<Init> {
    let open = |path: &Path, flags| {
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open {}", path.display()))
    };
    let binary = open(program, OFlags::PATH)?;
    let null = open(Path::new("/dev/null"), OFlags::RDWR)?;
    let (pid, pidfd) = on_fresh_thread(|| {
        template::enter(template)?;
        sys::spawn_pid_one(binary.as_fd(), c"criw-init", null.as_fd())
            .context(|| format!("start {}", program.display()))
    })?;
    match watch(pid, cgroup_dirs) {
        Ok(identity) => Ok(Init { identity, pidfd }),
        Err(error) => {
            // Our own child, not yet reaped: the pidfd is certainly it.
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            let id = WaitId::PidFd(pidfd.as_fd());
            let _ = rustix::process::waitid(id, WaitIdOptions::EXITED);
            Err(error)
        }
    }
}

fn watch(pid: i32, cgroup_dirs: &[PathBuf]) -> Result<ProcessIdentity> {
    for directory in cgroup_dirs {
        let file = directory.join("cgroup.procs");
        std::fs::write(&file, pid.to_string())
            .context(|| format!("write {pid} to {}", file.display()))?;
    }
    boot::identity(pid)?.ok_or_else(|| {
        Error::node(
            format!("watch the init of a pod (pid {pid})"),
            std::io::Error::from(std::io::ErrorKind::NotFound),
        )
    })
}
