//! One SPDY connection: frames of many streams on one socket.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, BufWriter,
};
use tokio::sync::mpsc;

use super::frame::{self, Control, HEAD, Head, Malformed, Reset};
use super::header::{Blocks, Headers, Inflater};
use crate::streaming::channels::{
    self, Budget, Feeder, Gone, Incoming, Link, Out, Outgoing, PIECE, Peer, Queues, Senders,
};

/// Streams that are open at one time; a forwarded connection is two of them.
pub const MAX_STREAMS: usize = 4096;

/// New streams that the session has not looked at yet.
const WAITING: usize = 64;

/// A stream that the client opened; it waits for [`NewStream::accept`].
pub struct NewStream {
    /// Odd and ascending.
    pub id: u32,
    /// What it is for.
    pub headers: Headers,
    /// From the client.
    pub incoming: Incoming,
    /// To the client.
    pub outgoing: Outgoing,
    senders: Senders<Urgent>,
}

impl NewStream {
    /// The client may send now.
    pub fn accept(self) -> Result<(u32, Headers, Incoming, Outgoing), Gone> {
        self.senders.answer(Urgent::Reply(self.id))?;
        Ok((self.id, self.headers, self.incoming, self.outgoing))
    }

    /// The client asked for what is not there.
    pub fn refuse(self) -> Result<(), Gone> {
        let id = self.id;
        self.senders.answer(Urgent::Reset(id, Reset::ProtocolError))
    }
}

/// What the protocol itself has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Urgent {
    Reply(u32),
    Reset(u32, Reset),
    Ping(u32),
    /// The client broke the protocol; nothing follows.
    Abort(u32),
}

/// Takes over a connection: its streams as they come, and the link to its client.
pub fn serve(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    peer: Peer,
) -> (mpsc::Receiver<NewStream>, Link) {
    let (read, write) = tokio::io::split(io);
    let (senders, queues) = channels::queues();
    let (news, streams) = mpsc::channel(WAITING);
    let reader = Reader {
        io: BufReader::with_capacity(PIECE, read),
        inflater: Inflater::default(),
        streams: HashMap::new(),
        last: 0,
        budget: Budget::new(peer),
        news,
        senders: senders.clone(),
    };
    let link = Link::new(&senders, reader.run(), write_all(write, queues));
    (streams, link)
}

struct Reader<R> {
    io: BufReader<R>,
    inflater: Inflater,
    /// Those that the client may still send on or reset.
    streams: HashMap<u32, Feeder>,
    last: u32,
    budget: Budget,
    news: mpsc::Sender<NewStream>,
    senders: Senders<Urgent>,
}

/// Why reading ends.
enum Stop {
    Gone,
    Malformed(Malformed),
}

impl From<std::io::Error> for Stop {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<Malformed> for Stop {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(mut self) {
        let senders = self.senders.clone();
        loop {
            match senders.unless_idle(self.frame()).await {
                Some(Ok(())) => {}
                Some(Err(Stop::Malformed(error))) => {
                    tracing::debug!(%error, "a streaming client broke the protocol");
                    let _ = self.senders.answer(Urgent::Abort(self.last));
                    return;
                }
                Some(Err(Stop::Gone)) | None => return,
            }
        }
    }

    async fn frame(&mut self) -> Result<(), Stop> {
        let mut bytes = [0; HEAD];
        self.io.read_exact(&mut bytes).await?;
        match frame::head(bytes)? {
            Head::Data {
                stream,
                fin,
                length,
            } => self.data(stream, fin, length).await,
            Head::Control {
                kind,
                flags,
                length,
            } => {
                let mut payload = vec![0; length];
                self.io.read_exact(&mut payload).await?;
                let control = frame::control(kind, flags, &payload)?;
                self.control(control).await
            }
        }
    }

    /// Data for a stream that is over is thrown away.
    async fn data(&mut self, stream: u32, fin: bool, mut length: usize) -> Result<(), Stop> {
        while length > 0 {
            let mut piece = vec![0; length.min(PIECE)];
            self.io.read_exact(&mut piece).await?;
            length -= piece.len();
            if let Some(feeder) = self.streams.get(&stream) {
                self.budget.feed(feeder, Bytes::from(piece), || ()).await?;
            }
        }
        if fin {
            self.end(stream);
        }
        Ok(())
    }

    fn end(&mut self, stream: u32) {
        if let Some(feeder) = self.streams.get_mut(&stream) {
            feeder.end();
        }
    }

    async fn control(&mut self, control: Control<'_>) -> Result<(), Stop> {
        match control {
            Control::SynStream {
                stream,
                fin,
                unidirectional: _,
                block,
            } => {
                // Also of a stream that is refused: the zlib stream goes on.
                let headers = self.inflater.block(block)?;
                self.open(stream, fin, headers).await?;
            }
            Control::Headers { stream, fin, block } => {
                self.inflater.block(block)?;
                if fin {
                    self.end(stream);
                }
            }
            Control::Reset { stream } => drop(self.streams.remove(&stream)),
            Control::Ping { id } if id % 2 == 1 => self.senders.answer(Urgent::Ping(id))?,
            Control::Ping { .. } | Control::GoAway | Control::Ignored => {}
        }
        Ok(())
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: Headers) -> Result<(), Stop> {
        if stream.is_multiple_of(2) || stream <= self.last {
            let text = format!("stream {stream} after stream {}", self.last);
            return Err(Malformed(text).into());
        }
        self.last = stream;
        if self.streams.len() >= WAITING {
            self.streams.retain(|_, feeder| !feeder.is_closed());
        }
        if self.streams.len() >= MAX_STREAMS {
            self.senders.answer(Urgent::Reset(stream, Reset::Refused))?;
            return Ok(());
        }
        let (mut feeder, incoming) = channels::incoming();
        if fin {
            feeder.end();
        }
        self.streams.insert(stream, feeder);
        let new = NewStream {
            id: stream,
            headers,
            incoming,
            outgoing: self.senders.outgoing(stream),
            senders: self.senders.clone(),
        };
        // Nobody takes it when the session is over: the stream is reset by its drop.
        let _ = self.news.send(new).await;
        Ok(())
    }
}

async fn write_all(io: impl AsyncWrite + Unpin, mut queues: Queues<Urgent>) {
    let mut io = BufWriter::with_capacity(2 * PIECE, io);
    let mut blocks = Blocks::default();
    loop {
        let written = tokio::select! {
            biased;
            Some(urgent) = queues.urgent.recv() => match urgent {
                Urgent::Reply(stream) => {
                    let block = blocks.block(&[]);
                    io.write_all(&frame::syn_reply(stream, &block)).await
                }
                Urgent::Reset(stream, why) => io.write_all(&frame::reset(stream, why)).await,
                Urgent::Ping(id) => io.write_all(&frame::ping(id)).await,
                Urgent::Abort(last) => {
                    let _ = io.write_all(&frame::goaway(last, true)).await;
                    break;
                }
            },
            Some(out) = queues.data.recv() => match out {
                Out::Data(stream, bytes) => {
                    match io.write_all(&frame::data(stream, false, bytes.len())).await {
                        Ok(()) => io.write_all(&bytes).await,
                        error => error,
                    }
                }
                Out::End(stream) => io.write_all(&frame::data(stream, true, 0)).await,
                Out::Reset(stream) => io.write_all(&frame::reset(stream, Reset::Cancel)).await,
                Out::Close => {
                    let _ = io.write_all(&frame::goaway(0, false)).await;
                    break;
                }
            },
            else => break,
        };
        queues.moved();
        if written.is_err() || (queues.is_empty() && io.flush().await.is_err()) {
            return;
        }
    }
    // Flushes, too.
    let _ = io.shutdown().await;
}
