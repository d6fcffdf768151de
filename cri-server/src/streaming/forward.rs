//! Port forwarding: connections of a client, each to a port inside a pod.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use criw_sandbox::SandboxId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::channels::{Gone, Incoming, Link, Outgoing, PIECE, Peer, Received};
use super::spdy::connection::{MAX_STREAMS, NewStream};
use super::spdy::header::Headers;
use super::upgrade::{Codec, Version};
use super::websocket::{Channels, Socket};
use super::wire::Wire;
use crate::daemon::Daemon;
use crate::error;

/// How long the second stream of a connection may be missing.
const OPEN: Duration = Duration::from_secs(30);

/// A server that goes on silently after its client has ended is left after so long.
const HALF_CLOSED: Duration = Duration::from_secs(300);

/// Connections at one time for one client.
const MAX_CONNECTIONS: usize = MAX_STREAMS / 2;

/// One stream of a connection.
struct Half {
    is_error: bool,
    port: u16,
    incoming: Incoming,
    outgoing: Outgoing,
    since: Instant,
}

/// Serves a SPDY client: each connection is a pair of streams with the same request id.
pub async fn spdy(
    daemon: Arc<Daemon>,
    pod: SandboxId,
    mut opened: mpsc::Receiver<NewStream>,
    link: Link,
) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut connections = JoinSet::new();
    let gone = link.gone();
    tokio::pin!(gone);
    loop {
        let new = tokio::select! {
            new = opened.recv() => new,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            () = &mut gone => None,
        };
        let Some(new) = new else { break };
        let now = Instant::now();
        // Its partner never came.
        halves.retain(|_, half| now.duration_since(half.since) < OPEN);
        let (request, half) = match half(new, now) {
            Ok(Some(accepted)) => accepted,
            Ok(None) => continue,
            Err(Gone) => break,
        };
        let Some(other) = halves.remove(&request) else {
            halves.insert(request, half);
            continue;
        };
        if half.is_error == other.is_error || connections.len() >= MAX_CONNECTIONS {
            for refused in [half, other] {
                let _ = refused.outgoing.reset().await;
            }
            continue;
        }
        let (data, error) = if half.is_error {
            (other, half)
        } else {
            (half, other)
        };
        let (daemon, pod) = (daemon.clone(), pod.clone());
        connections.spawn(async move {
            let done = one(&daemon, &pod, data.port, data.incoming, &data.outgoing).await;
            if let Err(text) = done {
                let _ = error.outgoing.write(Bytes::from(text)).await;
                let _ = data.outgoing.reset().await;
            } else {
                let _ = data.outgoing.end().await;
            }
            let _ = error.outgoing.end().await;
        });
    }
    // Closes every connection to the pod.
    connections.shutdown().await;
    drop((halves, opened));
    link.close().await;
}

/// A stream that says what it is for is accepted at once: clients open the second one
/// only then.
fn half(new: NewStream, since: Instant) -> Result<Option<(String, Half)>, Gone> {
    let kind = match Kind::of(new.id, &new.headers) {
        Ok(kind) => kind,
        Err(why) => {
            tracing::debug!(
                why,
                "a client opened a stream that is none of port forwarding"
            );
            new.refuse()?;
            return Ok(None);
        }
    };
    let (_, _, incoming, outgoing) = new.accept()?;
    let half = Half {
        is_error: kind.is_error,
        port: kind.port,
        incoming,
        outgoing,
        since,
    };
    Ok(Some((kind.request, half)))
}

/// What a stream says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Kind {
    is_error: bool,
    port: u16,
    request: String,
}

impl Kind {
    fn of(stream: u32, headers: &Headers) -> Result<Self, &'static str> {
        let is_error = match headers.get("streamtype") {
            Some("error") => true,
            Some("data") => false,
            _ => return Err("its type is neither error nor data"),
        };
        let port = headers.get("port").and_then(|port| port.parse().ok());
        let port = port.filter(|port| *port > 0).ok_or("it names no port")?;
        let request = match headers.get("requestid") {
            Some(id) => id.to_owned(),
            // Clients of long ago: the data stream follows its error stream.
            None if is_error => format!("stream {stream}"),
            None => format!("stream {}", stream.saturating_sub(2)),
        };
        Ok(Self {
            is_error,
            port,
            request,
        })
    }
}

/// Serves a WebSocket client of version 4: two channels for each port that the RPC
/// named, and one connection to each.
pub async fn websocket(
    daemon: Arc<Daemon>,
    pod: SandboxId,
    socket: Socket<Wire>,
    peer: Peer,
    codec: Codec,
    ports: Vec<u16>,
) {
    let channels: Vec<u8> = (0..).step_by(2).take(ports.len()).collect();
    let mut client = Channels::serve(socket, peer, Version::V4, codec, &channels, None);
    let mut connections = JoinSet::new();
    for (channel, port) in channels.into_iter().zip(ports) {
        let Some(incoming) = client.incoming.remove(&channel) else {
            continue;
        };
        let (data, error) = (client.outgoing(channel), client.outgoing(channel + 1));
        let (daemon, pod) = (daemon.clone(), pod.clone());
        connections.spawn(async move {
            let number = Bytes::copy_from_slice(&port.to_le_bytes());
            for stream in [&data, &error] {
                let _ = stream.write(number.clone()).await;
            }
            if let Err(text) = one(&daemon, &pod, port, incoming, &data).await {
                let _ = error.write(Bytes::from(text)).await;
            }
        });
    }
    let gone = client.link.gone();
    tokio::select! {
        () = gone => {}
        () = async { while connections.join_next().await.is_some() {} } => {}
    }
    connections.shutdown().await;
    client.link.close().await;
}

/// One connection, from its beginning to its end. The error is the text for the user.
async fn one(
    daemon: &Daemon,
    pod: &SandboxId,
    port: u16,
    incoming: Incoming,
    outgoing: &Outgoing,
) -> Result<(), String> {
    let what = |text: String| format!("forward port {port} to pod {pod}: {text}");
    let target = daemon
        .sandboxes
        .connect(pod, port)
        .await
        .map_err(|error| what(error::chain(&error)))?;
    carry(target, incoming, outgoing).await.map_err(what)
}

/// Both directions. The client's end is passed on and the server may go on; the
/// server's end is the end, and so is a client that gives the stream up.
async fn carry(
    mut target: TcpStream,
    mut incoming: Incoming,
    outgoing: &Outgoing,
) -> Result<(), String> {
    let _ = target.set_nodelay(true);
    let (mut read, mut write) = target.split();
    let moved = AtomicBool::new(false);
    let half_closed = AtomicBool::new(false);
    let upload = async {
        let mut broken = false;
        loop {
            match incoming.next().await {
                // A server that reads no more may still have something to say.
                Received::Data(bytes) => {
                    broken = broken || write.write_all(&bytes).await.is_err();
                }
                Received::End => {
                    let _ = write.shutdown().await;
                    half_closed.store(true, Ordering::Relaxed);
                }
                Received::Reset => return,
            }
        }
    };
    let download = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            match read.read_buf(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(_) => moved.store(true, Ordering::Relaxed),
                Err(error) => return Err(format!("read from the pod: {error}")),
            }
            if outgoing.write(buffer.split().freeze()).await.is_err() {
                return Ok(());
            }
        }
    };
    let silence = async {
        loop {
            let was_half_closed = half_closed.load(Ordering::Relaxed);
            moved.store(false, Ordering::Relaxed);
            tokio::time::sleep(HALF_CLOSED).await;
            if was_half_closed && !moved.load(Ordering::Relaxed) {
                return;
            }
        }
    };
    tokio::select! {
        done = download => done,
        () = upload => Ok(()),
        () = silence => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_say_what_they_are_for() {
        let kind = |is_error, request: &str| {
            Ok(Kind {
                is_error,
                port: 80,
                request: request.to_owned(),
            })
        };
        for (id, pairs, expected) in [
            (
                1,
                &[("streamtype", "error"), ("port", "80"), ("requestid", "7")][..],
                kind(true, "7"),
            ),
            (
                3,
                &[("streamtype", "data"), ("port", "80"), ("requestid", "7")],
                kind(false, "7"),
            ),
            (
                5,
                &[("streamtype", "error"), ("port", "80")],
                kind(true, "stream 5"),
            ),
            (
                7,
                &[("streamtype", "data"), ("port", "80")],
                kind(false, "stream 5"),
            ),
            (
                1,
                &[("streamtype", "data"), ("port", "80")],
                kind(false, "stream 0"),
            ),
            (1, &[("streamtype", "stdin"), ("port", "80")], Err(())),
            (1, &[("port", "80")], Err(())),
            (1, &[("streamtype", "data")], Err(())),
            (1, &[("streamtype", "data"), ("port", "0")], Err(())),
            (1, &[("streamtype", "data"), ("port", "65536")], Err(())),
            (1, &[("streamtype", "data"), ("port", "-1")], Err(())),
            (1, &[("streamtype", "data"), ("port", "http")], Err(())),
        ] {
            let found = Kind::of(id, &Headers::new(pairs)).map_err(drop);
            assert_eq!(found, expected, "{id} {pairs:?}");
        }
    }
}
