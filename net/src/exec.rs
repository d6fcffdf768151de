//! Runs one program of the host (a CNI plugin, `nft`) with bounds on time and
//! output, an environment of our choice, and no file of ours.
#![allow(
    unsafe_code,
    reason = "pre_exec is the only way to close descriptors that were not opened close-on-exec"
)]

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

const STDOUT_LIMIT: usize = 1 << 20;
const STDERR_LIMIT: usize = 4 << 10;

pub(crate) struct Program<'a> {
    pub(crate) path: &'a Path,
    pub(crate) args: &'a [&'a str],
    /// Everything that the program finds besides PATH.
    pub(crate) env: Vec<(&'static str, OsString)>,
    pub(crate) stdin: Vec<u8>,
    pub(crate) timeout: Duration,
}

pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    /// The first 4 KiB.
    pub(crate) stderr: String,
}

pub(crate) enum RunError {
    Spawn(std::io::Error),
    TimedOut { stderr: String },
    TooMuchOutput { stderr: String },
}

/// Kills the whole process group unless the program was waited for: also when
/// the caller's future is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // The leader is not reaped yet, so the group id cannot be another's.
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
        }
    }
}

pub(crate) async fn run(program: Program<'_>) -> Result<Output, RunError> {
    let mut child = spawn(&program).await.map_err(RunError::Spawn)?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut printed = Vec::new();
    let mut complained = Vec::new();
    let talk = async {
        let write = async {
            if let Some(mut stdin) = stdin {
                // A program that does not read its input says why by itself.
                let _ = stdin.write_all(&program.stdin).await;
            }
        };
        let (_, whole, _) = tokio::join!(
            write,
            collect(stdout, &mut printed, STDOUT_LIMIT, true),
            collect(stderr, &mut complained, STDERR_LIMIT, false),
        );
        if whole {
            Some(child.wait().await)
        } else {
            None
        }
    };
    let ended = tokio::time::timeout(program.timeout, talk).await;
    let stderr = String::from_utf8_lossy(&complained).into_owned();
    match ended {
        Ok(Some(Ok(status))) => {
            group.0 = None;
            Ok(Output {
                status,
                stdout: printed,
                stderr,
            })
        }
        Ok(Some(Err(error))) => Err(RunError::Spawn(error)),
        Ok(None) => {
            reap(group, child).await;
            Err(RunError::TooMuchOutput { stderr })
        }
        Err(_) => {
            reap(group, child).await;
            Err(RunError::TimedOut { stderr })
        }
    }
}

/// After SIGKILL only an uninterruptible kernel call delays the end; then
/// tokio reaps it later.
async fn reap(group: Group, mut child: Child) {
    drop(group);
    let _ = tokio::time::timeout(Duration::from_secs(1), child.wait()).await;
}

async fn spawn(program: &Program<'_>) -> std::io::Result<Child> {
    const ATTEMPTS: u32 = 20;
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let mut attempt = 0;
    loop {
        let mut command = Command::new(program.path);
        command
            .args(program.args)
            .env_clear()
            .env("PATH", &path)
            .envs(program.env.iter().map(|(k, v)| (k, v)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        // SAFETY: between fork and exec the closure makes one system call,
        // which neither allocates nor takes locks, and touches no memory.
        unsafe { command.pre_exec(close_inherited) };
        match command.spawn() {
            // Somebody is still writing the file: a plugin that is being
            // installed, or a fork that holds the writer's descriptor.
            Err(error)
                if error.kind() == std::io::ErrorKind::ExecutableFileBusy && attempt < ATTEMPTS =>
            {
                attempt += 1;
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            other => return other,
        }
    }
}

fn close_inherited() -> std::io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // Marked rather than closed: the standard library still needs its pipe to
    // report a failed exec.
    // SAFETY: close_range reads no memory of ours.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Reads to the end but keeps only `limit` bytes; false if it gave up because
/// there was more and `strict` forbids that.
async fn collect(
    from: Option<impl AsyncRead + Unpin>,
    into: &mut Vec<u8>,
    limit: usize,
    strict: bool,
) -> bool {
    let Some(mut from) = from else { return true };
    let mut chunk = [0; 4096];
    loop {
        match from.read(&mut chunk).await {
            Ok(0) | Err(_) => return true,
            Ok(n) => {
                let room = limit.saturating_sub(into.len());
                into.extend_from_slice(&chunk[..n.min(room)]);
                if n > room && strict {
                    return false;
                }
            }
        }
    }
}

/// "exit code 3" or "signal 9".
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
