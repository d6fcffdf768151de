//! The system calls for which no safe wrapper exists. The only module of this
//! crate that may use `unsafe`; nothing here decides anything.
#![allow(
    unsafe_code,
    reason = "posix_spawn, unshare, dup3 over a live descriptor and seccomp have no safe wrapper"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::thread::UnshareFlags;

/// `unshare(2)` for namespaces of the calling thread.
pub(crate) fn unshare_namespaces(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: only CLONE_FILES can break descriptors of other threads, and no caller passes it.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// Spawns `program` with `argv`, an empty environment, its own session, default
/// signals, and exactly these descriptors from 0 on. Everything else is closed
/// in the child, so a descriptor that some library forgot to mark does not leak.
///
/// It is `posix_spawn`: a vfork-like clone whose cost does not grow with the caller.
pub(crate) fn spawn(
    program: &CString,
    argv: &[CString],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<i32> {
    let mut argv: Vec<*mut libc::c_char> = argv.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
    argv.push(ptr::null_mut());
    let envp = [ptr::null_mut::<libc::c_char>()];
    let first_free = i32::try_from(descriptors.len()).map_err(io::Error::other)?;

    // Sources must lie above all targets, or one dup2 would overwrite the next one's source.
    let mut sources = Vec::with_capacity(descriptors.len());
    for descriptor in descriptors {
        sources.push(rustix::io::fcntl_dupfd_cloexec(descriptor, first_free)?);
    }

    let mut actions = std::mem::MaybeUninit::<libc::posix_spawn_file_actions_t>::uninit();
    let mut attributes = std::mem::MaybeUninit::<libc::posix_spawnattr_t>::uninit();
    let mut pid: libc::pid_t = 0;
    // SAFETY: both objects are initialised before use and destroyed once; every
    // pointer stays valid during the call; the child runs only glibc's own code until exec.
    unsafe {
        check(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
        if let Err(error) = check(libc::posix_spawnattr_init(attributes.as_mut_ptr())) {
            libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
            return Err(error);
        }
        let result = (|| {
            for (target, source) in (0..).zip(&sources) {
                check(libc::posix_spawn_file_actions_adddup2(
                    actions.as_mut_ptr(),
                    source.as_raw_fd(),
                    target,
                ))?;
            }
            check(libc::posix_spawn_file_actions_addclosefrom_np(
                actions.as_mut_ptr(),
                first_free,
            ))?;
            let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigfillset(all.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(
                attributes.as_mut_ptr(),
                none.as_ptr(),
            ))?;
            check(libc::posix_spawnattr_setsigdefault(
                attributes.as_mut_ptr(),
                all.as_ptr(),
            ))?;
            let flags = libc::POSIX_SPAWN_SETSIGMASK
                | libc::POSIX_SPAWN_SETSIGDEF
                | i32::from(libc::POSIX_SPAWN_SETSID);
            check(libc::posix_spawnattr_setflags(
                attributes.as_mut_ptr(),
                flags as libc::c_short,
            ))?;
            check(libc::posix_spawn(
                &mut pid,
                program.as_ptr(),
                actions.as_ptr(),
                attributes.as_ptr(),
                argv.as_ptr(),
                envp.as_ptr(),
            ))
        })();
        libc::posix_spawnattr_destroy(attributes.as_mut_ptr());
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        result?;
    }
    Ok(pid)
}

/// The posix_spawn family returns the error number instead of setting errno.
fn check(code: libc::c_int) -> io::Result<()> {
    match code {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
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
