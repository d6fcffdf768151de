//! One command: from what a shim asks for to its exit code on a pipe.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use criw_engines::protocol::FdRole;
use criw_engines::spawner::{Command, MAX_COMMAND, Refusal, is_interactive};
use criw_sandbox::model::EngineSpec;
use criw_sandbox::{Error, Exec, ExecPlace, ExecSpec, Streams};
use rustix::fs::SealFlags;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::session::{Tree, over, serve, socket};
use crate::entry::Unfit;
use crate::error;
use crate::exec::program;

/// A command that runs.
pub(super) struct Started {
    pub(super) number: u64,
    exec: Exec,
    /// The shim's end of the pipe, until it is sent.
    told: OwnedFd,
    status: OwnedFd,
    /// The command's own spawner.
    socket: Option<AsyncFd<OwnedFd>>,
    place: OwnedSemaphorePermit,
}

impl Started {
    /// The end that the shim gets.
    pub(super) fn told(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }

    /// Waits for its end, or brings it about when `stop` says so; then nothing of it is left.
    pub(super) async fn run(self, tree: Arc<Tree>, depth: usize, mut stop: watch::Receiver<bool>) {
        drop(self.told);
        let (ending, end) = watch::channel(false);
        let served = self
            .socket
            .map(|socket| tokio::spawn(serve(tree.clone(), depth + 1, socket, end)));
        let code = tokio::select! {
            code = self.exec.ended() => code,
            () = over(&mut stop) => Ok(128 + libc::SIGKILL),
        };
        self.exec.end().await;
        let _ = ending.send(true);
        if let Some(served) = served {
            let _ = served.await;
        }
        tree.remove(self.number);
        // Who learns of the end may start the next one.
        drop(self.place);
        let code = code.unwrap_or_else(|error| {
            tracing::warn!(container = %tree.container, error = %error::chain(&error), "wait for a command");
            128 + libc::SIGKILL
        });
        // Nobody may wait for it any more. Four bytes always fit into an empty pipe.
        let _ = rustix::io::write(&self.status, &(code as u32).to_le_bytes());
    }
}

/// Starts what a shim asks for.
pub(super) async fn start(
    tree: &Arc<Tree>,
    streams: &[FdRole],
    terminal: bool,
    fds: Vec<OwnedFd>,
) -> Result<Started, Refusal> {
    let (request, handed) = sort(streams, fds)?;
    let place = tree.places.clone().try_acquire_owned();
    let place = place.map_err(|_| Refusal::TooMany)?;
    let command = tokio::task::spawn_blocking(move || read(&request))
        .await
        .map_err(|_| Refusal::Failed)??;
    let failed = |what: &'static str, error: String| {
        tracing::warn!(container = %tree.container, error, "{what}");
        Refusal::Failed
    };
    let node = |error: io::Error| failed("make a command's descriptors", error.to_string());
    let view = tree.daemon.find_container(tree.container.as_str());
    let Ok(Some(view)) = view else {
        return Err(Refusal::Failed);
    };
    let EngineSpec::Wasm { engine, section } = &view.spec.engine else {
        return Err(Refusal::Failed);
    };
    let elsewhere = ExecPlace {
        cwd: command.cwd,
        env: command.env,
    };
    let (daemon, args) = (&tree.daemon, command.args);
    let found = program(daemon, &view, engine, section, &args, Some(&elsewhere)).await;
    let (mut section, code) = found.map_err(|unfit| match unfit {
        Unfit::NotFound(_) => Refusal::NotFound,
        Unfit::NotExecutable(_) => Refusal::NotExecutable,
        Unfit::Denied(_) => Refusal::Denied,
        Unfit::Node(status) => failed("look up a command", status.message().to_owned()),
    })?;
    section.broken_pipe_ends = true;
    let mut handed = handed;
    let mut own = None;
    if section.spawner {
        let (ours, theirs) = socket().map_err(node)?;
        handed.push((FdRole::Spawner, theirs));
        own = Some(ours);
    }
    let interactive = is_interactive(&args, terminal);
    let spec = ExecSpec {
        args,
        engine: EngineSpec::Wasm {
            engine: engine.clone(),
            section,
        },
        code,
        streams: Streams::default(),
        tty: false,
        place: Some(elsewhere),
        handed,
    };
    let (told, status) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| node(e.into()))?;
    let turn = daemon.spawning.acquire().await;
    let begun = daemon.sandboxes.exec(&tree.container, spec).await;
    drop(turn);
    let (exec, _) = begun.map_err(|error| match error {
        // Its text stands on the command's standard error.
        Error::StartFailed(_) => Refusal::NotExecutable,
        error => failed("start a command", error::chain(&error)),
    })?;
    Ok(Started {
        number: tree.add(exec.signals(), interactive),
        exec,
        told,
        status,
        socket: own,
        place,
    })
}

type Handed = Vec<(FdRole, OwnedFd)>;

/// The command's file, and its streams by what they are.
fn sort(streams: &[FdRole], fds: Vec<OwnedFd>) -> Result<(OwnedFd, Handed), Refusal> {
    let is_stream = |role| matches!(role, &FdRole::Stdin | &FdRole::Stdout | &FdRole::Stderr);
    let twice = (1..streams.len()).any(|n| streams[..n].contains(&streams[n]));
    if fds.len() != 1 + streams.len() || twice || !streams.iter().all(is_stream) {
        return Err(Refusal::Invalid);
    }
    let mut fds = fds.into_iter();
    let request = fds.next().ok_or(Refusal::Invalid)?;
    Ok((request, streams.iter().copied().zip(fds).collect()))
}

/// Only memory files can be sealed, and a sealed one cannot make its reader wait.
fn read(file: &OwnedFd) -> Result<Command, Refusal> {
    let seals = rustix::fs::fcntl_get_seals(file).map_err(|_| Refusal::Invalid)?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK) {
        return Err(Refusal::Invalid);
    }
    let mut bytes = vec![0; MAX_COMMAND + 1];
    let mut length = 0;
    while length < bytes.len() {
        let piece = &mut bytes[length..];
        match rustix::io::pread(file, piece, length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Err(Refusal::Invalid),
        }
    }
    Command::parse(&bytes[..length]).map_err(|_| Refusal::Invalid)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use rustix::fs::MemfdFlags;

    use super::*;

    fn memory(bytes: &[u8], seals: SealFlags) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = std::fs::File::from(rustix::fs::memfd_create("x", flags).unwrap());
        file.write_all(bytes).unwrap();
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        file.into()
    }

    #[test]
    fn only_what_cannot_block_is_read() {
        let sealed = SealFlags::WRITE | SealFlags::SHRINK;
        let mut text = vec![1, 0, 0, 0, 2, 0, 0, 0, b'l', b's', 0, 0, 0, 0];
        text.extend([1, 0, 0, 0, b'/']);
        text.extend([0; 12]);
        assert_eq!(read(&memory(&text, sealed)).unwrap().args, ["ls"]);
        let open = memory(&text, SealFlags::SHRINK);
        assert_eq!(read(&open), Err(Refusal::Invalid));
        let long = memory(&vec![0; MAX_COMMAND + 1], sealed);
        assert_eq!(read(&long), Err(Refusal::Invalid));
        // A pipe that nobody ever writes to, and a file.
        let (pipe, _keep) = io::pipe().unwrap();
        assert_eq!(read(&pipe.into()), Err(Refusal::Invalid));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(read(&file.into()), Err(Refusal::Invalid));
    }

    #[test]
    fn descriptors_are_what_they_are_said_to_be() {
        let fds = |count: usize| -> Vec<OwnedFd> {
            let file = || tempfile::tempfile().unwrap().into();
            (0..count).map(|_| file()).collect()
        };
        let (out, err) = (FdRole::Stdout, FdRole::Stderr);
        for (streams, count, good) in [
            (&[][..], 1, true),
            (&[out, err], 3, true),
            (&[out, err], 2, false),
            (&[], 0, false),
            (&[], 2, false),
            (&[out, out], 3, false),
            (&[FdRole::Spawner], 2, false),
            (&[FdRole::Mount(1)], 2, false),
        ] {
            assert_eq!(sort(streams, fds(count)).is_ok(), good, "{streams:?}");
        }
    }
}
