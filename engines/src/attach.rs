//! Clients that are attached to a running container: each gets a copy of the output
//! from the moment it came, and may write to the container's input.
//!
//! Output goes to each client's pipe without waiting. A client whose pipe is full is
//! left: its ends are closed, which it sees as the end of the output; the container
//! never waits for it, and the log has everything. Input is read by a thread for each
//! client that has one, which waits as long as the container does not read.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::Winsize;

use crate::protocol::FdRole;
use crate::spec::StdinMode;

/// Clients at one time.
const MAX_CLIENTS: usize = 32;

/// One of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Also the whole output of a terminal.
    Stdout,
    /// Nothing with a terminal.
    Stderr,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Attach {
    clients: Mutex<Vec<Client>>,
    /// Whether there are any: output is frequent, clients are not.
    any: AtomicBool,
    input: Arc<Mutex<Option<Input>>>,
    terminal: Mutex<Option<OwnedFd>>,
}

#[derive(Debug)]
struct Client {
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

#[derive(Debug)]
struct Input {
    to: Arc<OwnedFd>,
    mode: StdinMode,
}

impl Attach {
    /// Where input goes: a pipe's end, or a terminal's master.
    pub fn set_input(&self, to: OwnedFd, mode: StdinMode) {
        let to = Arc::new(to);
        *lock(&self.input) = Some(Input { to, mode });
    }

    /// The master that [`Self::resize`] is about.
    pub fn set_terminal(&self, master: OwnedFd) {
        *lock(&self.terminal) = Some(master);
    }

    /// Copies output to every client.
    pub fn send(&self, stream: Stream, bytes: &[u8]) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        self.retain(|client| client.take(stream, bytes));
    }

    /// One more client.
    pub fn add(&self, roles: &[FdRole], fds: Vec<OwnedFd>) -> Result<(), String> {
        let mut client = Client {
            stdout: None,
            stderr: None,
        };
        let mut stdin = None;
        for (role, fd) in roles.iter().zip(fds) {
            match role {
                FdRole::Stdin => stdin = Some(fd),
                FdRole::Stdout => client.stdout = Some(fd),
                FdRole::Stderr => client.stderr = Some(fd),
                other => return Err(format!("attach: there is no use for a {other:?}")),
            }
        }
        let failed = |error: io::Error| format!("attach: {error}");
        for fd in [&client.stdout, &client.stderr].into_iter().flatten() {
            rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
        }
        // Those that left while the container was silent.
        self.retain(Client::is_there);
        if lock(&self.clients).len() >= MAX_CLIENTS {
            return Err(format!(
                "attach: {MAX_CLIENTS} clients are attached already"
            ));
        }
        if let Some(stdin) = stdin {
            self.read_input(stdin).map_err(failed)?;
        }
        if client.stdout.is_some() || client.stderr.is_some() {
            lock(&self.clients).push(client);
            self.any.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Tells the terminal its size in characters.
    pub fn resize(&self, width: u16, height: u16) -> Result<(), String> {
        let terminal = lock(&self.terminal);
        let Some(master) = &*terminal else {
            return Err("resize: there is no terminal".to_owned());
        };
        let size = Winsize {
            ws_col: width,
            ws_row: height,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(master, size)
            .map_err(|error| format!("resize: set the terminal's size: {error}"))
    }

    fn retain(&self, keep: impl FnMut(&Client) -> bool) {
        let mut clients = lock(&self.clients);
        clients.retain(keep);
        self.any.store(!clients.is_empty(), Ordering::Relaxed);
    }

    /// Without input, or once it is closed, what the client writes finds no reader.
    fn read_input(&self, from: OwnedFd) -> io::Result<()> {
        let Some(to) = lock(&self.input).as_ref().map(|input| input.to.clone()) else {
            return Ok(());
        };
        let input = Arc::clone(&self.input);
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || {
                copy(from, &to);
                let mut input = lock(&input);
                if input
                    .as_ref()
                    .is_some_and(|input| input.mode == StdinMode::Once)
                {
                    *input = None;
                }
            })
            .map(drop)
    }
}

impl Client {
    /// False when it is to be left.
    fn take(&self, stream: Stream, mut bytes: &[u8]) -> bool {
        let fd = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        let Some(fd) = fd else { return true };
        while !bytes.is_empty() {
            match rustix::io::write(fd, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn is_there(&self) -> bool {
        [&self.stdout, &self.stderr]
            .into_iter()
            .flatten()
            .all(|fd| {
                let mut fds = [PollFd::new(fd, PollFlags::empty())];
                let now = Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                };
                // A pipe without a reader is an error.
                rustix::event::poll(&mut fds, Some(&now)) == Ok(0)
            })
    }
}

fn copy(from: OwnedFd, to: &OwnedFd) {
    let Ok(to) = to.as_fd().try_clone_to_owned() else {
        return;
    };
    let (mut from, mut to) = (std::fs::File::from(from), std::fs::File::from(to));
    let mut chunk = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        if to.write_all(&chunk[..count]).is_err() {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: [FdRole; 1] = [FdRole::Stdout];

    #[test]
    fn clients_get_what_comes_after_them_and_a_slow_one_is_left() {
        let attach = Attach::default();
        attach.send(Stream::Stdout, b"before");
        let (mut fast, fast_end) = io::pipe().unwrap();
        let (mut slow, slow_end) = io::pipe().unwrap();
        attach.add(&OUT, vec![fast_end.into()]).unwrap();
        attach.add(&OUT, vec![slow_end.into()]).unwrap();
        attach.send(Stream::Stderr, b"not asked for");
        let mut got = vec![0; 32 * 1024];
        for _ in 0..4 {
            attach.send(Stream::Stdout, &[7; 32 * 1024]);
            fast.read_exact(&mut got).unwrap();
        }
        // 64 KiB fit into the pipe of the one that did not read; then it was left.
        let mut all = Vec::new();
        slow.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 64 * 1024);
        assert_eq!(lock(&attach.clients).len(), 1);
        drop(fast);
        attach.send(Stream::Stdout, b"x");
        assert!(lock(&attach.clients).is_empty() && !attach.any.load(Ordering::Relaxed));
    }

    #[test]
    fn clients_of_a_silent_container_do_not_pile_up() {
        let attach = Attach::default();
        let mut here = Vec::new();
        for n in 0..3 * MAX_CLIENTS {
            let (read, write) = io::pipe().unwrap();
            attach.add(&OUT, vec![write.into()]).unwrap();
            if n % 6 == 0 {
                here.push(read);
            }
        }
        while lock(&attach.clients).len() < MAX_CLIENTS {
            let (read, write) = io::pipe().unwrap();
            attach.add(&OUT, vec![write.into()]).unwrap();
            here.push(read);
        }
        let (_read, write) = io::pipe().unwrap();
        let error = attach.add(&OUT, vec![write.into()]).unwrap_err();
        assert!(error.contains("already"), "{error}");
    }

    #[test]
    fn input_ends_with_the_first_client_only_when_it_shall() {
        for (mode, ends) in [(StdinMode::Once, true), (StdinMode::Open, false)] {
            let attach = Attach::default();
            let (mut container, end) = io::pipe().unwrap();
            attach.set_input(end.into(), mode);
            let mut got = [0; 5];
            for text in [b"first", b"again"] {
                let (read, mut write) = io::pipe().unwrap();
                attach.add(&[FdRole::Stdin], vec![read.into()]).unwrap();
                let written = write.write_all(text);
                drop(write);
                if ends && text == b"again" {
                    break;
                }
                written.unwrap();
                container.read_exact(&mut got).unwrap();
                assert_eq!(&got, text);
                if ends {
                    assert_eq!(container.read(&mut got).unwrap(), 0);
                }
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let attach = Attach::default();
        let (_read, write) = io::pipe().unwrap();
        assert!(attach.add(&[FdRole::Log], vec![write.into()]).is_err());
        assert!(attach.resize(80, 24).unwrap_err().contains("no terminal"));
    }
}
