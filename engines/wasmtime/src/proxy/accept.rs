//! The listening socket: from "go" to the stop signal.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use criw_engines::drain::Drain;
use criw_engines::engine::Outcome;
use criw_engines::protocol::ExitReason;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

use super::connection;
use super::server::Server;
use super::settings::Settings;

/// How long accepting rests when the process has no descriptor left.
const REST: Duration = Duration::from_millis(20);

/// Connections that are being told 503 at the same time; more are just closed.
const MAX_REFUSALS: usize = 64;

/// How long telling it may take.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 21\r\n\r\ntoo many connections\n";

/// Binds and listens, as the container's user: a port below 1024 is the pod's to allow.
pub(super) fn listen(settings: &Settings) -> Result<OwnedFd, String> {
    let mut last = String::new();
    for address in &settings.addresses {
        match listen_on(*address, settings.backlog) {
            Ok(listener) => return Ok(listener),
            // Only a kernel without IPv6 is a reason to try the next.
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if settings.addresses.len() > 1 => {
                last = format!("listen on {address}: there is no such address");
            }
            Err(error) => {
                let advice = match error {
                    Errno::ADDRINUSE => {
                        "; another process of the pod listens there: set WASMTIME_HTTP_PROXY_SOCKET_ADDR to another ip:port"
                    }
                    Errno::ACCESS => {
                        "; the port is below net.ipv4.ip_unprivileged_port_start of the pod: choose a higher one"
                    }
                    _ => "",
                };
                let error = std::io::Error::from(error);
                return Err(format!("listen on {address}: {error}{advice}"));
            }
        }
    }
    Err(last)
}

fn listen_on(address: SocketAddr, backlog: i32) -> rustix::io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections of a predecessor that are not quite over do not count.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // The unspecified address means IPv4 too.
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Serves until the order to drain, then finishes what was begun.
pub(super) async fn serve(listener: OwnedFd, server: &Arc<Server>, drain: &Drain) -> Outcome {
    let listener = match TcpListener::from_std(listener.into()) {
        Ok(listener) => listener,
        Err(error) => return Outcome::start_error(format!("serve: {error}")),
    };
    let (closing, watcher) = watch::channel(false);
    let mut crew = Crew::new(Arc::clone(server), watcher);
    let order = loop {
        tokio::select! {
            biased;
            order = drain.ordered() => break order,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => crew.take(stream),
                // The peer left again.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(_) => tokio::time::sleep(REST).await,
            },
        }
    };
    // Whoever is in the kernel's queue was told that we listen.
    while let Ok(Ok((stream, _))) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
        crew.take(stream);
    }
    drop(listener);
    let _ = closing.send(true);
    let done = server.admission.all_done(&server.settings);
    let outcome = match tokio::time::timeout_at(order.until.into(), done).await {
        Ok(()) => Outcome::exit(0),
        Err(_) => Outcome {
            code: u8::try_from(128 + order.signal).unwrap_or(u8::MAX),
            reason: ExitReason::Error,
            message: format!(
                "stopped by signal {} with {} requests unfinished at the end of the grace",
                order.signal,
                server.admission.running(&server.settings)
            ),
        },
    };
    crew.leave();
    outcome
}

/// Who serves the connections: this thread, or others made for the first of them.
struct Crew {
    server: Arc<Server>,
    closing: watch::Receiver<bool>,
    others: Option<Runtime>,
    refusals: Arc<Semaphore>,
}

impl Crew {
    fn new(server: Arc<Server>, closing: watch::Receiver<bool>) -> Self {
        Self {
            server,
            closing,
            others: None,
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
        }
    }

    fn take(&mut self, stream: TcpStream) {
        let connections = Arc::clone(&self.server.admission.connections);
        let Ok(permit) = connections.try_acquire_owned() else {
            return self.refuse(stream);
        };
        let server = Arc::clone(&self.server);
        let closing = self.closing.clone();
        let Some(hands) = self.hands() else {
            tokio::spawn(async move {
                connection::serve(stream, server, closing).await;
                drop(permit);
            });
            return;
        };
        let Ok(socket) = stream.into_std() else {
            return;
        };
        hands.spawn(async move {
            // Its events are waited for by those who serve it.
            if let Ok(stream) = TcpStream::from_std(socket) {
                connection::serve(stream, server, closing).await;
            }
            drop(permit);
        });
    }

    fn refuse(&self, stream: TcpStream) {
        let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() else {
            return;
        };
        tokio::spawn(async move {
            let _ = tokio::time::timeout(REFUSAL_LIMIT, tell(stream, REFUSAL)).await;
            drop(permit);
        });
    }

    fn hands(&mut self) -> Option<&Runtime> {
        let threads = self.server.settings.threads;
        if self.others.is_none() && threads > 1 {
            // Without them (the limit of processes is reached) this thread serves.
            self.others = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(threads)
                .thread_name("server")
                .enable_io()
                .enable_time()
                .build()
                .ok();
        }
        self.others.as_ref()
    }

    /// A guest that computes must not keep the end waiting.
    fn leave(self) {
        if let Some(others) = self.others {
            others.shutdown_background();
        }
    }
}

/// Tells one response to whoever asks, and closes. The request is read first: closing a
/// socket with unread bytes takes the answer away.
pub(super) async fn tell(mut stream: TcpStream, response: &[u8]) -> std::io::Result<()> {
    let mut head = [0; 4096];
    let _ = stream.read(&mut head).await?;
    stream.write_all(response).await?;
    stream.shutdown().await?;
    while stream.read(&mut head).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_a_whole_response() {
        let text = std::str::from_utf8(REFUSAL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}\r\n", body.len()))
                || head.ends_with(&format!("content-length: {}", body.len()))
        );
    }
}
