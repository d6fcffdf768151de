//! The end of a leaf: every process killed, every directory removed. Idempotent,
//! and bounded by deadlines.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::{Context, Leaf, systemd, write};
use crate::error::{Error, Result};

/// Longest wait before looking again, for what no pidfd tells.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Leaf {
    /// Ends every process in it and below, and returns when none is left.
    pub fn kill(&self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        let mut first = true;
        loop {
            let pids = self.procs()?;
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(Error::Deadline(format!(
                    "{} processes of cgroup {} (first {}) did not end within {deadline:?} of SIGKILL",
                    pids.len(),
                    self.path(),
                    pids[0]
                )));
            }
            let watched = kill_all(&pids);
            self.kill_the_rest(first)?;
            first = false;
            wait(&watched, end.min(Instant::now() + LOOK_AGAIN))?;
        }
    }

    /// What pids alone do not reach: processes forked meanwhile, and frozen ones.
    fn kill_the_rest(&self, first: bool) -> Result<()> {
        if let Some(root) = &self.cgroups.layout.v2 {
            let file = super::below(root, self.path()).join("cgroup.kill");
            if file.exists() {
                ignore_absent(fs::write(&file, "1"))
                    .context(|| format!("write 1 to {}", file.display()))?;
            }
        }
        // In v1 a signal waits until its process is thawed.
        if !first && let Some(directory) = self.v1_directory("freezer") {
            let file = directory.join("freezer.state");
            ignore_absent(fs::write(&file, "THAWED"))
                .context(|| format!("write THAWED to {}", file.display()))?;
        }
        Ok(())
    }

    /// Removes it from every hierarchy. Processes must be gone; the kernel may
    /// still take a moment to see that.
    pub fn remove(&self, deadline: Duration) -> Result<()> {
        // One of another boot has no manager to be asked any more.
        if let Some(scope) = self.scope()
            && systemd::runs()
        {
            self.cgroups.layout.systemd.stop(scope)?;
        }
        let end = Instant::now() + deadline;
        let mut pause = Duration::from_micros(100);
        for directory in self.dirs() {
            while let Err(error) = remove_tree(&directory) {
                if error != Errno::BUSY {
                    return Err(Error::node(
                        format!("remove cgroup {}", directory.display()),
                        std::io::Error::from(error),
                    ));
                }
                if Instant::now() >= end {
                    return Err(Error::Deadline(format!(
                        "cgroup {} is still busy after {deadline:?}",
                        directory.display()
                    )));
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(LOOK_AGAIN);
            }
        }
        Ok(())
    }
}

impl Leaf {
    /// Ends it, and its parent if nothing else is in there.
    pub fn end_with_parent(&self, deadline: Duration) -> Result<()> {
        self.kill(deadline)?;
        self.remove(deadline)?;
        let parents: Vec<_> = self
            .dirs()
            .iter()
            .filter_map(|directory| directory.parent().map(Path::to_owned))
            .collect();
        if !self.is_scope() {
            for parent in parents {
                // Refused as long as there is anything in it.
                let _ = rustix::fs::rmdir(&parent);
            }
            return Ok(());
        }
        // A slice that is stopped takes all of its units along.
        for parent in &parents {
            let mut pids = Vec::new();
            write::processes_below(parent, &mut pids)?;
            if !pids.is_empty() || !write::sub_groups(parent)?.is_empty() {
                return Ok(());
            }
        }
        self.cgroups.layout.systemd.stop(&self.id().parent)
    }
}

fn ignore_absent(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error)
            if error.kind() == ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ENODEV) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Kills by pidfd, and returns what to wait for.
fn kill_all(pids: &[i32]) -> Vec<OwnedFd> {
    // More are killed in the next round: descriptors are bounded too.
    const AT_ONCE: usize = 256;
    let open =
        |pid: &i32| rustix::process::pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok();
    let pidfds: Vec<OwnedFd> = pids.iter().take(AT_ONCE).filter_map(open).collect();
    for pidfd in &pidfds {
        // ESRCH: it ended by itself.
        let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    }
    pidfds
}

/// Until all of them ended, or the time is over.
fn wait(pidfds: &[OwnedFd], end: Instant) -> Result<()> {
    for pidfd in pidfds {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a wait of milliseconds fits");
        let mut poll = [PollFd::new(pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut poll, Some(&left)) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return Err(Error::node(
                    "wait for killed processes",
                    std::io::Error::from(error),
                ));
            }
        }
    }
    if pidfds.is_empty() {
        // Listed, but gone before they could be opened.
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Deepest first. Only directories: the files are the kernel's.
fn remove_tree(directory: &Path) -> std::result::Result<(), Errno> {
    match rustix::fs::rmdir(directory) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(error) => return Err(error),
    }
    let children = write::sub_groups(directory).map_err(|_| Errno::BUSY)?;
    if children.is_empty() {
        return Err(Errno::BUSY);
    }
    for child in children {
        remove_tree(&directory.join(child))?;
    }
    match rustix::fs::rmdir(directory) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}
