//! The system calls that a Wasm shim may still make once it is locked up: files
//! (the guest's root is all there is), sockets (the pod's network), memory without
//! execution, threads, time. All others fail with EPERM, which libraries take as
//! "not available" more calmly than death.
//!
//! Nothing can be executed, mapped executable, mounted, traced or signalled outside.

use libc::{c_long, sock_filter};

/// What happens to one system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Allow,
    /// Allowed unless bits of `mask` are set in an argument.
    AllowUnless {
        argument: u32,
        mask: u32,
    },
    /// Allowed only if all bits of `mask` are set in an argument.
    AllowIf {
        argument: u32,
        mask: u32,
    },
    /// Allowed only if an argument (its low half) is one of a few values.
    AllowOneOf {
        argument: u32,
        values: &'static [u32],
    },
    /// Fails with this number.
    Errno(u16),
}

const NO_EXECUTION: Rule = Rule::AllowUnless {
    argument: 2,
    mask: libc::PROT_EXEC as u32,
};

const RULES: &[(c_long, Rule)] = &[
    // Most frequent first: the filter is a linear list.
    (libc::SYS_futex, Rule::Allow),
    (libc::SYS_write, Rule::Allow),
    (libc::SYS_writev, Rule::Allow),
    (libc::SYS_read, Rule::Allow),
    (libc::SYS_readv, Rule::Allow),
    (libc::SYS_pread64, Rule::Allow),
    (libc::SYS_pwrite64, Rule::Allow),
    (libc::SYS_preadv, Rule::Allow),
    (libc::SYS_pwritev, Rule::Allow),
    (libc::SYS_preadv2, Rule::Allow),
    (libc::SYS_pwritev2, Rule::Allow),
    (libc::SYS_epoll_wait, Rule::Allow),
    (libc::SYS_epoll_pwait, Rule::Allow),
    (libc::SYS_epoll_pwait2, Rule::Allow),
    (libc::SYS_poll, Rule::Allow),
    (libc::SYS_ppoll, Rule::Allow),
    (libc::SYS_recvfrom, Rule::Allow),
    (libc::SYS_sendto, Rule::Allow),
    (libc::SYS_recvmsg, Rule::Allow),
    (libc::SYS_sendmsg, Rule::Allow),
    (libc::SYS_recvmmsg, Rule::Allow),
    (libc::SYS_sendmmsg, Rule::Allow),
    (libc::SYS_accept, Rule::Allow),
    (libc::SYS_accept4, Rule::Allow),
    (libc::SYS_close, Rule::Allow),
    (libc::SYS_close_range, Rule::Allow),
    (libc::SYS_clock_gettime, Rule::Allow),
    (libc::SYS_clock_getres, Rule::Allow),
    (libc::SYS_clock_nanosleep, Rule::Allow),
    (libc::SYS_nanosleep, Rule::Allow),
    (libc::SYS_gettimeofday, Rule::Allow),
    (libc::SYS_getrandom, Rule::Allow),
    // Memory, never executable.
    (libc::SYS_mmap, NO_EXECUTION),
    (libc::SYS_mprotect, NO_EXECUTION),
    (libc::SYS_pkey_mprotect, NO_EXECUTION),
    (libc::SYS_munmap, Rule::Allow),
    (libc::SYS_mremap, Rule::Allow),
    (libc::SYS_madvise, Rule::Allow),
    (libc::SYS_brk, Rule::Allow),
    (libc::SYS_mlock, Rule::Allow),
    (libc::SYS_munlock, Rule::Allow),
    (libc::SYS_msync, Rule::Allow),
    (libc::SYS_mincore, Rule::Allow),
    (libc::SYS_memfd_create, Rule::Allow),
    (libc::SYS_membarrier, Rule::Allow),
    // Files.
    (libc::SYS_open, Rule::Allow),
    (libc::SYS_openat, Rule::Allow),
    (libc::SYS_openat2, Rule::Allow),
    (libc::SYS_creat, Rule::Allow),
    (libc::SYS_stat, Rule::Allow),
    (libc::SYS_fstat, Rule::Allow),
    (libc::SYS_lstat, Rule::Allow),
    (libc::SYS_newfstatat, Rule::Allow),
    (libc::SYS_statx, Rule::Allow),
    (libc::SYS_statfs, Rule::Allow),
    (libc::SYS_fstatfs, Rule::Allow),
    (libc::SYS_lseek, Rule::Allow),
    (libc::SYS_getdents64, Rule::Allow),
    (libc::SYS_access, Rule::Allow),
    (libc::SYS_faccessat, Rule::Allow),
    (libc::SYS_faccessat2, Rule::Allow),
    (libc::SYS_truncate, Rule::Allow),
    (libc::SYS_ftruncate, Rule::Allow),
    (libc::SYS_fallocate, Rule::Allow),
    (libc::SYS_fadvise64, Rule::Allow),
    (libc::SYS_fsync, Rule::Allow),
    (libc::SYS_fdatasync, Rule::Allow),
    (libc::SYS_sync_file_range, Rule::Allow),
    (libc::SYS_flock, Rule::Allow),
    (libc::SYS_copy_file_range, Rule::Allow),
    (libc::SYS_sendfile, Rule::Allow),
    (libc::SYS_splice, Rule::Allow),
    (libc::SYS_mkdir, Rule::Allow),
    (libc::SYS_mkdirat, Rule::Allow),
    (libc::SYS_rmdir, Rule::Allow),
    (libc::SYS_unlink, Rule::Allow),
    (libc::SYS_unlinkat, Rule::Allow),
    (libc::SYS_rename, Rule::Allow),
    (libc::SYS_renameat, Rule::Allow),
    (libc::SYS_renameat2, Rule::Allow),
    (libc::SYS_link, Rule::Allow),
    (libc::SYS_linkat, Rule::Allow),
    (libc::SYS_symlink, Rule::Allow),
    (libc::SYS_symlinkat, Rule::Allow),
    (libc::SYS_readlink, Rule::Allow),
    (libc::SYS_readlinkat, Rule::Allow),
    (libc::SYS_chmod, Rule::Allow),
    (libc::SYS_fchmod, Rule::Allow),
    (libc::SYS_fchmodat, Rule::Allow),
    (libc::SYS_fchown, Rule::Allow),
    (libc::SYS_fchownat, Rule::Allow),
    (libc::SYS_utimensat, Rule::Allow),
    (libc::SYS_umask, Rule::Allow),
    (libc::SYS_getcwd, Rule::Allow),
    (libc::SYS_chdir, Rule::Allow),
    (libc::SYS_fchdir, Rule::Allow),
    // Descriptors.
    (libc::SYS_fcntl, Rule::Allow),
    (libc::SYS_dup, Rule::Allow),
    (libc::SYS_dup2, Rule::Allow),
    (libc::SYS_dup3, Rule::Allow),
    (libc::SYS_pipe2, Rule::Allow),
    (libc::SYS_eventfd2, Rule::Allow),
    (libc::SYS_epoll_create1, Rule::Allow),
    (libc::SYS_epoll_ctl, Rule::Allow),
    (libc::SYS_timerfd_create, Rule::Allow),
    (libc::SYS_timerfd_settime, Rule::Allow),
    (libc::SYS_select, Rule::Allow),
    (libc::SYS_pselect6, Rule::Allow),
    (
        libc::SYS_ioctl,
        Rule::AllowOneOf {
            argument: 1,
            values: &[
                libc::FIONBIO as u32,
                libc::FIONREAD as u32,
                // Whether it is a terminal, and its size; nothing that types into one.
                libc::TCGETS as u32,
                libc::TIOCGWINSZ as u32,
                libc::TIOCSWINSZ as u32,
            ],
        },
    ),
    // The pod's network; no unix, netlink or packet sockets.
    (
        libc::SYS_socket,
        Rule::AllowOneOf {
            argument: 0,
            values: &[libc::AF_INET as u32, libc::AF_INET6 as u32],
        },
    ),
    (libc::SYS_bind, Rule::Allow),
    (libc::SYS_listen, Rule::Allow),
    (libc::SYS_connect, Rule::Allow),
    (libc::SYS_shutdown, Rule::Allow),
    (libc::SYS_getsockname, Rule::Allow),
    (libc::SYS_getpeername, Rule::Allow),
    (libc::SYS_getsockopt, Rule::Allow),
    (libc::SYS_setsockopt, Rule::Allow),
    // Threads of this process; clone3 hides its flags in memory, and glibc falls
    // back to clone when it is not there.
    (
        libc::SYS_clone,
        Rule::AllowIf {
            argument: 0,
            mask: libc::CLONE_THREAD as u32,
        },
    ),
    (libc::SYS_clone3, Rule::Errno(libc::ENOSYS as u16)),
    (libc::SYS_set_robust_list, Rule::Allow),
    (libc::SYS_rseq, Rule::Allow),
    (libc::SYS_sched_yield, Rule::Allow),
    (libc::SYS_sched_getaffinity, Rule::Allow),
    (
        libc::SYS_prctl,
        Rule::AllowOneOf {
            argument: 0,
            values: &[libc::PR_SET_NAME as u32, libc::PR_SET_VMA as u32],
        },
    ),
    (libc::SYS_sigaltstack, Rule::Allow),
    (libc::SYS_rt_sigaction, Rule::Allow),
    (libc::SYS_rt_sigprocmask, Rule::Allow),
    (libc::SYS_rt_sigreturn, Rule::Allow),
    (libc::SYS_restart_syscall, Rule::Allow),
    // abort() and Rust's stack-overflow message.
    (libc::SYS_tgkill, Rule::Allow),
    (libc::SYS_gettid, Rule::Allow),
    (libc::SYS_getpid, Rule::Allow),
    (libc::SYS_getuid, Rule::Allow),
    (libc::SYS_geteuid, Rule::Allow),
    (libc::SYS_getgid, Rule::Allow),
    (libc::SYS_getegid, Rule::Allow),
    (libc::SYS_uname, Rule::Allow),
    (libc::SYS_getrlimit, Rule::Allow),
    (libc::SYS_getrusage, Rule::Allow),
    (libc::SYS_exit, Rule::Allow),
    (libc::SYS_exit_group, Rule::Allow),
];

// Offsets in the kernel's `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Numbers from here on belong to the x32 ABI.
const X32: u32 = 0x4000_0000;

/// The program for the kernel.
pub(crate) fn filter() -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
        jump(libc::BPF_JGE, X32, 0, 1),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let refuse = || answer(errno(libc::EPERM as u16));
    let allow = || answer(libc::SECCOMP_RET_ALLOW);
    for (number, rule) in RULES {
        let body = match *rule {
            Rule::Allow => vec![allow()],
            Rule::Errno(number) => vec![answer(errno(number))],
            Rule::AllowUnless { argument, mask } => vec![
                load(ARGUMENTS + 8 * argument),
                jump(libc::BPF_JSET, mask, 0, 1),
                refuse(),
                allow(),
            ],
            // All masks here have one bit, so "any" is "all".
            Rule::AllowIf { argument, mask } => vec![
                load(ARGUMENTS + 8 * argument),
                jump(libc::BPF_JSET, mask, 1, 0),
                refuse(),
                allow(),
            ],
            Rule::AllowOneOf { argument, values } => {
                let mut body = vec![load(ARGUMENTS + 8 * argument)];
                for (n, value) in values.iter().enumerate() {
                    // Over the rest of the list and the refusal.
                    let over = values.len() - n;
                    body.push(jump(libc::BPF_JEQ, *value, over as u8, 0));
                }
                body.extend([refuse(), allow()]);
                body
            }
        };
        // The kernel's numbers are small and the bodies have a few instructions.
        program.push(jump(libc::BPF_JEQ, *number as u32, 0, body.len() as u8));
        program.extend(body);
    }
    program.push(refuse());
    program
}

fn errno(number: u16) -> u32 {
    libc::SECCOMP_RET_ERRNO | u32::from(number)
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn answer(value: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, value)
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

fn jump(comparison: u32, k: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter {
        code: (libc::BPF_JMP | comparison | libc::BPF_K) as u16,
        jt: yes,
        jf: no,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u32; 3]) -> u32 {
        let read = |offset: u32| match offset {
            NUMBER => number,
            ARCHITECTURE => architecture,
            _ => arguments[((offset - ARGUMENTS) / 8) as usize],
        };
        let mut accumulator = 0;
        let mut at = 0;
        loop {
            let step = program[at];
            at += 1;
            let code = u32::from(step.code);
            if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
                accumulator = read(step.k);
            } else if code == libc::BPF_RET | libc::BPF_K {
                return step.k;
            } else {
                let yes = match code & 0xf0 {
                    libc::BPF_JEQ => accumulator == step.k,
                    libc::BPF_JGE => accumulator >= step.k,
                    libc::BPF_JSET => accumulator & step.k != 0,
                    other => panic!("unknown jump {other:#x}"),
                };
                at += usize::from(if yes { step.jt } else { step.jf });
            }
        }
    }

    #[test]
    fn what_is_allowed_and_what_is_not() {
        let program = filter();
        let allow = libc::SECCOMP_RET_ALLOW;
        let refuse = errno(libc::EPERM as u16);
        let kill = libc::SECCOMP_RET_KILL_PROCESS;
        let exec = libc::PROT_EXEC as u32;
        let thread = libc::CLONE_THREAD as u32;
        for (number, arguments, expected) in [
            (libc::SYS_write, [0, 0, 0], allow),
            (libc::SYS_exit_group, [0, 0, 0], allow),
            (libc::SYS_mmap, [0, 0, 3], allow),
            (libc::SYS_mmap, [0, 0, exec | 1], refuse),
            (libc::SYS_mprotect, [0, 0, exec], refuse),
            (libc::SYS_mprotect, [exec, exec, 1], allow),
            (libc::SYS_clone, [thread | 0x100, 0, 0], allow),
            (libc::SYS_clone, [0x11, 0, 0], refuse),
            (libc::SYS_clone3, [0, 0, 0], errno(libc::ENOSYS as u16)),
            (libc::SYS_socket, [libc::AF_INET as u32, 0, 0], allow),
            (libc::SYS_socket, [libc::AF_INET6 as u32, 0, 0], allow),
            (libc::SYS_socket, [libc::AF_UNIX as u32, 0, 0], refuse),
            (libc::SYS_ioctl, [0, libc::FIONBIO as u32, 0], allow),
            (libc::SYS_ioctl, [0, libc::TIOCSTI as u32, 0], refuse),
            (libc::SYS_prctl, [libc::PR_SET_NAME as u32, 0, 0], allow),
            (
                libc::SYS_prctl,
                [libc::PR_SET_DUMPABLE as u32, 1, 0],
                refuse,
            ),
            (libc::SYS_execve, [0, 0, 0], refuse),
            (libc::SYS_execveat, [0, 0, 0], refuse),
            (libc::SYS_fork, [0, 0, 0], refuse),
            (libc::SYS_vfork, [0, 0, 0], refuse),
            (libc::SYS_ptrace, [0, 0, 0], refuse),
            (libc::SYS_process_vm_writev, [0, 0, 0], refuse),
            (libc::SYS_bpf, [0, 0, 0], refuse),
            (libc::SYS_mount, [0, 0, 0], refuse),
            (libc::SYS_umount2, [0, 0, 0], refuse),
            (libc::SYS_setns, [0, 0, 0], refuse),
            (libc::SYS_unshare, [0, 0, 0], refuse),
            (libc::SYS_kill, [0, 0, 0], refuse),
            (libc::SYS_setuid, [0, 0, 0], refuse),
            (libc::SYS_io_uring_setup, [0, 0, 0], refuse),
        ] {
            let found = run(&program, AUDIT_ARCH_X86_64, number as u32, arguments);
            assert_eq!(found, expected, "{number} {arguments:?}");
        }
        assert_eq!(run(&program, 0x4000_0003, 1, [0; 3]), kill, "32 bit");
        assert_eq!(
            run(&program, AUDIT_ARCH_X86_64, X32 | 1, [0; 3]),
            kill,
            "x32"
        );
        assert!(program.len() < libc::BPF_MAXINSNS as usize);
    }

    #[test]
    fn each_call_has_one_rule() {
        let mut numbers: Vec<_> = RULES.iter().map(|(number, _)| number).collect();
        numbers.sort_unstable();
        let all = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), all);
    }
}
