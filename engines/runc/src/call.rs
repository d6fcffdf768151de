//! One call of the runc binary: its own process group, nothing inherited but its
//! standard streams, a deadline, and what it said when it failed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use crate::children::Children;
use crate::complaint::{self, End};
use crate::runc::Runc;

/// Where runc looks for what it executes (newuidmap, criu, hooks without a path).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes read of the log and of stderr of one call.
const MAX_TEXT: u64 = 64 * 1024;

/// How long a killed process group gets to vanish.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// Standard streams of a call; `create` and `exec` hand them on to the container.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Runs runc with `argv` and waits for its end. The error is the text for the user:
/// what was tried and what runc said. `what` completes "runc {what}".
pub(crate) fn run(
    children: &Children,
    runc: &Runc,
    what: &'static str,
    argv: Vec<OsString>,
    limit: Duration,
) -> Result<(), String> {
    let (reader, writer) = pipe().map_err(|error| format!("pipe for runc {what}: {error}"))?;
    let streams = Streams {
        stdin: None,
        stdout: None,
        stderr: Some(writer),
    };
    run_with(children, runc, what, argv, streams, limit)
        .map_err(|failure| failure.text(&drain(reader)))
}

/// A call that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    binary: PathBuf,
    what: &'static str,
    end: End,
    log: Vec<u8>,
}

impl Failure {
    /// With what came out of the call's stderr, for those who hold its other end.
    pub(crate) fn text(&self, stderr: &[u8]) -> String {
        complaint::text(&self.binary, self.what, &self.end, &self.log, stderr)
    }
}

/// As [`run`] with streams of the caller's choice; absent ones are `/dev/null`.
pub(crate) fn run_with(
    children: &Children,
    runc: &Runc,
    what: &'static str,
    argv: Vec<OsString>,
    streams: Streams,
    limit: Duration,
) -> Result<(), Failure> {
    // The log is appended to: what stands there already belongs to earlier calls.
    let before = runc
        .log
        .as_deref()
        .and_then(|path| fs::metadata(path).ok())
        .map_or(0, |metadata| metadata.len());
    let mut command = Command::new(&runc.binary);
    command
        .args(argv)
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .process_group(0)
        .stdin(stdio(streams.stdin))
        .stdout(stdio(streams.stdout))
        .stderr(stdio(streams.stderr));
    let end = end_of(children, &mut command, limit);
    // It holds our copies of the streams.
    drop(command);
    match end {
        End::Status(status) if status.success() => Ok(()),
        end => Err(Failure {
            binary: runc.binary.clone(),
            what,
            end,
            log: runc
                .log
                .as_deref()
                .and_then(|path| tail(path, before).ok())
                .unwrap_or_default(),
        }),
    }
}

fn end_of(children: &Children, command: &mut Command, limit: Duration) -> End {
    let child = match children.spawn(command) {
        Ok(child) => child,
        Err(error) => return End::NotStarted(error),
    };
    match child.ended.recv_timeout(limit) {
        Ok(status) => End::Status(status),
        Err(RecvTimeoutError::Disconnected) => {
            End::NotStarted(io::Error::other("its end was not seen"))
        }
        Err(RecvTimeoutError::Timeout) => {
            // An error means that it ended just now.
            let _ = children.signal_group(child.pid, libc::SIGKILL);
            let _: Result<ExitStatus, _> = child.ended.recv_timeout(KILL_WAIT);
            End::TimedOut(limit)
        }
    }
}

fn stdio(fd: Option<OwnedFd>) -> Stdio {
    fd.map_or_else(Stdio::null, Stdio::from)
}

/// A pipe whose ends no child inherits by accident.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// What stands in a pipe now. Does not wait: somebody may still hold the other end.
pub(crate) fn drain(reader: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    if rustix::fs::fcntl_setfl(reader.as_fd(), rustix::fs::OFlags::NONBLOCK).is_ok() {
        // "Would block" is the end; the bytes read before it stay.
        let _ = File::from(reader).take(MAX_TEXT).read_to_end(&mut bytes);
    }
    bytes
}

fn tail(path: &Path, from: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(MAX_TEXT))))?;
    let mut bytes = Vec::new();
    file.take(MAX_TEXT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// The reaper takes every child of the process: no other unit test may start any.
    #[test]
    fn a_hanging_call_is_killed_with_its_group() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("runc");
        let children = Children::adopt().unwrap();
        let call = |text: &str, limit| {
            fs::write(&script, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
            let runc = Runc::bare(script.clone(), "/nowhere".into());
            run(&children, &runc, "delete", runc.delete("x"), limit)
        };
        let pid = directory.path().join("pid");
        let hang = format!(
            "echo busy >&2; sleep 1000 & echo $! > {}; wait",
            pid.display()
        );
        let text = call(&hang, Duration::from_millis(500)).unwrap_err();
        assert!(
            text.ends_with("runc delete did not end in 500ms and was killed; it said: busy"),
            "{text}"
        );
        let sleeper = fs::read_to_string(&pid).unwrap();
        let end = std::time::Instant::now() + KILL_WAIT;
        while fs::exists(format!("/proc/{}", sleeper.trim())).unwrap() {
            assert!(
                std::time::Instant::now() < end,
                "the orphan is alive or not reaped"
            );
            std::thread::yield_now();
        }
        let seen =
            "[ \"$*\" = '--root /nowhere --log-format json delete --force x' ] && [ -z \"$HOME\" ]";
        assert_eq!(call(seen, KILL_WAIT), Ok(()));
        // Whatever was written stays bounded, and nobody waits for who holds the pipe.
        let text = call("head -c 60000 /dev/zero >&2; sleep 3 & exit 1", KILL_WAIT).unwrap_err();
        assert!(text.len() <= criw_engines::protocol::MAX_MESSAGE_TEXT);
    }
}
