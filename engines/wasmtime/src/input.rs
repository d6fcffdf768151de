//! Standard input: a pipe, a terminal or a file.
//!
//! Not a byte is read ahead of what the guest asks for: commands that it starts read on
//! from the same descriptor. Nor is that made non-blocking, which would show at their ends.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

/// Bytes of one read.
const MAX_READ: usize = 64 * 1024;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    fd: Arc<OwnedFd>,
    /// Tells when there is something to read; files have no use for it.
    waiter: Option<Arc<AsyncFd<Arc<OwnedFd>>>>,
    terminal: bool,
}

impl Input {
    /// Inside a tokio runtime.
    pub(crate) fn new(fd: Arc<OwnedFd>) -> io::Result<Self> {
        let waiter = match register(Arc::clone(&fd)) {
            Ok(waiter) => Some(Arc::new(waiter)),
            // Files are always ready.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            terminal: rustix::termios::isatty(&fd),
            fd,
            waiter,
        })
    }

    /// Whether a read would not wait.
    fn is_ready(&self) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut polled = [PollFd::new(&self.fd, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&now))) != Ok(0)
    }

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(waiter) = self.waiter.as_ref().filter(|_| !self.is_ready()) else {
            return Poll::Ready(Ok(()));
        };
        loop {
            let mut guard = ready!(waiter.poll_read_ready(context))?;
            if self.is_ready() {
                return Poll::Ready(Ok(()));
            }
            guard.clear_ready();
        }
    }

    /// Reads once; nothing at the end.
    fn read_some(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut *buffer)) {
            // A terminal that is gone.
            Err(Errno::IO) if self.terminal => Ok(0),
            read => read.map_err(Into::into),
        }
    }
}

#[allow(
    unsafe_code,
    reason = "tokio asks for a promise about AsRawFd that OwnedFd keeps by its nature"
)]
fn register(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an OwnedFd names the same open descriptor until it is dropped; the AsyncFd
    // holds it and deregisters before it lets go.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        // An error shows at the read.
        let _ = std::future::poll_fn(|context| self.poll_ready(context)).await;
    }
}

impl InputStream for Input {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 || !self.is_ready() {
            return Ok(Bytes::new());
        }
        let mut bytes = BytesMut::zeroed(size.min(MAX_READ));
        match self.read_some(&mut bytes) {
            Ok(0) => Err(StreamError::Closed),
            Ok(count) => {
                bytes.truncate(count);
                Ok(bytes.freeze())
            }
            // Somebody else who has the same input was faster.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Bytes::new()),
            Err(error) => Err(StreamError::LastOperationFailed(error.into())),
        }
    }
}

impl AsyncRead for Input {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_ready(context))?;
            match self.read_some(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    buffer.advance(read?);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn what_is_not_asked_for_stays_for_others() {
        let runtime = crate::world::runtime().unwrap();
        runtime.block_on(async {
            let (read, mut write) = io::pipe().unwrap();
            let mut other = read.try_clone().unwrap();
            let mut input = Input::new(Arc::new(read.into())).unwrap();
            assert_eq!(InputStream::read(&mut input, 10).unwrap(), Bytes::new());
            let writer = std::thread::spawn(move || {
                write.write_all(b"first second").unwrap();
                write
            });
            input.ready().await;
            assert_eq!(InputStream::read(&mut input, 6).unwrap(), &b"first "[..]);
            let mut rest = [0; 6];
            other.read_exact(&mut rest).unwrap();
            assert_eq!(&rest, b"second");
            drop(writer.join().unwrap());
            input.ready().await;
            assert!(matches!(
                InputStream::read(&mut input, 1),
                Err(StreamError::Closed)
            ));
        });
    }

    #[test]
    fn a_file_is_read_to_its_end() {
        let runtime = crate::world::runtime().unwrap();
        runtime.block_on(async {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"hello").unwrap();
            io::Seek::rewind(&mut file).unwrap();
            let mut text = String::new();
            let mut input = Input::new(Arc::new(file.into())).unwrap();
            tokio::io::AsyncReadExt::read_to_string(&mut input, &mut text)
                .await
                .unwrap();
            assert_eq!(text, "hello");
        });
    }
}
