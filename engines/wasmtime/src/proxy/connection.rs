//! One connection: HTTP/1.1, or HTTP/2 if it begins so (prior knowledge).

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
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

use super::patience::Patient;
use super::server::Server;

/// How long a connection may be without a request, and a request's head may take.
/// Longer than what proxies in front of us keep connections for, so that they close first.
const IDLE: Duration = Duration::from_secs(75);

/// How long a connection without any request yet has for its first one when we drain.
const LAST_CALL: Duration = Duration::from_millis(500);

/// Bytes of a request's head, and of what HTTP/1 reads ahead.
const MAX_HEAD: usize = 64 << 10;

/// Header fields of one request.
const MAX_FIELDS: usize = 128;

/// Requests at the same time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;

/// An HTTP/2 peer that is silent is asked whether it is there.
const PING: Duration = Duration::from_secs(30);

/// When a connection was used last.
struct Usage {
    begin: Instant,
    active: AtomicUsize,
    requests: AtomicU64,
    /// Milliseconds after `begin`.
    last: AtomicU64,
}

impl Usage {
    fn new() -> Self {
        Self {
            begin: Instant::now(),
            active: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            last: AtomicU64::new(0),
        }
    }

    fn touch(&self) {
        let now = self.begin.elapsed().as_millis() as u64;
        self.last.store(now, Ordering::Relaxed);
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
    let usage = Arc::new(Usage::new());
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
    let stream = Patient::new(stream, server.settings.timeout);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut last_call = None;
    let mut shut = false;
    loop {
        let due = last_call.unwrap_or_else(|| usage.due());
        tokio::select! {
            // Errors are the peer's, and end the connection.
            _ = connection.as_mut() => return,
            _ = closing.wait_for(|closing| *closing), if !shut && last_call.is_none() => {
                let room = if usage.is_new() { LAST_CALL } else { Duration::ZERO };
                last_call = Some(Instant::now() + room);
            }
            () = tokio::time::sleep_until(due), if !shut => {
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
        .header_read_timeout(IDLE)
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
