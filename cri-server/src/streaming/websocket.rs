//! Channels in a WebSocket: the first byte of a message is the number of its channel.
//!
//! ```text
//!   binary   channel (0, 1, …)     bytes
//!   base64   '0' + channel         bytes in base64
//!   version 5 only:   255   channel     the peer sends no more on it
//! ```

use std::collections::HashMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use super::channels::{
    self, Budget, Feeder, Gone, Incoming, Link, Out, Outgoing, PIECE, Peer, Queues, Senders,
};
use super::upgrade::{Codec, Version};

/// A WebSocket on a connection.
pub type Socket<S> = WebSocketStream<S>;

/// Bytes of one message; clients send 32 KiB.
const MAX_MESSAGE: usize = 1 << 20;

/// Says in version 5 that a channel is closed.
const CLOSE_SIGNAL: u8 = 255;

/// Limits of every WebSocket.
pub fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

/// The polite end.
pub fn goodbye() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: tungstenite::Utf8Bytes::default(),
    }))
}

/// What the protocol itself has to say.
#[derive(Debug)]
enum Urgent {
    /// The first message: the connection stands.
    Hello(u8),
    /// Unasked, as the protocol allows it: a client that is made to wait takes the
    /// silence for a broken connection after a minute.
    Pong,
}

/// The channels of one connection.
pub struct Channels {
    /// Those that were asked for, by number.
    pub incoming: HashMap<u8, Incoming>,
    /// The client.
    pub link: Link,
    senders: Senders<Urgent>,
}

impl Channels {
    /// Takes over a connection on which the client sends on the `readable` channels.
    /// `hello` is the one that gets an empty message first.
    pub fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        socket: Socket<S>,
        peer: Peer,
        version: Version,
        codec: Codec,
        readable: &[u8],
        hello: Option<u8>,
    ) -> Self {
        let (write, read) = socket.split();
        let (senders, queues) = channels::queues();
        let (mut feeders, mut incoming) = (HashMap::new(), HashMap::new());
        for channel in readable {
            let (feeder, stream) = channels::incoming();
            feeders.insert(*channel, feeder);
            incoming.insert(*channel, stream);
        }
        if let Some(channel) = hello {
            // The queue is empty.
            let _ = senders.answer(Urgent::Hello(channel));
        }
        let reader = Reader {
            socket: read,
            format: Format { version, codec },
            feeders,
            budget: Budget::new(peer),
            senders: senders.clone(),
        };
        let link = Link::new(&senders, reader.run(), write_all(write, codec, queues));
        Self {
            incoming,
            link,
            senders,
        }
    }

    /// A channel to the client.
    pub fn outgoing(&self, channel: u8) -> Outgoing {
        self.senders.outgoing(u32::from(channel))
    }
}

struct Reader<S> {
    socket: SplitStream<Socket<S>>,
    format: Format,
    feeders: HashMap<u8, Feeder>,
    budget: Budget,
    senders: Senders<Urgent>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Reader<S> {
    async fn run(mut self) {
        let senders = self.senders.clone();
        while let Some(Some(Ok(message))) = senders.unless_idle(self.socket.next()).await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => Bytes::from(text),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
                Message::Close(_) => break,
            };
            match self.format.read(bytes) {
                Ok(said) => {
                    if self.hear(said).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(error, "a streaming client broke the protocol");
                    return;
                }
            }
        }
    }

    async fn hear(&mut self, said: Said) -> Result<(), Gone> {
        match said {
            Said::Nothing => {}
            Said::End(channel) => {
                if let Some(feeder) = self.feeders.get_mut(&channel) {
                    feeder.end();
                }
            }
            Said::Data(channel, mut bytes) => {
                let Some(feeder) = self.feeders.get(&channel) else {
                    return Ok(());
                };
                while !bytes.is_empty() {
                    let piece = bytes.split_to(bytes.len().min(PIECE));
                    let waiting = || {
                        let _ = self.senders.answer(Urgent::Pong);
                    };
                    self.budget.feed(feeder, piece, waiting).await?;
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
struct Format {
    version: Version,
    codec: Codec,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Nothing,
    Data(u8, Bytes),
    End(u8),
}

impl Format {
    fn read(self, mut bytes: Bytes) -> Result<Said, &'static str> {
        if bytes.is_empty() {
            return Ok(Said::Nothing);
        }
        let first = bytes.split_to(1)[0];
        match self.codec {
            Codec::Binary if self.version == Version::V5 && first == CLOSE_SIGNAL => {
                match bytes[..] {
                    [channel] => Ok(Said::End(channel)),
                    _ => Err("a close signal names one channel"),
                }
            }
            Codec::Binary => Ok(Said::Data(first, bytes)),
            Codec::Base64 => {
                let bytes = BASE64_STANDARD
                    .decode(&bytes)
                    .map_err(|_| "a message is no base64")?;
                Ok(Said::Data(first.wrapping_sub(b'0'), bytes.into()))
            }
        }
    }
}

fn message(codec: Codec, channel: u32, bytes: &[u8]) -> Message {
    // Channels are numbered by this side and few.
    let channel = channel as u8;
    match codec {
        Codec::Binary => {
            let mut whole = BytesMut::with_capacity(1 + bytes.len());
            whole.put_u8(channel);
            whole.put_slice(bytes);
            Message::Binary(whole.freeze())
        }
        Codec::Base64 => {
            let mut text = String::from(char::from(b'0' + channel));
            BASE64_STANDARD.encode_string(bytes, &mut text);
            Message::Text(text.into())
        }
    }
}

async fn write_all<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: SplitSink<Socket<S>, Message>,
    codec: Codec,
    mut queues: Queues<Urgent>,
) {
    loop {
        let message = tokio::select! {
            biased;
            Some(urgent) = queues.urgent.recv() => match urgent {
                Urgent::Hello(channel) => message(codec, channel.into(), &[]),
                Urgent::Pong => Message::Pong(Bytes::new()),
            },
            Some(out) = queues.data.recv() => match out {
                Out::Data(channel, bytes) => message(codec, channel, &bytes),
                // The end of the connection is the end of its channels.
                Out::End(_) | Out::Reset(_) => continue,
                Out::Close => {
                    let _ = socket.send(goodbye()).await;
                    return;
                }
            },
            else => return,
        };
        queues.moved();
        if socket.feed(message).await.is_err() {
            return;
        }
        if queues.is_empty() && socket.flush().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read() {
        let data = |channel, bytes: &'static [u8]| Ok(Said::Data(channel, bytes.into()));
        for (version, codec, bytes, expected) in [
            (Version::V4, Codec::Binary, &b""[..], Ok(Said::Nothing)),
            (Version::V4, Codec::Binary, b"\0", data(0, b"")),
            (Version::V4, Codec::Binary, b"\0abc", data(0, b"abc")),
            (Version::V4, Codec::Binary, b"\xff\0", data(255, b"\0")),
            (Version::V5, Codec::Binary, b"\xff\0", Ok(Said::End(0))),
            (Version::V5, Codec::Binary, b"\xff", Err(())),
            (Version::V5, Codec::Binary, b"\xff\0\0", Err(())),
            (Version::V5, Codec::Binary, b"\x04{}", data(4, b"{}")),
            (
                Version::V4,
                Codec::Base64,
                b"0Zm9vCgo=",
                data(0, b"foo\n\n"),
            ),
            (Version::V4, Codec::Base64, b"4", data(4, b"")),
            (Version::V4, Codec::Base64, b"0$$$", Err(())),
            (Version::V1, Codec::Base64, b"\xffZg==", data(0xcf, b"f")),
        ] {
            let format = Format { version, codec };
            let found = format.read(Bytes::from_static(bytes)).map_err(drop);
            assert_eq!(found, expected, "{version:?} {codec:?} {bytes:?}");
        }
    }

    #[test]
    fn messages_are_written() {
        let binary = message(Codec::Binary, 1, b"abc");
        assert_eq!(binary, Message::Binary(Bytes::from_static(b"\x01abc")));
        let text = message(Codec::Base64, 3, b"foo\n");
        assert_eq!(text, Message::Text("3Zm9vCg==".into()));
        assert_eq!(message(Codec::Base64, 1, b""), Message::Text("1".into()));
    }
}
