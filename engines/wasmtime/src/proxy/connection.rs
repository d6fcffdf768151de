//! One connection: HTTP/1.1, or HTTP/2 if it begins so (prior knowledge, or what was agreed
//! by TLS).

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderValue, Request, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use wasmtime_wasi_http::io::TokioIo;

use super::accept::tell;
use super::patience::{Patient, Transport};
use super::server::Server;
use super::tls::Client;

/// How long a connection may be without a request.
/// Longer than what proxies in front of us keep connections for, so that they close first.
const IDLE: Duration = Duration::from_secs(75);

/// How long the head of an HTTP/1 request may take from its first byte, or as long as a
/// request may stand still if that is less: a client that sends it byte by byte holds a place
/// that others want. Looked at as often, so it may be found out at twice the time.
const MAX_HEAD_TIME: Duration = Duration::from_secs(10);

/// How long a connection without any request yet has for its first one when we drain.
const LAST_CALL: Duration = Duration::from_millis(500);

/// What an HTTP/2 client sends first, in one piece with its settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// For a client that does not know that this is HTTPS.
const WRONG_PROTOCOL: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 34\r\n\r\nthis port is HTTPS, use https://\r\n";

/// Bytes of a request's head, and of what HTTP/1 reads ahead.
const MAX_HEAD: usize = 64 << 10;

/// Header fields of one request.
const MAX_FIELDS: usize = 128;

/// Requests at the same time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;

/// An HTTP/2 peer that is silent is asked whether it is there.
const PING: Duration = Duration::from_secs(30);

/// When a connection was used last.
pub(super) struct Usage {
    begin: Instant,
    active: AtomicUsize,
    requests: AtomicU64,
    /// Milliseconds after `begin`.
    last: AtomicU64,
    head_time: Duration,
    /// When the head began that is being read, in milliseconds after `begin` and never 0;
    /// 0 is none.
    head: AtomicU64,
    /// HTTP/2 reads much that is no head.
    multiplexed: AtomicBool,
}

impl Usage {
    fn new(patience: Duration) -> Self {
        Self {
            begin: Instant::now(),
            active: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            last: AtomicU64::new(0),
            head_time: patience.min(MAX_HEAD_TIME),
            head: AtomicU64::new(0),
            multiplexed: AtomicBool::new(false),
        }
    }

    /// Bytes came from the client: outside of a request they are the next one's head.
    pub(super) fn received(&self, bytes: &[u8]) {
        if bytes.is_empty()
            || self.active.load(Ordering::Relaxed) > 0
            || self.head.load(Ordering::Relaxed) > 0
        {
            return;
        }
        if self.is_new() && bytes.starts_with(PREFACE) {
            self.multiplexed.store(true, Ordering::Relaxed);
        }
        let now = self.begin.elapsed().as_millis() as u64;
        self.head.store(now.max(1), Ordering::Relaxed);
    }

    /// Whether a head takes too long.
    fn is_stuck(&self) -> bool {
        let head = self.head.load(Ordering::Relaxed);
        let limit = self.begin + Duration::from_millis(head) + self.head_time;
        head > 0
            && self.active.load(Ordering::Relaxed) == 0
            && !self.multiplexed.load(Ordering::Relaxed)
            && limit <= Instant::now()
    }

    fn touch(&self) {
        let now = self.begin.elapsed().as_millis() as u64;
        self.last.store(now, Ordering::Relaxed);
    }

    /// When to look again whether it is idle or stuck.
    fn look(&self) -> Instant {
        self.due().min(Instant::now() + self.head_time)
    }

    /// When it will have been idle for too long; never sooner than it can be.
    fn due(&self) -> Instant {
        if self.active.load(Ordering::Relaxed) > 0 {
            return Instant::now() + IDLE;
        }
        self.begin + Duration::from_millis(self.last.load(Ordering::Relaxed)) + IDLE
    }

    fn is_new(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0
    }
}

/// One request that the connection waits for.
pub(super) struct Active(Arc<Usage>);

impl Active {
    fn new(usage: &Arc<Usage>) -> Self {
        usage.active.fetch_add(1, Ordering::Relaxed);
        usage.head.store(0, Ordering::Relaxed);
        usage.requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(usage))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.touch();
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(
    stream: TcpStream,
    server: Arc<Server>,
    mut closing: watch::Receiver<bool>,
) {
    // Responses are written in whole pieces.
    let _ = stream.set_nodelay(true);
    let Some(tls) = &server.tls else {
        return converse(Transport::Plain(stream), server, closing).await;
    };
    let limit = server.settings.timeout.min(MAX_HEAD_TIME);
    let last_call = async {
        let _ = closing.wait_for(|closing| *closing).await;
        tokio::time::sleep(LAST_CALL).await;
    };
    let client = tokio::select! {
        client = tokio::time::timeout(limit, tls.accept(stream)) => client,
        () = last_call => return,
    };
    match client {
        Ok(Ok(Client::Secure(stream))) => {
            converse(Transport::Secure(stream), server, closing).await;
        }
        Ok(Ok(Client::Plain(stream))) => {
            let _ = tokio::time::timeout(limit, tell(stream, WRONG_PROTOCOL)).await;
        }
        // The client's fault, or it took too long.
        Ok(Err(_)) | Err(_) => {}
    }
}

/// Requests and responses.
async fn converse(stream: Transport, server: Arc<Server>, mut closing: watch::Receiver<bool>) {
    let usage = Arc::new(Usage::new(server.settings.timeout));
    let closing_soon = closing.clone();
    let service = service_fn(|request: Request<Incoming>| {
        let active = Active::new(&usage);
        let server = Arc::clone(&server);
        let closing = closing_soon.clone();
        async move {
            let may_close = request.version() < Version::HTTP_2;
            let mut response = server.answer(request, active).await;
            if may_close && *closing.borrow() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let builder = builder();
    let stream = Patient::new(stream, server.settings.timeout, Arc::clone(&usage));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut last_call = None;
    let mut shut = false;
    loop {
        let due = last_call.unwrap_or_else(|| usage.look());
        tokio::select! {
            // Errors are the peer's, and end the connection.
            _ = connection.as_mut() => return,
            _ = closing.wait_for(|closing| *closing), if !shut && last_call.is_none() => {
                let room = if usage.is_new() { LAST_CALL } else { Duration::ZERO };
                last_call = Some(Instant::now() + room);
            }
            () = tokio::time::sleep_until(due), if !shut => {
                if usage.is_stuck() {
                    return;
                }
                if last_call.is_none() && usage.due() > Instant::now() {
                    continue;
                }
                if usage.is_new() {
                    // Not one whole head in all this time.
                    return;
                }
                connection.as_mut().graceful_shutdown();
                shut = true;
            }
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // See `Usage`; its own timer would be made anew for each request.
        .header_read_timeout(None)
        // Who closes his half still wants the answer.
        .half_close(true)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_FIELDS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}
