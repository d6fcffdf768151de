//! The shim's end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::{Answer, Ask, Refusal};
use crate::message;

/// How long a command waits for a daemon that is being restarted.
const RESTART: Duration = Duration::from_secs(30);

/// An answer; a module on a volume may have to be compiled first, which takes a minute at most.
const ANSWER: Duration = Duration::from_secs(120);

/// Exit code of a command whose daemon has gone: its successor has killed it.
const KILLED: u32 = 137;

/// The socket to whichever daemon there is.
#[derive(Debug, Default)]
pub struct Spawner {
    place: Mutex<Place>,
    changed: Condvar,
    /// One question at a time: answers have no addressee.
    turn: Mutex<()>,
}

#[derive(Debug, Default)]
struct Place {
    socket: Option<Arc<OwnedFd>>,
    /// How many sockets there were.
    number: u64,
}

/// A command that was started.
#[derive(Debug)]
pub struct Spawned {
    command: u64,
    status: OwnedFd,
    /// Number of the socket that it was asked for on.
    number: u64,
    /// Since when its daemon is known to be gone.
    lost: Option<Instant>,
}

impl Spawner {
    /// Without a socket the first question waits for one.
    pub fn new(socket: Option<OwnedFd>) -> Arc<Self> {
        let spawner = Arc::new(Self::default());
        if let Some(socket) = socket {
            spawner.replace(socket);
        }
        spawner
    }

    /// A new daemon is there.
    pub fn replace(&self, socket: OwnedFd) {
        let mut place = lock(&self.place);
        place.socket = Some(Arc::new(socket));
        place.number += 1;
        self.changed.notify_all();
    }

    /// Starts a command; `command` is in the format of [`super::Command`].
    pub fn spawn(
        &self,
        command: &[u8],
        ask: &Ask,
        streams: &[BorrowedFd<'_>],
    ) -> Result<Spawned, Refusal> {
        let file = sealed(command).map_err(|_| Refusal::Failed)?;
        let fds: Vec<_> = std::iter::once(file.as_fd())
            .chain(streams.iter().copied())
            .collect();
        match self.exchange(ask, &fds)? {
            (Answer::Spawned { command }, mut fds, number) => Ok(Spawned {
                command,
                status: fds.pop().ok_or(Refusal::Failed)?,
                number,
                lost: None,
            }),
            (answer, ..) => Err(refusal(answer)),
        }
    }

    /// Asks what needs no descriptors.
    pub fn ask(&self, ask: &Ask) -> Result<Answer, Refusal> {
        match self.exchange(ask, &[])? {
            (Answer::Refused { why }, ..) => Err(why),
            (answer, ..) => Ok(answer),
        }
    }

    /// Sends a signal to a command. One whose daemon has gone is killed anyway.
    pub fn signal(&self, spawned: &Spawned, signal: i32) -> Result<(), Refusal> {
        if spawned.number != lock(&self.place).number {
            return Err(Refusal::NoSuchCommand);
        }
        let ask = Ask::Signal {
            command: spawned.command,
            signal,
        };
        self.ask(&ask).map(drop)
    }

    /// Exit code of a command; `None` while it runs, which is not waited for then.
    pub fn wait(&self, spawned: &mut Spawned, block: bool) -> io::Result<Option<u32>> {
        if spawned.lost.is_none() {
            match spawned.read(block)? {
                Status::Runs => return Ok(None),
                Status::Ended(code) => return Ok(Some(code)),
                Status::Lost => spawned.lost = Some(Instant::now()),
            }
        }
        let since = *spawned.lost.get_or_insert_with(Instant::now);
        // It may still run until its successor has ended it.
        let limit = if block { RESTART } else { Duration::ZERO };
        let until = (since + limit).min(since + RESTART);
        let place = self.wait_until(until, |place| place.number > spawned.number);
        let over = since.elapsed() >= RESTART || place.number > spawned.number;
        Ok(over.then_some(KILLED))
    }

    /// One question and its answer. A daemon that has gone took what it started along, so
    /// the next one is asked the same.
    fn exchange(
        &self,
        ask: &Ask,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Vec<OwnedFd>, u64), Refusal> {
        let json = serde_json::to_vec(ask).map_err(|_| Refusal::Invalid)?;
        let until = Instant::now() + RESTART;
        let _turn = lock(&self.turn);
        loop {
            let (socket, number) = {
                let place = self.wait_until(until, |place| place.socket.is_some());
                let socket = place.socket.clone().ok_or(Refusal::Failed)?;
                (socket, place.number)
            };
            match once(&socket, &json, fds) {
                Ok(Some((answer, fds))) => return Ok((answer, fds, number)),
                Ok(None) => {
                    let mut place = lock(&self.place);
                    if place.number == number {
                        place.socket = None;
                    }
                }
                Err(_) => return Err(Refusal::Failed),
            }
        }
    }

    fn wait_until(&self, until: Instant, good: impl Fn(&Place) -> bool) -> MutexGuard<'_, Place> {
        let place = lock(&self.place);
        let limit = until.saturating_duration_since(Instant::now());
        self.changed
            .wait_timeout_while(place, limit, |place| !good(place))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

fn refusal(answer: Answer) -> Refusal {
    match answer {
        Answer::Refused { why } => why,
        _ => Refusal::Failed,
    }
}

/// `None` when nobody is there (any more).
fn once(
    socket: &OwnedFd,
    json: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<Option<(Answer, Vec<OwnedFd>)>> {
    set_socket_timeout(socket, Timeout::Send, Some(ANSWER))?;
    set_socket_timeout(socket, Timeout::Recv, Some(ANSWER))?;
    let gone = |error: &io::Error| {
        let number = error.raw_os_error().map(Errno::from_raw_os_error);
        matches!(number, Some(Errno::PIPE | Errno::CONNRESET))
    };
    match message::send(socket.as_fd(), json, fds) {
        Err(error) if gone(&error) => return Ok(None),
        sent => sent?,
    }
    match message::receive(socket.as_fd()) {
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(error),
        Ok((bytes, _)) if bytes.is_empty() => Ok(None),
        Ok((bytes, fds)) => Ok(Some((serde_json::from_slice(&bytes)?, fds))),
    }
}

/// A memory file that nobody can change any more.
fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = std::fs::File::from(rustix::fs::memfd_create("command", flags)?);
    io::Write::write_all(&mut file, bytes)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

enum Status {
    Runs,
    Ended(u32),
    Lost,
}

impl Spawned {
    fn read(&self, block: bool) -> io::Result<Status> {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let limit = (!block).then_some(&now);
        let mut polled = [PollFd::new(&self.status, PollFlags::IN)];
        if rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, limit))? == 0 {
            return Ok(Status::Runs);
        }
        let mut code = [0; 4];
        // The daemon writes it in one piece.
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.status, &mut code))? {
            4 => Ok(Status::Ended(u32::from_le_bytes(code))),
            _ => Ok(Status::Lost),
        }
    }

    /// Whether it has not ended yet, as far as can be seen at once.
    pub fn runs(&self) -> bool {
        let mut polled = [PollFd::new(&self.status, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut polled, Some(&now)) == Ok(0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let kind = SocketType::SEQPACKET;
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
    }

    /// Answers one question as a daemon does; what the command was, and the pipe.
    fn answer_spawn(socket: &OwnedFd) -> (Vec<u8>, OwnedFd) {
        let (bytes, fds) = message::receive(socket.as_fd()).unwrap();
        assert!(matches!(
            serde_json::from_slice(&bytes).unwrap(),
            Ask::Spawn { .. }
        ));
        let seals = rustix::fs::fcntl_get_seals(&fds[0]).unwrap();
        assert!(seals.contains(SealFlags::WRITE | SealFlags::SHRINK));
        let mut command = vec![0; 64];
        let length = rustix::io::pread(&fds[0], &mut command, 0).unwrap();
        command.truncate(length);
        let (read, write) = io::pipe().unwrap();
        let json = serde_json::to_vec(&Answer::Spawned { command: 1 }).unwrap();
        message::send(socket.as_fd(), &json, &[read.as_fd()]).unwrap();
        (command, write.into())
    }

    fn spawn() -> Ask {
        Ask::Spawn {
            streams: Vec::new(),
            terminal: false,
        }
    }

    #[test]
    fn a_command_is_started_and_its_code_comes_back() {
        let (shim, daemon) = pair();
        let daemon = std::thread::spawn(move || answer_spawn(&daemon));
        let spawner = Spawner::new(Some(shim));
        let mut spawned = spawner.spawn(b"hello", &spawn(), &[]).unwrap();
        let (command, status) = daemon.join().unwrap();
        assert_eq!(command, b"hello");
        assert!(spawned.runs());
        assert_eq!(spawner.wait(&mut spawned, false).unwrap(), None);
        rustix::io::write(&status, &3u32.to_le_bytes()).unwrap();
        assert!(!spawned.runs());
        assert_eq!(spawner.wait(&mut spawned, true).unwrap(), Some(3));
    }

    #[test]
    fn a_daemon_that_goes_is_followed_by_the_next_one() {
        let (shim, daemon) = pair();
        let spawner = Spawner::new(Some(shim));
        let first = std::thread::spawn(move || answer_spawn(&daemon));
        let mut spawned = spawner.spawn(b"one", &spawn(), &[]).unwrap();
        // The daemon ends: its socket closes, and the pipe without a code.
        drop(first.join().unwrap());
        assert_eq!(spawner.wait(&mut spawned, false).unwrap(), None);
        let asking = spawner.clone();
        let asker = std::thread::spawn(move || asking.spawn(b"two", &spawn(), &[]));
        let (shim, daemon) = pair();
        spawner.replace(shim);
        assert_eq!(answer_spawn(&daemon).0, b"two");
        asker.join().unwrap().unwrap();
        assert_eq!(spawner.wait(&mut spawned, true).unwrap(), Some(KILLED));
        let gone = spawner.signal(&spawned, 15);
        assert_eq!(gone, Err(Refusal::NoSuchCommand));
    }

    #[test]
    fn a_refusal_is_told() {
        let (shim, daemon) = pair();
        let spawner = Spawner::new(Some(shim));
        let daemon = std::thread::spawn(move || {
            message::receive(daemon.as_fd()).unwrap();
            let json = br#"{"answer":"refused","why":"too-many"}"#;
            message::send(daemon.as_fd(), json, &[]).unwrap();
        });
        let refused = spawner.ask(&Ask::Interrupt);
        assert_eq!(refused, Err(Refusal::TooMany));
        daemon.join().unwrap();
    }
}
