//! The shim's end of the socket, as one poll loop without threads.
//!
//! The control thread asks [`Server::next`] for what happens next: a request, a
//! wake-up of one of its own descriptors, or its deadline. It answers a request
//! when it can ([`Server::reply`]), not necessarily at once, and never blocks on a
//! peer: connections are few, have a time limit, and only root may speak.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::message;
use crate::protocol::{Reply, Request};
use crate::record::clip;
use crate::sys;

/// Connections at one time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 16;

/// A peer that connects must have sent its request by then.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// One connection, to be answered with [`Server::reply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller(u64);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A well-formed request. Exactly one reply is owed.
    Request {
        /// Whom to answer.
        caller: Caller,
        /// What is asked.
        request: Request,
        /// Descriptors of the message; their number matches the request's `fds`.
        fds: Vec<OwnedFd>,
    },
    /// The n-th of the descriptors passed to [`Server::next`] is readable or closed.
    Wake(usize),
    /// `until` has passed.
    Deadline,
}

/// The listening socket and the connections on it.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    connections: Vec<Connection>,
    next_caller: u64,
    /// Root of the node, as this process sees it.
    root: u32,
}

#[derive(Debug)]
struct Connection {
    caller: Caller,
    socket: OwnedFd,
    /// When it is thrown out; `None` once its request was read and a reply is owed.
    until: Option<Instant>,
}

impl Server {
    /// Serves a listening `SOCK_SEQPACKET` socket.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        Ok(Self {
            listener,
            connections: Vec::new(),
            next_caller: 0,
            root: 0,
        })
    }

    /// After this process has entered a user namespace: root of the node is who this caller
    /// looks like now, mostly nobody. Only root can open the socket in the first place.
    pub fn trust_like(&mut self, caller: Caller) {
        let found = self
            .position(caller)
            .and_then(|index| sys::peer_uid(self.connections[index].socket.as_fd()).ok());
        self.root = found.unwrap_or(self.root);
    }

    /// Waits for the next event. Wake-ups come before requests, so that a guest's
    /// end is seen before a request that arrived at the same moment.
    pub fn next(&mut self, wakes: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<Event> {
        loop {
            let now = Instant::now();
            self.connections
                .retain(|connection| connection.until.is_none_or(|limit| limit > now));
            if until.is_some_and(|limit| limit <= now) {
                return Ok(Event::Deadline);
            }
            let (woken, accept, ready) = self.poll(wakes, until, now)?;
            if let Some(index) = woken {
                return Ok(Event::Wake(index));
            }
            for caller in ready {
                if let Some(event) = self.read(caller) {
                    return Ok(event);
                }
            }
            if accept {
                self.accept();
            }
        }
    }

    /// Answers and closes. A peer that is gone or does not read loses the reply.
    pub fn reply(&mut self, caller: Caller, reply: &Reply) {
        let Some(connection) = self.take(caller) else {
            return;
        };
        if let Ok(json) = serde_json::to_vec(&clipped(reply)) {
            let _ = message::send(connection.socket.as_fd(), &json, &[]);
        }
    }

    /// Who became ready: the first of `wakes`, the listener, the connections.
    fn poll(
        &self,
        wakes: &[BorrowedFd<'_>],
        until: Option<Instant>,
        now: Instant,
    ) -> io::Result<(Option<usize>, bool, Vec<Caller>)> {
        let reading = || {
            self.connections
                .iter()
                .filter(|connection| connection.until.is_some())
        };
        let mut polled: Vec<PollFd<'_>> = wakes
            .iter()
            .map(|wake| PollFd::from_borrowed_fd(*wake, PollFlags::IN))
            .collect();
        let accepting = self.connections.len() < MAX_CONNECTIONS;
        if accepting {
            polled.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        let first_connection = polled.len();
        polled.extend(reading().map(|c| PollFd::new(&c.socket, PollFlags::IN)));
        let wait = reading()
            .filter_map(|connection| connection.until)
            .chain(until)
            .min()
            .map(|limit| limit.saturating_duration_since(now));
        let wait = wait.map(|wait| Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        });
        match rustix::event::poll(&mut polled, wait.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok((None, false, Vec::new())),
            Err(error) => return Err(error.into()),
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let woken = polled[..wakes.len()].iter().position(is_ready);
        let accept = accepting && is_ready(&polled[wakes.len()]);
        let ready = reading()
            .zip(&polled[first_connection..])
            .filter(|(_, fd)| is_ready(fd))
            .map(|(connection, _)| connection.caller)
            .collect();
        Ok((woken, accept, ready))
    }

    /// Takes one connection; only root of the node may speak to a shim.
    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(&self.listener, flags) else {
            return;
        };
        let from_root = sys::peer_uid(socket.as_fd()).is_ok_and(|uid| uid == self.root);
        if from_root {
            self.next_caller += 1;
            self.connections.push(Connection {
                caller: Caller(self.next_caller),
                socket,
                until: Some(Instant::now() + REQUEST_LIMIT),
            });
        }
    }

    /// Reads the one request of a connection; what is no request is answered here.
    fn read(&mut self, caller: Caller) -> Option<Event> {
        let index = self.position(caller)?;
        let received = match message::receive(self.connections[index].socket.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            // Connected and left without a word.
            Ok((bytes, _)) if bytes.is_empty() => {
                self.connections.remove(index);
                return None;
            }
            received => received.map_err(|error| error.to_string()),
        };
        match received.and_then(|(bytes, fds)| parse(&bytes, fds)) {
            Ok((request, fds)) => {
                self.connections[index].until = None;
                Some(Event::Request {
                    caller,
                    request,
                    fds,
                })
            }
            Err(message) => {
                self.reply(caller, &Reply::Failed { message });
                None
            }
        }
    }

    fn position(&self, caller: Caller) -> Option<usize> {
        self.connections
            .iter()
            .position(|connection| connection.caller == caller)
    }

    fn take(&mut self, caller: Caller) -> Option<Connection> {
        Some(self.connections.remove(self.position(caller)?))
    }
}

/// A request and its descriptors, or the sentence that says what is wrong with it.
fn parse(bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(Request, Vec<OwnedFd>), String> {
    let request: Request = serde_json::from_slice(bytes)
        .map_err(|error| format!("parse request of {} bytes: {error}", bytes.len()))?;
    let named = match &request {
        Request::Create { fds, .. }
        | Request::ReopenLog { fds }
        | Request::Attach { fds }
        | Request::Spawner { fds } => fds.len(),
        Request::Start | Request::Signal { .. } | Request::Resize { .. } | Request::State => 0,
    };
    if named != fds.len() {
        return Err(format!(
            "request names {named} descriptors and carries {}",
            fds.len()
        ));
    }
    Ok((request, fds))
}

/// Texts of a reply are cut to their limit here, so that no engine has to think of it.
fn clipped(reply: &Reply) -> Reply {
    match reply.clone() {
        Reply::StartFailed { message } => Reply::StartFailed {
            message: clip(message),
        },
        Reply::Failed { message } => Reply::Failed {
            message: clip(message),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::client::ShimSocket;
    use crate::protocol::{FdRole, MAX_MESSAGE, MAX_MESSAGE_TEXT};

    fn server(directory: &Path) -> Server {
        Server::new(ShimSocket::bind(directory).unwrap()).unwrap()
    }

    fn raw(directory: &Path) -> OwnedFd {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            None,
        )
        .unwrap();
        let path = directory.join(crate::client::SOCKET_NAME);
        rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(path).unwrap()).unwrap();
        socket
    }

    #[test]
    fn requests_are_parsed_strictly() {
        let fd = || OwnedFd::from(tempfile::tempfile().unwrap());
        for (json, fds, good) in [
            (r#"{"request":"state"}"#, 0, true),
            (r#"{"request":"start"}"#, 0, true),
            (r#"{"request":"reopen-log","fds":["log"]}"#, 1, true),
            (
                r#"{"request":"create","version":1,"fds":["spec",{"mount":7}]}"#,
                2,
                true,
            ),
            (
                r#"{"request":"signal","signal":15,"stop":true,"grace_ms":10}"#,
                0,
                true,
            ),
            (r#"{"request":"attach","fds":["stdin","stdout"]}"#, 2, true),
            (r#"{"request":"resize","width":80,"height":24}"#, 0, true),
            (
                r#"{"request":"resize","width":65536,"height":24}"#,
                0,
                false,
            ),
            (r#"{"request":"spawner","fds":["spawner"]}"#, 1, true),
            (r#"{"request":"spawner","fds":[]}"#, 1, false),
            (r#"{"request":"state"}"#, 1, false),
            (r#"{"request":"reopen-log","fds":["log"]}"#, 0, false),
            (r#"{"request":"reopen-log","fds":["lag"]}"#, 1, false),
            (r#"{"request":"signal","signal":"15"}"#, 0, false),
            (r#"{"request":"dance"}"#, 0, false),
            (r#"{"request":"state"} {}"#, 0, false),
            ("{", 0, false),
            ("", 0, false),
            ("[[[[", 0, false),
        ] {
            let fds = (0..fds).map(|_| fd()).collect();
            assert_eq!(parse(json.as_bytes(), fds).is_ok(), good, "{json}");
        }
    }

    #[test]
    fn hostile_callers_do_not_hinder_a_good_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = server(directory.path());
        // Silent ones fill all places but one, one leaves, two talk rubbish.
        let silent: Vec<_> = (0..MAX_CONNECTIONS - 4)
            .map(|_| raw(directory.path()))
            .collect();
        drop(raw(directory.path()));
        let rubbish = raw(directory.path());
        rustix::net::send(&rubbish, b"\0\0\0", rustix::net::SendFlags::empty()).unwrap();
        let huge = raw(directory.path());
        let bytes = vec![b'['; MAX_MESSAGE + 1];
        rustix::net::send(&huge, &bytes, rustix::net::SendFlags::empty()).unwrap();
        let path = directory.path().to_owned();
        let good = std::thread::spawn(move || {
            ShimSocket::at(&path).call(&Request::State, &[], Duration::from_secs(4))
        });
        let end = Instant::now() + Duration::from_secs(4);
        let Event::Request {
            caller, request, ..
        } = server.next(&[], Some(end)).unwrap()
        else {
            panic!("no request came");
        };
        assert!(matches!(request, Request::State));
        let long = "x".repeat(MAX_MESSAGE_TEXT + 1);
        server.reply(caller, &Reply::Failed { message: long });
        let Ok(Reply::Failed { message }) = good.join().unwrap() else {
            panic!("no reply came");
        };
        assert_eq!(message.len(), MAX_MESSAGE_TEXT);
        for peer in [rubbish, huge] {
            let (bytes, _) = message::receive(peer.as_fd()).unwrap();
            let reply: Reply = serde_json::from_slice(&bytes).unwrap();
            assert!(matches!(reply, Reply::Failed { .. }));
        }
        assert_eq!(server.connections.len(), silent.len());
        // Their time runs out.
        for connection in &mut server.connections {
            connection.until = Some(Instant::now());
        }
        let soon = Instant::now() + Duration::from_millis(1);
        assert!(matches!(
            server.next(&[], Some(soon)).unwrap(),
            Event::Deadline
        ));
        assert!(server.connections.is_empty());
    }

    #[test]
    fn a_wake_up_comes_before_a_request() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = server(directory.path());
        let peer = raw(directory.path());
        let request = serde_json::to_vec(&Request::ReopenLog {
            fds: vec![FdRole::Log],
        })
        .unwrap();
        let file = tempfile::tempfile().unwrap();
        message::send(peer.as_fd(), &request, &[file.as_fd()]).unwrap();
        let (read, write) = std::io::pipe().unwrap();
        let (quiet, _keep) = std::io::pipe().unwrap();
        drop(write);
        assert!(matches!(
            server.next(&[quiet.as_fd(), read.as_fd()], None).unwrap(),
            Event::Wake(1)
        ));
        let Event::Request { fds, .. } = server.next(&[quiet.as_fd()], None).unwrap() else {
            panic!("no request came");
        };
        assert_eq!(fds.len(), 1);
    }
}
