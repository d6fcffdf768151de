//! What stands between the wire and every RPC: the client's deadline and the
//! gRPC codes that CRI clients expect.
//!
//! tonic ends a call at its deadline with `Cancelled` and refuses an oversized
//! message with `OutOfRange`; the kubelet and the gRPC specification expect
//! `DeadlineExceeded` and `ResourceExhausted`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tonic::server::NamedService;
use tonic::{Code, Status};

use crate::prometheus::Metrics;

/// tonic's own timer for the same header must not win: it answers `Cancelled`.
const AHEAD: Duration = Duration::from_millis(2);

/// A service behind the door.
#[derive(Debug, Clone)]
pub struct Door<S> {
    service: S,
    metrics: Arc<Metrics>,
}

impl<S> Door<S> {
    /// All calls of `service` are counted in `metrics`.
    pub fn new(service: S, metrics: &Arc<Metrics>) -> Self {
        let metrics = metrics.clone();
        Self { service, metrics }
    }
}

impl<S: NamedService> NamedService for Door<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tonic::codegen::Service<Request<Body>> for Door<S>
where
    S: tonic::codegen::Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let begin = Instant::now();
        let metrics = self.metrics.clone();
        let limit = timeout(request.headers());
        let method = request.uri().path().to_owned();
        let answer = self.service.call(request);
        Box::pin(async move {
            let mut response = match limit {
                None => answer.await?,
                Some(limit) => {
                    match tokio::time::timeout(limit.saturating_sub(AHEAD), answer).await {
                        Ok(response) => response?,
                        Err(_) => {
                            tracing::debug!(%method, ?limit, "deadline passed");
                            Status::deadline_exceeded(format!(
                                "{method} was not finished within the caller's {limit:?}"
                            ))
                            .into_http()
                        }
                    }
                }
            };
            let code = HeaderValue::from(Code::OutOfRange as i32);
            if response.headers().get("grpc-status") == Some(&code) {
                response.headers_mut().insert(
                    "grpc-status",
                    HeaderValue::from(Code::ResourceExhausted as i32),
                );
            }
            // A call that succeeds tells so behind its body.
            let code = Status::from_header_map(response.headers())
                .map_or(Code::Ok, |status| status.code());
            metrics.answered(&method, code, begin.elapsed());
            Ok(response)
        })
    }
}

/// The `grpc-timeout` header: at most eight digits and a unit. Nonsense is no deadline.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_as_grpc_writes_them() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("119999992u", None),
            ("11999999u", Some(Duration::from_micros(11_999_999))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("0n", Some(Duration::ZERO)),
            ("S", None),
            ("", None),
            ("5x", None),
            ("-5S", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_str(text).unwrap());
            assert_eq!(timeout(&headers), expected, "{text:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    /// Answers with the status of its choice, or never.
    #[derive(Clone)]
    struct Inner(Option<Code>);

    impl tonic::codegen::Service<Request<Body>> for Inner {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            let code = self.0;
            Box::pin(async move {
                match code {
                    Some(code) => Ok(Status::new(code, "inner").into_http()),
                    None => std::future::pending().await,
                }
            })
        }
    }

    // A client of tonic has a timer of its own for the same header, so that the door
    // is tested without one.
    #[tokio::test]
    async fn deadlines_and_sizes_have_the_codes_that_clients_expect() {
        use tonic::codegen::Service as _;
        for (inner, header, expected) in [
            (None, Some("20m"), Code::DeadlineExceeded),
            (None, Some("0m"), Code::DeadlineExceeded),
            (Some(Code::OutOfRange), None, Code::ResourceExhausted),
            (Some(Code::NotFound), Some("20S"), Code::NotFound),
        ] {
            let mut request = Request::new(Body::empty());
            if let Some(value) = header {
                request
                    .headers_mut()
                    .insert("grpc-timeout", HeaderValue::from_static(value));
            }
            let answer = Door::new(Inner(inner), &Arc::new(Metrics::empty())).call(request);
            let response = tokio::time::timeout(Duration::from_secs(10), answer)
                .await
                .unwrap()
                .unwrap();
            let status = Status::from_header_map(response.headers()).unwrap();
            assert_eq!(status.code(), expected, "{inner:?} {header:?}");
        }
    }
}
