//! The system calls for which no safe wrapper exists. The only module of this
//! crate that may use `unsafe`; nothing here decides anything.
#![allow(
    unsafe_code,
    reason = "mount_setattr, PIDFD_GET_INFO and unshare have no safe wrapper"
)]

use std::ffi::{CStr, c_void};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

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
