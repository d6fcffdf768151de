//! The system calls for which no safe wrapper exists. The only module of this
//! crate that may use `unsafe`; nothing here decides anything.
#![allow(
    unsafe_code,
    reason = "mount_setattr, PIDFD_GET_INFO, unshare and clone3 have no safe wrapper"
)]

use std::ffi::{CStr, c_void};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::thread::UnshareFlags;

/// `unshare(2)` for the calling thread.
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: only CLONE_FILES can break descriptors of other threads, and no caller passes it.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// A process that does nothing in new namespaces, a child of this one: it ends when the
/// last descriptor of the pipe's other end (the one returned) is closed, and has to be reaped.
/// A thread of a process with others cannot enter a new user namespace, a new process can.
pub(super) fn hold_namespaces(flags: UnshareFlags) -> io::Result<(i32, OwnedFd, OwnedFd)> {
    /// Not in the libc crate for this target.
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let read_end = read.as_raw_fd();
    let mut pidfd: RawFd = -1;
    // SAFETY: a struct of integers, for which zero is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.bits()) | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of everything and
    // makes only system calls until it exits, so no lock that another thread held at the
    // fork is ever waited for.
    unsafe {
        let pid = libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        );
        if pid == 0 {
            // The other end too: else this read would never end.
            libc::syscall(libc::SYS_close_range, read_end + 1, u32::MAX, 0);
            if read_end > 0 {
                libc::syscall(libc::SYS_close_range, 0, read_end - 1, 0);
            }
            let mut byte = 0_u8;
            libc::read(read_end, (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: CLONE_PIDFD stored a new descriptor that nobody else owns.
        let pidfd = OwnedFd::from_raw_fd(pidfd);
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        Ok((pid, pidfd, write))
    }
}

/// What [`mount_setattr`] changes.
#[derive(Default)]
pub(super) struct MountAttributes<'a> {
    /// `MOUNT_ATTR_*` to set.
    pub(super) set: u64,
    /// One of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, or 0 for no change.
    pub(super) propagation: u64,
    /// Everything mounted below too.
    pub(super) recursive: bool,
    /// A user namespace whose ids the files show from now on. The mount must be detached.
    pub(super) ids_of: Option<BorrowedFd<'a>>,
}

/// `mount_setattr(2)`; an empty `path` means the mount behind `at` itself.
pub(super) fn mount_setattr(
    at: BorrowedFd<'_>,
    path: &CStr,
    attributes: &MountAttributes<'_>,
) -> io::Result<()> {
    let mut flags = libc::AT_SYMLINK_NOFOLLOW;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    if attributes.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    let (ids, userns_fd) = match attributes.ids_of {
        Some(namespace) => (libc::MOUNT_ATTR_IDMAP, namespace.as_raw_fd()),
        None => (0, 0),
    };
    let attr = libc::mount_attr {
        attr_set: attributes.set | ids,
        attr_clr: 0,
        propagation: attributes.propagation,
        userns_fd: u64::from(userns_fd.unsigned_abs()),
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
