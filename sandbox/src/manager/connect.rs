//! A connection to a port inside a pod, for port forwarding.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpSocket, TcpStream};

use super::Sandboxes;
use crate::error::{Error, Result};
use crate::host::pins::PodNamespaces;
use crate::id::SandboxId;

/// Loopback answers at once, unless the server's backlog is full.
const CONNECT: Duration = Duration::from_secs(10);

impl Sandboxes {
    /// Connects to localhost inside the pod, IPv4 first.
    ///
    /// # Errors
    /// `NotFound`, `WrongState` when the pod is not ready, `Unavailable` when nobody
    /// listens on the port.
    pub async fn connect(&self, pod: &SandboxId, port: u16) -> Result<TcpStream> {
        let pod = self.inner.pod(pod)?;
        if !pod.view().is_some_and(|view| view.ready) {
            return Err(Error::WrongState(format!("pod {} is not ready", pod.id)));
        }
        let namespaces = pod.namespaces();
        let sockets = tokio::task::spawn_blocking(move || sockets(namespaces))
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(|e| Error::node(format!("make a socket in pod {}", pod.id), e))?;
        let mut refusals = Vec::new();
        for (socket, address) in [
            (sockets.0, SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            (sockets.1, SocketAddr::from((Ipv6Addr::LOCALHOST, port))),
        ] {
            let connected = match socket {
                Err(error) => Err(error),
                Ok(socket) => match tokio::time::timeout(CONNECT, socket.connect(address)).await {
                    Ok(connected) => connected,
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                },
            };
            match connected {
                Ok(stream) => return Ok(stream),
                Err(error) => refusals.push(format!("connect to {address}: {error}")),
            }
        }
        Err(Error::Unavailable(refusals.join("; ")))
    }
}

type Sockets = (io::Result<TcpSocket>, io::Result<TcpSocket>);

/// A socket belongs for ever to the network namespace of the thread that made it, so
/// only that is done inside: on a fresh thread, which ends there.
fn sockets(namespaces: Option<Arc<PodNamespaces>>) -> io::Result<Sockets> {
    let thread = std::thread::Builder::new()
        .name("connect".to_owned())
        .stack_size(128 * 1024)
        .spawn(move || {
            // Without one the pod has the node's network, as this thread does.
            if let Some(net) = namespaces.as_ref().and_then(|one| one.net.as_ref()) {
                move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?;
            }
            Ok((TcpSocket::new_v4(), TcpSocket::new_v6()))
        })?;
    thread
        .join()
        .map_err(|_| io::Error::other("the thread panicked"))?
}
