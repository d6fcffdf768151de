//! A process that keeps a scope of systemd alive: a scope cannot begin without one, and
//! goes when its last one ends, with the counters that say why it ended.

use std::fs::File;
use std::io::{Write as _, pipe};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criw_engines::birth::{Birth, Cgroups, Program};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};

use super::Context;
use crate::error::{Error, Result};

/// Name of a process that holds a scope, as the kernel keeps it.
const NAME: &str = "criw-hold";

/// A fork and an exit.
const STAY_DEADLINE: Duration = Duration::from_secs(10);

/// Ends with this value, unless it is told to stay. With the cgroupfs driver there is none:
/// a group stays until it is removed.
#[derive(Debug)]
#[must_use = "a scope goes with its holder: let it stay, or keep it until another process is there"]
pub struct Holder(Option<Process>);

#[derive(Debug)]
struct Process {
    pid: u32,
    pidfd: OwnedFd,
    /// A byte in it says "stay"; its end says "end".
    order: std::io::PipeWriter,
}

impl Holder {
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Starts `criw-init` as a holder, born in these cgroups.
    pub(super) fn start(program: &Path, cgroup_dirs: &[PathBuf]) -> Result<Self> {
        let what = || format!("start {} to hold a scope", program.display());
        let path = std::ffi::CString::new(program.as_os_str().as_bytes())
            .map_err(|error| Error::node(what(), error))?;
        let (orders, order) = pipe().context(what)?;
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .context(what)?;
        let (pid, pidfd) = Birth {
            program: Program::Path(&path),
            argv: &[c"criw-init".to_owned(), c"hold".to_owned()],
            descriptors: &[orders.as_fd(), null.as_fd(), null.as_fd()],
            cgroups: &Cgroups::open(cgroup_dirs).context(what)?,
            user_namespace: None,
            new_pid_namespace: false,
            label: None,
        }
        .start()
        .context(what)?;
        Ok(Self(Some(Process {
            pid: pid.unsigned_abs(),
            pidfd,
            order,
        })))
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.0.as_ref().map(|process| process.pid)
    }

    /// Lets it stay until the scope is ended. It is no child of this process any more, so
    /// that nobody here has to wait for it.
    pub fn stay(mut self) -> Result<()> {
        let Some(mut process) = self.0.take() else {
            return Ok(());
        };
        let what = "leave a process in a scope to hold it";
        process
            .order
            .write_all(b"1")
            .map_err(|error| Error::node(what, error))?;
        if !readable(process.pidfd.as_fd(), STAY_DEADLINE) {
            process.end();
            return Err(Error::Deadline(format!(
                "{what}: not done within {STAY_DEADLINE:?}"
            )));
        }
        let status = waitid(WaitId::PidFd(process.pidfd.as_fd()), WaitIdOptions::EXITED)
            .map_err(|error| Error::node(what, std::io::Error::from(error)))?;
        match status.and_then(|status| status.exit_status()) {
            Some(0) => Ok(()),
            _ => Err(Error::node(
                what,
                "it could not fork: is the limit of processes (pids.max) below 2?",
            )),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(process) = self.0.take() {
            process.end();
        }
    }
}

impl Process {
    fn end(self) {
        // Our child, not yet reaped: the pidfd is certainly it.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

fn readable(pidfd: BorrowedFd<'_>, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).expect("a wait of seconds fits");
    let mut poll = [PollFd::new(&pidfd, PollFlags::IN)];
    rustix::event::poll(&mut poll, Some(&limit)).is_ok_and(|ready| ready > 0)
}

/// Whether a process is a holder, by the name that it gave itself.
pub(super) fn is_holder(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == NAME)
}
