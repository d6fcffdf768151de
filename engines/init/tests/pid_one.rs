//! The shipped form of `criw-init`, as pid 1 of a real PID namespace.

#![allow(
    unsafe_code,
    reason = "a test process must be cloned into a new PID namespace"
)]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Builds as the Makefile does: std is left out with `panic=abort` only, and the
/// harness of this test is built with unwinding.
fn shipped() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let output = Command::new(env!("CARGO"))
            .args(["build", "--release", "--quiet", "-p", "criw-init"])
            .args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"])
            .arg(&target)
            .env("RUSTFLAGS", "-C target-feature=+crt-static -C panic=abort")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        target.join("x86_64-unknown-linux-gnu/release/criw-init")
    })
}

/// A process by pid, killed and reaped when the test ends.
struct Process(i32);

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: numbers and a null status; the pid is a child of ours, not yet reaped.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// Forks the calling thread into a new PID namespace and executes `program` as its pid 1.
fn pid_one(program: &std::path::Path) -> Process {
    let path = std::ffi::CString::new(program.to_str().unwrap()).unwrap();
    let argv = [path.as_ptr(), std::ptr::null()];
    // SAFETY: a fork without shared memory; the child calls execve and _exit only.
    let pid = unsafe {
        let pid = libc::syscall(
            libc::SYS_clone,
            libc::CLONE_NEWPID | libc::SIGCHLD,
            0,
            0,
            0,
            0,
        );
        if pid == 0 {
            libc::execv(path.as_ptr(), argv.as_ptr());
            libc::_exit(127);
        }
        pid
    };
    assert!(pid > 0, "clone: {}", std::io::Error::last_os_error());
    Process(pid as i32)
}

fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !reached() {
        assert!(Instant::now() < end, "not reached in 10 s: {what}");
        std::thread::yield_now();
    }
}

fn status_field(pid: i32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    Some(line[field.len()..].trim().to_owned())
}

/// Waits for the state after all preparation: everything blocked and no descriptor.
fn ready(pid: i32) {
    wait_until("criw-init sleeps with no descriptor", || {
        fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|fds| fds.count() == 0)
            && status_field(pid, "State:").is_some_and(|state| state.starts_with('S'))
    });
}

#[test]
fn is_a_few_kilobytes_on_disk_and_in_memory() {
    let size = fs::metadata(shipped()).unwrap().len();
    assert!(size <= 4096, "{size} bytes");
    let init = pid_one(shipped());
    ready(init.0);
    assert_eq!(status_field(init.0, "Name:").unwrap(), "criw-init");
    let kib: u64 = status_field(init.0, "VmRSS:")
        .unwrap()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(kib <= 64, "{kib} KiB resident");
}

#[test]
fn refuses_to_run_anywhere_else() {
    let output = Command::new(shipped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("criw-init: not pid 1"), "{text}");
}

/// Pid of the process of that session which is called `criw-hold`.
fn holder_in_session(session: u32) -> Option<i32> {
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, rest) = stat.rsplit_once(')')?;
        // state, parent, process group, session
        let its: u32 = rest.split_whitespace().nth(3)?.parse().ok()?;
        (head.ends_with("(criw-hold") && its == session).then_some(pid)
    })
}

/// Starts `criw-init hold` in a session of its own, by which its child is found.
fn hold() -> std::process::Child {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(shipped());
    command.arg("hold").stdin(Stdio::piped());
    // SAFETY: setsid is safe between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::setsid() {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    command.spawn().unwrap()
}

#[test]
fn a_holder_outlives_its_starter_and_ends_by_sigterm() {
    use std::io::Write as _;
    let mut starter = hold();
    starter.stdin.take().unwrap().write_all(b"1").unwrap();
    assert!(starter.wait().unwrap().success());
    let session = starter.id();
    wait_until("it holds", || holder_in_session(session).is_some());
    let pid = holder_in_session(session).unwrap();
    ready(pid);
    let kib = status_field(pid, "VmRSS:").unwrap();
    let kib: u64 = kib.trim_end_matches(" kB").parse().unwrap();
    assert!(kib <= 64, "{kib} KiB resident");
    // SAFETY: numbers only.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    wait_until("it ends", || holder_in_session(session).is_none());
}

#[test]
fn a_holder_whose_daemon_dies_leaves_nothing() {
    let mut starter = hold();
    drop(starter.stdin.take());
    assert!(starter.wait().unwrap().success());
    assert_eq!(holder_in_session(starter.id()), None);
}

#[test]
fn other_signals_than_sigterm_and_sigkill_are_not_heard() {
    let init = pid_one(shipped());
    ready(init.0);
    let ending = [libc::SIGKILL, libc::SIGSTOP, libc::SIGTERM];
    for signal in (1..=64).filter(|signal| !ending.contains(signal)) {
        // SAFETY: numbers only; 32 and 33 are refused by libc, which is fine.
        unsafe { libc::kill(init.0, signal) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let waited = unsafe { libc::waitpid(init.0, &raw mut status, libc::WNOHANG) };
    assert_eq!(waited, 0, "ended with wait status {status:#x}");
    // SAFETY: as above.
    unsafe {
        libc::kill(init.0, libc::SIGKILL);
        assert_eq!(libc::waitpid(init.0, &raw mut status, 0), init.0);
    }
    assert_eq!(libc::WTERMSIG(status), libc::SIGKILL);
    std::mem::forget(init);
}

/// A machine that went down waited for it until its time was over: 90 s.
#[test]
fn sigterm_ends_it_from_outside_and_only_from_there() {
    let init = pid_one(shipped());
    ready(init.0);
    let inside = Command::new("nsenter")
        .arg(format!("--pid=/proc/{}/ns/pid", init.0))
        .args(["sh", "-c", "kill -TERM 1"])
        .status();
    assert!(inside.unwrap().success());
    wait_until("it has taken the signal and rests again, or ended", || {
        let pending = status_field(init.0, "ShdPnd:").unwrap();
        let state = status_field(init.0, "State:").unwrap();
        pending == "0000000000000000" && state.starts_with(['S', 'Z'])
    });
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let waited = unsafe { libc::waitpid(init.0, &raw mut status, libc::WNOHANG) };
    assert_eq!(waited, 0, "ended with wait status {status:#x}");
    // SAFETY: as above.
    unsafe { libc::kill(init.0, libc::SIGTERM) };
    wait_until("it has ended", || {
        // SAFETY: as above.
        let waited = unsafe { libc::waitpid(init.0, &raw mut status, libc::WNOHANG) };
        waited == init.0
    });
    assert!(libc::WIFEXITED(status), "wait status {status:#x}");
    std::mem::forget(init);
}

#[test]
fn orphans_of_the_namespace_are_reaped() {
    let init = pid_one(shipped());
    ready(init.0);
    // The shell's child outlives it, becomes an orphan of the namespace and ends
    // when its standard input does.
    let mut outer = Command::new("nsenter")
        .arg(format!("--pid=/proc/{}/ns/pid", init.0))
        // A shell gives what it starts in the background /dev/null as fd 0, so `<&0` would end it.
        .args([
            "sh",
            "-c",
            "exec 3<&0; sh -c 'read line; exit 7' <&3 & exit 0",
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let children = format!("/proc/{0}/task/{0}/children", init.0);
    let stdin = outer.stdin.take();
    assert!(outer.wait().unwrap().success());
    wait_until("the orphan belongs to criw-init", || {
        fs::read_to_string(&children).is_ok_and(|pids| !pids.trim().is_empty())
    });
    let orphan: i32 = fs::read_to_string(&children)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    drop(stdin);
    wait_until("the orphan is gone, not a zombie", || {
        !fs::exists(format!("/proc/{orphan}")).unwrap()
    });
}
