//! A connection's socket with a bound on its client: who takes no byte of an answer for
//! so long has lost it, and the place that he held. What he sends is noted, for the bound
//! on a request's head.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;

use super::connection::Usage;

/// What a connection runs on. One type, because the machinery of HTTP is large and would
/// be there twice.
pub(super) enum Transport {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

/// The same call on whichever it is.
macro_rules! on {
    ($transport:expr, $stream:ident => $call:expr) => {
        match $transport {
            Transport::Plain($stream) => $call,
            Transport::Secure($stream) => $call,
        }
    };
}

/// See the module.
pub(super) struct Patient {
    stream: Transport,
    limit: Duration,
    usage: Arc<Usage>,
    /// Runs while a write waits for the client.
    waits: bool,
    timer: Pin<Box<Sleep>>,
}

impl Patient {
    pub(super) fn new(stream: Transport, limit: Duration, usage: Arc<Usage>) -> Self {
        Self {
            stream,
            limit,
            usage,
            waits: false,
            timer: Box::pin(tokio::time::sleep(limit)),
        }
    }

    /// Bounds how long a write may be pending.
    fn bound<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waits = false;
            return written;
        }
        if !self.waits {
            self.waits = true;
            self.timer.as_mut().reset(Instant::now() + self.limit);
        }
        match self.timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = on!(&mut self.stream, stream => Pin::new(stream).poll_read(context, buffer));
        self.usage.received(&buffer.filled()[before..]);
        read
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = on!(&mut self.stream, stream => Pin::new(stream).poll_write(context, bytes));
        self.bound(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written =
            on!(&mut self.stream, stream => Pin::new(stream).poll_write_vectored(context, pieces));
        self.bound(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        on!(&self.stream, stream => stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(&mut self.stream, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(&mut self.stream, stream => Pin::new(stream).poll_shutdown(context))
    }
}
