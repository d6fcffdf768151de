//! Waiting for a descriptor in async code.
#![allow(
    unsafe_code,
    reason = "tokio asks for a promise about AsRawFd that OwnedFd keeps by its nature"
)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers a descriptor that is readable later (a pidfd, a pipe, a socket). Inside a
/// runtime; fails for what is always ready, such as a file.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor until it is dropped, and the
    // AsyncFd owns it, never hands out `&mut`, and deregisters before dropping it.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
