//! The terminal of a container: runc makes it inside and sends its master here over
//! a unix socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use criw_engines::message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// A listening socket in a directory; its file vanishes with this object.
#[derive(Debug)]
pub(crate) struct Console {
    directory: OwnedFd,
    name: String,
    listener: OwnedFd,
}

impl Console {
    pub(crate) fn listen(directory: &Path, name: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())?;
        // A restarted attempt may find the file of one that was killed.
        let _ = rustix::fs::unlinkat(&directory, name, AtFlags::empty());
        let listener = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let console = Self {
            directory,
            name: name.to_owned(),
            listener,
        };
        let address = SocketAddrUnix::new(console.path())?;
        rustix::net::bind(&console.listener, &address)?;
        rustix::net::listen(&console.listener, 1)?;
        Ok(console)
    }

    /// Where runc connects: a unix address has 108 bytes, which the path of a bundle
    /// may exceed.
    pub(crate) fn path(&self) -> PathBuf {
        format!(
            "/proc/{}/fd/{}/{}",
            std::process::id(),
            self.directory.as_raw_fd(),
            self.name
        )
        .into()
    }

    /// The master that runc sent.
    pub(crate) fn master(&self, limit: Duration) -> io::Result<OwnedFd> {
        readable(&self.listener, limit)?;
        let peer = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC)?;
        readable(&peer, limit)?;
        let (_, mut fds) = message::receive(peer.as_fd())?;
        fds.pop()
            .ok_or_else(|| io::Error::other("runc sent no terminal"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Without a directory there is no file either.
        let _ = rustix::fs::unlinkat(&self.directory, &*self.name, AtFlags::empty());
    }
}

fn readable(fd: &OwnedFd, limit: Duration) -> io::Result<()> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit)))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}
