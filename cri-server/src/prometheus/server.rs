//! The endpoint: HTTP/1.1, `GET /metrics`, no encryption and no password, as node exporters do.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Metrics;
use crate::daemon::Daemon;

/// Connections at the same time: scrapers are few.
const MAX_CONNECTIONS: usize = 16;

/// How long a client may take for a request's head, and be without one.
const HEAD: Duration = Duration::from_secs(60);

/// How long one connection may last; scrapers come again.
const CONNECTION: Duration = Duration::from_secs(600);

/// Bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;

const PAGE: &str = "/metrics";

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Binds the endpoint; `None` when there shall be none.
///
/// # Errors
/// If the address is taken or is not this machine's.
pub async fn bind(address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = address else {
        return Ok(None);
    };
    TcpListener::bind(address)
        .await
        .map(Some)
        .with_context(|| format!("listen on {address} for Prometheus (metrics.address)"))
}

/// Serves until the daemon ends.
pub async fn serve(daemon: Arc<Daemon>, metrics: Arc<Metrics>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut ending = daemon.ending.clone();
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            _ = ending.wait_for(|ending| *ending) => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, or the client has left again; neither is helped by haste.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let metrics = metrics.clone();
        let mut ending = ending.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = connection(&metrics, stream) => {}
                () = tokio::time::sleep(CONNECTION) => {}
                _ = ending.wait_for(|ending| *ending) => {}
            }
            drop(permit);
        });
    }
}

async fn connection(metrics: &Arc<Metrics>, stream: TcpStream) {
    let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
        let path = request.uri().path();
        if path == PAGE && request.method() == Method::GET {
            metrics.refresh().await;
        }
        Ok::<_, Infallible>(answer(metrics, request.method(), path))
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD);
    // Errors are the client's.
    let _ = builder
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer(metrics: &Metrics, method: &Method, path: &str) -> Response<String> {
    let plain = |status, text: &str| {
        let mut response = Response::new(format!("{text}\n"));
        *response.status_mut() = status;
        response
    };
    if path != PAGE {
        return plain(StatusCode::NOT_FOUND, "only /metrics is served here");
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "use GET");
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match metrics.text() {
        Ok(text) => {
            let mut response = Response::new(text);
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS));
            response
        }
        Err(_) => plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics cannot be written as text",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_page_is_served() {
        let metrics = Metrics::empty();
        for (method, path, status, part) in [
            (Method::GET, "/metrics", 200, "# EOF"),
            (Method::HEAD, "/metrics", 200, "# EOF"),
            (Method::POST, "/metrics", 405, "GET"),
            (Method::GET, "/", 404, "/metrics"),
        ] {
            let response = answer(&metrics, &method, path);
            assert_eq!(response.status(), status, "{method} {path}");
            assert!(response.body().contains(part), "{method} {path}");
        }
    }
}
