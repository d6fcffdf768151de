//! The daemon's half: starts a shim inside the pod's namespaces and speaks to it.
//!
//! Everything blocks, bounded by deadlines: callers in async code cross over with
//! `spawn_blocking`. No state is kept: a daemon that comes back makes the same
//! [`ShimSocket`] from the same directory.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::thread::ThreadNameSpaceType;

use crate::birth::{Birth, Cgroups, Program};
use crate::message;
use crate::protocol::{Reply, Request};

/// File name of the socket in a container's directory.
pub const SOCKET_NAME: &str = "shim.sock";

/// Connections that may wait; the daemon serialises calls, `criw check` may add one.
const BACKLOG: i32 = 16;

/// The socket of one shim.
#[derive(Debug, Clone)]
pub struct ShimSocket {
    directory: PathBuf,
}

/// Why a call has no usable answer, by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens (any more): the shim ended, look at its pidfd and exit record.
    #[error("shim at {} is gone", path.display())]
    Gone {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No answer in time; the request may or may not have taken effect.
    #[error("shim at {} did not answer within {deadline:?}", path.display())]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// What it was given.
        deadline: Duration,
    },
    /// The shim answered what is no reply: it is broken or hostile, kill it.
    #[error("shim at {} sent a malformed reply", path.display())]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// The request never left: it is too large or this side lacks something.
    #[error("call shim at {}", path.display())]
    Send {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl ShimSocket {
    /// The socket of the shim whose directory this is.
    pub fn at(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Creates the socket (replacing an old one) and returns the listener that
    /// [`launch`] hands to the shim. `directory` must exist and be the daemon's own.
    pub fn bind(directory: &Path) -> io::Result<OwnedFd> {
        let handle = open_directory(directory)?;
        match rustix::fs::unlinkat(&handle, SOCKET_NAME, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let socket = new_socket()?;
        rustix::net::bind(&socket, &short_address(&handle)?)?;
        rustix::fs::chmodat(
            &handle,
            SOCKET_NAME,
            Mode::RUSR | Mode::WUSR,
            rustix::fs::AtFlags::empty(),
        )?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    }

    /// Sends one request with its descriptors and reads the one reply.
    pub fn call(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        deadline: Duration,
    ) -> Result<Reply, CallError> {
        let path = || self.directory.join(SOCKET_NAME);
        let fail = |source: io::Error| match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::CONNREFUSED | Errno::CONNRESET | Errno::PIPE) => {
                CallError::Gone {
                    path: path(),
                    source,
                }
            }
            Some(Errno::AGAIN | Errno::TIMEDOUT | Errno::INPROGRESS) => CallError::TimedOut {
                path: path(),
                deadline,
            },
            _ => CallError::Send {
                path: path(),
                source,
            },
        };
        let end = Instant::now() + deadline;
        let json = serde_json::to_vec(request).map_err(|error| fail(io::Error::other(error)))?;
        let handle = open_directory(&self.directory).map_err(fail)?;
        let socket = new_socket().map_err(fail)?;
        // The send time-out bounds connect too: it waits when the backlog is full.
        limit(&socket, Timeout::Send, end).map_err(fail)?;
        let address = short_address(&handle).map_err(fail)?;
        rustix::net::connect(&socket, &address).map_err(|error| fail(error.into()))?;
        limit(&socket, Timeout::Send, end).map_err(fail)?;
        message::send(socket.as_fd(), &json, fds).map_err(fail)?;
        limit(&socket, Timeout::Recv, end).map_err(fail)?;
        let malformed = |source| CallError::Malformed {
            path: path(),
            source,
        };
        let (bytes, _never_asked_for) = message::receive(socket.as_fd()).map_err(|error| {
            if error.kind() == io::ErrorKind::InvalidData {
                malformed(error)
            } else {
                fail(error)
            }
        })?;
        if bytes.is_empty() {
            return Err(fail(Errno::CONNRESET.into()));
        }
        serde_json::from_slice(&bytes).map_err(|error| malformed(error.into()))
    }
}

fn open_directory(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).map_err(Into::into)
}

fn new_socket() -> io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Into::into)
}

/// A unix address has 108 bytes, a container's directory may have more.
fn short_address(directory: &OwnedFd) -> io::Result<SocketAddrUnix> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", directory.as_raw_fd());
    SocketAddrUnix::new(path).map_err(Into::into)
}

/// Sets what is left until `end` as the socket's time-out.
fn limit(socket: &OwnedFd, which: Timeout, end: Instant) -> io::Result<()> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Errno::TIMEDOUT.into());
    }
    // Zero would mean "for ever", and the kernel counts in microseconds.
    let left = left.max(Duration::from_micros(1));
    set_socket_timeout(socket, which, Some(left)).map_err(Into::into)
}

/// One namespace (or several of one process) that the shim is born into.
#[derive(Debug)]
pub enum Join {
    /// A namespace file (`/proc/<pid>/ns/*` or a pin): net, ipc, uts or pid.
    Namespace(OwnedFd),
    /// Namespaces of a process, by pidfd: what an exec joins.
    Process {
        /// The container's shim.
        pidfd: OwnedFd,
        /// Which of its namespaces.
        kinds: ThreadNameSpaceType,
    },
}

/// The namespaces that a shim is born into; all others are the daemon's.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// Entered in order.
    pub join: Vec<Join>,
    /// Give the shim a PID namespace of its own, after all joins.
    pub new_pid: bool,
}

/// How to start a shim.
#[derive(Debug)]
pub struct Launch {
    /// The shim binary.
    pub program: PathBuf,
    /// Container or exec id, shown in `ps`.
    pub id: String,
    /// From [`ShimSocket::bind`]; becomes fd 3.
    pub listener: OwnedFd,
    /// Directories of the cgroups (one per hierarchy) that the shim is born in.
    pub cgroup_dirs: Vec<PathBuf>,
    /// Where it is born.
    pub namespaces: Namespaces,
    /// Where it says why it could not even start; `/dev/null` without.
    pub stderr: Option<OwnedFd>,
}

/// A started shim. It is a child of this process: whoever sees its pidfd become
/// readable must reap it with [`Child::reap`].
#[derive(Debug)]
pub struct Child {
    /// Its pid in the daemon's PID namespace.
    pub pid: i32,
    /// Readable when it ended.
    pub pidfd: OwnedFd,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks after boot: with the pid, an
    /// identity that outlives the daemon.
    pub start_time: u64,
}

/// Why a shim could not be started; nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A namespace could not be entered (the pod's may be gone).
    #[error("enter namespace {what} for shim {program}")]
    Namespace {
        /// Which one, in the order of [`Namespaces::join`].
        what: String,
        /// The shim binary.
        program: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The binary could not be executed.
    #[error("start shim {program}")]
    Spawn {
        /// The shim binary.
        program: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It was started but could not be observed, so it was killed.
    #[error("watch shim {program}")]
    Watch {
        /// The shim binary.
        program: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Starts a shim. Namespaces belong to a thread, so a fresh thread enters them,
/// spawns (the child is born there), and ends.
pub fn launch(launch: Launch) -> Result<Child, LaunchError> {
    let program = launch.program.display().to_string();
    let spawn_error = |source| LaunchError::Spawn {
        program: program.clone(),
        source,
    };
    let thread = std::thread::Builder::new()
        .name("launch".to_owned())
        .stack_size(128 * 1024)
        .spawn(move || in_fresh_thread(launch))
        .map_err(spawn_error)?;
    thread
        .join()
        .map_err(|_| spawn_error(io::Error::other("the launching thread panicked")))?
}

fn in_fresh_thread(launch: Launch) -> Result<Child, LaunchError> {
    let program = launch.program.display().to_string();
    enter(&launch.namespaces, &program)?;
    let spawned = (|| {
        let path = c_string(launch.program.as_os_str().as_bytes())?;
        let argv = [
            path.clone(),
            c_string(b"--id")?,
            c_string(launch.id.as_bytes())?,
        ];
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let stderr = launch.stderr.as_ref().unwrap_or(&null);
        Birth {
            program: Program::Path(&path),
            argv: &argv,
            descriptors: &[
                null.as_fd(),
                null.as_fd(),
                stderr.as_fd(),
                launch.listener.as_fd(),
            ],
            cgroups: &Cgroups::open(&launch.cgroup_dirs)?,
            user_namespace: None,
            new_pid_namespace: launch.namespaces.new_pid,
            label: None,
        }
        .start()
    })();
    let (pid, pidfd) = spawned.map_err(|source| LaunchError::Spawn {
        program: program.clone(),
        source,
    })?;
    observe(pid, pidfd).map_err(|source| LaunchError::Watch { program, source })
}

fn enter(namespaces: &Namespaces, program: &str) -> Result<(), LaunchError> {
    let error = |what: String, source: io::Error| LaunchError::Namespace {
        what,
        program: program.to_owned(),
        source,
    };
    for (n, join) in namespaces.join.iter().enumerate() {
        match join {
            Join::Namespace(file) => rustix::thread::move_into_link_name_space(file.as_fd(), None),
            Join::Process { pidfd, kinds } => {
                rustix::thread::move_into_thread_name_spaces(pidfd.as_fd(), *kinds)
            }
        }
        .map_err(|source| error(format!("number {n}"), source.into()))?;
    }
    Ok(())
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// The child cannot be reaped by anybody else before this returns, so its pid is its own.
fn observe(pid: i32, pidfd: OwnedFd) -> io::Result<Child> {
    use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
    match start_time(pid) {
        Ok(start_time) => Ok(Child {
            pid,
            pidfd,
            start_time,
        }),
        Err(error) => {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            Err(error)
        }
    }
}

/// Field 22 of `/proc/<pid>/stat`: when a process started, in clock ticks after boot.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("read {path}: {error}")))?;
    parse_start_time(&stat).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{path} has no start time"),
        )
    })
}

/// The command name (field 2) may hold spaces and brackets: count from the last bracket.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

impl Child {
    /// Takes the status of an ended shim and frees its pid; `None` while it runs.
    /// Exit codes as Kubernetes shows them: 128+n for a signal.
    pub fn reap(&self) -> io::Result<Option<i32>> {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status =
            rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options))?;
        Ok(status.map(|status| {
            status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
                .unwrap_or(255)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_hostile_names() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        for (name, expected) in [
            ("(shim)", Some(777)),
            ("(a b)", Some(777)),
            ("() S 1 2)", Some(777)),
        ] {
            assert_eq!(
                parse_start_time(&format!("42 {name} {tail}")),
                expected,
                "{name}"
            );
        }
        assert_eq!(parse_start_time("42 (x) S 1"), None);
        assert_eq!(parse_start_time(""), None);
    }

    #[test]
    fn a_call_ends_by_its_deadline_and_says_what_happened() {
        let directory = tempfile::tempdir().unwrap();
        // Longer than a unix address may be.
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let socket = ShimSocket::at(&deep);
        let second = Duration::from_secs(1);
        assert!(matches!(
            socket.call(&Request::State, &[], second),
            Err(CallError::Gone { .. })
        ));
        let listener = ShimSocket::bind(&deep).unwrap();
        let begin = Instant::now();
        let error = socket.call(&Request::State, &[], Duration::from_millis(50));
        assert!(
            matches!(error, Err(CallError::TimedOut { .. })),
            "{error:?}"
        );
        assert!(begin.elapsed() < second);
        drop(listener);
        assert!(matches!(
            socket.call(&Request::State, &[], second),
            Err(CallError::Gone { .. })
        ));
        drop(ShimSocket::bind(&deep).unwrap());
    }

    #[test]
    fn a_hostile_reply_is_malformed() {
        for bytes in [&b"{}"[..], b"\xff", b"{\"reply\":\"done\"} {}"] {
            let directory = tempfile::tempdir().unwrap();
            let listener = ShimSocket::bind(directory.path()).unwrap();
            let shim = std::thread::spawn(move || {
                let peer = rustix::net::accept(&listener).unwrap();
                message::receive(peer.as_fd()).unwrap();
                message::send(peer.as_fd(), bytes, &[]).unwrap();
            });
            let answer =
                ShimSocket::at(directory.path()).call(&Request::State, &[], Duration::from_secs(5));
            assert!(
                matches!(answer, Err(CallError::Malformed { .. })),
                "{answer:?}"
            );
            shim.join().unwrap();
        }
    }

    #[test]
    fn a_missing_binary_is_a_spawn_error() {
        let directory = tempfile::tempdir().unwrap();
        let error = launch(Launch {
            program: "/no/such/shim".into(),
            id: "x".into(),
            listener: ShimSocket::bind(directory.path()).unwrap(),
            cgroup_dirs: Vec::new(),
            namespaces: Namespaces::default(),
            stderr: None,
        })
        .unwrap_err();
        assert!(matches!(error, LaunchError::Spawn { .. }), "{error:?}");
    }
}
