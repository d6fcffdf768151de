//! A process that does nothing, for two places where one has to be.
//!
//! Pid 1 of a pod whose containers share one PID namespace: it keeps the namespace
//! alive and lets the kernel reap what is orphaned there. It ends by SIGKILL, and by a
//! SIGTERM from outside of its namespace, which is what a machine sends to all that is
//! left when it goes down; it would wait for us for 90 s. Everything in the namespace ends
//! with it, so a SIGTERM from inside is not heard.
//!
//! `criw-init hold`: the holder of a scope of systemd, which goes, with its counters, when
//! its last process does. It waits for a byte on its standard input and ends if the end comes
//! instead: its daemon died, and nothing stays behind. With the byte it leaves its place to a
//! child and ends, so that pid 1 of the machine reaps the holder and no daemon has to.
//!
//! Both exist for as long as a pod or a container, so they must cost some pages, not some
//! hundred kilobytes: neither std nor libc (build.rs). With unwinding panics, as clippy and
//! tests build, rustc insists on std: it is linked, not used.

#![cfg_attr(panic = "abort", no_std)]
#![no_main]
#![allow(
    unsafe_code,
    reason = "without libc the program entry and the system calls are ours to write"
)]

use core::arch::{asm, naked_asm};

const READ: usize = 0;
const WRITE: usize = 1;
const OPEN: usize = 2;
const RT_SIGACTION: usize = 13;
const RT_SIGPROCMASK: usize = 14;
const PAUSE: usize = 34;
const GETPID: usize = 39;
const FORK: usize = 57;
const EXIT: usize = 60;
const CHDIR: usize = 80;
const RT_SIGTIMEDWAIT: usize = 128;
const PRCTL: usize = 157;
const CLOSE_RANGE: usize = 436;

const O_WRONLY: usize = 1;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
const SIG_IGN: usize = 1;
const SIG_SETMASK: usize = 2;
const PR_SET_DUMPABLE: usize = 4;
const PR_SET_NAME: usize = 15;
/// Bytes of the kernel's signal set.
const SIGSET_SIZE: usize = 8;

/// `struct kernel_sigaction` of x86_64.
#[repr(C)]
struct SigAction {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

/// The beginning of `siginfo_t` of a signal that a process sent.
#[repr(C)]
struct SignalInfo {
    number: i32,
    errno: i32,
    code: i32,
    padding: i32,
    /// In our namespace; 0 for a process that is not in it.
    sender: i32,
    rest: [u32; 27],
}

/// # Safety
/// The arguments must be what the call numbered `number` expects; pointers among
/// them must be valid for as long as the kernel uses them.
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: the kernel's calling convention: it changes rax, rcx and r11 only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Where the kernel enters: the stack is aligned to 16 bytes, as no function expects, and
/// begins with the number of arguments and pointers to them.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "mov rdi, rsp", "call {main}", "ud2", main = sym main)
}

extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: the kernel puts `argc` there and as many pointers to terminated strings.
    let hold = unsafe {
        let first = *stack.add(2) as *const u8;
        // `hold` is what nothing else begins with.
        *stack == 2 && *first == b'h'
    };
    if hold { hold_a_scope() } else { be_pid_one() }
}

fn hold_a_scope() -> ! {
    // SAFETY: as in `be_pid_one`. A fork copies all of this process, which has one thread.
    unsafe {
        let mut byte = 0_u8;
        if syscall(READ, 0, &raw mut byte as usize, 1, 0) != 1 {
            syscall(EXIT, 0, 0, 0, 0);
        }
        match syscall(FORK, 0, 0, 0, 0) {
            0 => {}
            forked => {
                syscall(EXIT, usize::from(forked < 0), 0, 0, 0);
            }
        }
        // The container's memory limit must not choose it: its counter is what it keeps.
        // Refused without CAP_SYS_RESOURCE; then it is the smallest of all, at least.
        let path = c"/proc/self/oom_score_adj";
        let file = syscall(OPEN, path.as_ptr() as usize, O_WRONLY, 0, 0);
        let never = b"-1000";
        syscall(
            WRITE,
            file.cast_unsigned(),
            never.as_ptr() as usize,
            never.len(),
            0,
        );
        syscall(PRCTL, PR_SET_DUMPABLE, 0, 0, 0);
        syscall(PRCTL, PR_SET_NAME, c"criw-hold".as_ptr() as usize, 0, 0);
        syscall(CHDIR, c"/".as_ptr() as usize, 0, 0, 0);
        syscall(CLOSE_RANGE, 0, u32::MAX as usize, 0, 0);
        // Signals do what they do by default: SIGTERM, of a unit that is stopped, ends it.
        loop {
            syscall(PAUSE, 0, 0, 0, 0);
        }
    }
}

fn be_pid_one() -> ! {
    // SAFETY: each call gets the numbers and pointers that its manual page names;
    // all pointers are to constants or to locals that outlive the call.
    unsafe {
        if syscall(GETPID, 0, 0, 0, 0) != 1 {
            let text =
                b"criw-init: not pid 1: start it as the first process of a new PID namespace\n";
            syscall(WRITE, 2, text.as_ptr() as usize, text.len(), 0);
            syscall(EXIT, 1, 0, 0, 0);
        }
        // With SIGCHLD ignored the kernel reaps orphans itself, also those that
        // were zombies before they came here: no wake-up, no race.
        let ignore = SigAction {
            handler: SIG_IGN,
            flags: 0,
            restorer: 0,
            mask: 0,
        };
        syscall(
            RT_SIGACTION,
            SIGCHLD,
            &raw const ignore as usize,
            0,
            SIGSET_SIZE,
        );
        let all = u64::MAX;
        syscall(
            RT_SIGPROCMASK,
            SIG_SETMASK,
            &raw const all as usize,
            0,
            SIGSET_SIZE,
        );
        // Containers of the pod see this process: its /proc directory, and with it
        // its root and descriptors, is for those who may ptrace everything.
        syscall(PRCTL, PR_SET_DUMPABLE, 0, 0, 0);
        syscall(PRCTL, PR_SET_NAME, c"criw-init".as_ptr() as usize, 0, 0);
        syscall(CHDIR, c"/".as_ptr() as usize, 0, 0, 0);
        syscall(CLOSE_RANGE, 0, u32::MAX as usize, 0, 0);
        // Signals that are blocked wait for us, even those that pid 1 is spared.
        let wanted: u64 = 1 << (SIGTERM - 1);
        loop {
            let mut info = SignalInfo {
                number: 0,
                errno: 0,
                code: 0,
                padding: 0,
                sender: 1,
                rest: [0; 27],
            };
            let got = syscall(
                RT_SIGTIMEDWAIT,
                &raw const wanted as usize,
                &raw mut info as usize,
                0,
                SIGSET_SIZE,
            );
            if got == SIGTERM.cast_signed() && info.sender == 0 {
                syscall(EXIT, 0, 0, 0, 0);
            }
        }
    }
}

#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        // SAFETY: exit takes a number and does not return.
        unsafe { syscall(EXIT, 101, 0, 0, 0) };
    }
}
