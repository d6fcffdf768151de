//! The system calls that no safe wrapper covers.

#![allow(
    unsafe_code,
    reason = "rustix' waitid tells no pid, its signals are the named ones only, and its unshare is unsafe"
)]

use std::io;

use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Waits until any child of this process has ended and returns its pid, without
/// reaping it. `ECHILD` when there is no child.
pub(crate) fn wait_for_any_ended_child() -> io::Result<Pid> {
    ended(libc::P_ALL, 0, 0)?.ok_or_else(|| io::Error::from_raw_os_error(libc::EINTR))
}

/// Whether `pid` is a child of this process that is not reaped yet.
pub(crate) fn is_child(pid: Pid) -> bool {
    ended(
        libc::P_PID,
        pid.as_raw_nonzero().get() as libc::id_t,
        libc::WNOHANG,
    )
    .is_ok()
}

/// Whether this process has any child, alive or not reaped.
pub(crate) fn has_children() -> bool {
    ended(libc::P_ALL, 0, libc::WNOHANG).is_ok()
}

fn ended(kind: libc::idtype_t, id: libc::id_t, flags: i32) -> io::Result<Option<Pid>> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOWAIT | flags;
    // SAFETY: `info` is valid for writing and outlives the call.
    if unsafe { libc::waitid(kind, id, info.as_mut_ptr(), options) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero bytes are a valid siginfo_t, and for an ended child the
    // kernel has filled in the fields that si_pid reads.
    Ok(Pid::from_raw(unsafe { info.assume_init().si_pid() }))
}

/// Gives the calling thread, and the children it will spawn, a mount namespace of its own.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: no memory is shared differently; the thread's root and working
    // directory become its own, which nothing here relies on.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?)
}

/// `kill(2)`, for every signal number: images may name a real-time signal as theirs.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    if unsafe { libc::kill(pid, signal) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
