//! The standard streams of a process as pipes: ends for the shim, ends for the daemon.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use criw_engines::protocol::FdRole;
use rustix::pipe::PipeFlags;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::lock;
use crate::error::{Error, Result};
use crate::view::MAX_EXEC_OUTPUT;

/// Grandchildren may hold the pipes after the command has ended; nobody waits for them.
const DRAIN: Duration = Duration::from_secs(1);

/// Which of the standard streams are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    /// To the process.
    pub stdin: bool,
    /// From the process.
    pub stdout: bool,
    /// From the process.
    pub stderr: bool,
}

/// The daemon's ends.
#[derive(Debug, Default)]
pub struct Pipes {
    /// Dropped, the process reads the end of its input.
    pub stdin: Option<pipe::Sender>,
    /// What it prints.
    pub stdout: Option<pipe::Receiver>,
    /// What it complains.
    pub stderr: Option<pipe::Receiver>,
}

/// The same before they meet a runtime.
#[derive(Debug, Default)]
pub(super) struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// Makes pipes; the ends for the shim come first.
pub(super) fn pipes(wanted: Streams) -> io::Result<(Vec<(FdRole, OwnedFd)>, Ends)> {
    let pipe = |wanted: bool| -> io::Result<_> {
        let both = wanted.then(|| rustix::pipe::pipe_with(PipeFlags::CLOEXEC));
        Ok(both.transpose()?.unzip())
    };
    let (stdin_guest, stdin) = pipe(wanted.stdin)?;
    let (stdout, stdout_guest) = pipe(wanted.stdout)?;
    let (stderr, stderr_guest) = pipe(wanted.stderr)?;
    let guest_ends = [
        (FdRole::Stdin, stdin_guest),
        (FdRole::Stdout, stdout_guest),
        (FdRole::Stderr, stderr_guest),
    ];
    let guest_ends = guest_ends
        .into_iter()
        .filter_map(|(role, fd)| Some((role, fd?)))
        .collect();
    let ends = Ends {
        stdin,
        stdout,
        stderr,
    };
    Ok((guest_ends, ends))
}

impl Ends {
    /// Inside a runtime.
    pub(super) fn into_pipes(self) -> Result<Pipes> {
        let failed = |error: io::Error| Error::node("use the pipes of a process", error);
        let receiver = |fd: Option<OwnedFd>| fd.map(pipe::Receiver::from_owned_fd).transpose();
        Ok(Pipes {
            stdin: self
                .stdin
                .map(pipe::Sender::from_owned_fd)
                .transpose()
                .map_err(failed)?,
            stdout: receiver(self.stdout).map_err(failed)?,
            stderr: receiver(self.stderr).map_err(failed)?,
        })
    }
}

/// Reads a pipe to its end in the background; keeps the first bytes only.
pub(super) struct Reader {
    task: tokio::task::JoinHandle<()>,
    kept: Arc<Mutex<Vec<u8>>>,
}

impl Reader {
    pub(super) fn start(pipe: Option<pipe::Receiver>) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let target = kept.clone();
        let task = tokio::spawn(async move {
            let Some(mut pipe) = pipe else { return };
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
                let mut kept = lock(&target);
                let room = MAX_EXEC_OUTPUT.saturating_sub(kept.len());
                kept.extend_from_slice(&buffer[..count.min(room)]);
            }
        });
        Self { task, kept }
    }

    /// What was read, once the writers are gone or nobody waits for them any more.
    pub(super) async fn collect(mut self) -> Vec<u8> {
        if tokio::time::timeout(DRAIN, &mut self.task).await.is_err() {
            self.task.abort();
        }
        std::mem::take(&mut *lock(&self.kept))
    }
}
