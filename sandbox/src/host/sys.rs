//! The system calls for which no safe wrapper exists. The only module of this
//! crate that may use `unsafe`; nothing here decides anything.
#![allow(
    unsafe_code,
    reason = "mount_setattr, PIDFD_GET_INFO, unshare and a clone into a PID namespace have no safe wrapper"
)]

use std::ffi::{CStr, c_void};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::thread::UnshareFlags;

/// `unshare(2)` for the calling thread.
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: only CLONE_FILES can break descriptors of other threads, and no caller passes it.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// What [`mount_setattr`] changes.
#[derive(Default)]
pub(super) struct MountAttributes {
    /// `MOUNT_ATTR_*` to set.
    pub(super) set: u64,
    /// One of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, or 0 for no change.
    pub(super) propagation: u64,
    /// Everything mounted below too.
    pub(super) recursive: bool,
}

/// `mount_setattr(2)`; an empty `path` means the mount behind `at` itself.
pub(super) fn mount_setattr(
    at: BorrowedFd<'_>,
    path: &CStr,
    attributes: &MountAttributes,
) -> io::Result<()> {
    let mut flags = libc::AT_SYMLINK_NOFOLLOW;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    if attributes.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: 0,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    // SAFETY: path and struct outlive the call, and the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `CLONE_NEW…` of a namespace file, or an error when it is none.
pub(super) fn namespace_type(file: BorrowedFd<'_>) -> io::Result<i32> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the call takes no argument and changes nothing.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind >= 0 {
        Ok(kind)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The wait status of an ended process by its pidfd, also for processes of other
/// parents; `None` when it runs, or the kernel does not (yet) know.
pub(super) fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    // SAFETY: a struct of integers, for which zero is a value.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = u64::from(libc::PIDFD_INFO_EXIT);
    // SAFETY: the kernel writes at most the size that is part of the request number.
    let result = unsafe {
        libc::ioctl(
            pidfd.as_raw_fd(),
            libc::PIDFD_GET_INFO,
            (&raw mut info).cast::<c_void>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let known = info.mask & u64::from(libc::PIDFD_INFO_EXIT) != 0;
    Ok(known.then_some(info.exit_code))
}

/// Starts the static binary behind `program` as pid 1 of a new PID namespace, in
/// the other namespaces of the calling thread, with no environment and these
/// standard streams. Returns its pid here and its pidfd.
pub(super) fn spawn_pid_one(
    program: BorrowedFd<'_>,
    name: &CStr,
    null: BorrowedFd<'_>,
) -> io::Result<(i32, OwnedFd)> {
    let mut pidfd: i32 = -1;
    let argv = [name.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    let flags = libc::CLONE_NEWPID | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of
    // everything, and makes only system calls until it executes or exits, so no
    // lock that another thread held at the fork is ever waited for.
    unsafe {
        let pid = libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags),
            0,
            &raw mut pidfd,
            0,
            0,
        );
        if pid == 0 {
            libc::setsid();
            for stream in 0..3 {
                libc::dup2(null.as_raw_fd(), stream);
            }
            libc::syscall(
                libc::SYS_execveat,
                program.as_raw_fd(),
                c"".as_ptr(),
                argv.as_ptr(),
                envp.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
            libc::_exit(127);
        }
        match i32::try_from(pid) {
            // SAFETY: CLONE_PIDFD stored a new descriptor that nobody else owns.
            Ok(pid) if pid > 0 => Ok((pid, OwnedFd::from_raw_fd(pidfd))),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
