//! One request and its response, as both sides know it: when a byte moved last, and
//! whether the guest failed. The bodies of both directions report here.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::Instant;
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::connection::Active;

/// A response's body on its way to the client.
pub(super) type ResponseBody = UnsyncBoxBody<Bytes, Error>;

/// See the module.
#[derive(Debug)]
pub(super) struct Exchange {
    begin: Instant,
    /// Milliseconds after `begin` at which a byte moved last.
    moved: AtomicU64,
    failure: OnceLock<Failure>,
    begun: AtomicBool,
}

/// How a request ended badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The guest trapped, exited, or broke a rule.
    Guest,
    /// It used up its fuel.
    Fuel,
    /// Nothing moved for too long, or all of it took too long.
    Time,
}

/// What a request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    /// How long it may stand still.
    pub(super) still: Duration,
    /// How long it may take from beginning to end.
    pub(super) whole: Option<Duration>,
}

impl Exchange {
    pub(super) fn new() -> Self {
        Self {
            begin: Instant::now(),
            moved: AtomicU64::new(0),
            failure: OnceLock::new(),
            begun: AtomicBool::new(false),
        }
    }

    /// Something moved.
    pub(super) fn note(&self) {
        let now = self.begin.elapsed().as_millis() as u64;
        self.moved.store(now, Ordering::Relaxed);
    }

    /// Returns why when it has taken too long.
    pub(super) async fn overdue(&self, patience: Patience) -> String {
        let Patience { still, whole } = patience;
        loop {
            let moved = Duration::from_millis(self.moved.load(Ordering::Relaxed));
            let stalled = self.begin + moved + still;
            // More than the clock can count is never.
            let end = whole.and_then(|whole| self.begin.checked_add(whole));
            let now = Instant::now();
            if let (Some(whole), true) = (whole, end.is_some_and(|end| end <= now)) {
                return format!("given up, because it took longer than {whole:?}");
            }
            if stalled <= now {
                return format!("given up, because nothing moved for {still:?}");
            }
            tokio::time::sleep_until(end.map_or(stalled, |end| end.min(stalled))).await;
        }
    }

    /// The response begins; the guest may still fail.
    pub(super) fn begin_response(&self) {
        self.note();
        self.begun.store(true, Ordering::SeqCst);
    }

    /// Whether the response has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }

    /// The guest ended badly: a response that is under way breaks off.
    pub(super) fn fail(&self, failure: Failure) {
        let _ = self.failure.set(failure);
    }

    /// Whether the guest ended badly, and how.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.failure.get().copied()
    }
}

/// A request's body on its way to the guest.
pub(super) struct RequestBody {
    body: Incoming,
    left: Option<u64>,
    max: Option<u64>,
    exchange: Arc<Exchange>,
}

impl RequestBody {
    pub(super) fn new(body: Incoming, max: Option<u64>, exchange: Arc<Exchange>) -> Self {
        Self {
            body,
            left: max,
            max,
            exchange,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        self.exchange.note();
        if let (Some(left), Some(Ok(frame))) = (self.left, &frame) {
            let length = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(length) {
                Some(left) => self.left = Some(left),
                None => return Poll::Ready(Some(Err(Error::HttpRequestBodySize(self.max)))),
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Error::Hyper)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The guest's body, which must not look whole when the guest failed: dropping an
/// instance ends its bodies as if they were finished.
struct GuestBody {
    body: HyperOutgoingBody,
    exchange: Arc<Exchange>,
    _active: Active,
}

/// A body that the guest writes. The connection is in use until it is dropped.
pub(super) fn from_guest(
    body: HyperOutgoingBody,
    exchange: Arc<Exchange>,
    active: Active,
) -> ResponseBody {
    let body = GuestBody {
        body,
        exchange,
        _active: active,
    };
    body.boxed_unsync()
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        self.exchange.note();
        if frame.is_none() && self.exchange.failure().is_some() {
            let text = "the guest failed before its response was whole".to_owned();
            return Poll::Ready(Some(Err(Error::InternalError(Some(text)))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that tells when nobody wants it any more: it was sent, or the client left.
pub(super) struct Watched {
    body: HyperOutgoingBody,
    /// Dropped with the body.
    _over: oneshot::Sender<()>,
}

impl Watched {
    pub(super) fn new(body: HyperOutgoingBody, over: oneshot::Sender<()>) -> Self {
        Self { body, _over: over }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
