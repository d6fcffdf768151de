//! A session: the socket, and the commands that were started through it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use criw_engines::message;
use criw_engines::spawner::{Answer, Ask, MAX_COMMANDS, MAX_DEPTH, MAX_PROCESSES, Refusal};
use criw_sandbox::{ContainerId, Error, ProcessView, Signals, readiness};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tonic::Status;

use super::command::{self, Started};
use crate::daemon::Daemon;
use crate::error;

/// A shim that does not take an answer for so long is left, and a command that is not
/// started so long after its session's end is given up.
const TAKE: Duration = Duration::from_secs(5);

/// Bytes of argv that `ps` shows of one process.
const MAX_ARGV: usize = 1024;

/// What all sockets of a session share.
pub(super) struct Tree {
    pub(super) daemon: Arc<Daemon>,
    pub(super) container: ContainerId,
    /// One for each command that lives.
    pub(super) places: Arc<Semaphore>,
    commands: Mutex<HashMap<u64, Known>>,
    next: AtomicU64,
}

struct Known {
    signals: Signals,
    /// An interrupt is for its line, not for it.
    interactive: bool,
}

impl Tree {
    /// Notes a command; its number.
    pub(super) fn add(&self, signals: Signals, interactive: bool) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let known = Known {
            signals,
            interactive,
        };
        lock(&self.commands).insert(number, known);
        number
    }

    pub(super) fn remove(&self, number: u64) {
        lock(&self.commands).remove(&number);
    }

    fn forget_ended(&self, numbers: &mut Vec<u64>) {
        let commands = lock(&self.commands);
        numbers.retain(|number| commands.contains_key(number));
    }

    fn signals(&self, number: u64) -> Option<Signals> {
        let commands = lock(&self.commands);
        commands.get(&number).map(|known| known.signals.clone())
    }

    async fn interrupt(&self) -> usize {
        let all: Vec<Signals> = lock(&self.commands)
            .values()
            .filter(|known| !known.interactive)
            .map(|known| known.signals.clone())
            .collect();
        let mut commands = 0;
        for signals in all {
            // One that ends meanwhile needs none.
            commands += usize::from(signals.send(libc::SIGINT).await.is_ok());
        }
        commands
    }
}

/// Ends everything when it is dropped.
pub struct Session {
    end: watch::Sender<bool>,
    served: Option<JoinHandle<()>>,
}

impl Session {
    /// Begins to answer; the socket is for the shim.
    #[allow(
        clippy::result_large_err,
        reason = "a status is what every RPC answers with"
    )]
    pub fn begin(daemon: &Arc<Daemon>, container: &ContainerId) -> Result<(Self, OwnedFd), Status> {
        let failed = |error: io::Error| Status::internal(format!("make a spawner: {error}"));
        let (ours, theirs) = socket().map_err(failed)?;
        let tree = Arc::new(Tree {
            daemon: daemon.clone(),
            container: container.clone(),
            places: Arc::new(Semaphore::new(MAX_COMMANDS)),
            commands: Mutex::default(),
            next: AtomicU64::new(1),
        });
        let (end, ended) = watch::channel(false);
        let served = Some(tokio::spawn(serve(tree, 0, ours, ended)));
        Ok((Self { end, served }, theirs))
    }

    /// Ends all commands, and waits until nothing of them is left.
    pub async fn end(self) {
        let _ = self.end.send(true);
        self.over().await;
    }

    /// Waits until the shim has ended, and all commands too.
    pub async fn over(mut self) {
        if let Some(served) = self.served.take()
            && let Err(error) = served.await
        {
            tracing::error!(%error, "a spawner's task failed");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.end.send(true);
    }
}

/// A pair: ours never blocks.
pub(super) fn socket() -> io::Result<(AsyncFd<OwnedFd>, OwnedFd)> {
    let kind = SocketType::SEQPACKET;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((readiness::register(ours)?, theirs))
}

/// Answers on one socket until it closes or `end` says so. Boxed, because a command's own
/// socket is served in the same way.
pub(super) fn serve(
    tree: Arc<Tree>,
    depth: usize,
    socket: AsyncFd<OwnedFd>,
    mut end: watch::Receiver<bool>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let (stop, stopped) = watch::channel(false);
        let mut commands = JoinSet::new();
        let mut mine = Vec::new();
        loop {
            while commands.try_join_next().is_some() {}
            let received = tokio::select! {
                () = over(&mut end) => break,
                received = receive(&socket) => received,
            };
            // The shim has gone, or does not keep to the protocol.
            let Ok((bytes, fds)) = received else { break };
            if bytes.is_empty() {
                break;
            }
            tree.forget_ended(&mut mine);
            // What is half started is ended in order, below; one that takes long is dropped.
            let answering = answer(&tree, depth, &mine, &bytes, fds);
            let Some((answer, started)) = in_time(answering, &mut end).await else {
                break;
            };
            let status = started.as_ref().map(Started::told);
            let sent = tokio::time::timeout(TAKE, send(&socket, &answer, status)).await;
            if let Some(started) = started {
                mine.push(started.number);
                commands.spawn(started.run(tree.clone(), depth, stopped.clone()));
            }
            if !matches!(sent, Ok(Ok(()))) {
                break;
            }
        }
        let _ = stop.send(true);
        while commands.join_next().await.is_some() {}
    })
}

/// The answer, unless it takes long after the end.
async fn in_time<T>(
    answering: impl Future<Output = T>,
    end: &mut watch::Receiver<bool>,
) -> Option<T> {
    let mut answering = std::pin::pin!(answering);
    tokio::select! {
        answer = &mut answering => Some(answer),
        () = over(end) => tokio::time::timeout(TAKE, answering).await.ok(),
    }
}

/// Completes when it says so, or nobody is left to say it.
pub(super) async fn over(end: &mut watch::Receiver<bool>) {
    let _ = end.wait_for(|end| *end).await;
}

async fn answer(
    tree: &Arc<Tree>,
    depth: usize,
    mine: &[u64],
    bytes: &[u8],
    fds: Vec<OwnedFd>,
) -> (Answer, Option<Started>) {
    let answer = match serde_json::from_slice::<Ask>(bytes) {
        Ok(Ask::Spawn { streams, terminal }) => {
            if depth >= MAX_DEPTH {
                Err(Refusal::TooMany)
            } else {
                match command::start(tree, &streams, terminal, fds).await {
                    Ok(started) => {
                        let command = started.number;
                        return (Answer::Spawned { command }, Some(started));
                    }
                    Err(why) => Err(why),
                }
            }
        }
        _ if !fds.is_empty() => Err(Refusal::Invalid),
        Ok(Ask::Signal { command, signal }) => signal_one(tree, mine, command, signal).await,
        Ok(Ask::Interrupt) if depth == 0 => Ok(Answer::Interrupted {
            commands: tree.interrupt().await,
        }),
        Ok(Ask::Interrupt) | Err(_) => Err(Refusal::Invalid),
        Ok(Ask::Processes) => match tree.daemon.sandboxes.processes(&tree.container).await {
            Ok(views) => Ok(Answer::Processes {
                text: table(&views),
            }),
            Err(error) => {
                tracing::warn!(container = %tree.container, error = %error::chain(&error), "list processes");
                Err(Refusal::Failed)
            }
        },
    };
    (answer.unwrap_or_else(|why| Answer::Refused { why }), None)
}

async fn signal_one(
    tree: &Tree,
    mine: &[u64],
    command: u64,
    signal: i32,
) -> Result<Answer, Refusal> {
    let signals = Some(command)
        .filter(|command| mine.contains(command))
        .and_then(|command| tree.signals(command))
        .ok_or(Refusal::NoSuchCommand)?;
    if !(0..=64).contains(&signal) {
        return Err(Refusal::Invalid);
    }
    match signals.send(signal).await {
        Ok(()) => Ok(Answer::Done),
        Err(Error::WrongState(_)) => Err(Refusal::NoSuchCommand),
        Err(error) => {
            tracing::warn!(container = %tree.container, error = %error::chain(&error), "signal a command");
            Err(Refusal::Failed)
        }
    }
}

/// A line for each process, as many as fit.
fn table(views: &[ProcessView]) -> String {
    let mut text = String::new();
    for view in views {
        // What would break a line or the terminal it is shown on.
        let argv = view.args.join(" ").replace(char::is_control, "?");
        let end = argv.floor_char_boundary(MAX_ARGV);
        let line = format!(
            "{}\t{}\t{}\t{}\t{}\t{}\n",
            view.pid,
            view.uid,
            view.state,
            view.cpu_seconds,
            view.rss_kib,
            &argv[..end]
        );
        if text.len() + line.len() > MAX_PROCESSES {
            break;
        }
        text.push_str(&line);
    }
    text
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    socket
        .async_io(Interest::READABLE, |socket| {
            message::receive(socket.as_fd())
        })
        .await
}

async fn send(
    socket: &AsyncFd<OwnedFd>,
    answer: &Answer,
    status: Option<std::os::fd::BorrowedFd<'_>>,
) -> io::Result<()> {
    let json = serde_json::to_vec(answer)?;
    let fds: Vec<_> = status.into_iter().collect();
    socket
        .async_io(Interest::WRITABLE, |socket| {
            message::send(socket.as_fd(), &json, &fds)
        })
        .await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A map of plain values: a panic elsewhere leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_bounded_and_clean() {
        let view = |args: &[&str]| ProcessView {
            pid: 3,
            uid: 7,
            state: 'S',
            cpu_seconds: 1,
            rss_kib: 120,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        };
        let text = table(&[view(&["sh", "-c", "a\nb\tc\u{1b}[m"])]);
        assert_eq!(text, "3\t7\tS\t1\t120\tsh -c a?b?c?[m\n");
        let long = "ä".repeat(3 * MAX_ARGV);
        let many = vec![view(&[&long]); 100];
        let text = table(&many);
        assert!(text.len() <= MAX_PROCESSES && text.lines().count() > 10);
    }
}
