//! The system calls for which no safe wrapper exists. The only module of this
//! crate that may use `unsafe`; nothing here decides anything.
#![allow(
    unsafe_code,
    reason = "clone3, unshare, dup3 over a live descriptor and seccomp have no safe wrapper"
)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// `unshare(2)` for namespaces of the calling thread.
pub(crate) fn unshare_namespaces(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: only CLONE_FILES can break descriptors of other threads, and no caller passes it.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// What [`clone_and_execute`] makes.
pub(crate) struct Clone<'a> {
    /// A path, or a file and an empty path.
    pub(crate) program: (Option<BorrowedFd<'a>>, &'a CStr),
    pub(crate) argv: &'a [CString],
    /// Becomes 0, 1, 2, ...; everything else is closed, so that a descriptor that some
    /// library forgot to mark does not leak.
    pub(crate) descriptors: &'a [BorrowedFd<'a>],
    /// `tasks` files of v1 groups, open for writing.
    pub(crate) v1_tasks: &'a [BorrowedFd<'a>],
    /// Directory of a v2 group.
    pub(crate) v2_group: Option<BorrowedFd<'a>>,
    /// Where it becomes root before it executes.
    pub(crate) user_namespace: Option<BorrowedFd<'a>>,
    pub(crate) new_pid_namespace: bool,
    /// A procfs, and the SELinux label that it takes before it executes.
    pub(crate) label: Option<(BorrowedFd<'a>, &'a [u8])>,
}

/// Where [`clone_and_execute`] failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// In this process.
    Clone,
    /// The new process could not join the v1 group with this index.
    JoinV1(usize),
    /// It could not become root of the user namespace.
    EnterUsers,
    /// It could not take its label.
    Label,
    /// It could not become the program.
    Execute,
}

/// `struct clone_args` of clone3(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A clone without shared memory, then exec: an empty environment, a session of its own,
/// default signals. The parent's private memory is a few MB, so its page tables are
/// copied in less time than a separate move into a cgroup takes.
pub(crate) fn clone_and_execute(what: &Clone<'_>) -> Result<(i32, OwnedFd), (Step, io::Error)> {
    let here = |error: io::Error| (Step::Clone, error);
    let mut argv: Vec<*const libc::c_char> = what.argv.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(ptr::null());
    let envp = [ptr::null::<libc::c_char>()];
    let first_free = i32::try_from(what.descriptors.len())
        .map_err(io::Error::other)
        .map_err(here)?;
    // Sources must lie above all targets, or one dup2 would overwrite the next one's source.
    let above = |descriptor: BorrowedFd<'_>| {
        rustix::io::fcntl_dupfd_cloexec(descriptor, first_free).map_err(|e| here(e.into()))
    };
    let mut sources = Vec::with_capacity(what.descriptors.len());
    for descriptor in what.descriptors {
        sources.push(above(*descriptor)?);
    }
    let (report_end, low) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| here(e.into()))?;
    let reporter = above(low.as_fd())?;
    // Shadowed it would stay open, and the report without an end.
    drop(low);
    let program = match what.program.0 {
        Some(file) => Some(above(file)?),
        None => None,
    };
    let users = match what.user_namespace {
        Some(namespace) => Some(above(namespace)?),
        None => None,
    };
    let proc = match what.label {
        Some((proc, _)) => Some(above(proc)?),
        None => None,
    };
    // The daemon's locks and listening sockets must not live on in a child that gets no CPU
    // time in its new cgroup, should the daemon die meanwhile: all but these close first.
    let mut kept: Vec<i32> = sources.iter().map(AsRawFd::as_raw_fd).collect();
    kept.extend(program.as_ref().map(AsRawFd::as_raw_fd));
    kept.extend(what.v1_tasks.iter().map(AsRawFd::as_raw_fd));
    kept.extend(users.as_ref().map(AsRawFd::as_raw_fd));
    kept.extend(proc.as_ref().map(AsRawFd::as_raw_fd));
    kept.push(reporter.as_raw_fd());
    kept.sort_unstable();
    let (directory, flags) = match &program {
        Some(file) => (file.as_raw_fd(), libc::AT_EMPTY_PATH),
        None => (libc::AT_FDCWD, 0),
    };

    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        // Handlers of this process mean nothing in the next.
        flags: (libc::CLONE_PIDFD as u64) | CLONE_CLEAR_SIGHAND,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if what.new_pid_namespace && users.is_none() {
        args.flags |= libc::CLONE_NEWPID as u64;
    }
    if let Some(group) = what.v2_group {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = group.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of everything
    // and makes only system calls until it executes or exits, so no lock that another
    // thread held at the fork is ever waited for. All pointers are to memory that was
    // filled before.
    unsafe {
        let pid = libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            std::mem::size_of::<CloneArgs>(),
        );
        if pid == 0 {
            let fail = |step: i32| -> ! {
                let error = *libc::__errno_location();
                let text: [i32; 2] = [step, error];
                libc::write(reporter.as_raw_fd(), text.as_ptr().cast(), 8);
                libc::_exit(127)
            };
            let mut first = 0;
            for kept in &kept {
                if first < *kept {
                    libc::syscall(libc::SYS_close_range, first, *kept - 1, 0);
                }
                first = *kept + 1;
            }
            libc::syscall(libc::SYS_close_range, first, u32::MAX, 0);
            for (n, tasks) in (0..).zip(what.v1_tasks) {
                if libc::write(tasks.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                    fail(n);
                }
            }
            // CLONE_CLEAR_SIGHAND leaves what was ignored, such as SIGPIPE, ignored.
            // By number, because libc hides two of its own.
            let default = [0_u64; 4];
            for signal in 1..=64 {
                libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, 0, 8);
            }
            let none: u64 = 0;
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const none,
                0,
                8,
            );
            libc::setsid();
            for (target, source) in (0..).zip(&sources) {
                if libc::dup2(source.as_raw_fd(), target) < 0 {
                    fail(EXECUTE);
                }
            }
            if let Some(users) = &users {
                // Only one process may do this, not one thread of the daemon. By number,
                // because libc would make all threads do it.
                if libc::setns(users.as_raw_fd(), libc::CLONE_NEWUSER) != 0
                    || libc::syscall(libc::SYS_setgroups, 0, ptr::null::<u32>()) != 0
                    || libc::syscall(libc::SYS_setresgid, 0, 0, 0) != 0
                    || libc::syscall(libc::SYS_setresuid, 0, 0, 0) != 0
                {
                    fail(ENTER_USERS);
                }
                if what.new_pid_namespace {
                    // Made from in here, the PID namespace belongs to the user namespace. Its
                    // first process is no child of this one, but of the daemon.
                    let mut again = CloneArgs {
                        flags: (libc::CLONE_PARENT | libc::CLONE_NEWPID) as u64,
                        ..CloneArgs::default()
                    };
                    let pid = libc::syscall(
                        libc::SYS_clone3,
                        &raw mut again,
                        std::mem::size_of::<CloneArgs>(),
                    );
                    if pid < 0 {
                        fail(ENTER_USERS);
                    }
                    if pid > 0 {
                        let text: [i32; 2] = [BORN, pid as i32];
                        libc::write(reporter.as_raw_fd(), text.as_ptr().cast(), 8);
                        libc::_exit(0)
                    }
                    libc::setsid();
                }
            }
            if let (Some(proc), Some((_, label))) = (&proc, what.label) {
                let door = libc::openat(
                    proc.as_raw_fd(),
                    c"thread-self/attr/current".as_ptr(),
                    libc::O_WRONLY | libc::O_CLOEXEC,
                );
                if door < 0 || libc::write(door, label.as_ptr().cast(), label.len()) < 0 {
                    fail(LABEL);
                }
            }
            libc::syscall(
                libc::SYS_execveat,
                directory,
                what.program.1.as_ptr(),
                argv.as_ptr(),
                envp.as_ptr(),
                flags,
            );
            fail(EXECUTE);
        }
        if pid < 0 {
            return Err(here(io::Error::last_os_error()));
        }
        let pid = i32::try_from(pid).map_err(io::Error::other).map_err(here)?;
        // SAFETY: CLONE_PIDFD stored a new descriptor that nobody else owns.
        let pidfd = OwnedFd::from_raw_fd(pidfd);
        drop(reporter);
        let reap = |pid: i32| libc::waitpid(pid, ptr::null_mut(), 0);
        let (mut pid, mut pidfd) = (pid, pidfd);
        let mut report = next_report(&report_end);
        if let Some((BORN, second)) = report {
            // The first one has done its part. The second is our child as well, so its pid
            // cannot be another's before it is waited for.
            reap(pid);
            pid = second;
            let number = rustix::process::Pid::from_raw(second);
            let opened = number.ok_or(Errno::SRCH).and_then(|pid| {
                rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            });
            pidfd = match opened {
                Ok(pidfd) => pidfd,
                Err(error) => {
                    libc::kill(second, libc::SIGKILL);
                    reap(second);
                    return Err(here(error.into()));
                }
            };
            report = next_report(&report_end);
        }
        match report {
            None => Ok((pid, pidfd)),
            Some((step, error)) => {
                reap(pid);
                let step = match step {
                    ENTER_USERS => Step::EnterUsers,
                    LABEL => Step::Label,
                    EXECUTE => Step::Execute,
                    n => Step::JoinV1(usize::try_from(n).unwrap_or(usize::MAX)),
                };
                Err((step, io::Error::from_raw_os_error(error)))
            }
        }
    }
}

/// Steps by number, as a new process reports them; from 0 on they are v1 groups.
const EXECUTE: i32 = -1;
const ENTER_USERS: i32 = -2;
/// No failure: the number that follows is the pid of another process that goes on.
const BORN: i32 = -3;
const LABEL: i32 = -4;

/// Not in the libc crate for this target.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The pipe closes with the exec; before that it carries pairs: a step that failed and the
/// number of the error, or [`BORN`] and a pid.
fn next_report(report: &OwnedFd) -> Option<(i32, i32)> {
    let mut text = [0; 8];
    match rustix::io::retry_on_intr(|| rustix::io::read(report, &mut text)) {
        Ok(8) => {
            let [a, b, c, d, e, f, g, h] = text;
            Some((
                i32::from_ne_bytes([a, b, c, d]),
                i32::from_ne_bytes([e, f, g, h]),
            ))
        }
        _ => None,
    }
}

/// Takes ownership of a descriptor inherited over exec, or says that it is not open.
pub(crate) fn inherited(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only asks.
    if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the caller asks for each inherited number once, at start.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Puts the file behind `new` under the number of `old`, atomically for every
/// thread that writes to `old` at that moment.
pub(crate) fn replace(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both are open; the number of `old` stays owned by its owner.
    if unsafe { libc::dup3(new.as_raw_fd(), old.as_raw_fd(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// User of the process at the other end of a unix socket (`SO_PEERCRED`). rustix's
/// call is of no use here: seen from a PID namespace of its own, a peer outside has
/// pid 0, and its type for pids has no zero.
pub(crate) fn peer_uid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into a structure of that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(credentials.uid)
}

/// `mount_setattr(2)`: read-only, this mount only.
pub(crate) fn make_mount_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let attributes = MountAttr {
        set: MOUNT_ATTR_RDONLY,
        clear: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the structure has the size that is passed and is only read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Installs a seccomp filter for this thread and all that it starts. The thread
/// must have `no_new_privs` set.
pub(crate) fn install_seccomp(program: &[libc::sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program, and never writes to it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const filter,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Ends the process at once, whatever its other threads do.
pub(crate) fn exit_now(code: u8) -> ! {
    // SAFETY: `_exit` runs no destructor that another thread might still need.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Lets all threads allocate from one heap: a second one costs a shim with two
/// threads more memory than they ever win time.
pub(crate) fn use_one_heap() {
    // SAFETY: it sets a number in the allocator, before a second thread exists.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
