//! Exec and attach: the streams of the remote-command protocol, and the session that
//! connects them with the pipes of a process.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use criw_sandbox::Pipes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::channels::{Incoming, Link, Outgoing, PIECE, Peer, Received};
use super::resize::{Size, Sizes};
use super::spdy::connection::NewStream;
use super::status::Outcome;
use super::upgrade::{Codec, Version};
use super::websocket::{Channels, Socket};
use super::wire::Wire;

/// How long a SPDY client may take to open its streams.
const OPEN: Duration = Duration::from_secs(30);

/// Output is over when for so long after the end of its process none has come:
/// grandchildren may hold the pipes for ever.
const QUIET: Duration = Duration::from_secs(1);

/// How long a client may take for the last output and the status.
const LAST_BYTES: Duration = Duration::from_secs(60);

/// Which streams the RPC granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// To the process.
    pub stdin: bool,
    /// From the process.
    pub stdout: bool,
    /// From the process; never with a terminal.
    pub stderr: bool,
    /// With a terminal.
    pub tty: bool,
}

/// The streams of one client.
pub struct Streams {
    stdin: Option<Incoming>,
    stdout: Option<Outgoing>,
    stderr: Option<Outgoing>,
    resize: Option<Incoming>,
    error: Outgoing,
    version: Version,
    link: Link,
}

impl Streams {
    /// Over SPDY: waits until the client has opened all that the RPC granted. `None`
    /// when it leaves, or takes too long.
    pub async fn spdy(
        mut opened: mpsc::Receiver<NewStream>,
        link: Link,
        version: Version,
        wanted: Wanted,
    ) -> Option<Self> {
        let mut missing: Vec<&str> = [
            ("error", true),
            ("stdin", wanted.stdin),
            ("stdout", wanted.stdout),
            ("stderr", wanted.stderr),
            ("resize", wanted.tty && version >= Version::V3),
        ]
        .into_iter()
        .filter_map(|(name, wanted)| wanted.then_some(name))
        .collect();
        let (mut stdin, mut resize) = (None, None);
        let (mut stdout, mut stderr, mut error) = (None, None, None);
        let collect = async {
            while !missing.is_empty() {
                let new = opened.recv().await?;
                let kind = new.headers.get("streamtype").unwrap_or_default();
                let Some(at) = missing.iter().position(|name| *name == kind) else {
                    tracing::debug!(kind, "a client opened a stream that it was not granted");
                    new.refuse().ok()?;
                    continue;
                };
                let name = missing.swap_remove(at);
                let (_, _, incoming, outgoing) = new.accept().ok()?;
                match name {
                    "stdin" => stdin = Some(incoming),
                    "resize" => resize = Some(incoming),
                    "stdout" => stdout = Some(outgoing),
                    "stderr" => stderr = Some(outgoing),
                    _ => error = Some(outgoing),
                }
            }
            Some(())
        };
        tokio::time::timeout(OPEN, collect).await.ok()??;
        Some(Self {
            stdin,
            stdout,
            stderr,
            resize,
            error: error?,
            version,
            link,
        })
    }

    /// In a WebSocket, where channels are numbered and need not be opened.
    pub fn websocket(
        socket: Socket<Wire>,
        peer: Peer,
        version: Version,
        codec: Codec,
        wanted: Wanted,
    ) -> Self {
        const STDIN: u8 = 0;
        const STDOUT: u8 = 1;
        const STDERR: u8 = 2;
        const ERROR: u8 = 3;
        const RESIZE: u8 = 4;
        let hello = match wanted {
            Wanted { stdout: true, .. } => STDOUT,
            Wanted { stderr: true, .. } => STDERR,
            _ => ERROR,
        };
        let readable: Vec<u8> = [(STDIN, wanted.stdin), (RESIZE, wanted.tty)]
            .into_iter()
            .filter_map(|(channel, wanted)| wanted.then_some(channel))
            .collect();
        let mut channels = Channels::serve(socket, peer, version, codec, &readable, Some(hello));
        Self {
            stdin: channels.incoming.remove(&STDIN),
            resize: channels.incoming.remove(&RESIZE),
            stdout: wanted.stdout.then(|| channels.outgoing(STDOUT)),
            stderr: wanted.stderr.then(|| channels.outgoing(STDERR)),
            error: channels.outgoing(ERROR),
            version,
            link: channels.link,
        }
    }

    /// Completes when the client has left.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        self.link.gone()
    }

    /// Connects the client with a process until that has ended, and tells how. The
    /// client's terminal sizes go to `sizes`. `None` when the client left before.
    pub async fn connect(
        self,
        pipes: Pipes,
        ended: impl Future<Output = Outcome> + Send,
        sizes: watch::Sender<Size>,
    ) -> Option<Outcome> {
        let never = std::future::pending();
        self.connect_until(pipes, ended, never, sizes).await
    }

    /// The same where the end of the output says something, too: that this client was
    /// left. `left` begins with that end.
    pub async fn connect_until(
        mut self,
        pipes: Pipes,
        ended: impl Future<Output = Outcome> + Send,
        left: impl Future<Output = Outcome> + Send,
        sizes: watch::Sender<Size>,
    ) -> Option<Outcome> {
        let has_output = pipes.stdout.is_some() || pipes.stderr.is_some();
        let flow = Flow::default();
        let gone = self.link.gone();
        let input = copy_in(self.stdin.take(), pipes.stdin);
        let sizes = copy_sizes(self.resize.take(), sizes);
        let mut output = Box::pin(async {
            tokio::join!(
                copy_out(pipes.stdout, self.stdout.as_ref(), &flow),
                copy_out(pipes.stderr, self.stderr.as_ref(), &flow),
            );
        });
        let outcome = {
            let others = async { tokio::join!(input, sizes) };
            tokio::pin!(others, ended, left, gone);
            let (mut input_done, mut output_done) = (false, false);
            loop {
                tokio::select! {
                    outcome = &mut ended => {
                        if !output_done {
                            tokio::select! {
                                () = &mut gone => return None,
                                () = drain(output.as_mut(), &flow) => {}
                            }
                        }
                        break outcome;
                    }
                    () = &mut gone => return None,
                    outcome = &mut left, if output_done && has_output => break outcome,
                    () = &mut output, if !output_done => output_done = true,
                    _ = &mut others, if !input_done => input_done = true,
                }
            }
        };
        drop(output);
        self.finish(&outcome).await;
        Some(outcome)
    }

    /// Tells how it ended, and closes.
    pub async fn finish(self, outcome: &Outcome) {
        let Self {
            stdout,
            stderr,
            error,
            version,
            link,
            ..
        } = self;
        let bytes = Bytes::from(outcome.bytes(version));
        let told = async {
            for stream in [stdout, stderr].into_iter().flatten() {
                stream.end().await?;
            }
            error.write(bytes).await?;
            error.end().await
        };
        if let Ok(Ok(())) = tokio::time::timeout(LAST_BYTES, told).await {
            link.close().await;
        }
    }
}

/// What has moved, and whether a client is being waited for.
#[derive(Debug, Default)]
struct Flow {
    bytes: AtomicU64,
    writing: AtomicBool,
}

/// Waits for the last output of a process that has ended.
async fn drain(mut output: Pin<&mut impl Future<Output = ()>>, flow: &Flow) {
    let waits = LAST_BYTES.as_secs() / QUIET.as_secs();
    let (mut seen, mut waited) = (flow.bytes.load(Ordering::Relaxed), 0);
    loop {
        tokio::select! {
            () = &mut output => return,
            () = tokio::time::sleep(QUIET) => {}
        }
        let now = flow.bytes.load(Ordering::Relaxed);
        waited = if now == seen { waited + 1 } else { 0 };
        let client_is_slow = flow.writing.load(Ordering::Relaxed);
        if now == seen && (!client_is_slow || waited >= waits) {
            return;
        }
        seen = now;
    }
}

/// Until the client sends no more, or the process reads no more.
async fn copy_in(from: Option<Incoming>, to: Option<pipe::Sender>) {
    let (Some(mut from), Some(mut to)) = (from, to) else {
        return;
    };
    while let Received::Data(bytes) = from.next().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn copy_out(from: Option<pipe::Receiver>, to: Option<&Outgoing>, flow: &Flow) {
    let Some(mut from) = from else { return };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        match from.read_buf(&mut buffer).await {
            Ok(count @ 1..) => {
                flow.bytes.fetch_add(count as u64, Ordering::Relaxed);
            }
            Ok(0) | Err(_) => return,
        }
        let piece = buffer.split().freeze();
        let Some(to) = to else { continue };
        flow.writing.store(true, Ordering::Relaxed);
        let written = to.write(piece).await;
        flow.writing.store(false, Ordering::Relaxed);
        if written.is_err() {
            return;
        }
    }
}

async fn copy_sizes(from: Option<Incoming>, to: watch::Sender<Size>) {
    let Some(mut from) = from else { return };
    let mut sizes = Sizes::default();
    while let Received::Data(bytes) = from.next().await {
        match sizes.feed(&bytes) {
            Ok(Some(size)) => drop(to.send_replace(size)),
            Ok(None) => {}
            Err(error) => return tracing::debug!(error, "the client's resize stream"),
        }
    }
}
