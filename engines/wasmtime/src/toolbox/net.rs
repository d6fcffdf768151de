//! TCP in the pod's network.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{Shutdown, SocketFlags};
use tokio::net::TcpStream;

use super::{Answer, Toolbox};
use crate::resolver::{self, LookupError};
use crate::sockets::Errno;

/// For one address.
const CONNECT: Duration = Duration::from_secs(30);

/// The first address that answers.
pub(super) async fn connect(host: &str, port: i32) -> Result<OwnedFd, Errno> {
    let port = port_of(port)?;
    let addresses = resolver::lookup(host).await.map_err(|error| match error {
        LookupError::Invalid => Errno::INVAL,
        LookupError::NotFound => Errno::NOENT,
        LookupError::Temporary => Errno::AGAIN,
    })?;
    let mut failure = Errno::NOENT;
    for address in addresses {
        let connecting = TcpStream::connect((address, port));
        match tokio::time::timeout(CONNECT, connecting).await {
            Ok(Ok(stream)) => return blocking(stream).map_err(|error| errno(&error)),
            Ok(Err(error)) => failure = errno(&error),
            Err(_) => failure = Errno::TIMEDOUT,
        }
    }
    Err(failure)
}

fn blocking(stream: TcpStream) -> io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

fn port_of(port: i32) -> Result<u16, Errno> {
    u16::try_from(port).map_err(|_| Errno::INVAL)
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, |raw| {
        rustix::io::Errno::from_raw_os_error(raw).into()
    })
}

pub(super) fn listen(toolbox: &mut Toolbox, memory: &mut [u8], [port, out]: [i32; 2]) -> Answer {
    let port = port_of(port)?;
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(both)
        .or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
            // A kernel without IPv6.
            _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
        })
        .map_err(|error| errno(&error))?;
    toolbox.handles.give(memory, out, listener.into())
}

pub(super) fn accept(toolbox: &mut Toolbox, memory: &mut [u8], [handle, out]: [i32; 2]) -> Answer {
    let listener = toolbox.handles.get(handle as u32)?;
    let accepted =
        rustix::io::retry_on_intr(|| rustix::net::accept_with(listener, SocketFlags::CLOEXEC))?;
    toolbox.handles.give(memory, out, accepted)
}

pub(super) fn shutdown_write(toolbox: &mut Toolbox, _: &mut [u8], [handle]: [i32; 1]) -> Answer {
    let socket = toolbox.handles.get(handle as u32)?;
    Ok(rustix::net::shutdown(socket, Shutdown::Write)?)
}
