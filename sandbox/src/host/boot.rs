//! Which boot this is, and processes whose identity survives pid reuse and
//! daemon restarts.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use super::{Context, sys};
use crate::container_state::ProcessIdentity;
use crate::error::{Error, Result};

/// The kernel's random id of this boot.
pub fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let id = std::fs::read_to_string(PATH).context(|| format!("read {PATH}"))?;
    Ok(id.trim().to_owned())
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl WaitStatus {
    /// 128+n for signals, as Kubernetes shows it.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    /// From the number that `wait(2)` and `PIDFD_GET_INFO` use.
    fn from_raw(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Code((status >> 8) & 0xff),
            signal => Self::Signal(signal),
        }
    }
}

/// The identity of the process that has this pid now; `None` when there is none.
pub fn identity(pid: i32) -> Result<Option<ProcessIdentity>> {
    let path = format!("/proc/{pid}/stat");
    let stat = match std::fs::read(&path) {
        Ok(stat) => stat,
        Err(error) if gone(&error) => return Ok(None),
        Err(error) => return Err(Error::node(format!("read {path}"), error)),
    };
    let start_time = parse_start_time(&String::from_utf8_lossy(&stat))
        .ok_or_else(|| Error::node(format!("find the start time in {path}"), malformed()))?;
    Ok(Some(ProcessIdentity { pid, start_time }))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not in the form of a stat file")
}

fn gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::NOENT | Errno::SRCH)
    )
}

/// The command name (field 2) may hold spaces and brackets: count from the last bracket.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

/// A pidfd of exactly this process (a zombie counts); `None` when it is gone,
/// whoever has its pid now.
pub fn open_if_same(process: ProcessIdentity) -> Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(process.pid) else {
        return Ok(None);
    };
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        // EINVAL is what a thread id that is no process gives.
        Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
        Err(error) => {
            return Err(Error::node(
                format!("open process {}", process.pid),
                io::Error::from(error),
            ));
        }
    };
    // The pid is looked at only now: what the pidfd holds cannot be younger.
    Ok((identity(process.pid)? == Some(process)).then_some(pidfd))
}

/// How the process of a pidfd ended. A child of ours is reaped by this call; of
/// others the kernel (6.15 and newer) tells once they were reaped. `None`: it
/// runs, is not reaped yet, or the kernel cannot tell.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Result<Option<WaitStatus>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let waited = rustix::io::retry_on_intr(|| {
        rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options)
    });
    match waited {
        Ok(status) => Ok(status.and_then(|status| {
            status
                .exit_status()
                .map(WaitStatus::Code)
                .or_else(|| status.terminating_signal().map(WaitStatus::Signal))
        })),
        Err(Errno::CHILD) => match sys::pidfd_exit_status(pidfd) {
            Ok(status) => Ok(status.map(WaitStatus::from_raw)),
            // ENOTTY, EINVAL: a kernel before 6.13 or 6.15. ESRCH: gone, and the
            // pidfd was opened too late for the kernel to have kept the status.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOTTY | libc::EINVAL | libc::ESRCH)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::node("ask for the exit status of a pidfd", error)),
        },
        Err(error) => Err(Error::node("wait for a pidfd", io::Error::from(error))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn ended(pidfd: &OwnedFd) -> WaitStatus {
        let end = Instant::now() + LONG;
        loop {
            if let Some(status) = exit_status(pidfd.as_fd()).unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "no exit status within {LONG:?}");
            std::thread::yield_now();
        }
    }

    fn start(script: &str) -> Child {
        Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    #[test]
    fn start_time_is_found_behind_hostile_names() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        for name in ["(shim)", "(a b)", "() S 1 2)", "(a) b) c)"] {
            let stat = format!("42 {name} {tail}");
            assert_eq!(parse_start_time(&stat), Some(777), "{name}");
        }
        assert_eq!(parse_start_time("42 (x) S 1"), None);
        assert_eq!(parse_start_time(""), None);
    }

    #[test]
    fn wait_statuses_are_codes_or_signals() {
        for (raw, status, code) in [
            (0, WaitStatus::Code(0), 0),
            (0x700, WaitStatus::Code(7), 7),
            (9, WaitStatus::Signal(9), 137),
            // With a core dump.
            (0x8b, WaitStatus::Signal(11), 139),
        ] {
            assert_eq!(WaitStatus::from_raw(raw), status);
            assert_eq!(status.exit_code(), code);
        }
    }

    #[test]
    fn a_process_is_found_again_only_as_itself() {
        let mut child = start("read line");
        let pid = i32::try_from(child.id()).unwrap();
        let identity = identity(pid).unwrap().unwrap();
        let pidfd = open_if_same(identity).unwrap().unwrap();
        let other = ProcessIdentity {
            start_time: identity.start_time + 1,
            ..identity
        };
        assert!(open_if_same(other).unwrap().is_none());
        assert_eq!(exit_status(pidfd.as_fd()).unwrap(), None);
        drop(child.stdin.take());
        assert_eq!(ended(&pidfd), WaitStatus::Code(1));
        assert!(open_if_same(identity).unwrap().is_none());
        assert_eq!(super::identity(pid).unwrap(), None);
        // Reaped by `ended` already.
        assert!(child.wait().is_err());
        assert_eq!(boot_id().unwrap().len(), 36);
    }

    /// Major and minor number of the running kernel.
    fn kernel() -> (u32, u32) {
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let mut numbers = release.split('.').map_while(|part| part.parse().ok());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    #[test]
    fn the_status_of_somebody_elses_child_is_known() {
        if kernel() < (6, 15) {
            eprintln!("skipped: kernels before 6.15 keep no exit status in pidfds");
            return;
        }
        for (script, expected) in [
            ("exit 7", WaitStatus::Code(7)),
            ("kill -9 $$", WaitStatus::Signal(9)),
        ] {
            // The shell in the middle is the parent, and reaps.
            let mut middle = start(&format!(
                "exec 3<&0; sh -c 'read line <&3; {script}' & echo $!; wait"
            ));
            let mut line = String::new();
            let mut out = BufReader::new(middle.stdout.take().unwrap());
            out.read_line(&mut line).unwrap();
            let identity = identity(line.trim().parse().unwrap()).unwrap().unwrap();
            let pidfd = open_if_same(identity).unwrap().unwrap();
            assert_eq!(exit_status(pidfd.as_fd()).unwrap(), None);
            drop(middle.stdin.take());
            middle.wait().unwrap();
            assert_eq!(ended(&pidfd), expected);
        }
    }
}
