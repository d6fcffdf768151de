//! How the compiler locks itself up, in order, before it reads its input:
//!
//! 1. new mount, net, ipc and uts namespaces, and an empty read-only root (root only);
//! 2. limits on memory, CPU time, files and descriptors;
//! 3. nobody, without groups, capabilities and new privileges, not dumpable;
//! 4. seccomp: what opens, executes, connects or looks at others is refused.
//!
//! Started by somebody else than root, steps that need root are left out: such a
//! caller has nothing to protect from itself.
#![allow(
    unsafe_code,
    reason = "unshare and seccomp have no safe wrapper; each use says why it is sound"
)]

use std::io;

use libc::{c_long, sock_filter};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};
use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

/// `nobody` on every distribution.
const NOBODY: u32 = 65534;

/// Bytes of address space: the largest module needs about 5 GiB.
const MEMORY: u64 = 8 << 30;

/// Seconds of CPU time; a 49 MB module needs 43.
const CPU_SECONDS: u64 = 600;

/// Bytes of output, when it is a file.
const OUTPUT: u64 = 4 << 30;

/// Standard streams, an event and room to spare.
const DESCRIPTORS: u64 = 16;

pub(super) fn lock_up() -> Result<(), String> {
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        step("enter an empty root", enter_empty_root())?;
    }
    step("set limits", limit())?;
    if is_root {
        step("give up privileges", become_nobody())?;
    }
    step(
        "lock up",
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .and_then(|()| rustix::thread::set_no_new_privs(true))
            .map_err(Into::into),
    )?;
    step("install the seccomp filter", install(&filter()))
}

fn step(what: &str, result: io::Result<()>) -> Result<(), String> {
    result.map_err(|error| format!("{what}: {error}"))
}

fn enter_empty_root() -> io::Result<()> {
    let namespaces =
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: CLONE_FILES, the only flag that could harm other threads, is not among them.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }?;
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
    )?;
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "size", "4k")?;
    rustix::mount::fsconfig_create(&context)?;
    let root = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    rustix::mount::move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(&root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    // Proof, not hope: the host's root would have something in it.
    let directory = rustix::fs::open("/", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let names = rustix::fs::Dir::read_from(&directory)?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name() != c"." && entry.file_name() != c"..")
        .count();
    if names > 0 {
        return Err(io::Error::other("the new root is not empty"));
    }
    Ok(())
}

/// A limit below these is kept.
fn limit() -> io::Result<()> {
    for (resource, wanted) in [
        (Resource::As, MEMORY),
        (Resource::Cpu, CPU_SECONDS),
        (Resource::Fsize, OUTPUT),
        (Resource::Nofile, DESCRIPTORS),
        (Resource::Core, 0),
    ] {
        let now = rustix::process::getrlimit(resource).maximum;
        let value = Some(now.map_or(wanted, |now| now.min(wanted)));
        let new = Rlimit {
            current: value,
            maximum: value,
        };
        rustix::process::setrlimit(resource, new)?;
    }
    Ok(())
}

fn become_nobody() -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    Ok(())
}

/// What a compiler does: memory, threads, its three descriptors.
const ALLOWED: &[c_long] = &[
    libc::SYS_futex,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_poll,
    libc::SYS_clone,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_prctl,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
];

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// A list of what is allowed; execution of new memory, new processes and everything
/// else fails with EPERM, and clone3 with ENOSYS, upon which glibc uses clone.
fn filter() -> Vec<sock_filter> {
    let errno = |number: i32| libc::SECCOMP_RET_ERRNO | number as u32;
    let load = |offset: u32| step_of(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    let answer = |value: u32| step_of(libc::BPF_RET | libc::BPF_K, value, 0, 0);
    let equal =
        |value: u32, yes, no| step_of(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no);
    let any_bit =
        |mask: u32, yes, no| step_of(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, mask, yes, no);
    let (refuse, allow) = (errno(libc::EPERM), libc::SECCOMP_RET_ALLOW);
    let mut program = vec![
        load(4),
        equal(AUDIT_ARCH_X86_64, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(0),
        equal(libc::SYS_clone3 as u32, 0, 1),
        answer(errno(libc::ENOSYS)),
    ];
    for number in ALLOWED {
        let body = match *number {
            // The third argument is the protection.
            libc::SYS_mmap | libc::SYS_mprotect => vec![
                load(16 + 8 * 2),
                any_bit(libc::PROT_EXEC as u32, 0, 1),
                answer(refuse),
                answer(allow),
            ],
            libc::SYS_clone => vec![
                load(16),
                any_bit(libc::CLONE_THREAD as u32, 1, 0),
                answer(refuse),
                answer(allow),
            ],
            _ => vec![answer(allow)],
        };
        program.push(equal(*number as u32, 0, body.len() as u8));
        program.extend(body);
    }
    program.push(answer(refuse));
    program
}

fn step_of(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

fn install(program: &[sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program and never writes to it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const filter,
        )
    };
    match result {
        0 => Ok(()),
        thread if thread > 0 => Err(io::Error::other("another thread would not be filtered")),
        _ => Err(io::Error::last_os_error()),
    }
}
