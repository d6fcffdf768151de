//! Sockets of a preview 1 guest: preopened TCP listeners and what is accepted from
//! them. A blocking call blocks the guest's thread, and nobody else.
//!
//! Listeners are handed over blocking, as C's `accept` expects; a Go guest says
//! `syscall.SetNonblock(3, true)` before `os.NewFile`, and then polls.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags};
use rustix::time::{ClockId, clock_gettime};

use crate::overlay::{slice, store, vectors};

/// An error number of preview 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) u16);

impl Errno {
    pub(crate) const ACCES: Self = Self(2);
    pub(crate) const AGAIN: Self = Self(6);
    pub(crate) const BADF: Self = Self(8);
    pub(crate) const CHILD: Self = Self(12);
    pub(crate) const FAULT: Self = Self(21);
    pub(crate) const ILSEQ: Self = Self(25);
    pub(crate) const INVAL: Self = Self(28);
    pub(crate) const IO: Self = Self(29);
    pub(crate) const NFILE: Self = Self(41);
    pub(crate) const NOENT: Self = Self(44);
    pub(crate) const NOEXEC: Self = Self(45);
    pub(crate) const NOTDIR: Self = Self(54);
    pub(crate) const NOTSUP: Self = Self(58);
    pub(crate) const ROFS: Self = Self(69);
    pub(crate) const TIMEDOUT: Self = Self(73);
}

impl From<rustix::io::Errno> for Errno {
    fn from(error: rustix::io::Errno) -> Self {
        use rustix::io::Errno as Linux;
        match error {
            Linux::AGAIN => Self::AGAIN,
            Linux::ACCESS => Self::ACCES,
            Linux::ADDRINUSE => Self(3),
            Linux::ADDRNOTAVAIL => Self(4),
            Linux::BADF => Self::BADF,
            Linux::EXIST => Self(20),
            Linux::HOSTUNREACH => Self(23),
            Linux::ISDIR => Self(31),
            Linux::LOOP => Self(32),
            Linux::NAMETOOLONG => Self(37),
            Linux::NETUNREACH => Self(40),
            Linux::NOENT => Self::NOENT,
            Linux::NOSPC => Self(51),
            Linux::NOTDIR => Self::NOTDIR,
            Linux::NXIO => Self(60),
            Linux::PERM => Self(63),
            Linux::ROFS => Self::ROFS,
            Linux::CONNABORTED => Self(13),
            Linux::CONNREFUSED => Self(14),
            Linux::CONNRESET => Self(15),
            Linux::INTR => Self(27),
            Linux::INVAL => Self::INVAL,
            Linux::MFILE => Self(33),
            Linux::NFILE => Self::NFILE,
            Linux::NOBUFS => Self(42),
            Linux::NOMEM => Self(48),
            Linux::NOTCONN => Self(53),
            Linux::NOTSOCK => Self(57),
            Linux::OPNOTSUPP => Self::NOTSUP,
            Linux::PIPE => Self(64),
            Linux::TIMEDOUT => Self::TIMEDOUT,
            _ => Self::IO,
        }
    }
}

/// First number of a listener: behind the standard streams.
const FIRST_LISTENER: u32 = 3;

/// Accepted connections are numbered from here, far above what files reach.
const FIRST_STREAM: u32 = 1 << 16;

/// The flag `nonblock` of preview 1's `fdflags`.
const NONBLOCK: i32 = 4;

/// The file type `socket_stream`.
const SOCKET_STREAM: u8 = 6;

/// All sockets of a guest by its own numbers.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// `None` once closed; the numbers are not given again.
    listeners: Vec<Option<OwnedFd>>,
    streams: BTreeMap<u32, OwnedFd>,
}

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Socket<'a>(BorrowedFd<'a>);

impl Sockets {
    /// Takes copies: the control thread keeps its own to shut them down.
    pub(crate) fn new(listeners: &[TcpListener]) -> std::io::Result<Self> {
        let listeners = listeners
            .iter()
            .map(|listener| Ok(Some(listener.try_clone()?.into())))
            .collect::<std::io::Result<_>>()?;
        Ok(Self {
            listeners,
            streams: BTreeMap::new(),
        })
    }

    /// Number of the directory `/`, which follows the listeners.
    pub(crate) fn root(&self) -> i32 {
        let after = self.listeners.len() as u32;
        (FIRST_LISTENER + after) as i32
    }

    pub(crate) fn listeners(&self) -> usize {
        self.listeners.len()
    }

    /// The socket with this number; `None` when the number is not for sockets.
    pub(crate) fn find(&self, fd: i32) -> Option<Result<Socket<'_>, Errno>> {
        let fd = fd as u32;
        let found = if fd >= FIRST_STREAM {
            self.streams.get(&fd)
        } else {
            let index = fd.checked_sub(FIRST_LISTENER)? as usize;
            self.listeners.get(index)?.as_ref()
        };
        Some(found.map(|fd| Socket(fd.as_fd())).ok_or(Errno::BADF))
    }

    pub(crate) fn close(&mut self, fd: i32) -> Option<Result<(), Errno>> {
        if let Err(errno) = self.find(fd)? {
            return Some(Err(errno));
        }
        let fd = fd as u32;
        if self.streams.remove(&fd).is_none() {
            self.listeners[(fd - FIRST_LISTENER) as usize] = None;
        }
        Some(Ok(()))
    }

    /// Accepts and gives the connection the lowest free number.
    pub(crate) fn accept(&mut self, fd: i32, flags: i32) -> Result<u32, Errno> {
        let listener = self.find(fd).ok_or(Errno::BADF)??;
        let mut host_flags = SocketFlags::CLOEXEC;
        if flags & NONBLOCK != 0 {
            host_flags |= SocketFlags::NONBLOCK;
        }
        let stream =
            rustix::io::retry_on_intr(|| rustix::net::accept_with(listener.0, host_flags))?;
        let number = (FIRST_STREAM..)
            .zip(self.streams.keys())
            .find(|(free, taken)| free != *taken)
            .map_or(FIRST_STREAM + self.streams.len() as u32, |(free, _)| free);
        self.streams.insert(number, stream);
        Ok(number)
    }
}

/// Bytes that one call moves at most; the guest calls again for more.
const MAX_MOVE: usize = 1 << 20;

impl Socket<'_> {
    /// Reads into the guest's buffers and stores the count.
    pub(crate) fn receive(
        &self,
        memory: &mut [u8],
        iovs: i32,
        count: i32,
        flags: i32,
        out: i32,
    ) -> Result<(), Errno> {
        const PEEK: i32 = 1;
        const WAIT_ALL: i32 = 2;
        let mut host_flags = RecvFlags::empty();
        host_flags.set(RecvFlags::PEEK, flags & PEEK != 0);
        host_flags.set(RecvFlags::WAITALL, flags & WAIT_ALL != 0);
        // The first buffer that is not empty: a short read is always allowed.
        let first = vectors(memory, iovs, count)?
            .into_iter()
            .find(|(_, length)| *length > 0);
        let read = match first {
            None => 0,
            Some((begin, length)) => {
                slice(memory, begin, length)?;
                let begin = begin as usize;
                let length = (length as usize).min(MAX_MOVE);
                let buffer = &mut memory[begin..begin + length];
                rustix::io::retry_on_intr(|| rustix::net::recv(self.0, &mut *buffer, host_flags))?.0
            }
        };
        store(memory, out, &(read as u32).to_le_bytes())
    }

    /// Sends the guest's buffers as one piece and stores the count.
    pub(crate) fn send(
        &self,
        memory: &mut [u8],
        iovs: i32,
        count: i32,
        out: i32,
    ) -> Result<(), Errno> {
        let mut bytes = Vec::new();
        for (begin, length) in vectors(memory, iovs, count)? {
            let room = MAX_MOVE - bytes.len();
            let piece = slice(memory, begin, length)?;
            bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        }
        let sent =
            rustix::io::retry_on_intr(|| rustix::net::send(self.0, &bytes, SendFlags::NOSIGNAL))?;
        store(memory, out, &(sent as u32).to_le_bytes())
    }

    pub(crate) fn shutdown(&self, how: i32) -> Result<(), Errno> {
        let how = match how {
            1 => Shutdown::Read,
            2 => Shutdown::Write,
            3 => Shutdown::Both,
            _ => return Err(Errno::INVAL),
        };
        Ok(rustix::net::shutdown(self.0, how)?)
    }

    pub(crate) fn set_flags(&self, flags: i32) -> Result<(), Errno> {
        if flags & !NONBLOCK != 0 {
            return Err(Errno::NOTSUP);
        }
        Ok(rustix::io::ioctl_fionbio(self.0, flags & NONBLOCK != 0)?)
    }

    /// The structure `fdstat`: type, flags, rights (all).
    pub(crate) fn fdstat(&self) -> Result<[u8; 24], Errno> {
        let mut stat = [0; 24];
        stat[0] = SOCKET_STREAM;
        if rustix::fs::fcntl_getfl(self.0)?.contains(OFlags::NONBLOCK) {
            stat[2] = NONBLOCK as u8;
        }
        stat[8..].fill(0xff);
        Ok(stat)
    }

    /// The structure `filestat`: nothing but the type.
    pub(crate) fn filestat(&self) -> [u8; 64] {
        let mut stat = [0; 64];
        stat[16] = SOCKET_STREAM;
        stat
    }
}

/// What a subscription waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// A time; nanoseconds of the clock, and whether they count from now.
    Clock {
        realtime: bool,
        nanoseconds: u64,
        absolute: bool,
    },
    Read(i32),
    Write(i32),
}

const SUBSCRIPTION: u32 = 48;
const EVENT: usize = 32;

/// Subscriptions of one call.
const MAX_SUBSCRIPTIONS: u32 = 4096;

/// `poll_oneoff` for calls that name a socket of ours; `None` for others. Descriptors
/// that are no sockets count as ready, as they would in poll(2) on files.
pub(crate) fn poll(
    sockets: &Sockets,
    memory: &mut [u8],
    subscriptions: i32,
    events: i32,
    count: i32,
) -> Option<Result<u32, Errno>> {
    let waits = match parse(memory, subscriptions, count) {
        Ok(waits) => waits,
        // wasmtime-wasi says what is wrong with it.
        Err(_) => return None,
    };
    let ours = |wait: &Wait| match wait {
        Wait::Read(fd) | Wait::Write(fd) => sockets.find(*fd).is_some(),
        Wait::Clock { .. } => false,
    };
    if !waits.iter().any(|(_, wait)| ours(wait)) {
        return None;
    }
    Some(wait_for(sockets, &waits).and_then(|ready| {
        let mut all = Vec::with_capacity(ready.len() * EVENT);
        for event in &ready {
            all.extend_from_slice(event);
        }
        store(memory, events, &all)?;
        Ok(ready.len() as u32)
    }))
}

/// (user data, what is waited for) of each subscription.
fn parse(memory: &[u8], subscriptions: i32, count: i32) -> Result<Vec<(u64, Wait)>, Errno> {
    let count = count as u32;
    if count == 0 || count > MAX_SUBSCRIPTIONS {
        return Err(Errno::INVAL);
    }
    let table = slice(memory, subscriptions as u32, count * SUBSCRIPTION)?;
    let (rows, _) = table.as_chunks::<{ SUBSCRIPTION as usize }>();
    rows.iter()
        .map(|row| {
            let u32_at =
                |at: usize| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
            let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
            let wait = match row[8] {
                0 if u32_at(16) <= 1 => Wait::Clock {
                    realtime: u32_at(16) == 0,
                    nanoseconds: u64_at(24),
                    absolute: row[40] & 1 != 0,
                },
                1 => Wait::Read(u32_at(16) as i32),
                2 => Wait::Write(u32_at(16) as i32),
                _ => return Err(Errno::INVAL),
            };
            Ok((u64_at(0), wait))
        })
        .collect()
}

fn now(realtime: bool) -> u64 {
    let clock = if realtime {
        ClockId::Realtime
    } else {
        ClockId::Monotonic
    };
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Waits and returns the events of what is ready.
fn wait_for(sockets: &Sockets, waits: &[(u64, Wait)]) -> Result<Vec<[u8; EVENT]>, Errno> {
    // Nanoseconds of the monotonic clock at which each clock subscription is due.
    let begin = now(false);
    let due = |wait: &Wait| match *wait {
        Wait::Clock {
            realtime,
            nanoseconds,
            absolute,
        } => Some(match (absolute, realtime) {
            (false, _) => begin.saturating_add(nanoseconds),
            (true, false) => nanoseconds,
            (true, true) => begin.saturating_add(nanoseconds.saturating_sub(now(true))),
        }),
        Wait::Read(_) | Wait::Write(_) => None,
    };
    let dues: Vec<Option<u64>> = waits.iter().map(|(_, wait)| due(wait)).collect();
    let earliest = dues.iter().flatten().min().copied();
    loop {
        let found = look(sockets, waits, &dues, earliest)?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
}

/// One poll(2), and the events of what it found.
fn look(
    sockets: &Sockets,
    waits: &[(u64, Wait)],
    dues: &[Option<u64>],
    earliest: Option<u64>,
) -> Result<Vec<[u8; EVENT]>, Errno> {
    let mut polled = Vec::new();
    let mut at = Vec::with_capacity(waits.len());
    let mut others_ready = false;
    for (_, wait) in waits {
        let (fd, flags) = match wait {
            Wait::Read(fd) => (*fd, PollFlags::IN),
            Wait::Write(fd) => (*fd, PollFlags::OUT),
            Wait::Clock { .. } => {
                at.push(None);
                continue;
            }
        };
        match sockets.find(fd) {
            Some(Ok(socket)) => {
                at.push(Some(polled.len()));
                polled.push(PollFd::from_borrowed_fd(socket.0, flags));
            }
            _ => {
                others_ready = true;
                at.push(None);
            }
        }
    }
    let left = if others_ready {
        Some(Duration::ZERO)
    } else {
        earliest.map(|due| Duration::from_nanos(due.saturating_sub(now(false))))
    };
    let left = left.map(|left| Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    });
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, left.as_ref()))?;
    let time = now(false);
    let mut events = Vec::new();
    for (n, (user_data, wait)) in waits.iter().enumerate() {
        let flags = match (wait, at[n]) {
            (Wait::Clock { .. }, _) => {
                if dues[n].is_some_and(|due| due <= time) {
                    events.push(event(*user_data, 0, Errno(0), false));
                }
                continue;
            }
            (_, Some(index)) => polled[index].revents(),
            (Wait::Read(fd) | Wait::Write(fd), None) => {
                let errno = match sockets.find(*fd) {
                    Some(Err(errno)) => errno,
                    _ => Errno(0),
                };
                events.push(event(*user_data, kind(wait), errno, false));
                continue;
            }
        };
        if !flags.is_empty() {
            let hangup = flags.intersects(PollFlags::HUP | PollFlags::ERR);
            events.push(event(*user_data, kind(wait), Errno(0), hangup));
        }
    }
    Ok(events)
}

fn kind(wait: &Wait) -> u8 {
    match wait {
        Wait::Clock { .. } => 0,
        Wait::Read(_) => 1,
        Wait::Write(_) => 2,
    }
}

/// The structure `event`.
fn event(user_data: u64, kind: u8, errno: Errno, hangup: bool) -> [u8; EVENT] {
    let mut event = [0; EVENT];
    event[..8].copy_from_slice(&user_data.to_le_bytes());
    event[8..10].copy_from_slice(&errno.0.to_le_bytes());
    event[10] = kind;
    // How much is there is not known; libraries only ask whether it is something.
    event[16] = u8::from(kind != 0);
    event[24] = u8::from(hangup);
    event
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;

    use super::*;

    fn with_listener() -> (Sockets, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (Sockets::new(&[listener]).unwrap(), address)
    }

    fn subscription(user_data: u64, kind: u8, first: u32, nanoseconds: u64) -> Vec<u8> {
        let mut row = vec![0; SUBSCRIPTION as usize];
        row[..8].copy_from_slice(&user_data.to_le_bytes());
        row[8] = kind;
        row[16..20].copy_from_slice(&first.to_le_bytes());
        row[24..32].copy_from_slice(&nanoseconds.to_le_bytes());
        row
    }

    #[test]
    fn numbers_are_found_closed_and_given_again() {
        let (mut sockets, address) = with_listener();
        assert!(sockets.find(0).is_none() && sockets.find(4).is_none());
        assert!(sockets.find(3).unwrap().is_ok());
        let _peers: Vec<_> = (0..3)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let numbers: Vec<_> = (0..3).map(|_| sockets.accept(3, 0).unwrap()).collect();
        assert_eq!(numbers, [FIRST_STREAM, FIRST_STREAM + 1, FIRST_STREAM + 2]);
        assert_eq!(sockets.close(FIRST_STREAM as i32 + 1), Some(Ok(())));
        assert_eq!(
            sockets.close(FIRST_STREAM as i32 + 1),
            Some(Err(Errno::BADF))
        );
        let _peer = TcpStream::connect(address).unwrap();
        assert_eq!(sockets.accept(3, NONBLOCK).unwrap(), FIRST_STREAM + 1);
        assert_eq!(sockets.close(3), Some(Ok(())));
        assert_eq!(sockets.find(3).unwrap().unwrap_err(), Errno::BADF);
        assert_eq!(sockets.close(5), None);
    }

    #[test]
    fn polling_waits_for_sockets_and_clocks() {
        let (mut sockets, address) = with_listener();
        let mut memory = vec![0; 4096];
        let mut run = |sockets: &Sockets, rows: &[Vec<u8>]| {
            let all = rows.concat();
            memory[..all.len()].copy_from_slice(&all);
            let n = poll(sockets, &mut memory, 0, 2048, rows.len() as i32)?;
            let n = n.unwrap() as usize;
            Some(
                memory[2048..2048 + n * EVENT]
                    .chunks(EVENT)
                    .map(|event| (event[0], event[10], event[8]))
                    .collect::<Vec<_>>(),
            )
        };
        // Not ours: files and clocks only.
        assert_eq!(run(&sockets, &[subscription(1, 0, 1, 5)]), None);
        assert_eq!(run(&sockets, &[subscription(1, 1, 0, 0)]), None);
        // The clock, because nobody connects.
        let rows = [subscription(7, 1, 3, 0), subscription(8, 0, 1, 1_000_000)];
        assert_eq!(run(&sockets, &rows), Some(vec![(8, 0, 0)]));
        let mut peer = TcpStream::connect(address).unwrap();
        let rows = [subscription(7, 1, 3, 0), subscription(8, 0, 1, u64::MAX)];
        assert_eq!(run(&sockets, &rows), Some(vec![(7, 1, 0)]));
        let stream = sockets.accept(3, 0).unwrap();
        peer.write_all(b"x").unwrap();
        let rows = [subscription(1, 1, stream, 0), subscription(2, 2, 1, 0)];
        let found = run(&sockets, &rows).unwrap();
        assert!(found.contains(&(2, 2, 0)), "a file is always ready");
        let rows = [subscription(1, 1, stream, 0)];
        assert_eq!(run(&sockets, &rows), Some(vec![(1, 1, 0)]));
        let closed = [subscription(1, 1, stream + 1, 0)];
        assert_eq!(
            run(&sockets, &closed),
            Some(vec![(1, 1, Errno::BADF.0 as u8)])
        );
    }

    #[test]
    fn hostile_tables_are_refused() {
        let memory = vec![0; 100];
        for (at, count) in [(0, 0), (0, -1), (0, 3), (-1, 1), (90, 1), (0, 1 << 20)] {
            assert!(parse(&memory, at, count).is_err(), "{at} {count}");
        }
        assert!(vectors(&memory, 0, 12).is_ok());
        for (at, count) in [(0, 13), (-8, 1), (0, -1), (99, 1)] {
            assert!(vectors(&memory, at, count).is_err(), "{at} {count}");
        }
    }
}
