//! What the fuzz targets share: a client that sends what the fuzzer made up, and a session
//! that takes what comes out of it.

pub mod streaming;

use std::time::Duration;

use bytes::Bytes;
use streaming::channels::{Incoming, Received};
use streaming::spdy::frame::{self, HEAD, Head};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

/// An input that is worked on for longer has found a hang.
const HANG: Duration = Duration::from_secs(10);

/// Runs one input to its end.
///
/// # Panics
/// When it does not come to one.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime of one thread");
    runtime.block_on(async {
        tokio::time::timeout(HANG, work)
            .await
            .expect("the connection came to an end")
    })
}

/// Sends bytes in pieces of a size and no more; all that came back until the other side
/// closed.
pub async fn client(mut io: DuplexStream, bytes: Vec<u8>, piece: usize) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(&mut io);
    let sending = async {
        for part in bytes.chunks(piece.max(1)) {
            // The server may have had enough.
            if write.write_all(part).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        let _ = write.shutdown().await;
    };
    let mut answer = Vec::new();
    let (_, read) = tokio::join!(sending, read.read_to_end(&mut answer));
    read.expect("a pipe in memory can be read");
    answer
}

/// All that a stream brings.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether the client said that there will be no more.
    pub ended: bool,
}

/// Reads a stream until it is reset.
pub async fn hear(mut stream: Incoming) -> Heard {
    let mut heard = Heard::default();
    loop {
        match stream.next().await {
            Received::Data(bytes) => {
                assert!(!heard.ended, "bytes after the end");
                heard.bytes.extend_from_slice(&bytes);
            }
            Received::End => {
                assert!(!heard.ended, "a second end");
                heard.ended = true;
            }
            Received::Reset => return heard,
        }
    }
}

/// Ids of the pings that the server answered.
///
/// # Panics
/// When what it sent is no SPDY.
pub fn answered_pings(mut answer: &[u8]) -> Vec<u32> {
    let mut pings = Vec::new();
    while let Some((first, rest)) = answer.split_first_chunk::<HEAD>() {
        let length = match frame::head(*first).expect("the server sends SPDY") {
            Head::Data { length, .. } => length,
            Head::Control {
                kind,
                flags,
                length,
            } => {
                let control = frame::control(kind, flags, &rest[..length]);
                if let frame::Control::Ping { id } = control.expect("the server sends SPDY") {
                    pings.push(id);
                }
                length
            }
        };
        answer = &rest[length..];
    }
    assert!(answer.is_empty(), "the server stopped in a frame's head");
    pings
}

/// Bytes of the fuzzer, taken from the front.
pub struct Source<'a>(pub &'a [u8]);

impl<'a> Source<'a> {
    /// The next byte; 0 when there is none.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// So many, or as many as there are.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        first
    }

    /// Whether there is more.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A message of a WebSocket client. Its mask is zero, which leaves the bytes alone.
pub fn web_socket_message(opcode: u8, bytes: &[u8]) -> Bytes {
    let mut frame = vec![0x80 | (opcode & 0x0f)];
    match bytes.len() {
        short @ 0..=125 => frame.push(0x80 | short as u8),
        long @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(long as u16).to_be_bytes());
        }
        longer => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(longer as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(bytes);
    frame.into()
}
