//! The HTTP server: a request with a token that works is upgraded and served. Without
//! TLS it listens on a loopback address only; the kubelet carries the streams on.

use std::convert::Infallible;
use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use criw_sandbox::{ContainerId, SandboxId};
use hyper::body::Incoming as Body;
use hyper::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::{OnUpgrade, Parts};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tonic::Status;

use super::channels::Peer;
use super::remote::{Streams, Wanted};
use super::spdy::connection;
use super::token::{Pending, Refusal, TTL};
use super::upgrade::{self, Agreed, Choice};
use super::websocket::{self, Socket};
use super::wire::Wire;
use super::{forward, tunnel};
use crate::daemon::Daemon;
use crate::{error, exec};

/// Connections at one time, upgraded or not.
const MAX_CONNECTIONS: usize = 4096;

/// How long a client may take for the head of its request.
const HEAD: Duration = Duration::from_secs(10);

/// Bytes of the head of a request.
const MAX_HEAD: usize = 16 * 1024;

/// How long sessions may go on when the daemon ends.
const DRAIN: Duration = Duration::from_secs(2);

/// What an RPC has granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Granted {
    /// A command in a running container.
    Exec {
        /// Where.
        container: ContainerId,
        /// argv, not empty.
        command: Vec<String>,
        /// Streams.
        wanted: Wanted,
    },
    /// The streams of a running container.
    Attach {
        /// Which.
        container: ContainerId,
        /// Streams.
        wanted: Wanted,
    },
    /// Connections to ports of a pod.
    PortForward {
        /// Which.
        pod: SandboxId,
        /// Only for WebSockets of version 4; all others name their ports themselves.
        ports: Vec<u16>,
    },
}

impl Granted {
    fn path(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// Where clients come to, and what waits for them.
pub struct Streaming {
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    pending: Pending<Granted>,
}

impl Streaming {
    /// Binds; nothing is served yet.
    pub async fn bind(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
    ) -> anyhow::Result<(Self, TcpListener)> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listen on {address} for streams (streaming.address)"))?;
        let streaming = Self {
            address: listener.local_addr().context("ask for the own address")?,
            tls,
            pending: Pending::default(),
        };
        Ok((streaming, listener))
    }

    /// Keeps a request for its client; the URL at which it is served, once.
    #[allow(
        clippy::result_large_err,
        reason = "a status is what every RPC answers with"
    )]
    pub fn url(&self, granted: Granted) -> Result<String, Status> {
        let path = granted.path();
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match self.pending.keep(granted, Instant::now()) {
            Ok(token) => Ok(format!("{scheme}://{}/{path}/{token}", self.address)),
            Err(refusal @ Refusal::Full) => Err(Status::resource_exhausted(refusal.to_string())),
            Err(refusal @ Refusal::Random(_)) => Err(Status::internal(error::chain(&refusal))),
        }
    }

    /// `None` for every path that was not given, or not for this purpose, or used.
    fn granted(&self, path: &str) -> Option<Granted> {
        let (purpose, token) = path.strip_prefix('/')?.split_once('/')?;
        let granted = self.pending.take(token, Instant::now())?;
        (granted.path() == purpose).then_some(granted)
    }
}

impl std::fmt::Debug for Streaming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streaming")
            .field("address", &self.address)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// Serves until the daemon ends; then sessions have a moment to end by themselves.
pub async fn serve(daemon: Arc<Daemon>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut ending = daemon.ending.clone();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = ending.wait_for(|ending| *ending) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&listener, &room) => accepted,
        };
        let Some((socket, room)) = accepted else {
            continue;
        };
        let daemon = daemon.clone();
        connections.spawn(async move {
            connection(daemon, socket).await;
            drop(room);
        });
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::info!(
            sessions = connections.len(),
            "end exec, attach and port-forward sessions"
        );
    }
    // What a session started ends with it.
    connections.shutdown().await;
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let room = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((socket, _)) => {
            let _ = socket.set_nodelay(true);
            Some((socket, room))
        }
        Err(error) => {
            tracing::warn!(%error, "accept a streaming client");
            // Most often there are no descriptors left, which time alone cures.
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// What follows an upgrade.
struct Next {
    granted: Granted,
    agreed: Agreed,
    upgraded: OnUpgrade,
}

/// One connection: a request, and what it becomes.
async fn connection(daemon: Arc<Daemon>, socket: TcpStream) {
    let handshake = Wire::accept(socket, daemon.streaming.tls.as_ref());
    let wire = match tokio::time::timeout(HEAD, handshake).await {
        Ok(Ok(wire)) => wire,
        Ok(Err(error)) => {
            tracing::debug!(%error, "the TLS handshake of a streaming client");
            return;
        }
        Err(_) => return,
    };
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let service = {
        let daemon = daemon.clone();
        hyper::service::service_fn(move |request| {
            let answer = answer(&daemon, request);
            let answer = match answer {
                Ok((response, next)) => {
                    let _ = sender.try_send(next);
                    response
                }
                Err(response) => response,
            };
            std::future::ready(Ok::<_, Infallible>(answer))
        })
    };
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(wire), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a streaming client's request");
        return;
    }
    let Ok(next) = receiver.try_recv() else {
        return;
    };
    let Ok(upgraded) = next.upgraded.await else {
        return;
    };
    let Ok(Parts { io, read_buf, .. }) = upgraded.downcast::<TokioIo<Wire>>() else {
        return;
    };
    let wire = io.into_inner();
    let Ok(peer) = wire.peer() else { return };
    session(
        daemon,
        next.granted,
        next.agreed,
        wire,
        read_buf.into(),
        peer,
    )
    .await;
}

/// Checks a request. The error is the answer to one that is refused.
#[allow(
    clippy::result_large_err,
    reason = "an answer is an answer, and made once for a connection"
)]
fn answer(
    daemon: &Daemon,
    mut request: Request<Body>,
) -> Result<(Response<String>, Next), Response<String>> {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return Err(refused(405, "use GET or POST".to_owned()));
    }
    let Some(granted) = daemon.streaming.granted(request.uri().path()) else {
        return Err(refused(
            404,
            format!("no such stream: each URL works once, for {TTL:?} after the call that gave it"),
        ));
    };
    let choice = match &granted {
        Granted::Exec { .. } | Granted::Attach { .. } => upgrade::remote_command(request.headers()),
        Granted::PortForward { .. } => upgrade::port_forward(request.headers()),
    }
    .map_err(|refusal| refused(refusal.status, refusal.text))?;
    if let (Granted::PortForward { ports, .. }, Agreed::Channels(..)) = (&granted, choice.agreed) {
        // Two channels each, numbered by a byte.
        if ports.is_empty() || ports.len() > 100 {
            let text = "the call named no ports or more than 100, and this protocol has no other place to name them";
            return Err(refused(400, text.to_owned()));
        }
    }
    let next = Next {
        granted,
        agreed: choice.agreed,
        upgraded: hyper::upgrade::on(&mut request),
    };
    Ok((switch(&choice), next))
}

fn refused(status: u16, text: String) -> Response<String> {
    let mut response = Response::new(format!("{text}\n"));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    let headers = response.headers_mut();
    // hyper's own switch for it would overwrite the header of an upgrade, too.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if status == 426 {
        headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
    }
    response
}

fn switch(choice: &Choice) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let name = match &choice.key {
        Some(key) => {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            // Base64 is a valid header.
            if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
                headers.insert("sec-websocket-accept", accept);
            }
            "sec-websocket-protocol"
        }
        None => {
            headers.insert(UPGRADE, HeaderValue::from_static(upgrade::SPDY));
            upgrade::STREAM_PROTOCOL
        }
    };
    if let Some(protocol) = choice.name {
        let name = HeaderName::from_static(name);
        headers.insert(name, HeaderValue::from_static(protocol));
    }
    response
}

async fn session(
    daemon: Arc<Daemon>,
    granted: Granted,
    agreed: Agreed,
    wire: Wire,
    early: Vec<u8>,
    peer: Peer,
) {
    let streams = match (&granted, agreed) {
        (Granted::PortForward { pod, .. }, Agreed::SpdyForward | Agreed::Spdy(_)) => {
            let (opened, link) = connection::serve(with_early(early, wire), peer);
            return forward::spdy(daemon, pod.clone(), opened, link).await;
        }
        (Granted::PortForward { pod, .. }, Agreed::Tunnel) => {
            let bytes = tunnel::bytes_of(web_socket(wire, early).await);
            let (opened, link) = connection::serve(bytes, peer);
            return forward::spdy(daemon, pod.clone(), opened, link).await;
        }
        (Granted::PortForward { pod, ports }, Agreed::Channels(_, codec)) => {
            let (pod, ports) = (pod.clone(), ports.clone());
            let socket = web_socket(wire, early).await;
            return forward::websocket(daemon, pod, socket, peer, codec, ports).await;
        }
        (Granted::Exec { wanted, .. } | Granted::Attach { wanted, .. }, agreed) => match agreed {
            Agreed::Spdy(version) => {
                let (opened, link) = connection::serve(with_early(early, wire), peer);
                Streams::spdy(opened, link, version, *wanted).await
            }
            Agreed::Channels(version, codec) => {
                let socket = web_socket(wire, early).await;
                Some(Streams::websocket(socket, peer, version, codec, *wanted))
            }
            // Agreed for port forwarding only.
            Agreed::SpdyForward | Agreed::Tunnel => None,
        },
    };
    let Some(streams) = streams else {
        tracing::debug!("a streaming client did not open its streams");
        return;
    };
    match granted {
        Granted::Exec {
            container,
            command,
            wanted,
        } => exec::stream(&daemon, &container, command, wanted, streams).await,
        Granted::Attach { container, wanted } => {
            exec::attach(&daemon, &container, wanted, streams).await;
        }
        Granted::PortForward { .. } => {}
    }
}

/// A connection whose first bytes came with the request.
fn with_early(early: Vec<u8>, wire: Wire) -> impl AsyncRead + AsyncWrite + Send + 'static {
    let (read, write) = tokio::io::split(wire);
    tokio::io::join(Cursor::new(early).chain(read), write)
}

async fn web_socket(wire: Wire, early: Vec<u8>) -> Socket<Wire> {
    Socket::from_partially_read(wire, early, Role::Server, Some(websocket::config())).await
}
