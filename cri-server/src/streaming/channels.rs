//! The streams of one client connection, whatever carries them: what a session reads
//! ([`Incoming`]), what it writes ([`Outgoing`]), and whether the client is still
//! there ([`Link`]). Everything between them is bounded:
//!
//! ```text
//!   socket -> reader task -> budget of bytes -> Incoming -> session
//!   socket <- writer task <- queue of pieces <- Outgoing <- session
//! ```
//!
//! None of the protocols has flow control of its own. When a session does not take
//! what came, the reader stops reading the socket, and looks from time to time whether
//! the client has left; when the client does not read, the session's writes wait.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

/// Bytes handed on at once.
pub const PIECE: usize = 32 * 1024;

/// Bytes that came and were not taken yet, of all streams of a connection.
const BUDGET: usize = 1 << 20;

/// A piece counts for so many bytes at least, so that small ones are bounded too.
const LEAST: usize = 256;

/// Pieces on their way to the client, of all streams of a connection.
const QUEUE: usize = 8;

/// Answers of the protocol itself on their way; a client that provokes more without
/// reading any is thrown out.
const URGENT: usize = 1024;

/// A connection on which nothing moves for so long is closed.
pub const IDLE: Duration = Duration::from_secs(4 * 3600);

/// How often a client is looked after whose socket is not read.
const LOOK: Duration = Duration::from_secs(1);

/// What came on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Bytes, at most [`PIECE`].
    Data(Bytes),
    /// The client sends no more; it may still read.
    End,
    /// The client gave the stream up, or has left.
    Reset,
}

/// The client has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has left")]
pub struct Gone;

enum Item {
    Data(Bytes, OwnedSemaphorePermit),
    End,
}

/// One stream from the client.
pub struct Incoming {
    items: mpsc::UnboundedReceiver<Item>,
}

impl Incoming {
    /// What comes next. After [`Received::End`] there may be a reset to come.
    pub async fn next(&mut self) -> Received {
        match self.items.recv().await {
            Some(Item::Data(bytes, _room)) => Received::Data(bytes),
            Some(Item::End) => Received::End,
            None => Received::Reset,
        }
    }
}

/// The reader's side of an [`Incoming`]; dropped, the stream is reset.
pub struct Feeder {
    items: mpsc::UnboundedSender<Item>,
    ended: bool,
}

/// Makes a stream from the client.
pub fn incoming() -> (Feeder, Incoming) {
    // Bounded by the connection's budget.
    let (sender, items) = mpsc::unbounded_channel();
    let feeder = Feeder {
        items: sender,
        ended: false,
    };
    (feeder, Incoming { items })
}

impl Feeder {
    /// Nobody will read it.
    pub fn is_closed(&self) -> bool {
        self.items.is_closed()
    }

    /// The client sends no more. Only the first counts.
    pub fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            let _ = self.items.send(Item::End);
        }
    }
}

/// What one connection may hold of bytes that nobody took yet.
pub struct Budget {
    room: Arc<Semaphore>,
    peer: Peer,
}

impl Budget {
    /// For a connection from this client.
    pub fn new(peer: Peer) -> Self {
        Self {
            room: Arc::new(Semaphore::new(BUDGET)),
            peer,
        }
    }

    /// Hands bytes on; waits for room. Bytes that nobody wants, and those after the
    /// end, are thrown away. `waiting` is called each second that there is no room.
    pub async fn feed(
        &self,
        feeder: &Feeder,
        bytes: Bytes,
        mut waiting: impl FnMut(),
    ) -> Result<(), Gone> {
        if feeder.ended || bytes.is_empty() {
            return Ok(());
        }
        // Never more than the budget, because a piece is small.
        let size = u32::try_from(bytes.len().clamp(LEAST, BUDGET)).unwrap_or(u32::MAX);
        let room = loop {
            let room = self.room.clone().acquire_many_owned(size);
            tokio::select! {
                room = room => break room.map_err(|_| Gone)?,
                () = feeder.items.closed() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {
                    if self.peer.has_left() {
                        return Err(Gone);
                    }
                    waiting();
                }
            }
        };
        let _ = feeder.items.send(Item::Data(bytes, room));
        Ok(())
    }
}

/// A client's socket, to see whether it was closed without reading it.
#[derive(Debug)]
pub struct Peer(Option<OwnedFd>);

impl Peer {
    /// Of a socket.
    pub fn of(socket: &impl AsFd) -> std::io::Result<Self> {
        Ok(Self(Some(socket.as_fd().try_clone_to_owned()?)))
    }

    /// Of something that has none (tests).
    pub fn unknown() -> Self {
        Self(None)
    }

    fn has_left(&self) -> bool {
        let Some(socket) = &self.0 else { return false };
        let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

/// What the writer is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out {
    /// Bytes on a stream.
    Data(u32, Bytes),
    /// No more on a stream.
    End(u32),
    /// A stream is over, both ways.
    Reset(u32),
    /// Nothing follows: say good-bye and close this side.
    Close,
}

/// One stream to the client.
#[derive(Debug, Clone)]
pub struct Outgoing {
    stream: u32,
    queue: mpsc::Sender<Out>,
}

impl Outgoing {
    /// Sends bytes in pieces; waits for the client.
    pub async fn write(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            self.put(Out::Data(self.stream, piece)).await?;
        }
        Ok(())
    }

    /// Sends no more.
    pub async fn end(&self) -> Result<(), Gone> {
        self.put(Out::End(self.stream)).await
    }

    /// Gives the stream up.
    pub async fn reset(&self) -> Result<(), Gone> {
        self.put(Out::Reset(self.stream)).await
    }

    async fn put(&self, out: Out) -> Result<(), Gone> {
        self.queue.send(out).await.map_err(|_| Gone)
    }
}

/// The writer's queues; `U` is what the protocol itself has to say.
pub struct Queues<U> {
    /// Goes first.
    pub urgent: mpsc::Receiver<U>,
    /// From sessions.
    pub data: mpsc::Receiver<Out>,
    moved: Arc<AtomicBool>,
}

impl<U> Queues<U> {
    /// Something was written: the connection is not idle.
    pub fn moved(&self) {
        self.moved.store(true, Ordering::Relaxed);
    }

    /// Nothing is waiting: time to flush.
    pub fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.data.is_empty()
    }
}

/// The other ends of [`Queues`].
pub struct Senders<U> {
    urgent: mpsc::Sender<U>,
    data: mpsc::Sender<Out>,
    moved: Arc<AtomicBool>,
}

impl<U> Clone for Senders<U> {
    fn clone(&self) -> Self {
        Self {
            urgent: self.urgent.clone(),
            data: self.data.clone(),
            moved: self.moved.clone(),
        }
    }
}

impl<U> Senders<U> {
    /// Waits for what is read next; `None` when nothing moved for [`IDLE`], either way.
    pub async fn unless_idle<T>(&self, reading: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(reading);
        loop {
            tokio::select! {
                read = &mut reading => return Some(read),
                () = tokio::time::sleep(IDLE) => {
                    if !self.moved.swap(false, Ordering::Relaxed) {
                        tracing::debug!(idle = ?IDLE, "a streaming connection was idle");
                        return None;
                    }
                }
            }
        }
    }

    /// A stream to the client.
    pub fn outgoing(&self, stream: u32) -> Outgoing {
        Outgoing {
            stream,
            queue: self.data.clone(),
        }
    }

    /// An answer of the protocol; fails when the client reads none of them.
    pub fn answer(&self, urgent: U) -> Result<(), Gone> {
        self.urgent.try_send(urgent).map_err(|_| Gone)
    }
}

/// Makes the queues of a connection.
pub fn queues<U>() -> (Senders<U>, Queues<U>) {
    let (urgent, urgent_receiver) = mpsc::channel(URGENT);
    let (data, data_receiver) = mpsc::channel(QUEUE);
    let moved = Arc::new(AtomicBool::new(false));
    let queues = Queues {
        urgent: urgent_receiver,
        data: data_receiver,
        moved: moved.clone(),
    };
    let senders = Senders {
        urgent,
        data,
        moved,
    };
    (senders, queues)
}

/// A connection as a session sees it. Dropped, it is cut.
pub struct Link {
    queue: mpsc::Sender<Out>,
    gone: watch::Receiver<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// How long a client may take for the last bytes, and then for closing its side.
pub const GOODBYE: Duration = Duration::from_secs(10);

impl Link {
    /// `reader` and `writer` are the connection's two halves.
    pub fn new<U>(
        senders: &Senders<U>,
        reader: impl Future<Output = ()> + Send + 'static,
        writer: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let (left, gone) = watch::channel(false);
        let left = Arc::new(left);
        let left_too = left.clone();
        let writer = tokio::spawn(async move {
            writer.await;
            // A writer that fails ends the session; one that was told to close is past it.
            let _ = left_too.send(true);
        });
        let reader = tokio::spawn(async move {
            reader.await;
            let _ = left.send(true);
        });
        Self {
            queue: senders.data.clone(),
            gone,
            tasks: vec![writer, reader],
        }
    }

    /// Completes when the client has left.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut gone = self.gone.clone();
        async move {
            let _ = gone.wait_for(|gone| *gone).await;
        }
    }

    /// Sends what is queued, says good-bye, and waits a while for the client to
    /// close: data that it still sends would otherwise reset the connection, and take
    /// the last output with it.
    pub async fn close(mut self) {
        let tasks = std::mem::take(&mut self.tasks);
        let aborts: Vec<_> = tasks.iter().map(|task| task.abort_handle()).collect();
        let _ = tokio::time::timeout(GOODBYE, async {
            let _ = self.queue.send(Out::Close).await;
            for task in tasks {
                let _ = task.await;
            }
        })
        .await;
        for task in aborts {
            task.abort();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_budget_is_never_exceeded_and_what_was_taken_makes_room() {
        let budget = Budget::new(Peer::unknown());
        let (feeder, mut incoming) = incoming();
        let piece = Bytes::from(vec![7; PIECE]);
        for _ in 0..BUDGET / PIECE {
            budget.feed(&feeder, piece.clone(), || ()).await.unwrap();
        }
        let mut seconds = 0;
        let (waited, mut twice) = mpsc::channel(1);
        let full = budget.feed(&feeder, piece.clone(), || {
            seconds += 1;
            if seconds == 2 {
                let _ = waited.try_send(());
            }
        });
        tokio::select! {
            fed = full => panic!("there is no room, and yet {fed:?}"),
            Some(()) = twice.recv() => {}
        }
        assert_eq!(incoming.next().await, Received::Data(piece.clone()));
        budget.feed(&feeder, piece.clone(), || ()).await.unwrap();
        // Nobody reads any more: thrown away at once.
        drop(incoming);
        budget.feed(&feeder, piece, || ()).await.unwrap();
    }

    #[tokio::test]
    async fn small_pieces_count_too() {
        let budget = Budget::new(Peer::unknown());
        let (feeder, incoming) = incoming();
        for _ in 0..BUDGET / LEAST {
            let piece = Bytes::from_static(b"x");
            budget.feed(&feeder, piece, || ()).await.unwrap();
        }
        assert_eq!(budget.room.available_permits(), 0);
        drop(incoming);
    }

    #[tokio::test]
    async fn an_end_comes_once_and_a_reset_may_follow() {
        let budget = Budget::new(Peer::unknown());
        let (mut feeder, mut incoming) = incoming();
        budget
            .feed(&feeder, Bytes::from_static(b"a"), || ())
            .await
            .unwrap();
        feeder.end();
        feeder.end();
        let late = Bytes::from_static(b"late");
        budget.feed(&feeder, late, || ()).await.unwrap();
        let first = Received::Data(Bytes::from_static(b"a"));
        assert_eq!(incoming.next().await, first);
        assert_eq!(incoming.next().await, Received::End);
        drop(feeder);
        assert_eq!(incoming.next().await, Received::Reset);
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_seen_while_its_socket_is_not_read() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let budget = Budget::new(Peer::of(&ours).unwrap());
        let (feeder, _incoming) = incoming();
        let piece = Bytes::from(vec![0; PIECE]);
        for _ in 0..BUDGET / PIECE {
            budget.feed(&feeder, piece.clone(), || ()).await.unwrap();
        }
        drop(theirs);
        assert_eq!(budget.feed(&feeder, piece, || ()).await, Err(Gone));
    }
}
